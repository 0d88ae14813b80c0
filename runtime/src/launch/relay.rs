//! What the children of this launcher have in common: going on as a new process, and talking to
//! the parent. Fit for a child.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::report;
use crate::sys::clone::{self, CloneOptions, Cloned};
use crate::sys::fd::{self, KeepList};

/// Goes on as a new process with these new namespaces, or in the PID namespace entered before: a child of the
/// parent's, as this one is. The caller tells the parent and ends. Only what is still needed stays open.
pub(super) fn fork(channel: BorrowedFd<'_>, keep: &KeepList, namespaces: u32) -> Result<(), Errno> {
    fd::close_all_but(keep)?;
    let options = CloneOptions {
        namespaces,
        sibling: true,
        ..CloneOptions::default()
    };
    match clone::clone3(options)? {
        Cloned::Child => Ok(()),
        Cloned::Parent { pid, pidfd } => {
            match send(channel, &report::encode_forked(pid), Some(pidfd.as_fd())) {
                Ok(()) => clone::exit(0),
                Err(_) => {
                    // The parent is gone: nobody would look after the new process.
                    let _sent =
                        rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                    clone::exit(1)
                }
            }
        }
    }
}

/// Sends a message, with a descriptor if there is one.
pub(super) fn send(
    channel: BorrowedFd<'_>,
    message: &[u8],
    attached: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = attached.map(|fd| [fd]);
    if let Some(fds) = &fds
        && !ancillary.push(SendAncillaryMessage::ScmRights(fds))
    {
        return Err(Errno::NOBUFS);
    }
    if fds.is_none() {
        // A plain write: a filter that is loaded by now surely allows it.
        return rustix::io::write(channel, message).map(|_| ());
    }
    sendmsg(
        channel,
        &[IoSlice::new(message)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map(|_| ())
}

/// Waits for the parent's byte. End of file: the parent gave up.
pub(super) fn wait(channel: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut byte = [0_u8; 1];
    loop {
        match rustix::io::read(channel, &mut byte) {
            Ok(1) => return Ok(()),
            Ok(_) => return Err(Errno::PIPE),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
