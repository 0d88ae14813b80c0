//! Reading and writing a group's files by the descriptor of its directory.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// More than any file that isn't a list of processes; those have at most 4 million lines
/// (`kernel.pid_max`) of at most 8 bytes.
const MAX_BYTES: u64 = 32 << 20;

/// What v1 shows for no limit is a number of pages near 2⁶³ bytes: 9223372036854771712 with 4 KiB
/// pages. Nothing real is in the last tebibyte.
pub(super) const UNLIMITED: u64 = (1 << 63) - (1 << 40);

/// Opens a group's directory. Readable, not O_PATH, because attributes are set through it.
pub(super) fn open_directory(at: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// Opens a file for reading, to be polled or read.
pub(super) fn open(group: impl AsFd, name: &str) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(group, name, flags, Mode::empty()).map(File::from)
}

/// Opens a file for writing.
pub(super) fn open_to_write(group: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(group, name, flags, Mode::empty())
}

pub(super) fn read(group: impl AsFd, name: &str) -> Result<String, Errno> {
    let mut text = String::new();
    let mut file = open(group, name)?.take(MAX_BYTES);
    match file.read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(Errno::ILSEQ),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

/// Writes in one call: the kernel takes each write as a whole command.
pub(super) fn write(group: impl AsFd, name: &str, text: &str) -> Result<(), Errno> {
    let mut file = File::from(open_to_write(group, name)?);
    file.write_all(text.as_bytes())
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// A number from a file of one number; `None` where the file is missing or says `max`.
pub(super) fn number(group: impl AsFd, name: &str) -> Option<u64> {
    read(group, name).ok()?.trim().parse().ok()
}

/// The value of a key in text of lines `key value`.
pub(super) fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok()).flatten()
    })
}
