//! Attached clients, as the daemon makes them: one pipe a stream.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bulkhead_runtime::error::Result;
use bulkhead_runtime::monitor::wire::{Attach, Event, Reply, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{PATIENCE, Rig};

/// Which streams a client asks for: stdin, stdout, stderr.
pub(crate) type Wanted = (bool, bool, bool);

/// The client's ends.
#[derive(Debug, Default)]
pub(crate) struct Client {
    pub(crate) stdin: Option<File>,
    pub(crate) stdout: Option<File>,
    pub(crate) stderr: Option<File>,
}

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

impl Rig {
    /// Attaches a client.
    pub(crate) fn try_attach(&mut self, id: &str, to: &str, wanted: Wanted) -> Result<Client> {
        let mut client = Client::default();
        let mut given = Vec::new();
        if wanted.0 {
            let (read, write) = pipe();
            given.push(read);
            client.stdin = Some(write.into());
        }
        for (wanted, end) in [
            (wanted.1, &mut client.stdout),
            (wanted.2, &mut client.stderr),
        ] {
            if wanted {
                let (read, write) = pipe();
                given.push(write);
                *end = Some(read.into());
            }
        }
        let request = Request::Attach(Attach {
            id: id.into(),
            container: to.into(),
            stdin: wanted.0,
            stdout: wanted.1,
            stderr: wanted.2,
        });
        let descriptors: Vec<BorrowedFd<'_>> = given.iter().map(AsFd::as_fd).collect();
        let (reply, _) = self.call_with(&request, &descriptors)?;
        assert!(matches!(reply, Reply::Done), "{reply:?}");
        Ok(client)
    }

    pub(crate) fn attach(&mut self, id: &str, to: &str, wanted: Wanted) -> Client {
        match self.try_attach(id, to, wanted) {
            Ok(client) => client,
            Err(error) => panic!("{error}\n{}", self.complaints()),
        }
    }

    pub(crate) fn detach(&mut self, id: &str) {
        self.done(&Request::Detach { id: id.into() });
    }

    /// Waits for the end of an attach: why it was dropped, if it was.
    pub(crate) fn attach_end(&mut self, id: &str) -> Option<String> {
        let wanted = |event: &Event| matches!(event, Event::AttachEnded { id: i, .. } if i == id);
        match self.next_event(wanted) {
            Event::AttachEnded { dropped, .. } => dropped,
            other => panic!("{other:?}"),
        }
    }
}

impl Client {
    pub(crate) fn send(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
    }

    /// What comes on stdout until it holds `end`.
    pub(crate) fn read_until(&mut self, end: &str) -> String {
        read_until(self.stdout.as_mut().unwrap(), end)
    }

    /// All of stdout, to its end.
    pub(crate) fn rest(&mut self) -> String {
        read_to_end(self.stdout.as_mut().unwrap())
    }
}

/// Reads until the text holds `end`; with a deadline.
pub(crate) fn read_until(from: &mut File, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        let piece = read_piece(from);
        assert!(!piece.is_empty(), "ended after {text:?}");
        text.push_str(&String::from_utf8_lossy(&piece));
    }
    text
}

/// Reads to the end; with a deadline for each piece.
pub(crate) fn read_to_end(from: &mut File) -> String {
    let mut bytes = Vec::new();
    loop {
        let piece = read_piece(from);
        if piece.is_empty() {
            return String::from_utf8_lossy(&bytes).into_owned();
        }
        bytes.extend(piece);
    }
}

/// One read; empty at the end (which a terminal tells by an error).
fn read_piece(from: &mut File) -> Vec<u8> {
    let left = Timespec::try_from(PATIENCE).unwrap();
    let ready = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&left)).unwrap();
    assert_eq!(ready, 1, "nothing comes");
    let mut buffer = vec![0; 64 << 10];
    let count = from.read(&mut buffer).unwrap_or(0);
    buffer.truncate(count);
    buffer
}
