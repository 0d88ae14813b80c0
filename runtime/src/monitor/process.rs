//! How a process becomes a monitor: everything the kernel should know of it before it serves.

use std::fs;

use nix::sys::signal::Signal;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::sockopt;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, setrlimit};

use super::event_loop::Monitor;
use super::{complain, stdio};
use crate::error::{Doing, Error, Result};
use crate::sys::fd::{self, KeepList};
use crate::sys::heap;
use crate::sys::signals::Signals;

/// The process's name (the kernel keeps 15 bytes); the path of a memory file says nothing.
const NAME: &std::ffi::CStr = c"bulkhead-monito";

/// As unlikely a victim of the OOM killer as a process can be that isn't exempt, like the peers'
/// shims; its death would take the pod with it.
const OOM_SCORE_ADJ: &str = "-999";

/// Open files: five for each of 256 containers, one for each of 256 execs of some of them.
const OWN_FILES: u64 = 4096;

/// The most a container can be given.
const MAX_FILES: u64 = 1 << 20;

/// The listening socket comes as standard input: it is the one descriptor the daemon can hand over
/// by the plainest way to start a process.
pub fn run() -> Result<()> {
    // Before anything is opened: a descriptor the daemon didn't mean to hand over ends here.
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    fd::close_all_but(&KeepList::new(streams)).doing(|| "close inherited descriptors")?;
    heap::tune();
    let listener = take_listener()?;
    // First, so that nothing of this process can be looked at by one that isn't root's.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .doing(|| "become non-dumpable")?;
    rustix::thread::set_name(NAME).doing(|| "set the process's name")?;
    // Away from the daemon's session: a signal to its process group isn't for us. It fails for the
    // leader of a group, which a daemon's child isn't.
    rustix::process::setsid().doing(|| "start a session")?;
    rustix::process::chdir(c"/").doing(|| "change to /")?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .doing(|| "become a subreaper")?;
    protect();
    limit_files().doing(|| "limit open files")?;
    let signals = Signals::block(&[
        // Read: children end.
        Signal::SIGCHLD,
        // Not for us: the pod ends when the daemon says so, or by SIGKILL.
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        // Errors of writes are handled where they happen.
        Signal::SIGPIPE,
        Signal::SIGXFSZ,
        Signal::SIGALRM,
    ])
    .doing(|| "block signals")?;
    Monitor::new(listener, signals)?.run()
}

/// Moves the listening socket off standard input and puts `/dev/null` there.
fn take_listener() -> Result<OwnedFd> {
    let stdin = rustix::stdio::stdin();
    if !sockopt::socket_acceptconn(stdin).unwrap_or(false) {
        return Err(Error::invalid(
            "standard input is not a listening socket: only `bulkhead serve` starts a monitor",
        ));
    }
    let listener =
        rustix::io::fcntl_dupfd_cloexec(stdin, 3).doing(|| "duplicate the listening socket")?;
    let flags = fcntl_getfl(&listener).doing(|| "examine the listening socket")?;
    fcntl_setfl(&listener, flags | OFlags::NONBLOCK)
        .doing(|| "make the listening socket non-blocking")?;
    rustix::stdio::dup2_stdin(stdio::null()?).doing(|| "close standard input")?;
    Ok(listener)
}

/// Room for what the bounds of [`super::state`] allow, whatever the daemon runs with. What a
/// container sees is set for each.
fn limit_files() -> rustix::io::Result<()> {
    let own = getrlimit(Resource::Nofile);
    let hard = own.maximum.map_or(MAX_FILES, |hard| hard.min(MAX_FILES));
    let limit = Rlimit {
        current: Some(hard.min(OWN_FILES)),
        maximum: Some(hard),
    };
    setrlimit(Resource::Nofile, limit)
}

/// Lowers the score of the OOM killer. Without CAP_SYS_RESOURCE that isn't allowed; the daemon's
/// check tells the operator, here it is a line in the log.
fn protect() {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
        complain(&Error::io("lower the monitor's OOM score", &error));
    }
}
