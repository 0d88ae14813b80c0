//! Starting monitors, for the daemon: one sealed memory file holds the executable of all of them,
//! and one thread starts them, so that each begins its life in the monitors' cgroup.
//!
//! On v1 a thread can be moved into a cgroup alone, and what it starts is born there; moving a
//! process later waits 10 ms and more. On v2 each monitor is cloned into a group of its own.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use rustix::fs::{AtFlags, Mode as FileMode, unlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use super::connection::{SOCKET, open_directory, short_socket_path};
use super::stdio::null;
use crate::cgroup::{Cgroup, Hierarchies, Mode};
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::sys::clone::{CStringArray, CloneOptions, Cloned, clone3, execve, exit, reset_signals};
use crate::sys::{fd, memfd, pidfd, procfs};

/// The cgroup of all monitors, outside the pods' (threat H1).
pub const CGROUP: &str = "/bulkhead/monitors";

/// How often the group may vanish before it is entered.
const TRIES: u32 = 10;

/// What `ps` shows; the kernel's short name is set by the monitor.
const ARGUMENT_ZERO: &str = "bulkhead-monitor";

/// The monitor's executable in memory, sealed.
#[derive(Debug)]
pub struct MonitorImage {
    memory: OwnedFd,
}

impl MonitorImage {
    /// Reads the executable once.
    pub fn load(path: &Path) -> Result<Self> {
        let doing = || format!("load the monitor's executable {}", path.display());
        let mut file = File::open(path).doing(doing)?;
        let memory = memfd::sealed_executable(ARGUMENT_ZERO, &mut file).doing(doing)?;
        Ok(Self { memory })
    }

    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.memory.as_raw_fd())
    }
}

/// Binds and listens on the monitor's socket in a pod's directory (which is 0700), in place of one
/// that an earlier attempt left there.
pub fn listen(directory: &Path) -> Result<OwnedFd> {
    let doing = || format!("listen on {}/{SOCKET}", directory.display());
    let open = open_directory(directory)?;
    match unlinkat(&open, SOCKET, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno).doing(doing),
    }
    let listener = UnixListener::bind(short_socket_path(&open)).doing(doing)?;
    let mode = FileMode::RUSR | FileMode::WUSR;
    rustix::fs::chmodat(&open, SOCKET, mode, AtFlags::empty()).doing(doing)?;
    Ok(listener.into())
}

/// A monitor to start.
#[derive(Debug)]
pub struct StartOptions {
    /// The pod's id, for `ps` and the name of a cgroup.
    pub pod_id: String,
    /// The listening socket, from [`listen`].
    pub socket: OwnedFd,
    /// Where its complaints go; `None` is the daemon's own standard error.
    pub log: Option<OwnedFd>,
}

/// A monitor that was started. Dropping it changes nothing.
#[derive(Debug)]
pub struct MonitorProcess {
    /// Process id on the node.
    pub pid: i32,
    /// Readable once the monitor has ended.
    pub pidfd: OwnedFd,
    /// Start time in clock ticks since boot, to tell a recycled pid.
    pub start_ticks: u64,
}

impl MonitorProcess {
    /// Takes the status of a monitor that ended, so that no zombie stays; true if it has ended. For
    /// the daemon that started it; a later daemon isn't its parent.
    pub fn try_reap(&self) -> Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(ended) => Ok(ended.is_some()),
            Err(Errno::CHILD) => Ok(true),
            Err(errno) => Err(errno).doing(|| format!("wait for monitor {}", self.pid)),
        }
    }
}

type Started = Result<MonitorProcess>;

/// The thread that starts monitors.
#[derive(Debug)]
pub struct Starter {
    /// `None` only while dropping.
    requests: Option<mpsc::Sender<(StartOptions, mpsc::Sender<Started>)>>,
    thread: Option<JoinHandle<()>>,
    hierarchies: Hierarchies,
}

impl Starter {
    /// Makes the monitors' cgroup and the thread.
    pub fn new(image: MonitorImage, hierarchies: &Hierarchies) -> Result<Self> {
        let (requests, inbox) = mpsc::channel::<(StartOptions, mpsc::Sender<Started>)>();
        let (report, entered) = mpsc::channel();
        let hierarchies = hierarchies.clone();
        let groups = hierarchies.clone();
        let thread = std::thread::Builder::new()
            .name("monitor-starter".into())
            .spawn(move || {
                let result = enter(&groups);
                let failed = result.is_err();
                if report.send(result).is_err() || failed {
                    return;
                }
                for (options, answer) in inbox {
                    let started = start(&image, &groups, options);
                    if let Err(mpsc::SendError(Ok(process))) = answer.send(started) {
                        // Who asked has gone, so nobody knows of this one.
                        pidfd::kill_and_reap(process.pidfd.as_fd());
                    }
                }
            })
            .doing(|| "start the thread that starts monitors")?;
        entered.recv().map_err(|_| gone())??;
        Ok(Self {
            requests: Some(requests),
            thread: Some(thread),
            hierarchies,
        })
    }

    /// Starts a monitor. Returns once its executable runs; it answers on its socket from then on.
    pub fn start(&self, options: StartOptions) -> Result<MonitorProcess> {
        let (answer, started) = mpsc::channel();
        self.requests
            .as_ref()
            .and_then(|requests| requests.send((options, answer)).ok())
            .ok_or_else(gone)?;
        started.recv().map_err(|_| gone())?
    }

    /// Removes what was made for a monitor that has ended, whoever started it.
    pub fn clean_up(&self, pod_id: &str) -> Result<()> {
        match self.hierarchies.mode() {
            Mode::Unified => match self.hierarchies.open(&own_cgroup(pod_id))? {
                Some(cgroup) => cgroup.remove(),
                None => Ok(()),
            },
            Mode::Hybrid | Mode::Legacy => Ok(()),
        }
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // It has no way to panic; if it did, that was printed.
            let _panicked = thread.join();
        }
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::WrongState,
        "the thread that starts monitors has ended",
    )
}

fn own_cgroup(pod_id: &str) -> String {
    format!("{CGROUP}/{pod_id}")
}

/// On v1: moves this thread, and with it all it starts, into the monitors' cgroup.
fn enter(hierarchies: &Hierarchies) -> Result<()> {
    if hierarchies.mode() == Mode::Unified {
        return Ok(());
    }
    let mut tries = 0;
    loop {
        let (cgroup, _kept_for_the_next) = hierarchies.create(CGROUP)?;
        match cgroup.enter_thread() {
            // An earlier daemon that is just ending may remove the empty group under our hands.
            Err(error) if tries < TRIES && is_gone(&error) => tries += 1,
            entered => return entered,
        }
    }
}

fn is_gone(error: &Error) -> bool {
    let gone = [Errno::NOENT, Errno::NODEV].map(Errno::raw_os_error);
    error.errno().is_some_and(|errno| gone.contains(&errno))
}

fn start(image: &MonitorImage, hierarchies: &Hierarchies, options: StartOptions) -> Started {
    let pod_id = options.pod_id.clone();
    let started = match hierarchies.mode() {
        Mode::Unified => {
            let (cgroup, _parents) = hierarchies.create(&own_cgroup(&pod_id))?;
            clone_into(image, &cgroup, options).inspect_err(|_| {
                // The error of the start says more.
                drop(cgroup.remove());
            })
        }
        Mode::Hybrid | Mode::Legacy => spawn(image, options),
    };
    started.map_err(|error| error.context(format!("start the monitor of pod {pod_id}")))
}

/// The plain way: the C library shares memory with the child until exec, which is fast however
/// large the daemon is.
fn spawn(image: &MonitorImage, options: StartOptions) -> Started {
    let child = Command::new(image.path())
        .arg0(ARGUMENT_ZERO)
        .arg(&options.pod_id)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(options.socket))
        .stdout(Stdio::null())
        .stderr(options.log.map_or_else(Stdio::inherit, Stdio::from))
        .spawn()
        .doing(|| "run its executable")?;
    let pid = i32::try_from(child.id()).map_err(|_| Error::invalid("a process id beyond i32"))?;
    // Not reaped yet, so the number is still this process's.
    let pidfd = Pid::from_raw(pid)
        .ok_or(Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
        .doing(|| "open a descriptor of its process")?;
    process(pid, pidfd)
}

/// Into a cgroup of its own (CLONE_INTO_CGROUP), which the C library can't. The child makes raw
/// system calls only, so the daemon's other threads and their locks don't matter to it.
fn clone_into(image: &MonitorImage, cgroup: &Cgroup, options: StartOptions) -> Started {
    let doing = || "prepare its process";
    let text = |text: String| CString::new(text).map_err(|_| Error::invalid("a NUL in a name"));
    let path = text(image.path())?;
    let arguments = CStringArray::new(vec![text(ARGUMENT_ZERO.into())?, text(options.pod_id)?]);
    let environment = CStringArray::new(Vec::new());
    let stdin = fd::above_standard(options.socket).doing(doing)?;
    let stdout = fd::above_standard(null()?).doing(doing)?;
    let stderr = match options.log {
        Some(log) => log,
        None => rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 3).doing(doing)?,
    };
    let stderr = fd::above_standard(stderr).doing(doing)?;
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let (report, mut reported) = (pipe()?, [0_u8; 4]);
    let cloned = clone3(CloneOptions {
        cgroup: cgroup.clone_into(),
        ..CloneOptions::default()
    });
    match cloned.doing(|| "clone it")? {
        Cloned::Child => {
            let errno = become_monitor(streams, &path, &arguments, &environment);
            let _parent_sees_the_end =
                rustix::io::write(&report.1, &errno.raw_os_error().to_ne_bytes());
            exit(1)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(report.1);
            match rustix::io::read(&report.0, &mut reported) {
                Ok(0) => process(pid, pidfd),
                _ => {
                    pidfd::reap(pidfd.as_fd());
                    let errno = Errno::from_raw_os_error(i32::from_ne_bytes(reported));
                    Err(errno).doing(|| "run its executable")
                }
            }
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing(|| "make a pipe")
}

/// The child's side. Returns only on failure.
fn become_monitor(
    streams: [BorrowedFd<'_>; 3],
    path: &CString,
    arguments: &CStringArray,
    environment: &CStringArray,
) -> Errno {
    let prepared = fd::set_standard_streams(streams)
        .and_then(|()| reset_signals())
        .and_then(|()| fd::close_all_on_exec());
    match prepared {
        Ok(()) => execve(path, arguments, environment),
        Err(errno) => errno,
    }
}

fn process(pid: i32, pidfd: OwnedFd) -> Started {
    Ok(MonitorProcess {
        pid,
        pidfd,
        start_ticks: start_ticks(pid)?,
    })
}

/// When a process started, in clock ticks since boot: a monitor is known again by it and its id.
///
/// # Errors
/// When there is no such process.
pub fn start_ticks(pid: i32) -> Result<u64> {
    procfs::start_ticks(procfs::open_host()?.as_fd(), pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that nobody connects to.
    fn options(pod_id: &str) -> StartOptions {
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        StartOptions {
            pod_id: pod_id.into(),
            socket: socket.into(),
            log: None,
        }
    }

    #[test]
    fn a_monitor_is_born_in_a_cgroup_of_its_own_where_there_is_a_v2_tree() {
        let hierarchies = Hierarchies::probe().unwrap();
        let root = rustix::process::geteuid().is_root();
        if !root || hierarchies.mode() == Mode::Legacy {
            eprintln!("SKIPPED monitor start by clone3: it needs root and a cgroup v2 tree");
            return;
        }
        let path = format!("/bulkhead-test/start-{}", std::process::id());
        let (cgroup, _) = hierarchies.create(&path).unwrap();
        // Any program that takes one argument will do.
        let image = MonitorImage::load(Path::new("/bin/sleep")).unwrap();
        let process = clone_into(&image, &cgroup, options("1000")).unwrap();
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).unwrap();
        assert!(groups.contains(&format!("0::{path}\n")), "{groups}");
        assert!(process.start_ticks > 0 && !process.try_reap().unwrap());
        pidfd::kill_and_reap(process.pidfd.as_fd());
        assert!(process.try_reap().unwrap(), "reaped is as good as ended");
        let text = MonitorImage {
            memory: memfd::sealed_executable("text", &mut &b"no program"[..]).unwrap(),
        };
        let error = clone_into(&text, &cgroup, options("1")).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOEXEC), "{error}");
        cgroup.remove().unwrap();
    }
}
