//! The executable as it is delivered: static, small in memory, fast in logging. Built by
//! `make monitor`; found by `BULKHEAD_MONITOR` or in the target folder.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod monitor;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bulkhead_runtime::monitor::wire::{PidMode, Request};
use monitor::{Rig, may_run};

/// The static executable, or a loud skip.
fn executable() -> Option<PathBuf> {
    let target = concat!(env!("CARGO_MANIFEST_DIR"), "/../target");
    let triple = "x86_64-unknown-linux-gnu/monitor/bulkhead-monitor";
    let named = std::env::var_os("BULKHEAD_MONITOR").map(PathBuf::from);
    let found = named
        .into_iter()
        .chain([
            format!("{target}/static/{triple}").into(),
            format!("{target}/{triple}").into(),
        ])
        .find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED monitor_static: no static bulkhead-monitor; run `make monitor`");
    }
    found
}

#[test]
fn the_executable_has_no_interpreter_and_needs_no_library() {
    let Some(path) = executable() else {
        return;
    };
    let elf = fs::read(&path).unwrap();
    assert_eq!(
        elf.get(..6),
        Some(&b"\x7fELF\x02\x01"[..]),
        "64-bit little-endian ELF"
    );
    let number = |at: usize, length: usize| {
        let bytes = elf.get(at..at + length).unwrap();
        bytes
            .iter()
            .rev()
            .fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte))
    };
    // e_phoff, e_phentsize, e_phnum; then each program header's p_type.
    let (offset, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    assert!(count > 0);
    const PT_DYNAMIC: usize = 2;
    const PT_INTERP: usize = 3;
    const DT_NEEDED: usize = 1;
    for index in 0..count {
        let header = offset + index * size;
        let kind = number(header, 4);
        assert_ne!(kind, PT_INTERP, "{} is dynamic", path.display());
        if kind == PT_DYNAMIC {
            let (at, length) = (number(header + 8, 8), number(header + 0x20, 8));
            let needed = (at..at + length)
                .step_by(16)
                .filter(|entry| number(*entry, 8) == DT_NEEDED);
            assert_eq!(needed.count(), 0, "{} needs libraries", path.display());
        }
    }
}

/// PSS and private memory of a process, in kB.
fn memory(pid: i32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (
        field("Pss:"),
        field("Private_Clean:") + field("Private_Dirty:"),
    )
}

#[test]
fn ten_monitors_at_rest_cost_little_memory() {
    let Some(path) = executable() else {
        return;
    };
    if !may_run("monitor_static memory") {
        return;
    }
    let mut rigs: Vec<Rig> = (0..10)
        .map(|number| Rig::of(&path, &format!("memory{number}")))
        .collect();
    let report = |what: &str, rigs: &[Rig]| {
        let all: Vec<_> = rigs.iter().map(|rig| memory(rig.process.pid)).collect();
        let largest = all.iter().map(|(_, private)| *private).max().unwrap();
        let pss = all.iter().map(|(pss, _)| pss).sum::<u64>() / 10;
        eprintln!("{what}: PSS {pss} kB each, private at most {largest} kB");
        (pss, largest)
    };
    report("ten empty monitors", &rigs);
    for rig in &mut rigs {
        rig.create_pod(PidMode::Container);
        rig.run("c", &["sh", "-c", "echo hello; sleep 1000"]);
    }
    report("with a pod and a container each", &rigs);
    for rig in &mut rigs {
        for number in 0..20 {
            let id = format!("e{number}");
            let request = rig.exec(&id, "c", &["true"], None);
            rig.call(&Request::Exec(request)).unwrap();
            rig.exec_exit(&id);
        }
    }
    // The buffers for output are given back after two quiet seconds.
    std::thread::sleep(Duration::from_secs(5));
    let (_, private) = report("after twenty execs each, at rest", &rigs);
    // PSS also holds a share of the executable, which depends on how many monitors there are.
    assert!(private < 350, "{private} kB");
    for rig in rigs {
        rig.end();
    }
}

#[test]
fn starts_and_execs_cost_little_time() {
    let Some(path) = executable() else {
        return;
    };
    if !may_run("monitor_static times") {
        return;
    }
    let before = Instant::now();
    let mut rig = Rig::of(&path, "speed");
    eprintln!("monitor started and greeted: {:?}", before.elapsed());
    let before = Instant::now();
    rig.create_pod(PidMode::Container);
    eprintln!("pod created: {:?}", before.elapsed());
    rig.run("c", &["sleep", "1000"]);
    let median = |mut all: Vec<Duration>| {
        all.sort();
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    let (mut started, mut ended, mut execs) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..40 {
        let id = format!("s{number}");
        let request = rig.container(&id, &["true"], |_| {});
        let before = Instant::now();
        rig.start(request).unwrap();
        started.push(before.elapsed());
        rig.exit(&id);
        ended.push(before.elapsed());
        let request = rig.exec(&id, "c", &["true"], None);
        let before = Instant::now();
        rig.call(&Request::Exec(request)).unwrap();
        rig.exec_exit(&id);
        execs.push(before.elapsed());
    }
    let (started, ended, execs) = (median(started), median(ended), median(execs));
    eprintln!("medians: start {started:?}, start to recorded exit {ended:?}, exec {execs:?}");
    // Many times what is usual, as the machine may be busy.
    assert!(ended < Duration::from_millis(200) && execs < Duration::from_millis(100));
    rig.end();
}

#[test]
fn two_hundred_megabytes_of_lines_are_logged_whole_and_fast() {
    let Some(path) = executable() else {
        return;
    };
    if !may_run("monitor_static throughput") {
        return;
    }
    let mut rig = Rig::of(&path, "throughput");
    rig.create_pod(PidMode::Container);
    // 2,000,000 lines of 99 bytes and a newline.
    let line = "y".repeat(99);
    let script = format!("yes {line} | head -n 2000000");
    let started = Instant::now();
    rig.run("c", &["sh", "-c", &script]);
    let record = rig.exit("c");
    let took = started.elapsed();
    assert_eq!((record.exit_code, record.log_bytes_lost), (0, 0));
    let size = fs::metadata(rig.directory.join("logs/c/0.log"))
        .unwrap()
        .len();
    assert_eq!(size, 2_000_000 * (40 + 100));
    eprintln!("200 MB of lines in {took:?}");
    rig.end();
}
