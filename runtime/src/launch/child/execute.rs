//! execve, in the child: each candidate in turn, and what is said when none could be executed.

use std::ffi::CStr;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::failure;
use crate::launch::report::{self, Failure, Note, Stage};
use crate::plan::ProcessPlan;
use crate::sys::clone;

/// Tries each candidate as execvp(3) does. Returns why none could be executed.
pub(super) fn execute(
    process: &ProcessPlan,
    text: &mut [u8; report::TEXT],
    length: &mut usize,
) -> Failure {
    let command = &process.command;
    let mut denied = None;
    for candidate in &command.candidates {
        let errno = clone::execve(candidate, &command.arguments, &command.environment);
        match errno {
            Errno::NOENT if exists(candidate) => {
                *length = beginning(candidate, text).unwrap_or(0);
                return failure(Stage::Execute, 0, errno, Note::Interpreter);
            }
            Errno::NOENT | Errno::NOTDIR if command.searched => {}
            Errno::ACCESS if is_directory(candidate) => {
                denied = denied.or(Some(Note::Directory));
            }
            Errno::ACCESS => denied = Some(Note::None),
            errno => return failure(Stage::Execute, 0, errno, Note::None),
        }
    }
    match denied {
        // A directory of the program's name on PATH is passed over, as shells do.
        Some(Note::Directory) if command.searched => {
            failure(Stage::Execute, 0, Errno::NOENT, Note::None)
        }
        Some(note) => failure(Stage::Execute, 0, Errno::ACCESS, note),
        None => failure(Stage::Execute, 0, Errno::NOENT, Note::None),
    }
}

fn exists(path: &CStr) -> bool {
    rustix::fs::statat(rustix::fs::CWD, path, AtFlags::empty()).is_ok()
}

fn is_directory(path: &CStr) -> bool {
    rustix::fs::statat(rustix::fs::CWD, path, AtFlags::empty())
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// The first bytes of a program; it was found to be a file that execve opened.
fn beginning(path: &CStr, text: &mut [u8]) -> Result<usize, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    rustix::io::read(&file, text)
}
