//! The protocol between the daemon and a pod's monitor: versioned frames over a unix stream socket.
//!
//! Frame: `u32` little-endian body length (at most [`MAX_FRAME`]), `u16` version, `u16` kind
//! (0 request, 1 reply, 2 event), `u32` request id (0 for events), then the body as JSON.
//! Descriptors travel by SCM_RIGHTS with the first byte of the frame they belong to; each message
//! says which it carries and in which order. A process is described by the OCI runtime spec, a
//! public format, so that daemon and monitor may be of different versions.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::idmap::IdMaps;
pub use crate::rootfs::ImageVolume;

/// The version this build speaks. A monitor outlives the daemon that started it, so a newer daemon
/// keeps understanding older versions.
pub const VERSION: u16 = 1;

/// The largest frame body, in bytes.
pub const MAX_FRAME: usize = 4 << 20;

/// The most descriptors one frame carries.
pub const MAX_DESCRIPTORS: usize = 8;

/// What the daemon asks of a monitor. Each request has exactly one [`Reply`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// First on every connection. A new connection supersedes the old one.
    Hello {
        /// Highest version the daemon speaks.
        version: u16,
    },
    /// Makes the pod's namespaces and cgroup. Once per monitor. Descriptors: the network namespace
    /// if `network` is [`NamespaceMode::Descriptor`].
    CreatePod(CreatePod),
    /// Creates and starts a container. Descriptors: the seccomp program if `seccomp`.
    Start(Start),
    /// Runs a process in a running container. Descriptors, in this order, those that are asked
    /// for: seccomp program, stdin (read end), stdout (write end), stderr (write end).
    Exec(Exec),
    /// Sends a signal to a container's init.
    Signal {
        /// The container's id.
        container: String,
        /// The signal's number on this kernel.
        signal: i32,
    },
    /// SIGKILL to every process of the container, frozen or not. Its exit comes as an event.
    Kill {
        /// The container's id.
        container: String,
    },
    /// SIGKILL to the process of a running exec and its descendants, e.g. because the caller of
    /// ExecSync went away. Its end comes as an event. An exec that already ended is no error.
    KillExec {
        /// The exec's id.
        id: String,
    },
    /// Connects a client to the streams of a running container. Descriptors, in this order, those
    /// that are asked for: stdin (read end), stdout (write end), stderr (write end).
    Attach(Attach),
    /// Ends an attach: its descriptors are closed, what the client had sent before still goes to the
    /// container, which runs on. [`Event::AttachEnded`] tells the end. One that already ended is no
    /// error.
    Detach {
        /// The attach's id.
        id: String,
    },
    /// Sets the window size of a terminal: of the container, or of one of its execs.
    Resize {
        /// The container's id.
        container: String,
        /// The exec's id; none is the container's own terminal.
        exec: Option<String>,
        /// Lines of characters.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// The client of an exec with a terminal is gone: the monitor closes its copy of the master, and
    /// with the daemon's closed too the kernel sends SIGHUP to the terminal's session (tty(4)). The
    /// process isn't killed. An exec that already ended, or has no terminal, is no error.
    HangUp {
        /// The exec's id.
        exec: String,
    },
    /// Opens the log path anew (create, append); the old file gets nothing after the reply.
    ReopenLog {
        /// The container's id.
        container: String,
    },
    /// Forgets an exited container and its exit record.
    Remove {
        /// The container's id.
        container: String,
    },
    /// Asks for the state of everything; see [`PodState`].
    Status,
    /// Kills all that runs in the pod, waits for the exits to be recorded, lets go of the
    /// namespaces and removes the cgroups. Idempotent.
    StopPod,
    /// Ends the monitor; only after [`Request::StopPod`].
    Shutdown,
}

/// How a pod gets one of its namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceMode {
    /// A new one for the pod.
    New,
    /// The node's own.
    Host,
    /// The one whose descriptor comes with the message (made ahead by a pool).
    Descriptor,
}

/// How the containers of a pod see processes (CRI `NamespaceMode` of `pid`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PidMode {
    /// Each container has a PID namespace of its own.
    Container,
    /// One for the pod; a pause process is its init.
    Pod,
    /// The node's own.
    Node,
}

/// What a pod is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreatePod {
    /// The pod's id: 64 lower-case hexadecimal digits.
    pub id: String,
    /// The pod's state directory (0700); exit records go to `exits/` below it.
    pub directory: PathBuf,
    /// Host name for a new UTS namespace.
    pub hostname: Option<String>,
    /// The network namespace.
    pub network: NamespaceMode,
    /// The IPC namespace.
    pub ipc: NamespaceMode,
    /// The UTS namespace.
    pub uts: NamespaceMode,
    /// The PID namespace.
    pub pid: PidMode,
    /// A new user namespace with these maps, which owns the other new ones and the pod's containers
    /// are in. A monitor that doesn't know it leaves [`PodPaths::user`] unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<IdMaps>,
    /// Sysctls to write inside the new namespaces, by dotted name.
    pub sysctls: BTreeMap<String, String>,
    /// Size in bytes of the tmpfs the pod's containers share as `/dev/shm`; none with the node's IPC.
    pub shm_size: Option<u64>,
    /// The pod's cgroup, an absolute path within each hierarchy.
    pub cgroup: String,
}

/// Where the files of a container's root come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RootfsSource {
    /// Lower directories, topmost first.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// Overlay's work directory, on the same file system as `upper`.
    pub work: PathBuf,
}

/// Where a container's output is logged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogTarget {
    /// The pod's log directory, a host path.
    pub directory: PathBuf,
    /// The log file relative to `directory`; opened beneath it, following no symlink.
    pub path: PathBuf,
}

/// A container to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The container's id.
    pub container: String,
    /// The OCI runtime spec. `root.path` is ignored: the root is `rootfs`. Namespaces with a path
    /// are joined. `linux.cgroupsPath` is the absolute cgroup path. Of `linux.seccomp` only flags
    /// and listener count: the program comes compiled.
    pub spec: Box<serde_json::value::RawValue>,
    /// The root file system.
    pub rootfs: RootfsSource,
    /// Images mounted as volumes.
    #[serde(default)]
    pub images: Vec<ImageVolume>,
    /// The log; none discards the output.
    pub log: Option<LogTarget>,
    /// Keep a pipe (or the terminal) open for attached clients; otherwise stdin is `/dev/null`.
    pub stdin: bool,
    /// Close stdin when the first attached client's stdin ends.
    pub stdin_once: bool,
    /// Join the PID namespace of this running container of the pod (CRI `TARGET`).
    pub pid_target: Option<String>,
    /// A compiled seccomp program comes as the first descriptor: a file, usually in memory, that is
    /// read from its beginning and holds an array of `struct sock_filter`.
    pub seccomp: bool,
}

/// A process to run in a running container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    /// The id of this exec, chosen by the daemon, for [`Event::ExecExited`].
    pub id: String,
    /// The container's id.
    pub container: String,
    /// The OCI runtime spec's `process`.
    pub process: Box<serde_json::value::RawValue>,
    /// Kill the process and its descendants after this many milliseconds.
    pub timeout_ms: Option<u64>,
    /// A compiled seccomp program comes as the first descriptor.
    pub seccomp: bool,
    /// The read end for stdin comes along; otherwise `/dev/null`.
    pub stdin: bool,
    /// The write end for stdout comes along; otherwise `/dev/null`.
    pub stdout: bool,
    /// The write end for stderr comes along; otherwise `/dev/null`.
    pub stderr: bool,
}

/// A client of a running container's streams. It sees what the container writes from now on,
/// nothing from before. A client that doesn't read is dropped (see [`Event::AttachEnded`]): neither
/// the log nor another client waits for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attach {
    /// The id of this attach, chosen by the daemon, for [`Event::AttachEnded`], which may come before
    /// the reply.
    pub id: String,
    /// The container's id.
    pub container: String,
    /// The read end of the client's input comes along. It is copied into the container's stdin, or
    /// closed at once if the container was started without one or its stdin has ended. What several
    /// clients send is mixed as it comes.
    pub stdin: bool,
    /// The write end for the container's stdout comes along; a terminal's output is all stdout.
    pub stdout: bool,
    /// The write end for the container's stderr comes along; refused for a terminal.
    pub stderr: bool,
}

/// The answer to a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Hello`]: the version both will speak, and the monitor's process id.
    Hello {
        /// The lower of both sides' versions.
        version: u16,
        /// The monitor's process id on the node.
        pid: i32,
    },
    /// To [`Request::CreatePod`]. Descriptors: the pod's network namespace, unless it is the node's.
    PodCreated(PodPaths),
    /// To [`Request::Start`], once execve succeeded.
    Started(ProcessInfo),
    /// To [`Request::Exec`], once execve succeeded. Descriptors: the terminal's master if the
    /// process has a terminal. The monitor keeps a copy of it until the exec ends or
    /// [`Request::HangUp`], so a daemon that dies doesn't hang up.
    ExecStarted(ProcessInfo),
    /// To [`Request::Status`].
    State(PodState),
    /// Done.
    Done,
    /// The request failed; nothing of it remains.
    Failed(Error),
}

/// Paths by which the pod's namespaces are put into OCI specs; `None` is the node's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPaths {
    /// The network namespace (`/proc/<monitor>/fd/<n>`).
    pub network: Option<PathBuf>,
    /// The IPC namespace.
    pub ipc: Option<PathBuf>,
    /// The UTS namespace.
    pub uts: Option<PathBuf>,
    /// The PID namespace the pod shares.
    pub pid: Option<PathBuf>,
    /// The pod's user namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<PathBuf>,
    /// The source to bind on `/dev/shm`: a detached tmpfs by descriptor, or `<pod directory>/shm`
    /// where the kernel can't clone a detached mount (before 6.15).
    pub shm: Option<PathBuf>,
    /// The pause process, where the pod shares its PID namespace.
    pub pause: Option<i32>,
    /// Parent cgroups that did not exist before, outermost first, as `hierarchy:path`; removed
    /// again when empty.
    pub created_cgroups: Vec<String>,
}

/// A process that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Process id on the node.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of `/proc/<pid>/stat`), to tell a recycled pid.
    pub start_ticks: u64,
    /// Wall clock, nanoseconds since the epoch.
    pub started_at: i64,
}

/// How a container ended; also the content of `<pod directory>/exits/<container>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The container's id.
    pub container: String,
    /// Exit status, or 128 + signal.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed something in the container's cgroup for lack of memory.
    pub oom_killed: bool,
    /// Wall clock, nanoseconds since the epoch.
    pub started_at: i64,
    /// Wall clock, nanoseconds since the epoch; never before `started_at`.
    pub finished_at: i64,
    /// Bytes of output that could not be written to the log.
    pub log_bytes_lost: u64,
}

/// The state of a pod as its monitor sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    /// Set once the pod was created and not stopped.
    pub paths: Option<PodPaths>,
    /// Running containers by id.
    pub running: BTreeMap<String, ProcessInfo>,
    /// Exited containers by id, until removed.
    pub exited: BTreeMap<String, ExitRecord>,
}

/// What a monitor tells unasked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A container ended; its record is durable and its output is in the log.
    ContainerExited(ExitRecord),
    /// The process of an exec ended. If its time was up or it was killed on request, its
    /// descendants are gone too; otherwise what it left in the background runs on.
    ExecExited {
        /// The exec's id.
        id: String,
        /// Exit status, or 128 + signal.
        exit_code: i32,
        /// It was killed because its time was up.
        timed_out: bool,
    },
    /// An attach ended and its descriptors are closed: the container ended, after all it had
    /// written was handed over; or the client closed its ends; or [`Request::Detach`]; or it was
    /// dropped.
    AttachEnded {
        /// The attach's id.
        id: String,
        /// Why the monitor gave the client up.
        dropped: Option<String>,
    },
    /// The pause process died: the pod is no longer ready.
    PauseExited,
}
