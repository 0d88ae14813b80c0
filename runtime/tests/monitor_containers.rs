//! Containers in a real monitor: start, output, exits, kills, memory, restarts of the daemon.

mod monitor;

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bulkhead_runtime::cgroup::Hierarchies;
use bulkhead_runtime::error::ErrorKind;
use bulkhead_runtime::monitor::wire::{PidMode, Request};
use monitor::{Rig, may_run, wait_until};
use serde_json::json;

/// A test's monitor and pod, or a loud skip.
macro_rules! rig {
    ($name:literal, $pid:expr) => {{
        if !may_run(concat!("monitor_containers ", $name)) {
            return;
        }
        Rig::with_pod($name, $pid)
    }};
    ($name:literal) => {
        rig!($name, PidMode::Container)
    };
}

fn kill(container: &str) -> Request {
    Request::Kill {
        container: container.into(),
    }
}

#[test]
fn a_container_runs_logs_and_ends_with_its_exit_code_durable_before_it_is_told() {
    let mut rig = rig!("runs");
    let info = rig.run(
        "c",
        &["sh", "-c", "echo out; echo err >&2; printf end; exit 3"],
    );
    let record = rig.exit("c");
    assert_eq!(
        (record.exit_code, record.signal, record.oom_killed),
        (3, None, false)
    );
    assert_eq!(record.started_at, info.started_at);
    assert!(record.finished_at >= record.started_at && record.started_at > 0);
    assert_eq!(rig.record("c"), Some(record.clone()));
    let mut log = rig.log("c");
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F end", "stdout F out"]);
    let state = rig.state();
    assert!(state.running.is_empty());
    assert_eq!(state.exited.get("c"), Some(&record));
    rig.done(&Request::Remove {
        container: "c".into(),
    });
    assert_eq!(rig.record("c"), None);
    assert!(rig.state().exited.is_empty());
    rig.end();
}

#[test]
fn a_signal_is_an_exit_of_128_and_more_and_a_kill_ends_what_ignores_signals() {
    let mut rig = rig!("signal");
    for container in ["term", "deaf"] {
        let trap = if container == "deaf" {
            "trap '' TERM"
        } else {
            "trap 'exit 143' TERM"
        };
        let script = format!("{trap}; echo ready; while true; do sleep 0.01; done");
        rig.run(container, &["sh", "-c", &script]);
        wait_until("the trap is set", || !rig.log(container).is_empty());
        rig.done(&Request::Signal {
            container: container.into(),
            signal: 15,
        });
    }
    assert_eq!(rig.exit("term").exit_code, 143);
    assert!(rig.state().running.contains_key("deaf"));
    rig.done(&kill("deaf"));
    let record = rig.exit("deaf");
    assert_eq!((record.exit_code, record.signal), (137, Some(9)));
    // A kill of what has ended is no error, a signal to it is.
    rig.done(&kill("deaf"));
    let signal = Request::Signal {
        container: "deaf".into(),
        signal: 15,
    };
    assert_eq!(rig.call(&signal).unwrap_err().kind(), ErrorKind::WrongState);
    rig.end();
}

#[test]
fn a_failed_start_leaves_nothing_and_the_name_is_free() {
    let mut rig = rig!("fails");
    let missing = rig.container("c", &["no-such-program"], |_| {});
    let error = rig.start(missing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommandNotFound);
    assert!(error.to_string().contains("no-such-program"), "{error}");
    let broken = rig.container("c", &["true"], |spec| {
        spec["linux"]["cgroupsPath"] = json!(null)
    });
    let error = rig.start(broken).unwrap_err();
    assert!(error.to_string().contains("cgroupsPath"), "{error}");
    assert!(rig.state().running.is_empty());
    assert!(rig.pids("c").is_empty());
    rig.run("c", &["true"]);
    assert_eq!(rig.exit("c").exit_code, 0);
    rig.end();
}

#[test]
fn three_hundred_short_containers_have_times_that_make_sense() {
    let mut rig = rig!("times");
    for number in 0..300 {
        let id = format!("c{number}");
        rig.run(&id, &["true"]);
        let record = rig.exit(&id);
        assert!(record.started_at > 0 && record.started_at <= record.finished_at);
        rig.done(&Request::Remove { container: id });
    }
    rig.end();
}

#[test]
fn a_kill_for_lack_of_memory_is_told_as_such() {
    let mut rig = rig!("oom");
    let hog = ["sh", "-c", "tail /dev/zero"];
    let limited = rig.container("hog", &hog, |spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
    });
    rig.start(limited).unwrap();
    let record = rig.exit("hog");
    assert!(record.oom_killed, "{record:?}\n{}", rig.complaints());
    assert_eq!(record.exit_code, 137);
    // 137 alone is no evidence.
    rig.run("killed", &["sleep", "1000"]);
    rig.done(&kill("killed"));
    let record = rig.exit("killed");
    assert_eq!((record.exit_code, record.oom_killed), (137, false));
    rig.end();
}

#[test]
fn the_death_of_the_init_ends_the_container_also_in_a_shared_pid_namespace() {
    let mut rig = rig!("init", PidMode::Pod);
    assert!(rig.paths.pause.is_some());
    let script = "sleep 1000 & setsid sleep 1001 & (setsid sleep 1002 &) ; sleep 0.1; exit 7";
    rig.run("c", &["sh", "-c", script]);
    rig.run("other", &["sleep", "1000"]);
    let started = Instant::now();
    assert_eq!(rig.exit("c").exit_code, 7);
    assert!(started.elapsed() < Duration::from_secs(2));
    wait_until("nothing of it is left", || rig.pids("c").is_empty());
    assert!(rig.state().running.contains_key("other"));
    rig.end();
}

#[test]
fn a_stray_that_holds_the_output_delays_the_exit_only_shortly() {
    let mut rig = rig!("stray");
    let info = rig.run("victim", &["sh", "-c", "echo before; sleep 1000"]);
    wait_until("it writes", || !rig.log("victim").is_empty());
    // We hold the write end ourselves, as a process outside the container.
    let held = fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/{}/fd/1", info.pid))
        .unwrap();
    let started = Instant::now();
    rig.done(&kill("victim"));
    let record = rig.exit("victim");
    assert_eq!(record.exit_code, 137);
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(rig.log("victim"), ["stdout F before"]);
    drop(held);
    rig.end();
}

#[test]
fn output_of_every_shape_is_in_the_log_as_case_o1_asks() {
    let mut rig = rig!("o1");
    let full = "x".repeat(16 << 10);
    let table: &[(&str, &str, Vec<String>)] = &[
        ("nothing", "true", vec![]),
        ("open", "printf x", vec!["stdout F x".into()]),
        (
            "crlf",
            "printf 'a\\r\\nb\\r'",
            vec!["stdout F a\r".into(), "stdout F b\r".into()],
        ),
        (
            "full",
            "head -c 16384 /dev/zero | tr '\\0' x",
            vec![format!("stdout F {full}")],
        ),
        (
            "fullnl",
            "head -c 16384 /dev/zero | tr '\\0' x; echo",
            vec![format!("stdout F {full}")],
        ),
        (
            "long",
            "head -c 40000 /dev/zero | tr '\\0' x",
            vec![
                format!("stdout P {full}"),
                format!("stdout P {full}"),
                format!("stdout F {}", "x".repeat(40_000 - (32 << 10))),
            ],
        ),
    ];
    for (id, script, expected) in table {
        rig.run(id, &["sh", "-c", script]);
        assert_eq!(rig.exit(id).log_bytes_lost, 0, "{id}");
        // `lines` of the rig would strip a CR.
        let path = rig.directory.join(format!("logs/{id}/0.log"));
        let text = fs::read_to_string(path).unwrap();
        let records: Vec<&str> = text
            .split_terminator('\n')
            .map(|line| line.split_once(' ').unwrap().1)
            .collect();
        assert_eq!(records, *expected, "{id}");
    }
    rig.end();
}

#[test]
fn a_terminal_is_one_stream_and_may_be_left_and_opened_again() {
    let mut rig = rig!("tty");
    let script = "echo out; echo err >&2; tty; exec <&- >&- 2>&-; sleep 0.1; echo again >/dev/pts/0; sleep 0.1";
    let request = rig.container("c", &["sh", "-c", script], |spec| {
        spec["process"]["terminal"] = json!(true);
    });
    let info = rig.start(request).unwrap();
    let ticks = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1;
        fields
            .split_whitespace()
            .nth(11)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let before = ticks(rig.process.pid);
    assert!(info.pid > 0);
    assert_eq!(rig.exit("c").exit_code, 0);
    // The hang-up of the terminal didn't make the loop spin.
    assert!(ticks(rig.process.pid) - before < 10);
    let expected =
        ["out\r", "err\r", "/dev/pts/0\r", "again\r"].map(|text| format!("stdout F {text}"));
    let path = rig.directory.join("logs/c/0.log");
    let text = fs::read_to_string(path).unwrap();
    let records: Vec<_> = text
        .split_terminator('\n')
        .map(|line| line.split_once(' ').unwrap().1.to_owned())
        .collect();
    assert_eq!(records, expected);
    rig.end();
}

#[test]
fn stdin_is_empty_or_kept_open() {
    let mut rig = rig!("stdin");
    rig.run("empty", &["sh", "-c", "cat; echo end"]);
    rig.exit("empty");
    assert_eq!(rig.log("empty"), ["stdout F end"]);
    let mut open = rig.container("open", &["sh", "-c", "cat; echo end"], |_| {});
    open.stdin = true;
    rig.start(open).unwrap();
    rig.run("later", &["true"]);
    rig.exit("later");
    assert!(rig.state().running.contains_key("open"));
    rig.end();
}

#[test]
fn a_log_is_rotated_while_it_is_written_and_no_line_is_lost() {
    let mut rig = rig!("reopen");
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; sleep 1000";
    rig.run("c", &["sh", "-c", script]);
    let base = rig.directory.join("logs/c");
    let mut rotated: Vec<PathBuf> = Vec::new();
    for number in 0..5 {
        let path = base.join("0.log");
        wait_until("something is logged", || {
            fs::metadata(&path).is_ok_and(|meta| meta.len() > 0)
                || rotated
                    .iter()
                    .map(|path| fs::read_to_string(path).unwrap())
                    .any(|text| text.contains("line 1999"))
        });
        let old = base.join(format!("0.log.{number}"));
        fs::rename(&path, &old).unwrap();
        rig.done(&Request::ReopenLog {
            container: "c".into(),
        });
        let size = fs::metadata(&old).unwrap().len();
        rotated.push(old.clone());
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(
            fs::metadata(&old).unwrap().len(),
            size,
            "nothing after the reply"
        );
    }
    rotated.push(base.join("0.log"));
    let all = |rotated: &[PathBuf]| {
        let text: Vec<_> = rotated
            .iter()
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        text.concat()
    };
    wait_until("all is logged", || all(&rotated).contains("line 1999"));
    let text = all(&rotated);
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.split_once(" F ").unwrap().1)
        .collect();
    let expected: Vec<_> = (0..2000).map(|number| format!("line {number}")).collect();
    assert_eq!(lines, expected);
    rig.done(&kill("c"));
    rig.exit("c");
    let reopen = Request::ReopenLog {
        container: "c".into(),
    };
    fs::remove_file(base.join("0.log")).unwrap();
    assert_eq!(rig.call(&reopen).unwrap_err().kind(), ErrorKind::WrongState);
    assert!(!base.join("0.log").exists());
    rig.end();
}

#[test]
fn without_a_daemon_the_pod_runs_logs_and_records_its_exits() {
    let mut rig = rig!("alone");
    rig.run("c", &["sh", "-c", "echo one; sleep 0.3; echo two; exit 5"]);
    rig.run("d", &["sleep", "1000"]);
    rig.connection
        .socket()
        .shutdown(std::net::Shutdown::Both)
        .unwrap();
    wait_until("the exit is recorded", || rig.record("c").is_some());
    assert_eq!(rig.log("c"), ["stdout F one", "stdout F two"]);
    rig.reconnect();
    let state = rig.state();
    assert_eq!(
        state.exited.get("c").map(|record| record.exit_code),
        Some(5)
    );
    assert_eq!(state.running.keys().collect::<Vec<_>>(), ["d"]);
    assert_eq!(state.paths.as_ref(), Some(&rig.paths));
    rig.end();
}

#[test]
fn a_killed_monitor_leaves_its_containers_in_cgroups_by_which_they_are_killed() {
    let mut rig = rig!("dies");
    rig.run("c", &["sh", "-c", "(setsid sleep 1000 &); sleep 1001"]);
    wait_until("both run", || rig.pids("c").len() >= 2);
    rustix::process::pidfd_send_signal(&rig.process.pidfd, rustix::process::Signal::KILL).unwrap();
    wait_until("the monitor ends", || rig.process.try_reap().unwrap());
    assert!(rig.connection.event().is_err(), "the daemon learns of it");
    let hierarchies = Hierarchies::probe().unwrap();
    let cgroup = hierarchies.open(&rig.pod_cgroup()).unwrap().unwrap();
    assert!(cgroup.pids().unwrap().len() >= 2);
    cgroup.kill().unwrap();
    assert!(cgroup.wait_empty(Duration::from_secs(5)).unwrap());
    cgroup.remove().unwrap();
    assert!(rig.cgroups_left().is_empty());
    // Where the kernel makes it stand in the node's mount table, the daemon takes it away.
    let shm = rig.directory.join("pod/shm");
    if shm.exists() {
        rustix::mount::unmount(&shm, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn stop_kills_everything_and_can_be_repeated() {
    let mut rig = rig!("stop", PidMode::Pod);
    for id in ["a", "b"] {
        rig.run(
            id,
            &[
                "sh",
                "-c",
                "trap '' TERM INT HUP; (setsid sleep 1000 &); while :; do sleep 1; done",
            ],
        );
    }
    let before = rig.process.pid;
    rig.done(&Request::StopPod);
    let state = rig.state();
    assert_eq!(state.exited.len(), 2);
    assert!(state.paths.is_none() && state.running.is_empty());
    for id in ["a", "b"] {
        assert_eq!(rig.record(id).map(|record| record.exit_code), Some(137));
    }
    assert!(rig.cgroups_left().is_empty());
    rig.done(&Request::StopPod);
    let late = rig.container("late", &["true"], |_| {});
    assert_eq!(rig.start(late).unwrap_err().kind(), ErrorKind::WrongState);
    // No namespace is held any more: only streams, listener, connection, signals, epoll, exits.
    let open = fs::read_dir(format!("/proc/{before}/fd")).unwrap().count();
    assert_eq!(open, 8);
    rig.end();
}

#[test]
fn a_flood_of_orphans_is_reaped_and_starves_nobody() {
    let mut rig = rig!("orphans", PidMode::Pod);
    // Without a PID namespace of its own the orphans of a container come to the subreaper.
    let node = rig.container(
        "c",
        &[
            "sh",
            "-c",
            "i=0; while [ $i -lt 3000 ]; do (true &); i=$((i+1)); done; echo done; sleep 1000",
        ],
        |spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
        },
    );
    rig.start(node).unwrap();
    let mut slowest = Duration::ZERO;
    wait_until("the flood is over", || {
        let asked = Instant::now();
        rig.state();
        slowest = slowest.max(asked.elapsed());
        !rig.log("c").is_empty()
    });
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    wait_until("no zombie is left", || {
        let children = format!("/proc/{0}/task/{0}/children", rig.process.pid);
        fs::read_to_string(children)
            .unwrap()
            .split_whitespace()
            .count()
            <= 2
    });
    rig.done(&kill("c"));
    rig.exit("c");
    rig.end();
}

#[test]
fn a_container_may_join_the_pid_namespace_of_another() {
    let mut rig = rig!("target");
    rig.run("c", &["sleep", "1000"]);
    let mut request = rig.container(
        "debug",
        &["sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '"],
        |_| {},
    );
    request.pid_target = Some("c".into());
    rig.start(request).unwrap();
    assert_eq!(rig.exit("debug").exit_code, 0);
    assert_eq!(rig.log("debug"), ["stdout F sleep 1000 "]);
    let mut request = rig.container("late", &["true"], |_| {});
    request.pid_target = Some("debug".into());
    assert_eq!(
        rig.start(request).unwrap_err().kind(),
        ErrorKind::WrongState
    );
    rig.end();
}

#[test]
fn a_seccomp_program_comes_by_descriptor_and_a_wrong_one_is_refused() {
    let mut rig = rig!("seccomp");
    // One instruction: return SECCOMP_RET_ALLOW.
    let allow = [6, 0, 0, 0, 0, 0, 0xff, 0x7f];
    for (id, program, works) in [("good", &allow[..], true), ("cut", &allow[..5], false)] {
        let memory = rustix::fs::memfd_create("program", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&memory, program).unwrap();
        let script = "cat /proc/self/status | tr '\\n' ' '";
        let mut request = rig.container(id, &["sh", "-c", script], |_| {});
        request.seccomp = true;
        let reply = rig.call_with(&Request::Start(request), &[memory.as_fd()]);
        assert_eq!(reply.is_ok(), works, "{id}: {reply:?}");
    }
    rig.exit("good");
    let log = rig.log("good").concat();
    assert!(log.contains("Seccomp:\t2"), "{log}");
    rig.end();
}

#[test]
fn nothing_leaks_over_many_containers() {
    let mut rig = rig!("leaks");
    let open = |rig: &Rig| {
        fs::read_dir(format!("/proc/{}/fd", rig.process.pid))
            .unwrap()
            .count()
    };
    let mut counts = Vec::new();
    for number in 0..50 {
        let id = format!("c{number}");
        rig.run(&id, &["sh", "-c", "echo x"]);
        rig.exit(&id);
        rig.done(&Request::Remove { container: id });
        rig.state();
        counts.push(open(&rig));
    }
    assert_eq!(counts.first(), counts.last(), "{counts:?}");
    rig.end();
}
