//! A monitor of its own for each test, driven over its socket as the daemon would, and a busybox
//! root to run things in. Everything is gone at the end, or the test fails.

#![allow(dead_code, reason = "each test file uses a part of the rig")]
#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

pub(crate) mod clients;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_runtime::cgroup::Hierarchies;
use bulkhead_runtime::error::{Error, Result};
use bulkhead_runtime::monitor::connection::Connection;
use bulkhead_runtime::monitor::start::{
    CGROUP, MonitorImage, MonitorProcess, StartOptions, Starter, listen,
};
use bulkhead_runtime::monitor::wire::{
    CreatePod, Event, Exec, ExitRecord, LogTarget, NamespaceMode, PidMode, PodPaths, PodState,
    ProcessInfo, Reply, Request, RootfsSource, Start,
};
use serde_json::{Value, json};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Root, or a loud skip.
pub(crate) fn may_run(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {what}: it needs root");
    }
    root
}

/// The thread that starts monitors, shared by the tests that run at the same time; with the last of
/// them it ends, and the monitors' cgroup goes.
static STARTER: Mutex<(Option<Arc<Starter>>, usize)> = Mutex::new((None, 0));

/// All users of one test program name the same executable.
fn starter(path: &Path) -> Arc<Starter> {
    let mut guard = STARTER.lock().unwrap();
    let (starter, users) = &mut *guard;
    *users += 1;
    let starter = starter.get_or_insert_with(|| {
        let image = MonitorImage::load(path).unwrap();
        Arc::new(Starter::new(image, &Hierarchies::probe().unwrap()).unwrap())
    });
    Arc::clone(starter)
}

fn give_back(mine: Arc<Starter>) {
    drop(mine);
    let mut guard = STARTER.lock().unwrap();
    guard.1 -= 1;
    if guard.1 == 0 {
        guard.0 = None;
        if let Some(cgroup) = Hierarchies::probe().unwrap().open(CGROUP).unwrap() {
            // A daemon on this machine, or another test program, may use it too.
            let _in_use = cgroup.remove();
        }
    }
}

/// One monitor and its files.
pub(crate) struct Rig {
    pub(crate) directory: PathBuf,
    pub(crate) pod_id: String,
    pub(crate) process: MonitorProcess,
    pub(crate) connection: Connection,
    pub(crate) paths: PodPaths,
    /// Events met while waiting for others.
    pub(crate) events: Vec<Event>,
    stopped: bool,
    starter: Option<Arc<Starter>>,
}

impl Rig {
    /// A started monitor that was greeted.
    pub(crate) fn new(name: &str) -> Self {
        Self::of(Path::new(env!("CARGO_BIN_EXE_bulkhead-monitor")), name)
    }

    /// The same of another executable.
    pub(crate) fn of(executable: &Path, name: &str) -> Self {
        let directory =
            std::env::temp_dir().join(format!("bulkhead-monitor-{name}-{}", std::process::id()));
        fs::create_dir_all(directory.join("pod")).unwrap();
        fs::create_dir_all(directory.join("logs")).unwrap();
        let pod_id = format!("test-{name}-{}", std::process::id());
        let log = fs::File::create(directory.join("monitor.log")).unwrap();
        let starter = starter(executable);
        let process = starter
            .start(StartOptions {
                pod_id: pod_id.clone(),
                socket: listen(&directory.join("pod")).unwrap(),
                log: Some(log.into()),
            })
            .unwrap();
        let mut connection = Connection::connect(&directory.join("pod")).unwrap();
        connection
            .socket()
            .set_read_timeout(Some(PATIENCE))
            .unwrap();
        assert_eq!(connection.hello().unwrap(), (1, process.pid));
        Self {
            directory,
            pod_id,
            process,
            connection,
            paths: PodPaths::default(),
            events: Vec::new(),
            stopped: false,
            starter: Some(starter),
        }
    }

    /// A monitor whose pod is made.
    pub(crate) fn with_pod(name: &str, pid: PidMode) -> Self {
        let mut rig = Self::new(name);
        rig.create_pod(pid);
        rig
    }

    /// Makes the pod.
    pub(crate) fn create_pod(&mut self, pid: PidMode) {
        let request = self.pod_request(pid);
        match self.call(&Request::CreatePod(request)).unwrap() {
            Reply::PodCreated(paths) => self.paths = paths,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn pod_request(&self, pid: PidMode) -> CreatePod {
        CreatePod {
            id: self.pod_id.clone(),
            directory: self.directory.join("pod"),
            hostname: Some("pod".into()),
            network: NamespaceMode::New,
            ipc: NamespaceMode::New,
            uts: NamespaceMode::New,
            pid,
            user: None,
            sysctls: BTreeMap::new(),
            shm_size: Some(1 << 20),
            cgroup: self.pod_cgroup(),
        }
    }

    pub(crate) fn pod_cgroup(&self) -> String {
        format!("/bulkhead-test/{}", self.pod_id)
    }

    /// A second connection, as a restarted daemon would make it.
    pub(crate) fn reconnect(&mut self) {
        self.connection = Connection::connect(&self.directory.join("pod")).unwrap();
        let timeout = Some(PATIENCE);
        self.connection.socket().set_read_timeout(timeout).unwrap();
        self.connection.hello().unwrap();
    }

    pub(crate) fn call(&mut self, request: &Request) -> Result<Reply> {
        self.call_with(request, &[]).map(|(reply, _)| reply)
    }

    pub(crate) fn call_with(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>)> {
        self.connection.call(request, descriptors)
    }

    pub(crate) fn done(&mut self, request: &Request) {
        match self.call(request) {
            Ok(Reply::Done) => {}
            other => panic!("{request:?}: {other:?}\n{}", self.complaints()),
        }
    }

    /// Descriptors the monitor has open.
    pub(crate) fn open_descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.pid))
            .unwrap()
            .count()
    }

    /// The request for a container that runs `args`; `change` edits its spec.
    pub(crate) fn container(
        &self,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> Start {
        let root = self.directory.join("root");
        busybox_root(&root);
        let base = self.directory.join(format!("rw-{id}"));
        for part in ["upper", "work"] {
            fs::create_dir_all(base.join(part)).unwrap();
        }
        let mut spec = spec(&self.paths, args);
        spec["linux"]["cgroupsPath"] = json!(format!("{}/{id}", self.pod_cgroup()));
        change(&mut spec);
        Start {
            container: id.into(),
            spec: serde_json::value::to_raw_value(&spec).unwrap(),
            images: Vec::new(),
            rootfs: RootfsSource {
                lower: vec![root],
                upper: base.join("upper"),
                work: base.join("work"),
            },
            log: Some(LogTarget {
                directory: self.directory.join("logs"),
                path: format!("{id}/0.log").into(),
            }),
            stdin: false,
            stdin_once: false,
            pid_target: None,
            seccomp: false,
        }
    }

    pub(crate) fn start(&mut self, request: Start) -> Result<ProcessInfo> {
        match self.call(&Request::Start(request))? {
            Reply::Started(info) => Ok(info),
            other => panic!("{other:?}"),
        }
    }

    /// Starts a container that runs `args`.
    pub(crate) fn run(&mut self, id: &str, args: &[&str]) -> ProcessInfo {
        let request = self.container(id, args, |_| {});
        match self.start(request) {
            Ok(info) => info,
            Err(error) => panic!("{error}\n{}", self.complaints()),
        }
    }

    pub(crate) fn exec(
        &mut self,
        id: &str,
        container: &str,
        args: &[&str],
        timeout: Option<u64>,
    ) -> Exec {
        Exec {
            id: id.into(),
            container: container.into(),
            process: serde_json::value::to_raw_value(&process(args)).unwrap(),
            timeout_ms: timeout,
            seccomp: false,
            stdin: false,
            stdout: false,
            stderr: false,
        }
    }

    /// Runs an exec with a terminal; returns its master.
    pub(crate) fn exec_tty(&mut self, id: &str, container: &str, args: &[&str]) -> fs::File {
        let mut request = self.exec(id, container, args, None);
        let mut process = process(args);
        process["terminal"] = true.into();
        request.process = serde_json::value::to_raw_value(&process).unwrap();
        let (reply, descriptors) = self.call_with(&Request::Exec(request), &[]).unwrap();
        assert!(matches!(reply, Reply::ExecStarted(_)), "{reply:?}");
        let [master] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
        master.into()
    }

    /// Children of the monitor that ended and were not reaped.
    pub(crate) fn zombies(&self) -> usize {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let stats = processes.filter_map(|e| fs::read_to_string(e.path().join("stat")).ok());
        let parent = self.process.pid.to_string();
        stats
            .filter(|stat| {
                let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
                let mut fields = fields.unwrap_or_default().split(' ');
                (fields.next(), fields.next()) == (Some("Z"), Some(parent.as_str()))
            })
            .count()
    }

    /// Runs an exec whose stdout goes to a pipe; returns its read end.
    pub(crate) fn exec_out(&mut self, mut request: Exec) -> Result<(ProcessInfo, OwnedFd)> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        request.stdout = true;
        match self.call_with(&Request::Exec(request), &[write.as_fd()])? {
            (Reply::ExecStarted(info), _) => Ok((info, read)),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn next_event(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        if let Some(at) = self.events.iter().position(&wanted) {
            return self.events.remove(at);
        }
        loop {
            match self.connection.event() {
                Ok(event) if wanted(&event) => return event,
                Ok(event) => self.events.push(event),
                Err(error) => panic!("no event: {error}\n{}", self.complaints()),
            }
        }
    }

    /// Waits for the end of a container.
    pub(crate) fn exit(&mut self, id: &str) -> ExitRecord {
        let wanted =
            |event: &Event| matches!(event, Event::ContainerExited(r) if r.container == id);
        match self.next_event(wanted) {
            Event::ContainerExited(record) => record,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the end of an exec: exit code, and whether its time was up.
    pub(crate) fn exec_exit(&mut self, id: &str) -> (i32, bool) {
        let wanted = |event: &Event| matches!(event, Event::ExecExited { id: i, .. } if i == id);
        match self.next_event(wanted) {
            Event::ExecExited {
                exit_code,
                timed_out,
                ..
            } => (exit_code, timed_out),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn state(&mut self) -> PodState {
        match self.call(&Request::Status).unwrap() {
            Reply::State(state) => state,
            other => panic!("{other:?}"),
        }
    }

    /// The durable record of an exit.
    pub(crate) fn record(&self, id: &str) -> Option<ExitRecord> {
        let path = self.directory.join(format!("pod/exits/{id}.json"));
        let text = fs::read(path).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    /// The log without its stamps, `stdout F text` a line.
    pub(crate) fn log(&self, id: &str) -> Vec<String> {
        let path = self.directory.join(format!("logs/{id}/0.log"));
        let bytes = fs::read(path).unwrap();
        String::from_utf8_lossy(&bytes)
            .lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    /// What the monitor said on its own log.
    pub(crate) fn complaints(&self) -> String {
        fs::read_to_string(self.directory.join("monitor.log")).unwrap_or_default()
    }

    /// Processes in a cgroup below the pod's.
    pub(crate) fn pids(&self, below: &str) -> Vec<i32> {
        let path = format!("{}/{below}", self.pod_cgroup());
        match Hierarchies::probe().unwrap().open(&path).unwrap() {
            Some(cgroup) => cgroup.pids().unwrap(),
            None => Vec::new(),
        }
    }

    /// StopPod and Shutdown, and the proof that nothing is left.
    pub(crate) fn end(mut self) {
        self.done(&Request::StopPod);
        self.done(&Request::Shutdown);
        wait_until("the monitor ends", || self.process.try_reap().unwrap());
        self.stopped = true;
        self.clean_up();
        assert_eq!(self.cgroups_left(), Vec::<PathBuf>::new());
        let own = format!("{CGROUP}/{}", self.pod_id);
        assert!(Hierarchies::probe().unwrap().open(&own).unwrap().is_none());
    }

    /// Removes the monitor's own cgroup (v2), as the daemon does once it has ended.
    pub(crate) fn clean_up(&self) {
        if let Some(starter) = &self.starter {
            starter.clean_up(&self.pod_id).unwrap();
        }
    }

    /// Directories named after the pod in any hierarchy, but for the monitor's own (v2), which goes
    /// after it.
    pub(crate) fn cgroups_left(&self) -> Vec<PathBuf> {
        let mut left = Vec::new();
        let roots = fs::read_dir("/sys/fs/cgroup").unwrap();
        let mut pending: Vec<PathBuf> = roots.map(|entry| entry.unwrap().path()).collect();
        while let Some(directory) = pending.pop() {
            let parent = directory.parent();
            if directory
                .file_name()
                .is_some_and(|name| *name == *self.pod_id)
                && parent.is_none_or(|parent| !parent.ends_with(CGROUP.trim_start_matches('/')))
            {
                left.push(directory.clone());
            }
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            let entries = entries.flatten();
            let directories = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
            pending.extend(directories.map(|entry| entry.path()));
        }
        left
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !self.stopped {
            // A failed test: nothing may outlive it.
            let hierarchies = Hierarchies::probe().unwrap();
            let _gone = rustix::process::pidfd_send_signal(
                &self.process.pidfd,
                rustix::process::Signal::KILL,
            );
            if let Ok(Some(cgroup)) = hierarchies.open(&self.pod_cgroup()) {
                let _killed = cgroup.kill();
                let _removed = cgroup.remove();
            }
            eprintln!("the monitor's log: {}", self.complaints());
        }
        wait_until("the monitor ends", || self.process.try_reap().unwrap());
        self.clean_up();
        if let Some(starter) = self.starter.take() {
            give_back(starter);
        }
        let _left = fs::remove_dir_all(&self.directory);
    }
}

/// Waits for a condition, with a deadline.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Busybox with its applets as hard links.
fn busybox_root(root: &Path) {
    if root.join("bin/sh").exists() {
        return;
    }
    for directory in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    let busybox = root.join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).expect("Debian's busybox-static as /bin/busybox");
    for applet in [
        "sh", "cat", "echo", "sleep", "true", "false", "kill", "setsid", "head", "dd", "tail",
        "yes", "printf", "ls", "id", "tty", "seq", "tr", "wc", "stty", "readlink",
    ] {
        fs::hard_link(&busybox, root.join("bin").join(applet)).unwrap();
    }
}

fn process(args: &[&str]) -> Value {
    json!({
        "user": { "uid": 0, "gid": 0 },
        "args": args,
        "env": ["PATH=/bin"],
        "cwd": "/",
        "capabilities": { "bounding": [], "effective": [], "permitted": [] },
        "noNewPrivileges": true,
    })
}

/// A small spec in the pod's namespaces.
fn spec(paths: &PodPaths, args: &[&str]) -> Value {
    let mut namespaces = vec![json!({ "type": "mount" })];
    let mut join = |kind: &str, path: &Option<PathBuf>| {
        if let Some(path) = path {
            namespaces.push(json!({ "type": kind, "path": path }));
        }
    };
    join("network", &paths.network);
    join("ipc", &paths.ipc);
    join("uts", &paths.uts);
    match &paths.pid {
        Some(path) => namespaces.push(json!({ "type": "pid", "path": path })),
        None => namespaces.push(json!({ "type": "pid" })),
    }
    json!({
        "ociVersion": "1.2.0",
        "process": process(args),
        "root": { "path": "rootfs", "readonly": false },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": { "devices": [
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "c", "access": "m" },
                { "allow": true, "type": "b", "access": "m" },
                { "allow": true, "type": "c", "major": 1, "access": "rw" },
                { "allow": true, "type": "c", "major": 5, "access": "rw" },
                { "allow": true, "type": "c", "major": 136, "access": "rw" },
            ] },
        },
    })
}

/// For messages of assertions.
pub(crate) fn shown(error: &Error) -> String {
    error.to_string()
}
