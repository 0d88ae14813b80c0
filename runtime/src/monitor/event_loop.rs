//! The monitor's loop: one thread, one epoll. What is ready is dispatched to [`super::requests`]
//! (the daemon asks) and [`super::endings`] (a process ended, a time is up), [`super::outputs`] and
//! [`super::attach`] (bytes came). No source is served for long before the others have their turn.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use rustix::fd::OwnedFd;

use super::children::{Container, RunningExec};
use super::client::Client;
use super::complain;
use super::deadline::Deadlines;
use super::exits::Exits;
use super::frame::{Frame, Kind};
use super::log::Scratch;
use super::peer::Peer;
use super::pod::Pod;
use super::sources::{ACTIVE, CANDIDATE, LISTENER, SIGNALS, Source, Sources};
use super::state::Machine;
use super::wire::{Event, Reply};
use crate::error::{Error, Result};
use crate::sys::epoll::Interest;
use crate::sys::heap;
use crate::sys::signals::Signals;

/// Output is read in pieces of this size: a pipe's capacity.
const PIECE: usize = 64 << 10;

/// The buffers for output are given back when none came for this long.
const IDLE: Duration = Duration::from_secs(2);

/// What happens at a given time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The time of an exec is up.
    Exec(String),
    /// A container's output is no longer waited for.
    Drain(String),
    /// Attached clients hold a container's output back no longer.
    Patience(String),
    /// What was on its way to or from an attached client is no longer waited for.
    Farewell(String),
    /// Cgroups that couldn't be removed are tried again.
    Sweep,
    /// The buffers for output are given back.
    Idle,
}

/// Whose process it is.
#[derive(Clone, Debug)]
pub(super) enum Whose {
    Container(String),
    Exec(String),
    Pause,
}

/// The buffers for output.
#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) piece: Vec<u8>,
    pub(super) scratch: Scratch,
    used: bool,
}

/// The monitor's state: the machine that decides, and the objects its decisions are about.
#[derive(Debug)]
pub(super) struct Monitor {
    pub(super) sources: Sources,
    listener: OwnedFd,
    signals: Signals,
    /// The daemon that said hello last.
    active: Option<Peer>,
    /// One that connected and hasn't said hello yet.
    candidate: Option<Peer>,
    pub(super) machine: Machine,
    pub(super) deadlines: Deadlines<Timer>,
    pub(super) pod: Option<Pod>,
    pub(super) exits: Option<Exits>,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) execs: BTreeMap<String, RunningExec>,
    pub(super) pids: BTreeMap<i32, Whose>,
    /// Attached clients by the id of their attach.
    pub(super) clients: BTreeMap<String, Client>,
    pub(super) buffers: Option<Buffers>,
    /// Requests of the active connection that are answered when the pod is stopped.
    pub(super) stop_requests: Vec<u32>,
    /// Children may have ended that are not reaped yet.
    pub(super) unreaped: bool,
    /// Shutdown was answered; the loop ends when the answer is sent.
    pub(super) leaving: bool,
}

impl Monitor {
    /// A monitor of nothing, listening.
    pub(super) fn new(listener: OwnedFd, signals: Signals) -> Result<Self> {
        let sources = Sources::new()?;
        sources.add_fixed(&listener, LISTENER)?;
        sources.add_fixed(&signals, SIGNALS)?;
        Ok(Self {
            sources,
            listener,
            signals,
            active: None,
            candidate: None,
            machine: Machine::new(),
            deadlines: Deadlines::new(),
            pod: None,
            exits: None,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            pids: BTreeMap::new(),
            clients: BTreeMap::new(),
            buffers: None,
            stop_requests: Vec::new(),
            unreaped: false,
            leaving: false,
        })
    }

    /// Runs until Shutdown. Only a failing epoll is fatal.
    pub(super) fn run(mut self) -> Result<()> {
        let mut ready = Vec::new();
        while !self.done() {
            let timeout = match self.unreaped {
                true => Some(Duration::ZERO),
                false => self.deadlines.wait(Instant::now()),
            };
            self.sources.wait(timeout, &mut ready)?;
            for (key, interest) in ready.drain(..) {
                self.dispatch(key, interest);
            }
            if self.unreaped {
                self.reap();
            }
            while let Some(timer) = self.deadlines.due(Instant::now()) {
                self.expire(timer);
            }
            if self.machine.may_release() && !self.stop_requests.is_empty() {
                self.finish_stop();
            }
        }
        Ok(())
    }

    fn done(&self) -> bool {
        self.leaving && !self.active.as_ref().is_some_and(Peer::wants_to_send)
    }

    fn dispatch(&mut self, key: u64, interest: Interest) {
        match key {
            LISTENER => self.accept(),
            SIGNALS => self.unreaped |= self.signals.take(Signal::SIGCHLD),
            ACTIVE => self.active_ready(interest),
            CANDIDATE => self.candidate_ready(),
            key => match self.sources.of(key).cloned() {
                Some(Source::Output(container)) => self.output_ready(key, &container),
                Some(Source::Stdin(container)) => self.stdin_ready(&container),
                Some(Source::Client(id)) => self.client_ready(&id, key, interest),
                Some(Source::Terminal(exec)) => self.terminal_ready(&exec, key),
                None => {}
            },
        }
    }

    fn accept(&mut self) {
        let accepted = Peer::accept(&self.listener).and_then(|peer| {
            if let Some(peer) = &peer {
                self.sources.add_fixed(peer, CANDIDATE)?;
            }
            Ok(peer)
        });
        match accepted {
            // An older candidate is closed, and so no longer watched.
            Ok(Some(peer)) => self.candidate = Some(peer),
            Ok(None) => {}
            Err(error) => complain(&error),
        }
    }

    /// A new connection counts once it says hello; then it takes the place of the old one.
    fn candidate_ready(&mut self) {
        let Some(mut peer) = self.candidate.take() else {
            return;
        };
        match peer.receive() {
            Ok(None) => self.candidate = Some(peer),
            Ok(Some(frame)) if super::requests::is_hello(&frame) => {
                if let Err(error) = self.sources.change(&peer, ACTIVE, Interest::IN) {
                    return complain(&error);
                }
                if self.active.replace(peer).is_some() {
                    self.daemon_gone();
                }
                self.serve(frame);
            }
            Ok(Some(_)) => complain(&Error::invalid("a connection that didn't say hello first")),
            Err(error) => complain(&error.context("a connection that didn't say hello")),
        }
    }

    fn active_ready(&mut self, interest: Interest) {
        let Some(peer) = &mut self.active else {
            return;
        };
        let flushed = match interest.contains(Interest::OUT) {
            true => peer.flush(),
            false => Ok(()),
        };
        // One frame a turn. A hang-up is found by reading, after what came before it.
        let received = flushed.and_then(|()| {
            match interest.intersects(Interest::IN | Interest::HUP | Interest::ERR) {
                true => peer.receive(),
                false => Ok(None),
            }
        });
        match received {
            Ok(Some(frame)) => self.serve(frame),
            Ok(None) => self.watch_active(),
            Err(error) => self.drop_active(&error),
        }
    }

    /// Carries a frame's request out and answers it, unless it is answered later.
    fn serve(&mut self, frame: Frame) {
        let id = frame.header.id;
        match self.request(frame) {
            Ok(Some((reply, descriptors))) => self.reply(id, &reply, descriptors),
            Ok(None) => self.watch_active(),
            Err(error) => self.drop_active(&error),
        }
    }

    pub(super) fn reply(&mut self, id: u32, reply: &Reply, descriptors: Vec<OwnedFd>) {
        if let Some(peer) = &mut self.active {
            match peer.send(Kind::Reply, id, reply, descriptors) {
                Ok(()) => self.watch_active(),
                Err(error) => self.drop_active(&error),
            }
        }
    }

    /// Tells the daemon, if one listens; what it misses it finds in the state.
    pub(super) fn tell(&mut self, event: &Event) {
        if let Some(peer) = &mut self.active {
            match peer.send(Kind::Event, 0, event, Vec::new()) {
                Ok(()) => self.watch_active(),
                Err(error) => self.drop_active(&error),
            }
        }
    }

    /// Watches for what the active connection waits for.
    fn watch_active(&mut self) {
        let Some(peer) = &self.active else {
            return;
        };
        // While answers wait to be sent no further requests are taken.
        let interest = match peer.wants_to_send() {
            true => Interest::OUT,
            false => Interest::IN,
        };
        if let Err(error) = self.sources.change(peer, ACTIVE, interest) {
            self.drop_active(&error);
        }
    }

    fn drop_active(&mut self, error: &Error) {
        complain(&error.clone().context("connection closed"));
        self.active = None;
        self.daemon_gone();
    }

    /// Nobody waits for its answers, or reads what it was given. Attached clients are known by their
    /// own ends.
    fn daemon_gone(&mut self) {
        self.stop_requests.clear();
        self.take_over_terminals();
    }

    /// The buffers for output, made on first use.
    pub(super) fn take_buffers(&mut self) -> Buffers {
        let mut buffers = self.buffers.take().unwrap_or_else(|| {
            self.deadlines.set(Timer::Idle, Instant::now() + IDLE);
            Buffers {
                piece: vec![0; PIECE],
                scratch: Scratch::new(),
                used: true,
            }
        });
        buffers.used = true;
        buffers
    }

    fn expire(&mut self, timer: Timer) {
        match timer {
            Timer::Exec(id) => self.exec_timed_out(&id),
            Timer::Drain(container) => self.stop_draining(&container),
            Timer::Patience(container) => self.patience_over(&container),
            Timer::Farewell(id) => self.farewell_over(&id),
            Timer::Sweep => self.sweep(),
            Timer::Idle => match &mut self.buffers {
                Some(buffers) if buffers.used => {
                    buffers.used = false;
                    self.deadlines.set(Timer::Idle, Instant::now() + IDLE);
                }
                _ => {
                    self.buffers = None;
                    heap::trim();
                }
            },
        }
    }
}

/// The wall clock, nanoseconds since the epoch.
pub(super) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
