//! What containers write: read piece by piece, logged, and handed to attached clients. The log comes
//! first; while a client is full the output isn't read, as long as [`super::patience`] allows.

use std::rc::Rc;
use std::time::Instant;

use super::complain;
use super::event_loop::{Monitor, Timer};
use super::sources::Source;
use super::stdio::Got;

impl Monitor {
    /// A watched output has something to say: one piece a turn.
    pub(super) fn output_ready(&mut self, key: u64, container: &str) {
        self.read_output(key, 1);
        self.conclude_if_drained(container);
    }

    /// Reads up to `pieces` pieces of an output, and closes it at its end. A dead container's isn't
    /// held back for anyone.
    pub(super) fn read_output(&mut self, key: u64, pieces: usize) {
        let Some(Source::Output(id)) = self.sources.of(key).cloned() else {
            return;
        };
        let running = self.machine.running(&id).is_ok();
        let mut buffers = self.take_buffers();
        let mut last = Got::Nothing;
        let mut terminal = false;
        if let Some(container) = self.containers.get_mut(&id)
            && let Some(output) = container.outputs.get(&key)
            && !(running && output.is_paused())
        {
            terminal = output.is_terminal();
            for _ in 0..pieces {
                last = output.read(&mut buffers.piece);
                let Got::Bytes(count) = last else {
                    break;
                };
                let piece = buffers.piece.get(..count).unwrap_or_default();
                let scratch = &mut buffers.scratch;
                container.log.write(output.stream(), piece, scratch);
                let mut shared: Option<Rc<[u8]>> = None;
                let clients = self.clients.values_mut();
                for client in clients.filter(|client| client.container == id) {
                    client.deliver(output.stream(), piece, &mut shared, &self.sources);
                }
            }
        }
        self.buffers = Some(buffers);
        match last {
            // A terminal may be opened again as long as the container runs.
            Got::End if terminal && running => {}
            Got::End => self.close_output(key),
            Got::Bytes(_) if terminal => self.rewatch_terminal(key, &id),
            Got::Bytes(_) | Got::Nothing => {}
        }
        if !self.clients.is_empty() {
            self.settle_clients(&id);
        }
    }

    fn rewatch_terminal(&mut self, key: u64, id: &str) {
        let container = self.containers.get(id);
        if let Some(output) = container.and_then(|container| container.outputs.get(&key))
            && let Err(error) = output.watch_again(key, &self.sources)
        {
            complain(&error);
        }
    }

    /// Stops watching an output and closes it; clients have all of it.
    pub(super) fn close_output(&mut self, key: u64) {
        let Some(Source::Output(id)) = self.sources.of(key).cloned() else {
            return;
        };
        let container = self.containers.get_mut(&id);
        if let Some(output) = container.and_then(|container| container.outputs.remove(&key)) {
            self.sources.remove(&output, key);
            let clients = self.clients.values_mut();
            for client in clients.filter(|client| client.container == id) {
                client.end_output(Some(output.stream()), &mut self.sources);
            }
        }
    }

    /// Pauses the outputs a client is behind with, and lets the others go on.
    pub(super) fn pace_outputs(&mut self, id: &str) {
        let running = self.machine.running(id).is_ok();
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let mut paused = false;
        for (key, output) in &mut container.outputs {
            let mut clients = self.clients.values();
            let stream = output.stream();
            let behind = clients.any(|client| client.container == id && client.holds(stream));
            paused |= running && behind;
            if let Err(error) = output.set_paused(running && behind, *key, &self.sources) {
                complain(&error.context(format!("output of container {id}")));
            }
        }
        let timer = Timer::Patience(id.to_owned());
        let now = Instant::now();
        if paused {
            let until = container.patience.hold(now);
            self.deadlines.set(timer, until);
        } else {
            container.patience.release(now);
            self.deadlines.cancel(&timer);
        }
    }
}
