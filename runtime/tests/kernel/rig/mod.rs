//! A root file system of busybox, a spec as CRI gives it, and a container run to its end.

pub(crate) mod allocator;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bulkhead_runtime::error::Result;
use bulkhead_runtime::features::Features;
use bulkhead_runtime::idmap::IdMaps;
use bulkhead_runtime::launch::{
    self, ExecInput, FilterOptions, LaunchInput, Launched, Rootfs, Stdio,
};
use rustix::process::{WaitId, WaitIdOptions};
use serde_json::{Value, json};

const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 39] = [
    "sh", "cat", "ls", "stat", "id", "mount", "umount", "hostname", "sleep", "touch", "mkdir",
    "readlink", "test", "tty", "grep", "wc", "echo", "true", "false", "chmod", "chown", "env",
    "pwd", "ps", "dd", "ln", "rm", "mv", "cut", "head", "sed", "stty", "sort", "kill", "mknod",
    "nice", "date", "ip", "chroot",
];

/// What the tests need of the node, or why they are skipped.
pub(crate) fn ready() -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        "root"
    } else if !Path::new(BUSYBOX).exists() {
        "a static busybox (Debian: busybox-static)"
    } else {
        return true;
    };
    eprintln!("SKIPPED: needs {missing}");
    false
}

pub(crate) fn features() -> &'static Features {
    static FEATURES: OnceLock<Features> = OnceLock::new();
    FEATURES.get_or_init(|| Features::probe().unwrap())
}

/// A scratch directory with an image's layer and a writable one; removed at the end.
pub(crate) struct Scratch {
    pub(crate) path: PathBuf,
    lower: Vec<PathBuf>,
}

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("bulkhead-launch-{}-{name}", std::process::id()));
        let layer = path.join("lower");
        for directory in [
            "lower/bin",
            "lower/etc",
            "lower/tmp",
            "upper",
            "work",
            "volume",
        ] {
            std::fs::create_dir_all(path.join(directory)).unwrap();
        }
        std::fs::copy(BUSYBOX, layer.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            std::fs::hard_link(layer.join("bin/busybox"), layer.join("bin").join(applet)).unwrap();
        }
        std::fs::write(layer.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        Self {
            lower: vec![layer],
            path,
        }
    }

    /// Where the image's files are.
    pub(crate) fn image(&self) -> PathBuf {
        self.path.join("lower")
    }

    pub(crate) fn volume(&self) -> PathBuf {
        self.path.join("volume")
    }

    /// What the container wrote.
    pub(crate) fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    pub(crate) fn launch(&self, spec: &Value, stdio: Stdio) -> Result<Launched> {
        self.launch_with(spec, stdio, |_| {})
    }

    pub(crate) fn launch_with<'a>(
        &'a self,
        spec: &Value,
        stdio: Stdio,
        change: impl FnOnce(&mut LaunchInput<'a>),
    ) -> Result<Launched> {
        let (spec, _) = bulkhead_runtime::spec::parse(&spec.to_string())?;
        let spec = Box::leak(Box::new(spec));
        let upper = Box::leak(Box::new(self.upper()));
        let work = Box::leak(Box::new(self.path.join("work")));
        let mut input = LaunchInput {
            id: "test",
            spec,
            features: features(),
            images: &[],
            rootfs: Rootfs::Overlay {
                lower: &self.lower,
                upper,
                work,
            },
            stdio,
            seccomp: None,
            cgroup: None,
            pid_namespace: None,
        };
        change(&mut input);
        launch::create(input)
    }

    /// Runs a spec to its end.
    pub(crate) fn run(&self, spec: &Value) -> Output {
        self.try_run(spec).unwrap()
    }

    pub(crate) fn try_run(&self, spec: &Value) -> Result<Output> {
        let (stdio, pipes) = pipes();
        let launched = self.launch(spec, stdio)?;
        Ok(pipes.collect(&launched))
    }

    /// Runs a shell script in the default container and returns what it printed.
    pub(crate) fn shell(&self, spec: &Value, script: &str) -> String {
        let output = self.run(&with_script(spec, script));
        assert_eq!(output.status, 0, "{script}: {output:?}");
        output.stdout
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.path).unwrap();
    }
}

/// How a process ended and what it printed.
#[derive(Debug)]
pub(crate) struct Output {
    /// 128 + signal if it was killed.
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Our ends of a process's streams.
pub(crate) struct Pipes {
    stdout: File,
    stderr: File,
}

pub(crate) fn pipes() -> (Stdio, Pipes) {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (stdout, stdout_end) = pipe();
    let (stderr, stderr_end) = pipe();
    let stdio = Stdio::Descriptors {
        stdin: File::open("/dev/null").unwrap().into(),
        stdout: stdout_end,
        stderr: stderr_end,
    };
    let pipes = Pipes {
        stdout: stdout.into(),
        stderr: stderr.into(),
    };
    (stdio, pipes)
}

impl Pipes {
    /// Reads to the end and waits for it. Small outputs only: one stream after the other.
    pub(crate) fn collect(mut self, launched: &Launched) -> Output {
        let mut stdout = String::new();
        let mut stderr = String::new();
        self.stdout.read_to_string(&mut stdout).unwrap();
        self.stderr.read_to_string(&mut stderr).unwrap();
        Output {
            status: wait(launched),
            stdout,
            stderr,
        }
    }
}

impl Pipes {
    /// What an ended process printed.
    pub(crate) fn collect_after_exit(mut self) -> String {
        let mut stdout = String::new();
        self.stdout.read_to_string(&mut stdout).unwrap();
        stdout
    }
}

/// Waits for a process: its status, or 128 + signal.
pub(crate) fn wait(launched: &Launched) -> i32 {
    let status =
        rustix::process::waitid(WaitId::PidFd(launched.pidfd.as_fd()), WaitIdOptions::EXITED)
            .unwrap()
            .unwrap();
    status
        .exit_status()
        .or(status.terminating_signal().map(|signal| 128 + signal))
        .unwrap()
}

pub(crate) fn kill(launched: &Launched) {
    rustix::process::pidfd_send_signal(&launched.pidfd, rustix::process::Signal::KILL).unwrap();
    assert_eq!(wait(launched), 137);
}

/// An exec in a running container.
pub(crate) fn exec(init: &Launched, process: &Value) -> Result<Output> {
    let (stdio, pipes) = pipes();
    let launched = exec_with(init, process, stdio)?;
    Ok(pipes.collect(&launched))
}

pub(crate) fn exec_with(init: &Launched, process: &Value, stdio: Stdio) -> Result<Launched> {
    exec_mapped(init, process, stdio, None)
}

/// An exec in a container with a user namespace of these maps.
pub(crate) fn exec_mapped(
    init: &Launched,
    process: &Value,
    stdio: Stdio,
    user: Option<&IdMaps>,
) -> Result<Launched> {
    let (process, _) = bulkhead_runtime::spec::parse_process(&process.to_string())?;
    launch::exec(ExecInput {
        id: "exec",
        process: &process,
        init: init.pidfd.as_fd(),
        user,
        features: features(),
        stdio,
        seccomp: None,
        filter: &FilterOptions::default(),
        cgroup: None,
    })
}

/// The spec of an ordinary container as CRI's mapping gives it.
pub(crate) fn spec() -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_KILL"
    ]);
    json!({
        "ociVersion": "1.2.0",
        "hostname": "inside",
        "root": {"path": "ignored"},
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
            "cwd": "/",
            "args": ["true"],
            "env": ["PATH=/bin", "A=1"],
            "capabilities": {"bounding": capabilities, "permitted": capabilities, "effective": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 2048}],
            "noNewPrivileges": false,
            "oomScoreAdj": 500
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}
        ],
        "linux": {
            "namespaces": [
                {"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}, {"type": "cgroup"}
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/proc/scsi", "/proc/absent",
                "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "devices": []
        }
    })
}

/// The spec with its process running a shell script.
pub(crate) fn with_script(spec: &Value, script: &str) -> Value {
    set(spec, "/process/args", json!(["/bin/sh", "-c", script]))
}

/// The spec with one value replaced or added.
pub(crate) fn set(spec: &Value, pointer: &str, value: Value) -> Value {
    let mut spec = spec.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = spec.pointer_mut(parent).unwrap();
    parent
        .as_object_mut()
        .unwrap()
        .insert(key.to_owned(), value);
    spec
}

/// The spec with a mount more.
pub(crate) fn with_mount(spec: &Value, mount: Value) -> Value {
    let mut spec = spec.clone();
    spec["mounts"].as_array_mut().unwrap().push(mount);
    spec
}

/// The process of a spec with another command.
pub(crate) fn process(spec: &Value, args: Value) -> Value {
    set(spec, "/process/args", args)["process"].clone()
}

pub(crate) fn null() -> OwnedFd {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap()
        .into()
}

pub(crate) fn null_stdio() -> Stdio {
    Stdio::Descriptors {
        stdin: null(),
        stdout: null(),
        stderr: null(),
    }
}

/// A field of `/proc/<pid>/status`-like text.
pub(crate) fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
}
