//! A container's stdin as attached clients feed it: a pipe, or its terminal.

use rustix::fd::OwnedFd;

use super::client::{Flow, write_some};
use super::sources::{Source, Sources};
use crate::error::Result;
use crate::sys::epoll::Interest;

/// The end the monitor writes to. Held open without clients too, so that the process doesn't read an
/// end of file.
#[derive(Debug)]
pub(super) struct Feed {
    descriptor: OwnedFd,
    terminal: bool,
    once: bool,
    /// While it is full and watched for room.
    key: Option<u64>,
}

impl Feed {
    /// A pipe's write end or a terminal's master, either non-blocking.
    pub(super) fn new(descriptor: OwnedFd, terminal: bool, once: bool) -> Self {
        Self {
            descriptor,
            terminal,
            once,
            key: None,
        }
    }

    /// Whether the end of a client's input is the end of the container's (CRI `stdin_once`; a
    /// terminal has no end of its own).
    pub(super) fn ends_with_a_client(&self) -> bool {
        self.once && !self.terminal
    }

    pub(super) fn write(&self, bytes: &[u8]) -> (usize, Flow) {
        write_some(&self.descriptor, bytes)
    }

    /// Reports when there is room again, once: a terminal nobody has open would report its hang-up
    /// all the time.
    pub(super) fn watch(&mut self, container: &str, sources: &mut Sources) -> Result<()> {
        if self.key.is_none() {
            let source = Source::Stdin(container.to_owned());
            let interest = Interest::OUT | Interest::ET;
            self.key = Some(sources.add(&self.descriptor, source, interest)?);
        }
        Ok(())
    }

    pub(super) fn unwatch(&mut self, sources: &mut Sources) {
        if let Some(key) = self.key.take() {
            sources.remove(&self.descriptor, key);
        }
    }
}
