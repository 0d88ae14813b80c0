//! Where a log may and may not be, and what happens when the disk is full.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use super::*;

/// A directory of its own, removed at the end.
struct Scene(PathBuf);

impl Scene {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bulkhead-log-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("logs")).unwrap();
        Self(path)
    }

    fn target(&self, path: &str) -> LogTarget {
        LogTarget {
            directory: self.0.join("logs"),
            path: path.into(),
        }
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.join("logs").join(path)).unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Records without their stamps.
fn stampless(text: &str) -> Vec<&str> {
    text.lines().map(|line| &line[31..]).collect()
}

#[test]
fn a_log_is_made_with_its_parents_appended_to_and_reopened() {
    let scene = Scene::new("plain");
    let mut scratch = Scratch::new();
    let mut log = Log::open(Some(scene.target("web/0.log"))).unwrap();
    log.write(Stream::Stdout, b"one\ntw", &mut scratch);
    log.write(Stream::Stderr, b"bad\n", &mut scratch);
    let path = scene.0.join("logs/web/0.log");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(
        fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777,
        0o755
    );
    fs::rename(&path, path.with_extension("old")).unwrap();
    log.reopen().unwrap();
    log.write(Stream::Stdout, b"o\n", &mut scratch);
    log.write(Stream::Stdout, b"end", &mut scratch);
    log.finish(&mut scratch);
    assert_eq!(
        stampless(&scene.read("web/0.old")),
        ["stdout F one", "stderr F bad"]
    );
    assert_eq!(
        stampless(&scene.read("web/0.log")),
        ["stdout F two", "stdout F end"]
    );
    assert_eq!(log.lost(), 0);
    // A second container with the same path appends.
    let mut log = Log::open(Some(scene.target("web/0.log"))).unwrap();
    log.write(Stream::Stdout, b"more\n", &mut scratch);
    assert_eq!(stampless(&scene.read("web/0.log")).len(), 3);
}

#[test]
fn paths_and_files_that_are_no_plain_log_are_refused_and_nothing_is_made() {
    let scene = Scene::new("refused");
    let canary = scene.0.join("canary");
    fs::write(&canary, "unchanged").unwrap();
    let logs = scene.0.join("logs");
    symlink(&canary, logs.join("link")).unwrap();
    symlink(&scene.0, logs.join("linkdir")).unwrap();
    symlink("missing", logs.join("dangling")).unwrap();
    fs::hard_link(&canary, logs.join("hard")).unwrap();
    fs::create_dir(logs.join("directory")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        logs.join("fifo"),
        FileType::Fifo,
        Mode::RUSR,
        0,
    )
    .unwrap();
    for (path, part) in [
        ("", "empty"),
        ("../canary", "no `..`"),
        ("a/../../canary", "no `..`"),
        ("/etc/motd", "relative"),
        ("link", "open the file"),
        ("linkdir/canary", "enter directory linkdir"),
        ("dangling", "open the file"),
        ("hard", "2 names"),
        ("directory", "open the file"),
        ("fifo", "open the file"),
        ("a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r", "more than 16"),
    ] {
        let error = Log::open(Some(scene.target(path))).expect_err(path);
        assert!(error.to_string().contains(part), "{path}: {error}");
        assert!(error.to_string().contains("open log"), "{path}: {error}");
    }
    assert_eq!(fs::read_to_string(&canary).unwrap(), "unchanged");
    assert!(!logs.join("missing").exists() && !logs.join("a").exists());
}

#[test]
fn a_failed_reopen_makes_no_file_and_keeps_the_old_one() {
    let scene = Scene::new("reopen");
    let mut scratch = Scratch::new();
    let mut log = Log::open(Some(scene.target("web/0.log"))).unwrap();
    let logs = scene.0.join("logs");
    fs::rename(logs.join("web"), logs.join("moved")).unwrap();
    symlink(&scene.0, logs.join("web")).unwrap();
    log.reopen().unwrap_err();
    assert!(!scene.0.join("0.log").exists());
    log.write(Stream::Stdout, b"still\n", &mut scratch);
    assert_eq!(stampless(&scene.read("moved/0.log")), ["stdout F still"]);
}

#[test]
fn without_a_path_output_is_discarded() {
    let mut scratch = Scratch::new();
    let mut log = Log::open(None).unwrap();
    log.write(Stream::Stdout, b"x\n", &mut scratch);
    log.reopen().unwrap();
    log.finish(&mut scratch);
    assert_eq!(log.lost(), 0);
}

#[test]
fn a_full_disk_loses_whole_records_and_counts_them() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: root is needed to mount a small tmpfs");
        return;
    }
    let scene = Scene::new("full");
    let logs = scene.0.join("logs");
    // 16 pages.
    let mount = rustix::mount::mount(
        "tmpfs",
        &logs,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=65536"),
    );
    mount.unwrap();
    let mut scratch = Scratch::new();
    let mut log = Log::open(Some(scene.target("0.log"))).unwrap();
    let line = [vec![b'x'; 999], vec![b'\n']].concat();
    for _ in 0..100 {
        log.write(Stream::Stdout, &line, &mut scratch);
    }
    let text = scene.read("0.log");
    assert!(text.ends_with('\n'), "no torn record");
    let written = text.lines().count();
    assert!(text.lines().all(|line| line.len() == HEADER + 999));
    assert_eq!(log.lost(), u64::try_from((100 - written) * 1000).unwrap());
    // There is room again: it goes on.
    fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(logs.join("0.log"))
        .unwrap();
    log.write(Stream::Stdout, b"again\n", &mut scratch);
    assert_eq!(stampless(&scene.read("0.log")), ["stdout F again"]);
    drop(log);
    rustix::mount::unmount(&logs, rustix::mount::UnmountFlags::empty()).unwrap();
}
