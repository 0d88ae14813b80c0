//! Puts our table back when someone else changes it: a firewall's reload flushes every table, and
//! with ours would go the host ports of running pods, their way out, and the guard of the node's
//! loopback (threat M3).
//!
//! The kernel tells of each change and who made it. At most one correction a second, so that two
//! programs that insist on the same table don't spin.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use netlink_sys::protocols;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::Shared;
use super::nft::is_foreign_change;
use crate::failure::{Doing as _, Failure};
use crate::network::netlink::Netlink;

/// The group that changes of tables are told to.
const NFNLGRP_NFTABLES: u32 = 7;

/// The pause after a correction.
const PAUSE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The thread's other end. The thread ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    _stop: OwnedFd,
}

impl Watch {
    /// Starts the thread, in the calling thread's network namespace.
    pub(super) fn start(shared: &Arc<Shared>) -> Result<Self, Failure> {
        let changes = Netlink::subscribe(protocols::NETLINK_NETFILTER, NFNLGRP_NFTABLES)
            .doing("watch nftables")?;
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC).doing("watch nftables")?;
        let shared = Arc::clone(shared);
        std::thread::Builder::new()
            .name("network-watch".to_owned())
            .spawn(move || {
                if let Err(error) = run(&shared, &changes, stopped.as_fd()) {
                    tracing::warn!(%error, "our nftables table is not watched any more");
                }
            })
            .doing("start the watch of nftables")?;
        Ok(Self { _stop: stop })
    }
}

fn run(shared: &Shared, changes: &Netlink, stopped: BorrowedFd<'_>) -> io::Result<()> {
    let ours = shared.table.port()?;
    while wait(&[stopped, changes.as_fd()], None)? {
        if !foreign(changes, ours)? {
            continue;
        }
        tracing::warn!("someone changed our nftables table: putting it back");
        if let Err(failure) = shared.assert_table() {
            tracing::warn!(%failure, "cannot put our nftables table back");
        }
        if !wait(&[stopped], Some(&PAUSE))? {
            break;
        }
    }
    Ok(())
}

/// Waits for any of them, or for the time. `false` when the first, the request to stop, has come.
fn wait(any: &[BorrowedFd<'_>], time: Option<&Timespec>) -> io::Result<bool> {
    let mut polled: Vec<PollFd<'_>> = any
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    loop {
        match poll(&mut polled, time) {
            // The other end was closed.
            Ok(_) => return Ok(polled.first().is_some_and(|stop| stop.revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether one of the changes told of is to our table and not by us.
fn foreign(changes: &Netlink, ours: u32) -> io::Result<bool> {
    match changes.drain() {
        Ok(told) => Ok(told
            .iter()
            .any(|change| is_foreign_change(&change.message, ours))),
        // More than the socket holds: ours may have been among them.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(true),
        Err(error) => Err(error),
    }
}
