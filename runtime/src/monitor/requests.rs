//! What the daemon asks, one function per request: admitted by the machine, carried out through
//! [`super::children`], and answered.

use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;

use super::children::{self, ExecDescriptors};
use super::complain;
use super::event_loop::{Monitor, Timer, Whose, now};
use super::exits::Exits;
use super::frame::{Frame, Kind};
use super::pod::Pod;
use super::wire::{CreatePod, Exec, NamespaceMode, Reply, Request, Start, VERSION};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::heap;

/// A reply and the descriptors that go with it.
type Answer = (Reply, Vec<OwnedFd>);

/// Whether a frame is the greeting that opens a connection.
pub(super) fn is_hello(frame: &Frame) -> bool {
    frame.header.kind == Kind::Request && matches!(frame.parse(), Ok(Request::Hello { .. }))
}

impl Monitor {
    /// Carries a request out. `None`: it is answered later. An error means that the frame is no
    /// request at all, which ends the connection.
    pub(super) fn request(&mut self, frame: Frame) -> Result<Option<Answer>> {
        if frame.header.kind != Kind::Request {
            return Err(Error::invalid(
                "the daemon sent something else than a request",
            ));
        }
        let request: Request = frame.parse()?;
        let id = frame.header.id;
        drop(frame.body);
        let answered = self
            .machine
            .admit(&request)
            .and_then(|()| check_descriptors(&request, &frame.descriptors))
            .and_then(|()| self.carry_out(id, request, frame.descriptors));
        Ok(match answered {
            Ok(answer) => answer,
            Err(error) => Some((Reply::Failed(error), Vec::new())),
        })
    }

    fn carry_out(
        &mut self,
        id: u32,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<Answer>> {
        let done = Ok(Some((Reply::Done, Vec::new())));
        match request {
            Request::Hello { version } => {
                let version = version.min(VERSION);
                let pid = rustix::process::getpid().as_raw_nonzero().get();
                Ok(Some((Reply::Hello { version, pid }, Vec::new())))
            }
            Request::CreatePod(request) => self.create_pod(&request, descriptors).map(Some),
            Request::Start(request) => {
                let answer = self.start(&request, descriptors);
                // A spec and a plan are large, a monitor at rest is small.
                drop(request);
                heap::trim();
                answer.map(Some)
            }
            Request::Exec(request) => self.exec(&request, descriptors).map(Some),
            Request::Signal { container, signal } => {
                self.running_container(&container)?.signal(signal)?;
                done
            }
            Request::Kill { container } => {
                if let Some(container) = self.containers.get(&container) {
                    container.kill()?;
                }
                done
            }
            Request::KillExec { id } => {
                if let Some(exec) = self.execs.get_mut(&id) {
                    exec.kill()?;
                }
                done
            }
            Request::Attach(request) => {
                self.attach(&request, descriptors)?;
                done
            }
            Request::Detach { id } => {
                self.detach(&id);
                done
            }
            Request::Resize {
                container,
                exec,
                rows,
                columns,
            } => {
                self.resize(&container, exec.as_deref(), rows, columns)?;
                done
            }
            Request::HangUp { exec } => {
                self.hang_up(&exec);
                done
            }
            Request::ReopenLog { container } => {
                self.running_container(&container)?.log.reopen()?;
                done
            }
            Request::Remove { container } => {
                if let Some(exits) = &self.exits {
                    exits.remove(&container)?;
                }
                self.machine.removed(&container);
                done
            }
            Request::Status => Ok(Some((Reply::State(self.machine.snapshot()), Vec::new()))),
            Request::StopPod => self.stop_pod(id),
            Request::Shutdown => {
                self.leaving = true;
                done
            }
        }
    }

    fn create_pod(&mut self, request: &CreatePod, descriptors: Vec<OwnedFd>) -> Result<Answer> {
        let exits = Exits::open(&request.directory)?;
        let mut pod = Pod::create(request, descriptors.into_iter().next())
            .map_err(|error| error.context(format!("create pod {}", request.id)))?;
        let network = match pod.network() {
            Ok(network) => network,
            Err(error) => {
                // Nothing of a failed request remains; the first error says more.
                drop(pod.release());
                return Err(error);
            }
        };
        let paths = pod.paths().clone();
        if let Some(pause) = paths.pause {
            self.pids.insert(pause, Whose::Pause);
        }
        self.exits = Some(exits);
        self.pod = Some(pod);
        self.machine.pod_created(paths.clone());
        heap::trim();
        Ok((Reply::PodCreated(paths), network.into_iter().collect()))
    }

    fn start(&mut self, request: &Start, descriptors: Vec<OwnedFd>) -> Result<Answer> {
        let doing = |error: Error| error.context(format!("start container {}", request.container));
        let pod = self.pod.as_ref().ok_or_else(no_pod)?;
        let target = match &request.pid_target {
            Some(target) => Some(self.containers.get(target).ok_or_else(no_pod)?),
            None => None,
        };
        let seccomp = descriptors.into_iter().next();
        let started = children::start(pod, request, seccomp, target, now).map_err(doing)?;
        let mut container = started.container;
        for output in started.outputs {
            match output.watch(&request.container, &mut self.sources) {
                Ok(key) => {
                    container.outputs.insert(key, output);
                }
                // It runs, so it is not undone; what it writes there is lost, and said to be.
                Err(error) => complain(&error),
            }
        }
        let info = started.info;
        let whose = Whose::Container(request.container.clone());
        self.pids.insert(info.pid, whose);
        self.containers.insert(request.container.clone(), container);
        self.machine.started(&request.container, info.clone());
        Ok((Reply::Started(info), Vec::new()))
    }

    fn exec(&mut self, request: &Exec, descriptors: Vec<OwnedFd>) -> Result<Answer> {
        let mut descriptors = descriptors.into_iter();
        let mut next = |wanted: bool| if wanted { descriptors.next() } else { None };
        let given = ExecDescriptors {
            seccomp: next(request.seccomp),
            stdin: next(request.stdin),
            stdout: next(request.stdout),
            stderr: next(request.stderr),
        };
        let pod = self.pod.as_ref().ok_or_else(no_pod)?;
        let container = self
            .containers
            .get_mut(&request.container)
            .ok_or_else(no_pod)?;
        let started = container
            .exec(pod, request, given, now)
            .map_err(|error| error.context(format!("exec in container {}", request.container)))?;
        if let Some(timeout) = request.timeout_ms {
            // A time that can't be said is as good as none.
            if let Some(when) = Instant::now().checked_add(Duration::from_millis(timeout)) {
                self.deadlines.set(Timer::Exec(request.id.clone()), when);
            }
        }
        let info = started.info;
        self.pids.insert(info.pid, Whose::Exec(request.id.clone()));
        self.execs.insert(request.id.clone(), started.exec);
        self.machine.exec_started(&request.id, &request.container);
        let terminal = started.terminal.into_iter().collect();
        Ok((Reply::ExecStarted(info), terminal))
    }

    fn stop_pod(&mut self, id: u32) -> Result<Option<Answer>> {
        for container in self.machine.stop() {
            if let Some(container) = self.containers.get(&container) {
                container.kill()?;
            }
        }
        if self.machine.is_stopped() {
            return Ok(Some((Reply::Done, Vec::new())));
        }
        // Answered by `finish_stop` when the exits are recorded.
        self.stop_requests.push(id);
        Ok(None)
    }

    /// Every exit is recorded: lets go of what the pod held, and answers.
    pub(super) fn finish_stop(&mut self) {
        let released = match &mut self.pod {
            Some(pod) => pod.release(),
            None => Ok(()),
        };
        let reply = match released {
            Ok(()) => {
                self.pod = None;
                self.machine.released();
                Reply::Done
            }
            Err(error) => Reply::Failed(error.context("stop the pod")),
        };
        heap::trim();
        for id in std::mem::take(&mut self.stop_requests) {
            self.reply(id, &reply, Vec::new());
        }
    }

    pub(super) fn running_container(&mut self, id: &str) -> Result<&mut children::Container> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no running container {id}")))
    }
}

/// What the machine admitted can't be missing; if it is, that is our mistake and no panic.
fn no_pod() -> Error {
    Error::new(ErrorKind::WrongState, "the monitor lost track of its pod")
}

/// Exactly the descriptors a message announces must have come with it.
fn check_descriptors(request: &Request, descriptors: &[OwnedFd]) -> Result<()> {
    let expected = match request {
        Request::CreatePod(request) => usize::from(request.network == NamespaceMode::Descriptor),
        Request::Start(request) => usize::from(request.seccomp),
        Request::Exec(request) => [
            request.seccomp,
            request.stdin,
            request.stdout,
            request.stderr,
        ]
        .into_iter()
        .filter(|wanted| *wanted)
        .count(),
        Request::Attach(request) => [request.stdin, request.stdout, request.stderr]
            .into_iter()
            .filter(|wanted| *wanted)
            .count(),
        _ => 0,
    };
    if descriptors.len() == expected {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the request announces {expected} descriptors, {} came with it",
        descriptors.len()
    )))
}
