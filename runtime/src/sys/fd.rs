//! Descriptors: what they refer to, how they are put in place, and closing all others.
#![expect(
    unsafe_code,
    reason = "close_range, dup onto 0-2 and the namespace ioctl have no safe wrapper"
)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// The file system magic of statfs(2).
pub(crate) fn filesystem(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let stat = rustix::fs::fstatfs(fd)?;
    u64::try_from(stat.f_type).map_err(|_| Errno::OVERFLOW)
}

/// Whether a descriptor refers to a directory.
pub(crate) fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode).is_dir())
}

/// Whether a descriptor refers to the character device `major:minor`.
pub(crate) fn is_character_device(
    fd: BorrowedFd<'_>,
    major: u32,
    minor: u32,
) -> Result<bool, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(
        rustix::fs::FileType::from_raw_mode(stat.st_mode).is_char_device()
            && rustix::fs::major(stat.st_rdev) == major
            && rustix::fs::minor(stat.st_rdev) == minor,
    )
}

/// `CLONE_NEW*` of a namespace descriptor (NS_GET_NSTYPE, Linux 4.11, ioctl_ns(2)).
pub(crate) fn namespace_kind(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    if filesystem(fd)? != NSFS_MAGIC {
        return Err(Errno::INVAL);
    }
    // SAFETY: the ioctl takes no argument, and the descriptor was found to be of nsfs.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    super::clone::check(kind.into())?;
    u32::try_from(kind).map_err(|_| Errno::OVERFLOW)
}

/// Makes the three standard streams refer to these, which are all above 2 or already in place.
pub(crate) fn set_standard_streams(streams: [BorrowedFd<'_>; 3]) -> Result<(), Errno> {
    for (number, stream) in (0..).zip(streams) {
        let number: RawFd = number;
        if stream.as_raw_fd() == number {
            rustix::io::fcntl_setfd(stream, rustix::io::FdFlags::empty())?;
        } else {
            // SAFETY: dup3 takes no pointers. Numbers 0 to 2 are owned by nobody in this program.
            let result = unsafe { libc::syscall(libc::SYS_dup3, stream.as_raw_fd(), number, 0) };
            super::clone::check(result)?;
        }
    }
    Ok(())
}

/// A copy numbered 3 or higher, so that putting streams in place can't overwrite it.
pub(crate) fn above_standard(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() > 2 {
        Ok(fd)
    } else {
        rustix::io::fcntl_dupfd_cloexec(&fd, 3)
    }
}

/// Two ends of a socket whose messages keep their bounds, both close-on-exec and above 2.
pub(crate) fn socket_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (one, other) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    Ok((above_standard(one)?, above_standard(other)?))
}

/// Every descriptor above 2 will be closed by execve (CLOSE_RANGE_CLOEXEC, Linux 5.11).
pub(crate) fn close_all_on_exec() -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: takes no pointers; nothing is closed before the program is replaced.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    super::clone::check(result).map(|_| ())
}

/// Descriptors that stay open when a child closes all others.
#[derive(Debug, Default)]
pub(crate) struct KeepList {
    numbers: Vec<u32>,
}

impl KeepList {
    /// Allocates; a child only reads.
    pub(crate) fn new<'a>(fds: impl IntoIterator<Item = BorrowedFd<'a>>) -> Self {
        let mut numbers: Vec<u32> = fds
            .into_iter()
            .filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok())
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        Self { numbers }
    }
}

/// Closes every other descriptor, for a child whose copies nobody will drop.
pub(crate) fn close_all_but(keep: &KeepList) -> Result<(), Errno> {
    let mut first = 0;
    for number in &keep.numbers {
        if *number > first {
            close_range(first, number - 1)?;
        }
        first = number + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: takes no pointers. Only called in a child that never uses or drops the closed
    // descriptors' owners: it ends in execve or exit.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    super::clone::check(result).map(|_| ())
}
