//! The parent's side: opens everything the child needs, clones, places the child in its cgroup, and
//! waits until it has become the program or says why not.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::channel::{Channel, Wait};
use super::child::{self, ContainerWork, Kind, Work};
use super::listener::Agent;
use super::prepare::{self, Prepared};
use super::report::{self, Message};
use super::{LaunchInput, Launched, Stdio};
use crate::cgroup::Cgroup;
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::idmap::IdMaps;
use crate::plan::seccomp::FilterOptions;
use crate::plan::{self, Plan, ProcessPlan};
use crate::sys::clone::{self, CloneOptions, Cloned};
use crate::sys::fd::{self, KeepList};
use crate::sys::{pidfd, procfs, seccomp};

pub(super) fn create(input: LaunchInput<'_>) -> Result<Launched> {
    let mut plan = plan::container(input.spec, input.features)?;
    if input.pid_namespace.is_some() {
        plan.namespaces.new &= !raw::CLONE_NEWPID;
        plan.namespaces
            .join
            .retain(|(kind, _)| *kind != raw::CLONE_NEWPID);
    }
    let seccomp = program(input.seccomp)?;
    let filter = FilterOptions::of(input.spec);
    let agent = Agent::connect(&filter)?;
    let maps = plan.namespaces.user.as_ref().map(|user| &user.maps);
    let streams = Streams::prepare(input.stdio, &plan.process, maps)?;
    let joins = prepare::open_namespaces(&plan.namespaces.join)?;
    let pid_namespace = input
        .pid_namespace
        .or(joins.pid.as_ref().map(|fd| fd.as_fd()));
    let Prepared {
        user,
        root,
        trees,
        devices,
    } = prepare::prepare(&plan, input.rootfs, input.images, input.features)?;
    let made: Vec<_> = plan.mounts.iter().map(|_| OnceCell::new()).collect();
    let null = prepare::open_null()?;
    let channel = Channel::new()?;
    let fds = streams.fds();
    let cgroup = join_files(input.cgroup)?;
    // Without a user namespace the root's descriptor is not kept: the child has it as "/" when it
    // closes the others.
    let keep = KeepList::new(
        [channel.child_end(), null.as_fd()]
            .into_iter()
            .chain(pid_namespace)
            .chain(user.is_some().then(|| root.as_fd()))
            .chain(devices.iter().map(|device| device.as_fd()))
            .chain(trees.iter().flatten().map(|tree| tree.as_fd()))
            .chain(fds.into_iter().flatten()),
    );
    let work = Work {
        kind: Kind::Container(ContainerWork {
            plan: &plan,
            root: root.as_fd(),
            user: user.as_ref().map(|user| user.as_fd()),
            new: plan.namespaces.new,
            devices: &devices,
            joins: &joins.others,
            pid_namespace,
            trees: &trees,
            made: &made,
            null: null.as_fd(),
        }),
        process: &plan.process,
        seccomp: seccomp.as_ref(),
        filter_flags: filter.flags,
        streams: fds,
        cgroup: &cgroup,
        keep,
        last_capability: input.features.last_capability,
    };
    let launch = Launch {
        id: input.id,
        work: &work,
        plan: Some(&plan),
        // Those of a user namespace are made by the child, once it is in it.
        namespaces: if user.is_some() {
            0
        } else {
            plan.namespaces.new
        },
        cgroup: input.cgroup,
        agent: agent.as_ref(),
    };
    drive(&launch, channel)
}

/// How the child joins its cgroup in version 1 hierarchies.
pub(super) fn join_files(cgroup: Option<&Cgroup>) -> Result<Vec<OwnedFd>> {
    cgroup.map_or_else(|| Ok(Vec::new()), Cgroup::join_files)
}

pub(super) fn program(bytes: Option<&[u8]>) -> Result<Option<seccomp::Program>> {
    bytes
        .map(|bytes| {
            seccomp::Program::parse(bytes)
                .map_err(|why| Error::invalid(format!("the seccomp program can't be used: {why}")))
        })
        .transpose()
}

/// The standard streams, above 2 so that putting them in place can't overwrite one of them.
pub(super) struct Streams(Option<[OwnedFd; 3]>);

impl Streams {
    /// `maps` are those of the process's user namespace: its pipes are given to it here, as in there it
    /// can't take what is the node's.
    pub(super) fn prepare(
        stdio: Stdio,
        process: &ProcessPlan,
        maps: Option<&IdMaps>,
    ) -> Result<Self> {
        match (stdio, process.identity.terminal) {
            (Stdio::Terminal, Some(_)) => Ok(Self(None)),
            (
                Stdio::Descriptors {
                    stdin,
                    stdout,
                    stderr,
                },
                None,
            ) => {
                let doing = || "prepare the standard streams";
                let uid = maps.and_then(|maps| maps.outside_uid(process.identity.uid));
                let above = |stream: OwnedFd| {
                    if let Some(uid) = uid {
                        give(stream.as_fd(), uid).doing(doing)?;
                    }
                    fd::above_standard(stream).doing(doing)
                };
                Ok(Self(Some([above(stdin)?, above(stdout)?, above(stderr)?])))
            }
            (Stdio::Terminal, None) => Err(Error::invalid(
                "process.terminal is not set, but a terminal is to be made",
            )),
            (Stdio::Descriptors { .. }, Some(_)) => Err(Error::invalid(
                "process.terminal is set, but standard streams are given",
            )),
        }
    }

    pub(super) fn fds(&self) -> Option<[BorrowedFd<'_>; 3]> {
        self.0
            .as_ref()
            .map(|streams| streams.each_ref().map(|fd| fd.as_fd()))
    }
}

/// Gives a pipe to a user of the node; other streams stay as they are.
fn give(stream: BorrowedFd<'_>, uid: u32) -> std::result::Result<(), Errno> {
    let stat = rustix::fs::fstat(stream)?;
    if FileType::from_raw_mode(stat.st_mode).is_fifo() {
        rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    }
    Ok(())
}

/// One launch, all prepared.
pub(super) struct Launch<'a> {
    pub(super) id: &'a str,
    pub(super) work: &'a Work<'a>,
    /// None for an exec.
    pub(super) plan: Option<&'a Plan>,
    /// `CLONE_NEW*` bits.
    pub(super) namespaces: u32,
    pub(super) cgroup: Option<&'a Cgroup>,
    /// Who answers the filter's notifications.
    pub(super) agent: Option<&'a Agent<'a>>,
}

/// A child that is killed and reaped unless it is let go.
struct Child {
    pid: i32,
    pidfd: Option<OwnedFd>,
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            pidfd::kill_and_reap(pidfd.as_fd());
        }
    }
}

/// Clones, lets the child go on when it is in its cgroup, and follows it to execve.
pub(super) fn drive(launch: &Launch<'_>, channel: Channel) -> Result<Launched> {
    // A copy inherits this: it is not to be looked into before its own first instruction either.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .doing(|| "become non-dumpable")?;
    let Channel { parent, child: end } = channel;
    let options = CloneOptions {
        namespaces: launch.namespaces,
        cgroup: launch.cgroup.and_then(Cgroup::clone_into),
        sibling: false,
    };
    let mut child = match clone::clone3(options).doing(|| "clone a process")? {
        Cloned::Child => child::run(launch.work, end.as_fd()),
        Cloned::Parent { pid, pidfd } => Child {
            pid,
            pidfd: Some(pidfd),
        },
    };
    drop(end);
    let proc = procfs::open_host()?;
    if let Some(score) = &launch.work.process.identity.oom_score_adj {
        set_oom_score(proc.as_fd(), child.pid, score)?;
    }
    let parent = parent.as_fd();
    match rustix::io::write(parent, b"g") {
        // EPIPE: the child has failed and ended; its report follows.
        Ok(_) | Err(Errno::PIPE) => {}
        Err(errno) => return Err(Error::system("give the child the go-ahead", errno)),
    }
    // Read while the child is at work; a second process, where one is made, has a time of its own.
    let mut start_ticks = procfs::start_ticks(proc.as_fd(), child.pid);
    let mut terminal = None;
    let mut ready = false;
    let mut failed = None;
    let wait = Wait::new(parent, || {
        match launch.cgroup.and_then(Cgroup::standstill) {
            Some(obstacle) => Err(Error::from(obstacle)),
            None => Ok(()),
        }
    });
    loop {
        match wait.receive()? {
            (Some(Message::Forked(pid)), attached) => {
                let second = Child {
                    pid,
                    pidfd: attached,
                };
                start_ticks = procfs::start_ticks(proc.as_fd(), pid);
                let first = std::mem::replace(&mut child, second);
                reap_first(first);
            }
            (Some(Message::Terminal), attached) => terminal = attached,
            (Some(Message::Listener), attached) => tell(launch, child.pid, attached)?,
            (Some(Message::Ready), _) => ready = true,
            // Followed to the end: a second process may be heard of before the first has told of it.
            (Some(Message::Failed(failure, text)), _) => failed = Some((failure, text)),
            (None, _) => break,
        }
    }
    if let Some((failure, text)) = failed {
        return Err(report::explain(
            &failure,
            &text,
            launch.plan,
            launch.work.process,
        ));
    }
    if !ready {
        return Err(Error::new(
            ErrorKind::System,
            format!(
                "{}: the process was killed before it executed its program",
                launch.id
            ),
        ));
    }
    let Some(pidfd) = child.pidfd.take() else {
        return Err(Error::new(
            ErrorKind::System,
            "the child came without a descriptor",
        ));
    };
    Ok(Launched {
        pid: child.pid,
        pidfd,
        terminal,
        start_ticks: start_ticks?,
    })
}

/// Passes the filter's notifications on at once: from now on the child may wait for an answer.
fn tell(launch: &Launch<'_>, pid: i32, filter: Option<OwnedFd>) -> Result<()> {
    match (launch.agent, filter) {
        (Some(agent), Some(filter)) => agent.tell(launch.id, pid, filter.as_fd()),
        _ => Err(Error::new(
            ErrorKind::System,
            "a seccomp listener came without a descriptor, or nobody asked for one",
        )),
    }
}

/// The first process ends by itself once it has told of the second.
fn reap_first(mut first: Child) {
    if let Some(pidfd) = first.pidfd.take() {
        pidfd::reap(pidfd.as_fd());
    }
}

/// Sets the OOM score. One below the present needs CAP_SYS_RESOURCE: without it the present one stays.
pub(crate) fn set_oom_score(proc: BorrowedFd<'_>, pid: i32, score: &[u8]) -> Result<()> {
    let path = plan::c_string("oom_score_adj", format!("{pid}/oom_score_adj"))?;
    match procfs::write(proc, &path, score) {
        Ok(()) | Err(Errno::ACCESS | Errno::PERM) => Ok(()),
        // The child has ended: its report says why.
        Err(Errno::NOENT | Errno::SRCH) => Ok(()),
        Err(errno) => Err(Error::system(
            format!("set oom_score_adj to {}", String::from_utf8_lossy(score)),
            errno,
        )),
    }
}
