//! What happens by itself: children end and are reaped, times run out.
//!
//! The end of a container, in this order: its init is reaped and the exit dated; what else runs in
//! its cgroup is killed; its output is drained into the log; the exit is recorded durably; then the
//! daemon is told and the cgroup removed.

use std::time::{Duration, Instant};

use super::children::reap;
use super::complain;
use super::event_loop::{Monitor, Timer, Whose, now};
use super::pod::Pod;
use super::state::Outcome;
use super::wire::Event;
use crate::sys::heap;

/// Children reaped before other sources have their turn: some milliseconds of an orphan flood.
const REAP_BATCH: usize = 512;

/// How long a process outside the container may hold its output open after the container's death.
const DRAIN: Duration = Duration::from_millis(200);

/// How often the cgroups of dying processes are looked at.
const SWEEP: Duration = Duration::from_millis(50);

/// What is read of one output after that: more than a pipe holds by default.
const LAST_PIECES: usize = 16;

impl Monitor {
    /// Reaps what has ended, in batches.
    pub(super) fn reap(&mut self) {
        for _ in 0..REAP_BATCH {
            let Some((pid, outcome)) = reap() else {
                self.unreaped = false;
                return;
            };
            match self.pids.remove(&pid) {
                Some(Whose::Container(id)) => self.init_ended(&id, outcome),
                Some(Whose::Exec(id)) => self.exec_ended(&id, outcome),
                Some(Whose::Pause) if !self.machine.is_stopping() => {
                    self.tell(&Event::PauseExited);
                }
                // An orphan that came to us as the subreaper, or a pause process that was ended.
                None | Some(Whose::Pause) => {}
            }
        }
    }

    fn init_ended(&mut self, id: &str, outcome: Outcome) {
        self.machine.ended(id, outcome, now());
        let Some(container) = self.containers.get(id) else {
            return;
        };
        if let Err(error) = container.kill() {
            complain(&error.context(format!("kill what is left of container {id}")));
        }
        let keys: Vec<u64> = container.outputs.keys().copied().collect();
        for key in keys {
            self.read_output(key, LAST_PIECES);
        }
        if !self.conclude_if_drained(id) {
            // Somebody outside holds it open, e.g. a process it was handed to.
            let timer = Timer::Drain(id.to_owned());
            self.deadlines.set(timer, Instant::now() + DRAIN);
        }
    }

    /// The output of a dead container is no longer waited for.
    pub(super) fn stop_draining(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let keys: Vec<u64> = container.outputs.keys().copied().collect();
        for key in keys {
            self.read_output(key, LAST_PIECES);
            self.close_output(key);
        }
        self.conclude_if_drained(id);
    }

    /// Concludes a dead container if nothing more of its output can come.
    pub(super) fn conclude_if_drained(&mut self, id: &str) -> bool {
        let drained = self.machine.running(id).is_err()
            && self
                .containers
                .get(id)
                .is_some_and(|container| container.outputs.is_empty());
        if drained {
            self.conclude(id);
        }
        drained
    }

    /// Records the exit of a container whose output is drained, tells it, and cleans up.
    fn conclude(&mut self, id: &str) {
        self.deadlines.cancel(&Timer::Drain(id.to_owned()));
        self.end_clients(id);
        let Some(mut container) = self.containers.remove(id) else {
            return;
        };
        let mut buffers = self.take_buffers();
        container.log.finish(&mut buffers.scratch);
        self.buffers = Some(buffers);
        let record = self
            .machine
            .record(id, container.oom_killed(), container.log.lost());
        if let (Some(record), Some(exits)) = (record, &self.exits) {
            if let Err(error) = exits.write(&record) {
                // Told all the same: a daemon that lives on can still record it.
                complain(&error);
            }
            let event = self.machine.recorded(record);
            self.tell(&event);
        }
        if let Some(pod) = &mut self.pod {
            container.remove(pod);
        }
        self.sweep();
        heap::trim();
    }

    /// Removes the cgroups of what ended, as far as nothing in them is still dying.
    pub(super) fn sweep(&mut self) {
        let mut clean = self.pod.as_mut().is_none_or(Pod::sweep);
        for container in self.containers.values_mut() {
            clean &= container.sweep();
        }
        if !clean {
            self.deadlines.set(Timer::Sweep, Instant::now() + SWEEP);
        }
    }

    fn exec_ended(&mut self, id: &str, outcome: Outcome) {
        self.deadlines.cancel(&Timer::Exec(id.to_owned()));
        if let Some(mut exec) = self.execs.remove(id) {
            if let Some(terminal) = exec.terminal.take() {
                terminal.close(&mut self.sources);
            }
            let settled = match (self.containers.get_mut(&exec.container), &mut self.pod) {
                (Some(container), _) => container.exec_ended(exec),
                (None, Some(pod)) => pod.exec_ended(exec),
                (None, None) => Ok(()),
            };
            if let Err(error) = settled {
                complain(&error.context(format!("end of exec {id}")));
            }
        }
        if let Some(event) = self.machine.exec_ended(id, outcome) {
            self.tell(&event);
        }
        self.sweep();
    }

    pub(super) fn exec_timed_out(&mut self, id: &str) {
        if self.machine.exec_timed_out(id)
            && let Some(exec) = self.execs.get_mut(id)
            && let Err(error) = exec.kill()
        {
            complain(&error.context(format!("kill exec {id}, whose time is up")));
        }
    }
}
