//! Clients attached to a running container: they see what it writes from now on, and feed its stdin.
//!
//! The log comes first, and nobody waits for a client beyond what [`super::patience`] allows. A
//! client ends when nothing connects it any more: it closed its ends, was detached or dropped, or
//! the container ended and all its output was handed over. What a client sent before it left still
//! goes to the container.

use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;

use super::client::{Client, Flow, Input, Leaving, Sink};
use super::complain;
use super::event_loop::{Monitor, Timer};
use super::record::Stream;
use super::stdio::Got;
use super::wire::{Attach, Event};
use crate::error::{Error, Result};
use crate::sys::epoll::Interest;

/// Input is copied in pieces of this size, one a turn; so much of each client's waits at most.
const INPUT: usize = 16 << 10;

/// Pieces of input taken from a client that left: what a pipe of 1 MiB holds.
const LAST_INPUT: usize = 64;

/// How long what is on its way may take after the container, or the client, has gone.
const FAREWELL: Duration = Duration::from_secs(5);

impl Monitor {
    /// Connects a client; on failure nothing of it remains.
    pub(super) fn attach(&mut self, request: &Attach, descriptors: Vec<OwnedFd>) -> Result<()> {
        let doing = |error: Error| error.context(format!("attach to {}", request.container));
        let container = self.running_container(&request.container)?;
        if request.stderr && container.is_terminal {
            return Err(doing(Error::invalid(
                "it has a terminal, whose output is all stdout",
            )));
        }
        let has_stdin = container.stdin.is_some();
        let streams: Vec<Stream> = container.outputs.values().map(|o| o.stream()).collect();
        let mut client = Client::new(&request.container);
        if let Err(error) = self.connect(&mut client, request, descriptors, has_stdin) {
            client.close_outputs(&mut self.sources);
            client.close_input(&mut self.sources);
            return Err(doing(error));
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !streams.contains(&stream) {
                client.end_output(Some(stream), &mut self.sources);
            }
        }
        self.clients.insert(request.id.clone(), client);
        self.machine.attached(&request.id, &request.container);
        self.settle_clients(&request.container);
        Ok(())
    }

    fn connect(
        &mut self,
        client: &mut Client,
        request: &Attach,
        descriptors: Vec<OwnedFd>,
        has_stdin: bool,
    ) -> Result<()> {
        let mut descriptors = descriptors.into_iter();
        if request.stdin
            && let Some(descriptor) = descriptors.next()
            && has_stdin
        {
            client.stdin = Some(Input::new(descriptor, &request.id, &mut self.sources)?);
        }
        for (wanted, stream) in [
            (request.stdout, Stream::Stdout),
            (request.stderr, Stream::Stderr),
        ] {
            if wanted && let Some(descriptor) = descriptors.next() {
                let sink = Sink::new(descriptor, stream, &request.id, &mut self.sources)?;
                client.outputs.push(sink);
            }
        }
        Ok(())
    }

    /// The client goes, the container runs on.
    pub(super) fn detach(&mut self, id: &str) {
        if let Some(client) = self.clients.get_mut(id) {
            client.leaving = Some(Leaving::Dismissed);
            let container = client.container.clone();
            self.settle_clients(&container);
        }
    }

    /// A stream of a client can be read or written.
    pub(super) fn client_ready(&mut self, id: &str, key: u64, interest: Interest) {
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        let container = client.container.clone();
        if client
            .stdin
            .as_ref()
            .is_some_and(|input| input.key() == key)
        {
            self.copy_input(id);
        } else {
            client.sink_ready(key, interest, &mut self.sources);
        }
        self.settle_clients(&container);
    }

    /// Copies one piece of what a client sends; false if there is no more to be had now.
    fn copy_input(&mut self, id: &str) -> bool {
        let mut buffers = self.take_buffers();
        let piece = buffers.piece.get_mut(..INPUT).unwrap_or_default();
        let copied = self.copy_piece(id, piece);
        self.buffers = Some(buffers);
        match copied {
            Some(Flow::Free) => true,
            Some(Flow::Full) | None => false,
            Some(Flow::Gone) => {
                if let Some(client) = self.clients.get(id) {
                    let container = client.container.clone();
                    self.close_stdin(&container);
                }
                false
            }
        }
    }

    /// None if nothing was read.
    fn copy_piece(&mut self, id: &str, buffer: &mut [u8]) -> Option<Flow> {
        let client = self.clients.get_mut(id)?;
        let input = client.stdin.as_mut()?;
        let container = self.containers.get_mut(&client.container)?;
        let feed = container.stdin.as_mut()?;
        if !input.pending.is_empty() {
            return None;
        }
        match input.read(buffer) {
            Got::Nothing => None,
            Got::End => {
                let last = feed.ends_with_a_client();
                client.close_input(&mut self.sources);
                last.then_some(Flow::Gone)
            }
            Got::Bytes(count) => {
                let piece = buffer.get(..count).unwrap_or_default();
                let (taken, flow) = feed.write(piece);
                if flow != Flow::Full {
                    return Some(flow);
                }
                input.hold(piece.get(taken..).unwrap_or_default(), &self.sources);
                match feed.watch(&client.container, &mut self.sources) {
                    Ok(()) => Some(Flow::Full),
                    Err(error) => {
                        complain(&error);
                        Some(Flow::Gone)
                    }
                }
            }
        }
    }

    /// A container's stdin has room again, or nobody reads it any more.
    pub(super) fn stdin_ready(&mut self, id: &str) {
        match self.flush_input(id) {
            Flow::Free => {
                let container = self.containers.get_mut(id);
                if let Some(feed) = container.and_then(|container| container.stdin.as_mut()) {
                    feed.unwatch(&mut self.sources);
                }
            }
            Flow::Full => {}
            Flow::Gone => self.close_stdin(id),
        }
        self.settle_clients(id);
    }

    /// Writes what clients have sent and the container didn't take before.
    fn flush_input(&mut self, id: &str) -> Flow {
        let container = self.containers.get_mut(id);
        let Some(feed) = container.and_then(|container| container.stdin.as_mut()) else {
            return Flow::Gone;
        };
        let clients = self.clients.values_mut();
        for client in clients.filter(|client| client.container == id) {
            let Some(input) = client.stdin.as_mut() else {
                continue;
            };
            if input.pending.is_empty() {
                continue;
            }
            let (taken, flow) = feed.write(&input.pending);
            if flow != Flow::Free {
                input.pending.drain(..taken);
                return flow;
            }
            if let Err(error) = input.go_on(&self.sources) {
                complain(&error);
                client.close_input(&mut self.sources);
            }
        }
        Flow::Free
    }

    /// The container's stdin ends, and with it what clients send.
    fn close_stdin(&mut self, id: &str) {
        let container = self.containers.get_mut(id);
        if let Some(mut feed) = container.and_then(|container| container.stdin.take()) {
            feed.unwatch(&mut self.sources);
        }
        let clients = self.clients.values_mut();
        for client in clients.filter(|client| client.container == id) {
            client.close_input(&mut self.sources);
        }
    }

    /// Follows up on whatever happened to a container's clients.
    pub(super) fn settle_clients(&mut self, container: &str) {
        for id in self.clients_of(container, |client| {
            client.leaving.is_some() || client.is_finished()
        }) {
            self.see_off(&id);
        }
        // One that left may have been the end of the container's stdin, and so of others.
        for id in self.clients_of(container, Client::is_finished) {
            self.see_off(&id);
        }
        self.pace_outputs(container);
    }

    fn clients_of(&self, container: &str, such: impl Fn(&Client) -> bool) -> Vec<String> {
        let clients = self.clients.iter();
        clients
            .filter(|(_, client)| client.container == container && such(client))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Takes what a client that left has still sent, and forgets it when that is through.
    fn see_off(&mut self, id: &str) {
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        if client.leaving.is_some() {
            client.close_outputs(&mut self.sources);
            self.take_last_input(id);
        }
        if self.clients.get(id).is_some_and(Client::is_finished)
            && let Some(client) = self.clients.remove(id)
        {
            self.deadlines.cancel(&Timer::Farewell(id.to_owned()));
            self.machine.detached(id);
            self.tell(&Event::AttachEnded {
                id: id.to_owned(),
                dropped: client.dropped,
            });
        }
    }

    fn take_last_input(&mut self, id: &str) {
        for _ in 0..LAST_INPUT {
            if !self.copy_input(id) {
                break;
            }
        }
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        let Some(input) = &client.stdin else {
            return;
        };
        if !input.pending.is_empty() || client.leaving == Some(Leaving::Vanished) {
            let timer = Timer::Farewell(id.to_owned());
            if !self.deadlines.is_set(&timer) {
                self.deadlines.set(timer, Instant::now() + FAREWELL);
            }
            return;
        }
        self.end_input(id);
    }

    /// Takes nothing more from a client.
    fn end_input(&mut self, id: &str) {
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        if client.stdin.is_none() {
            return;
        }
        client.close_input(&mut self.sources);
        let container = client.container.clone();
        let feed = self.containers.get(&container).map(|c| c.stdin.as_ref());
        if feed.flatten().is_some_and(|feed| feed.ends_with_a_client()) {
            self.close_stdin(&container);
        }
    }

    /// The container ended and its output is drained: what clients haven't taken yet they may still
    /// take for a while.
    pub(super) fn end_clients(&mut self, container: &str) {
        self.close_stdin(container);
        let clients = self.clients.iter_mut();
        for (id, client) in clients.filter(|(_, client)| client.container == container) {
            client.end_output(None, &mut self.sources);
            if client.is_behind() {
                let timer = Timer::Farewell(id.clone());
                self.deadlines.set(timer, Instant::now() + FAREWELL);
            }
        }
        self.settle_clients(container);
    }

    /// What was on its way has taken too long.
    pub(super) fn farewell_over(&mut self, id: &str) {
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        client.leaving = Some(Leaving::Dismissed);
        if client.is_behind() {
            let seconds = FAREWELL.as_secs();
            client.dropped = Some(format!(
                "it left output unread for {seconds} s after the container's end"
            ));
        }
        let container = client.container.clone();
        self.end_input(id);
        self.settle_clients(&container);
    }

    /// The container was held back long enough: who is still behind is dropped.
    pub(super) fn patience_over(&mut self, container: &str) {
        let clients = self.clients.values_mut();
        for client in clients.filter(|c| c.container == container && c.is_behind()) {
            client.leaving = Some(Leaving::Dismissed);
            client.dropped = Some("it reads more slowly than the container writes".into());
        }
        self.settle_clients(container);
    }
}
