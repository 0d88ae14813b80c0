//! The blocking end of a connection to a monitor: connect, send, receive. The daemon splits it and
//! gives the receiving half to a thread; tests and tools use [`Connection::call`].

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use super::frame::{Decoder, Frame, Kind, encode};
use super::wire::{Event, Reply, Request, VERSION};
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::sys::scm;

/// The name of a monitor's socket in its pod's directory.
pub const SOCKET: &str = "monitor.sock";

/// A pod's directory, only to reach [`SOCKET`] in it.
///
/// # Errors
/// When there is no such directory.
pub fn open_directory(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty())
        .doing(|| format!("open pod directory {}", directory.display()))
}

/// A path to [`SOCKET`] that fits a socket address (108 bytes) however long the directory's own
/// path is: through its descriptor, which must stay open while the path is used.
pub fn short_socket_path(directory: &OwnedFd) -> String {
    format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())
}

/// The half that sends. One message at a time, whole.
#[derive(Debug)]
pub struct Sender {
    socket: Arc<UnixStream>,
}

/// The half that receives.
#[derive(Debug)]
pub struct Receiver {
    socket: Arc<UnixStream>,
    decoder: Decoder,
    descriptors: Vec<OwnedFd>,
}

/// Both halves.
#[derive(Debug)]
pub struct Connection {
    sender: Sender,
    receiver: Receiver,
    events: VecDeque<Event>,
    last_id: u32,
}

impl Sender {
    /// Sends one message with its descriptors; blocks until the kernel has taken it whole.
    pub fn send(
        &mut self,
        kind: Kind,
        id: u32,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let bytes = encode(kind, id, message)?;
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            let with_first = if sent == 0 { descriptors } else { &[] };
            sent += scm::send(&*self.socket, rest, with_first)
                .doing(|| "send a message on the monitor's connection")?;
        }
        Ok(())
    }

    /// Ends the connection in both directions; a blocked receiver returns.
    pub fn shutdown(&self) {
        // Fails only if the peer closed it already, which is what is wanted.
        let _already_closed = self.socket.shutdown(Shutdown::Both);
    }
}

impl Receiver {
    /// The next frame; blocks. `None` is the end of the stream between two frames.
    pub fn receive(&mut self) -> Result<Option<Frame>> {
        loop {
            let space = self.decoder.space();
            let count = scm::receive(&*self.socket, space, &mut self.descriptors)
                .doing(|| "receive from the monitor's connection")?;
            if count == 0 && self.decoder.idle() {
                return Ok(None);
            }
            if count == 0 {
                return Err(Error::invalid(
                    "the monitor's connection ended inside a frame",
                ));
            }
            if let Some(frame) = self.decoder.received(count, &mut self.descriptors)? {
                return Ok(Some(frame));
            }
        }
    }
}

impl Connection {
    /// Connects to the monitor whose pod directory is given. The caller sends [`Request::Hello`]
    /// first.
    pub fn connect(directory: &Path) -> Result<Self> {
        let open = open_directory(directory)?;
        let socket = UnixStream::connect(short_socket_path(&open))
            .doing(|| format!("connect to {}/{SOCKET}", directory.display()))?;
        Ok(Self::new(socket))
    }

    /// A connection over a socket that exists.
    pub fn new(socket: UnixStream) -> Self {
        let socket = Arc::new(socket);
        Self {
            sender: Sender {
                socket: Arc::clone(&socket),
            },
            receiver: Receiver {
                socket,
                decoder: Decoder::new(),
                descriptors: Vec::new(),
            },
            events: VecDeque::new(),
            last_id: 0,
        }
    }

    /// Two halves for two threads. Events that [`Connection::call`] met were in its queue: take
    /// them first.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// The socket, e.g. to set a receive time-out.
    pub fn socket(&self) -> &UnixStream {
        &self.sender.socket
    }

    /// Says hello and returns the version both speak and the monitor's pid.
    pub fn hello(&mut self) -> Result<(u16, i32)> {
        match self.call(&Request::Hello { version: VERSION }, &[])? {
            (Reply::Hello { version, pid }, _) => Ok((version, pid)),
            (other, _) => Err(Error::invalid(format!("hello was answered by {other:?}"))),
        }
    }

    /// Sends a request and waits for its reply; events that come meanwhile are queued. A
    /// [`Reply::Failed`] becomes the error it carries.
    pub fn call(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>)> {
        self.last_id = self.last_id.wrapping_add(1).max(1);
        let id = self.last_id;
        self.sender.send(Kind::Request, id, request, descriptors)?;
        loop {
            let frame = self.receiver.receive()?.ok_or_else(closed)?;
            match frame.header.kind {
                Kind::Event => self.events.push_back(frame.parse()?),
                Kind::Reply if frame.header.id == id => {
                    return match frame.parse()? {
                        Reply::Failed(error) => Err(error),
                        reply => Ok((reply, frame.descriptors)),
                    };
                }
                Kind::Reply | Kind::Request => {
                    return Err(Error::invalid(format!(
                        "expected the reply to request {id}, got {:?}",
                        frame.header
                    )));
                }
            }
        }
    }

    /// The next event, from the queue or the socket; blocks.
    pub fn event(&mut self) -> Result<Event> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        let frame = self.receiver.receive()?.ok_or_else(closed)?;
        frame.parse()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.socket.as_fd()
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::NotFound, "the monitor closed the connection")
}
