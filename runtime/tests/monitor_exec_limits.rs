//! Execs where there is no room or no time for them: refused at once with the reason, and time-outs
//! that leave nothing of ours (case X6).

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod monitor;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bulkhead_runtime::cgroup::Hierarchies;
use bulkhead_runtime::error::{Error, ErrorKind};
use bulkhead_runtime::monitor::wire::{PidMode, Request};
use monitor::{Rig, may_run, wait_until};
use serde_json::json;

/// A test's monitor and pod, or a loud skip.
macro_rules! rig {
    ($name:literal) => {{
        if !may_run(concat!("monitor_exec_limits ", $name)) {
            return;
        }
        Rig::with_pod(concat!("limits-", $name), PidMode::Container)
    }};
}

/// Starts a container `c` with resources.
fn run(rig: &mut Rig, script: &str, resources: serde_json::Value) {
    let request = rig.container("c", &["sh", "-c", script], |spec| {
        for (name, value) in resources.as_object().unwrap() {
            spec["linux"]["resources"][name] = value.clone();
        }
    });
    rig.start(request).unwrap();
}

/// An exec that must be refused, and quickly.
fn refused(rig: &mut Rig) -> Error {
    let request = rig.exec("refused", "c", &["true"], None);
    let started = Instant::now();
    let error = rig.call(&Request::Exec(request)).unwrap_err();
    let took = started.elapsed();
    assert!(took < Duration::from_millis(500), "{took:?}: {error}");
    error
}

fn works(rig: &mut Rig) {
    let request = rig.exec("works", "c", &["true"], None);
    rig.call(&Request::Exec(request)).unwrap();
    assert_eq!(rig.exec_exit("works"), (0, false));
}

/// A file of the container's group, in whichever hierarchy has it.
fn file(rig: &Rig, names: &[&str]) -> PathBuf {
    let roots = ["", "memory", "pids", "unified"];
    roots
        .iter()
        .flat_map(|root| names.iter().map(move |name| (root, name)))
        .map(|(root, name)| {
            PathBuf::from(format!(
                "/sys/fs/cgroup/{root}{}/c/{name}",
                rig.pod_cgroup()
            ))
        })
        .find(|path| path.exists())
        .unwrap()
}

#[test]
fn a_frozen_container_refuses_an_exec_at_once() {
    let mut rig = rig!("frozen");
    run(&mut rig, "sleep 1000", json!({}));
    let path = format!("{}/c", rig.pod_cgroup());
    let cgroup = Hierarchies::probe().unwrap().open(&path).unwrap().unwrap();
    cgroup.freeze().unwrap();
    let error = refused(&mut rig);
    assert_eq!(error.kind(), ErrorKind::WrongState, "{error}");
    assert!(error.to_string().contains("frozen"), "{error}");
    cgroup.thaw().unwrap();
    works(&mut rig);
    rig.end();
}

#[test]
fn an_ended_container_refuses_an_exec() {
    let mut rig = rig!("ended");
    run(&mut rig, "true", json!({}));
    rig.exit("c");
    assert_eq!(refused(&mut rig).kind(), ErrorKind::WrongState);
    rig.end();
}

#[test]
fn a_container_at_its_pids_limit_refuses_an_exec_and_says_so() {
    let mut rig = rig!("pids");
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait";
    run(&mut rig, script, json!({ "pids": { "limit": 10 } }));
    wait_until("it is nearly full", || rig.pids("c").len() == 9);
    let error = refused(&mut rig);
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    assert!(
        error.to_string().contains("pids limit: 9 of at most 10"),
        "{error}"
    );
    let pid = *rig.pids("c").last().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // The shell reaps it.
    let current = file(&rig, &["pids.current"]);
    wait_until("there is room", || {
        fs::read_to_string(&current).unwrap() == "8\n"
    });
    works(&mut rig);
    rig.end();
}

#[test]
fn a_container_at_its_memory_limit_refuses_an_exec_and_loses_nobody() {
    let mut rig = rig!("memory");
    let script = "x=$(head -c 12000000 /dev/zero | tr '\\0' a); echo ready; sleep 1000";
    run(&mut rig, script, json!({ "memory": { "limit": 64 << 20 } }));
    wait_until("it holds memory", || !rig.log("c").is_empty());
    works(&mut rig);
    // The limit comes down to what is in use, page cache apart. The exec's own memory is given back
    // some time after its end, so that is waited for.
    let limit = file(&rig, &["memory.limit_in_bytes", "memory.max"]);
    let usage = file(&rig, &["memory.usage_in_bytes", "memory.current"]);
    let stat = file(&rig, &["memory.stat"]);
    let in_use = || {
        let usage: u64 = fs::read_to_string(&usage).unwrap().trim().parse().unwrap();
        let stat = fs::read_to_string(&stat).unwrap();
        let cache = |line: &str| match line.split_once(' ') {
            Some(("inactive_file" | "active_file", bytes)) => bytes.parse().unwrap(),
            _ => 0,
        };
        usage - stat.lines().map(cache).sum::<u64>()
    };
    wait_until("the limit is close", || {
        let before = in_use();
        // EBUSY: what could be given up isn't yet.
        let set = fs::write(&limit, (before + (64 << 10)).to_string()).is_ok();
        std::thread::sleep(Duration::from_millis(50));
        set && in_use() >= before
    });
    let error = refused(&mut rig);
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    assert!(error.to_string().contains("memory limit"), "{error}");
    assert!(rig.state().running.contains_key("c"));
    fs::write(&limit, (64 << 20).to_string()).unwrap();
    works(&mut rig);
    rig.done(&Request::Kill {
        container: "c".into(),
    });
    assert!(!rig.exit("c").oom_killed);
    rig.end();
}

#[test]
fn x6_two_hundred_timed_out_execs_leave_nothing_of_ours_and_touch_nobody_else() {
    let mut rig = rig!("x6");
    // PID 1 never reaps, so what its container's execs leave it stays a zombie and counts.
    let request = rig.container("c", &["sleep", "1000"], |spec| {
        spec["linux"]["resources"]["pids"] = json!({ "limit": 20 });
    });
    let init = rig.start(request).unwrap();
    let before = rig.open_descriptors();
    let scripts = [
        "sleep 9999 & sleep 9999",
        "trap '' TERM INT HUP; while :; do sleep 0.05; done",
        "(setsid sh -c '(setsid sleep 9999 &) ; sleep 9999' &) ; sleep 9999",
    ];
    const TIMEOUT: u64 = 60;
    let (mut timed_out, mut full) = (0, 0);
    for number in 0..200 {
        let id = format!("e{number}");
        let script = scripts[number % scripts.len()];
        let request = rig.exec(&id, "c", &["sh", "-c", script], Some(TIMEOUT));
        let started = Instant::now();
        match rig.call(&Request::Exec(request)) {
            Ok(_) => {
                // One that can't fork any more may end by itself.
                let (code, over) = rig.exec_exit(&id);
                assert!(
                    code == 137 && over || code == 2 && !over,
                    "{id}: {code} {over}"
                );
                timed_out += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Exhausted, "{id}: {error}");
                assert!(error.to_string().contains("pids limit"), "{error}");
                full += 1;
            }
        }
        let took = started.elapsed();
        assert!(
            took < Duration::from_millis(TIMEOUT + 1000),
            "{id}: {took:?}"
        );
    }
    assert!(timed_out > 3 && full > 3, "{timed_out} {full}");
    wait_until("only PID 1 is left", || rig.pids("c") == [init.pid]);
    assert_eq!(rig.zombies(), 0);
    wait_until("descriptors are given back", || {
        rig.open_descriptors() == before
    });
    rig.done(&Request::Kill {
        container: "c".into(),
    });
    rig.exit("c");
    rig.end();
}

/// Runs `count` execs one after the other; resident memory of the monitor after a tenth of them and
/// at the end, in kB.
fn many_execs(rig: &mut Rig, count: usize) -> (u64, u64) {
    let resident = |rig: &Rig| {
        let text = fs::read_to_string(format!("/proc/{}/status", rig.process.pid)).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let number = line.split_whitespace().nth(1).unwrap();
        number.parse::<u64>().unwrap()
    };
    let before = rig.open_descriptors();
    let mut early = 0;
    for number in 0..count {
        if number == count / 10 {
            early = resident(rig);
        }
        let id = format!("e{number}");
        if number % 10 == 0 {
            drop(rig.exec_tty(&id, "c", &["true"]));
        } else {
            let request = rig.exec(&id, "c", &["true"], Some(20_000));
            drop(rig.exec_out(request).unwrap());
        }
        let (code, timed_out) = rig.exec_exit(&id);
        // A hang-up may come before it ends.
        assert!(code == 0 && !timed_out || number % 10 == 0, "{id}: {code}");
    }
    wait_until("descriptors are given back", || {
        rig.open_descriptors() == before
    });
    assert_eq!(rig.zombies(), 0);
    assert_eq!(rig.pids("c").len(), 1);
    (early, resident(rig))
}

#[test]
fn five_hundred_execs_are_flat_in_memory_and_descriptors() {
    let mut rig = rig!("flat");
    run(&mut rig, "exec sleep 1000", json!({}));
    let (early, late) = many_execs(&mut rig, 500);
    assert!(late <= early + 256, "{early} kB, then {late} kB");
    rig.end();
}

#[test]
#[ignore = "half a minute; run by hand with --ignored --nocapture"]
fn ten_thousand_execs_are_flat_in_memory_and_descriptors() {
    let mut rig = rig!("flat-big");
    run(&mut rig, "exec sleep 1000", json!({}));
    let started = Instant::now();
    let (early, late) = many_execs(&mut rig, 10_000);
    println!(
        "10000 execs in {:?}: {early} kB resident after 1000, {late} kB at the end",
        started.elapsed()
    );
    assert!(late <= early + 256, "{early} kB, then {late} kB");
    rig.end();
}
