//! The monitor's end of a connection to the daemon: never blocks, never buffers without bound.
//!
//! Whatever goes wrong here costs the connection and nothing else: the monitor keeps its state,
//! and a daemon that connects again asks for it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};
use serde::Serialize;

use super::frame::{Decoder, Frame, Kind, encode};
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::sys::scm;

/// Bytes waiting for a daemon that doesn't read; with more it is taken for stalled. Far above
/// what a status of all containers needs.
const MAX_PENDING: usize = 2 << 20;

/// A connected daemon.
#[derive(Debug)]
pub(super) struct Peer {
    socket: OwnedFd,
    decoder: Decoder,
    descriptors: Vec<OwnedFd>,
    outgoing: VecDeque<Outgoing>,
    pending: usize,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

impl Peer {
    /// Accepts a connection if one waits. The caller must be root or run as we do (threat J1); a
    /// refused one is closed and is `None` too.
    pub(super) fn accept(listener: impl AsFd) -> Result<Option<Self>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(None),
            Err(errno) => return Err(errno).doing(|| "accept a connection"),
        };
        let caller = sockopt::socket_peercred(&socket).doing(|| "read the caller's credentials")?;
        if !caller.uid.is_root() && caller.uid != rustix::process::geteuid() {
            return Err(Error::invalid(format!(
                "connection of uid {} refused: only root may connect",
                caller.uid.as_raw()
            )));
        }
        Ok(Some(Self {
            socket,
            decoder: Decoder::new(),
            descriptors: Vec::new(),
            outgoing: VecDeque::new(),
            pending: 0,
        }))
    }

    /// The next whole frame, if its bytes are there. Any error ends the connection.
    pub(super) fn receive(&mut self) -> Result<Option<Frame>> {
        loop {
            let space = self.decoder.space();
            let count = match scm::receive(&self.socket, space, &mut self.descriptors) {
                Ok(0) => return Err(Error::new(ErrorKind::NotFound, "the daemon hung up")),
                Ok(count) => count,
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno).doing(|| "receive from the daemon"),
            };
            if let Some(frame) = self.decoder.received(count, &mut self.descriptors)? {
                return Ok(Some(frame));
            }
        }
    }

    /// Queues a message and sends what the socket takes now.
    pub(super) fn send(
        &mut self,
        kind: Kind,
        id: u32,
        message: &impl Serialize,
        descriptors: Vec<OwnedFd>,
    ) -> Result<()> {
        let bytes = encode(kind, id, message)?;
        self.pending = self.pending.saturating_add(bytes.len());
        if self.pending > MAX_PENDING {
            return Err(Error::new(
                ErrorKind::Exhausted,
                format!(
                    "the daemon doesn't read: {} bytes wait for it",
                    self.pending
                ),
            ));
        }
        self.outgoing.push_back(Outgoing {
            bytes,
            sent: 0,
            descriptors,
        });
        self.flush()
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self) -> Result<()> {
        while let Some(first) = self.outgoing.front_mut() {
            let rest = first.bytes.get(first.sent..).unwrap_or_default();
            // Each message starts a call of its own, so that its descriptors arrive with its
            // first byte.
            let descriptors: Vec<BorrowedFd<'_>> =
                first.descriptors.iter().map(AsFd::as_fd).collect();
            let sent = match scm::send(&self.socket, rest, &descriptors) {
                Ok(sent) => sent,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno).doing(|| "send to the daemon"),
            };
            drop(descriptors);
            first.descriptors.clear();
            first.sent += sent;
            self.pending = self.pending.saturating_sub(sent);
            if first.sent >= first.bytes.len() {
                self.outgoing.pop_front();
            }
        }
        Ok(())
    }

    /// True while something waits for the socket to take more.
    pub(super) fn wants_to_send(&self) -> bool {
        !self.outgoing.is_empty()
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
