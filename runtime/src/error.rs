//! The error type of the launcher: what was being done, to which object, and the cause.

use std::fmt;

/// What callers branch on; everything else is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The spec or message is malformed or contradicts itself.
    Invalid,
    /// The container, process or object named does not exist.
    NotFound,
    /// The state does not allow it (already running, already exited).
    WrongState,
    /// The node's kernel or configuration lacks what was asked for.
    Unsupported,
    /// The program to execute was not found (exit code 127 by convention).
    CommandNotFound,
    /// The program was found but can't be executed (exit code 126 by convention).
    CommandNotExecutable,
    /// A bound was reached: bytes, entries, time, processes.
    Exhausted,
    /// A system call failed.
    System,
}

/// A failed operation of the launcher.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    /// The raw errno, where a system call was the cause.
    errno: Option<i32>,
}

/// The result of the launcher's operations.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error without a system call behind it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            errno: None,
        }
    }

    /// The spec or message is malformed: names the field, the reason and the way out.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// A system call failed while `doing` (operation and object, e.g. `mount proc on /proc`).
    pub fn system(doing: impl fmt::Display, errno: rustix::io::Errno) -> Self {
        Self {
            kind: ErrorKind::System,
            message: format!("{doing}: {}", std::io::Error::from(errno)),
            errno: Some(errno.raw_os_error()),
        }
    }

    /// An `std::io` operation failed while `doing`.
    pub fn io(doing: impl fmt::Display, error: &std::io::Error) -> Self {
        Self {
            kind: ErrorKind::System,
            message: format!("{doing}: {error}"),
            errno: error.raw_os_error(),
        }
    }

    /// A system call failed and the message says so in its own words, with a kind of its own.
    pub(crate) fn system_words(
        kind: ErrorKind,
        message: impl Into<String>,
        errno: rustix::io::Errno,
    ) -> Self {
        Self {
            kind,
            message: message.into(),
            errno: Some(errno.raw_os_error()),
        }
    }

    /// Puts what was being done in front; kind and errno stay.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// The same error with another kind, where the caller knows better what it means.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// What to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The raw errno of the system call that failed, if one did.
    pub fn errno(&self) -> Option<i32> {
        self.errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Adds operation and object to the errors of system calls.
pub trait Doing<T> {
    /// `doing` is evaluated only on failure.
    fn doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, rustix::io::Errno> {
    fn doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|errno| Error::system(doing(), errno))
    }
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Error::io(doing(), &error))
    }
}
