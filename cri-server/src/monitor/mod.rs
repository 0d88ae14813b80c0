//! The daemon's side of the monitors: one connection per pod, and what their answers mean.

mod expected;
mod link;
pub mod process;
mod registry;

pub use link::{Answer, Link};
pub use registry::{AttachEnd, ExecEnd, Monitors, Notice};

use bulkhead_runtime::error::{Error, ErrorKind};

use crate::failure::{Class, Failure};

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let class = match error.kind() {
            ErrorKind::Invalid => Class::Invalid,
            ErrorKind::NotFound => Class::NotFound,
            ErrorKind::WrongState => Class::Precondition,
            ErrorKind::Unsupported => Class::Precondition,
            ErrorKind::Exhausted => Class::Exhausted,
            _ => Class::Internal,
        };
        Failure::new(class, error.to_string())
    }
}
