//! The one map from a [`Failure`] to a gRPC status.

use tonic::{Code, Status};

use crate::failure::{Class, Failure};

/// The code the kubelet expects for a class (`docs/cri.md`, codes and reactions).
pub fn code(class: Class) -> Code {
    match class {
        Class::Invalid => Code::InvalidArgument,
        Class::NotFound => Code::NotFound,
        Class::Exists => Code::AlreadyExists,
        Class::Precondition => Code::FailedPrecondition,
        Class::Exhausted => Code::ResourceExhausted,
        Class::Unavailable => Code::Unavailable,
        Class::Unsupported => Code::Unimplemented,
        Class::Denied => Code::PermissionDenied,
        Class::Deadline => Code::DeadlineExceeded,
        Class::Cancelled => Code::Cancelled,
        // The kubelet strips the code and reads the reason only of UNKNOWN.
        Class::Reasoned => Code::Unknown,
        Class::Internal => Code::Internal,
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Status::new(code(failure.class()), failure.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_reaches_the_kubelet_as_unknown_and_first() {
        let status = Status::from(Failure::reasoned("RegistryUnavailable", "x is down"));
        assert_eq!(status.code(), Code::Unknown);
        assert!(status.message().starts_with("RegistryUnavailable: "));
    }
}
