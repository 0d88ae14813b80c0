//! The one error type of the daemon's operations: a class callers branch on, and a message for people.
//!
//! The map from [`Class`] to a gRPC code is `server/status.rs` and nothing else. A message is one
//! line, reads outside-in, names the object and ends with the cause (it appears in pod events).

use std::fmt;

/// What kind of failure it is; decides the gRPC code the kubelet sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// The request is malformed or contradicts itself (INVALID_ARGUMENT).
    Invalid,
    /// The object named does not exist (NOT_FOUND).
    NotFound,
    /// Another object holds the name (ALREADY_EXISTS).
    Exists,
    /// The object is in a state that does not allow this (FAILED_PRECONDITION).
    Precondition,
    /// A resource or bound is used up (RESOURCE_EXHAUSTED).
    Exhausted,
    /// Starting, stopping or overloaded: worth a retry (UNAVAILABLE).
    Unavailable,
    /// Not provided by this build or node (UNIMPLEMENTED).
    Unsupported,
    /// The caller may not (PERMISSION_DENIED).
    Denied,
    /// Out of time (DEADLINE_EXCEEDED).
    Deadline,
    /// The caller went away (CANCELLED).
    Cancelled,
    /// Carries a reason prefix the kubelet parses, which it does for UNKNOWN only.
    Reasoned,
    /// Anything else (INTERNAL).
    Internal,
}

/// A failed operation.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure {
    class: Class,
    message: String,
}

impl Failure {
    /// A failure of `class` described by one line.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            class,
            message: one_line(&message.into()),
        }
    }

    /// The request is malformed: names the field, the reason and the way out.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Class::Invalid, message)
    }

    /// The object named does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Class::NotFound, message)
    }

    /// The object's state does not allow the operation.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Class::Precondition, message)
    }

    /// Something of ours or of the node failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Class::Internal, message)
    }

    /// A failure with a reason the kubelet looks for at the start of the message
    /// (`RegistryUnavailable`, `SignatureValidationFailed`, `RROUnsupported`, …).
    pub fn reasoned(reason: &str, message: impl fmt::Display) -> Self {
        Self::new(Class::Reasoned, format!("{reason}: {message}"))
    }

    /// The name asked for belongs to the existing object `id`.
    pub fn taken(name: impl fmt::Display, id: &str) -> Self {
        Self::new(
            Class::Exists,
            format!("{name} exists as {id}; remove it or use another attempt number"),
        )
    }

    /// Puts what was being done in front of the cause; the class stays.
    #[must_use]
    pub fn context(self, doing: impl fmt::Display) -> Self {
        if self.class == Class::Reasoned
            && let Some((reason, details)) = self.message.split_once(": ")
        {
            // The kubelet tests the prefix, so the reason stays first.
            return Self::reasoned(reason, format_args!("{doing}: {details}"));
        }
        Self {
            class: self.class,
            message: one_line(&format!("{doing}: {}", self.message)),
        }
    }

    /// The class, to branch on.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The message, one line.
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// Messages appear verbatim in events and logs, so control characters, which a tenant could use to
/// forge lines or drive a terminal, become their escapes (threats G2, F6).
fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        if c.is_control() {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    out
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.class, self.message)
    }
}

impl std::error::Error for Failure {}

/// Adds what was being done to an error of any kind, making it an internal [`Failure`].
pub trait Doing<T> {
    /// `doing` comes first, the cause after it.
    fn doing(self, doing: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: std::error::Error> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| {
            let mut text = format!("{doing}: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text.push_str(": ");
                    text.push_str(&cause_text);
                }
                source = cause.source();
            }
            Failure::internal(text)
        })
    }
}

/// Turns NOT_FOUND into success: Stop and Remove of what is gone are done.
///
/// # Errors
/// Every other failure, unchanged.
pub fn gone_is_done(result: Result<(), Failure>) -> Result<(), Failure> {
    match result {
        Err(failure) if failure.class() == Class::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_without_control_characters() {
        let failure = Failure::invalid("bad name \"a\nb\u{1b}[31m\"\n");
        assert_eq!(failure.message(), "bad name \"a\\nb\\u{1b}[31m\"");
    }

    #[test]
    fn context_goes_in_front_unless_a_reason_must_stay_first() {
        let plain = Failure::not_found("no image x").context("create container c");
        assert_eq!(plain.message(), "create container c: no image x");
        let reasoned = Failure::reasoned("RegistryUnavailable", "no route").context("pull x");
        assert_eq!(reasoned.message(), "RegistryUnavailable: pull x: no route");
    }

    #[test]
    fn only_not_found_is_done() {
        assert!(gone_is_done(Err(Failure::not_found("x"))).is_ok());
        assert!(gone_is_done(Err(Failure::internal("x"))).is_err());
    }
}
