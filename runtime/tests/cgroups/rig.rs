//! What the tests share: nodes, processes that wait for a word, groups that clean up.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bulkhead_runtime::cgroup::{Cgroup, Hierarchies, Mode};
use oci_spec::runtime::LinuxResources;

/// Generous: the virtual machine is up to 25 times slower.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The ways to use this node; empty without root, and then it says so.
pub(crate) fn nodes() -> Vec<Hierarchies> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: control groups need root");
        return Vec::new();
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let as_it_is = Hierarchies::probe().unwrap();
    let mut nodes = Vec::new();
    if as_it_is.mode() == Mode::Hybrid {
        let v1: Vec<_> = mounts
            .lines()
            .filter(|line| !line.contains(" - cgroup2 "))
            .collect();
        nodes.push(Hierarchies::from_mountinfo(&v1.join("\n")).unwrap());
    }
    nodes.push(as_it_is);
    nodes
}

/// A path nobody else uses.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("/bulkhead-test-{}-{number}-{what}", std::process::id())
}

/// A group that is emptied and removed at the end, however the test ends.
pub(crate) struct Group(pub(crate) Cgroup);

impl Group {
    pub(crate) fn new(node: &Hierarchies, path: &str) -> Self {
        Self(node.create(path).unwrap().0)
    }
}

impl std::ops::Deref for Group {
    type Target = Cgroup;

    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.0.kill().is_ok() {
            drop(self.0.wait_empty(LIMIT));
        }
        self.0.remove().unwrap();
        let left = directories(self.0.path());
        assert!(
            left.is_empty() || std::thread::panicking(),
            "left behind: {left:?}"
        );
    }
}

/// All mounted hierarchies' directories for a group, by looking, not by asking the product.
pub(crate) fn directories(path: &str) -> Vec<PathBuf> {
    mounts()
        .into_iter()
        .map(|(mount, _)| mount.join(&path[1..]))
        .filter(|d| d.is_dir())
        .collect()
}

fn mounts() -> Vec<(PathBuf, String)> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let is_cgroup = right.starts_with("cgroup ") || right.starts_with("cgroup2 ");
            let options = right.split(' ').nth(2)?;
            is_cgroup.then(|| (left.split(' ').nth(4).unwrap().into(), options.to_owned()))
        })
        .collect()
}

/// The content of a group's file, in whichever hierarchy has it.
pub(crate) fn content(path: &str, file: &str) -> Option<String> {
    directories(path)
        .into_iter()
        .find_map(|directory| std::fs::read_to_string(directory.join(file)).ok())
        .map(|text| text.trim().to_owned())
}

pub(crate) fn resources(json: &serde_json::Value) -> LinuxResources {
    serde_json::from_value(json.clone()).unwrap()
}

/// A shell that waits for the word to go on.
pub(crate) struct Held(pub(crate) Child);

impl Held {
    pub(crate) fn new(script: &str) -> Self {
        let child = Command::new("/bin/sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    /// Lets it go on, and doesn't wait.
    pub(crate) fn go(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    /// Lets it go on to its end: what it wrote to standard output, and its exit code (128 + signal).
    pub(crate) fn finish(mut self) -> (String, i32) {
        use std::os::unix::process::ExitStatusExt;
        self.go();
        let mut output = String::new();
        self.0
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut output)
            .unwrap();
        let status = self.0.wait().unwrap();
        let code = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap());
        (output.trim().to_owned(), code)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Waits until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Has a process ended (a zombie has)?
pub(crate) fn has_ended(pid: i32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.map_or(true, |stat| {
        stat.rsplit(')').next().unwrap().trim().starts_with('Z')
    })
}
