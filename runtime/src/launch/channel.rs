//! The socket between parent and child: messages keep their bounds, and the parent never waits
//! without looking whether the child can still run.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::report::{self, Message};
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::sys::fd;

/// How long a child may take until it executes its program. It makes a hundred system calls; a file
/// system that doesn't answer, or a group with little CPU time, is the only reason to be slow.
const DEADLINE: Duration = Duration::from_secs(60);

/// How often a parent that waits looks whether the child can run.
const LOOK: Duration = Duration::from_millis(100);

/// Both ends.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) parent: OwnedFd,
    pub(super) child: OwnedFd,
}

impl Channel {
    pub(super) fn new() -> Result<Self> {
        let (parent, child) = fd::socket_pair().doing(|| "make the socket to the child")?;
        Ok(Self { parent, child })
    }

    pub(super) fn child_end(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }
}

/// A wait for a child's messages.
pub(super) struct Wait<'a, F> {
    channel: BorrowedFd<'a>,
    deadline: Instant,
    /// Fails if the child can't go on.
    look: F,
}

impl<'a, F: Fn() -> Result<()>> Wait<'a, F> {
    pub(super) fn new(channel: BorrowedFd<'a>, look: F) -> Self {
        Self {
            channel,
            deadline: Instant::now() + DEADLINE,
            look,
        }
    }

    /// The next message and its descriptor; none when the last holder of the other end is gone or
    /// has become the program.
    pub(super) fn receive(&self) -> Result<(Option<Message>, Option<OwnedFd>)> {
        loop {
            self.ready()?;
            let mut bytes = [0_u8; report::SIZE];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = match recvmsg(
                self.channel,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(Errno::INTR) => continue,
                // Told once where the other end was closed with our go-ahead unread, ahead of
                // what it had sent before.
                Err(Errno::CONNRESET) => continue,
                other => other.doing(|| "hear from the child")?,
            };
            let attached = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            if received.bytes == 0 {
                return Ok((None, None));
            }
            return match report::decode(bytes.get(..received.bytes).unwrap_or_default()) {
                Some(message) => Ok((Some(message), attached)),
                None => Err(Error::new(
                    ErrorKind::System,
                    "the child sent an unknown message",
                )),
            };
        }
    }

    /// Waits until something can be received.
    fn ready(&self) -> Result<()> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(
                    ErrorKind::Exhausted,
                    format!(
                        "the process has not executed its program within {} s",
                        DEADLINE.as_secs()
                    ),
                ));
            }
            let timeout = Timespec::try_from(left.min(LOOK))
                .map_err(|_| Error::invalid("time-out out of range"))?;
            let mut polled = [PollFd::from_borrowed_fd(self.channel, PollFlags::IN)];
            match poll(&mut polled, Some(&timeout)) {
                Ok(0) => (self.look)()?,
                Err(Errno::INTR) => {}
                other => return other.doing(|| "wait for the child").map(|_| ()),
            }
        }
    }
}
