//! Terminals of execs in a real monitor: sizes, hang-ups, and restarts of the daemon.

mod monitor;

use std::fs;
use std::io::Write;

use bulkhead_runtime::error::ErrorKind;
use bulkhead_runtime::monitor::wire::{PidMode, Request};
use monitor::clients::read_until;
use monitor::{Rig, may_run, wait_until};

/// A pod with one container `c` that sleeps, or a loud skip.
macro_rules! rig {
    ($name:literal) => {{
        if !may_run(concat!("monitor_exec_terminals ", $name)) {
            return;
        }
        let mut rig = Rig::with_pod(concat!("tty-", $name), PidMode::Container);
        rig.run("c", &["sleep", "1000"]);
        rig
    }};
}

fn resize(exec: &str, rows: u16, columns: u16) -> Request {
    Request::Resize {
        container: "c".into(),
        exec: Some(exec.into()),
        rows,
        columns,
    }
}

/// What the process left in the container's `/tmp`.
fn left(rig: &Rig, name: &str) -> String {
    let path = rig.directory.join("rw-c/upper/tmp").join(name);
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn the_process_sees_each_new_size_and_is_told() {
    let mut rig = rig!("size");
    let script = "trap 'stty size' WINCH; echo ready; while :; do read l; done";
    let mut master = rig.exec_tty("e", "c", &["sh", "-c", script]);
    read_until(&mut master, "ready");
    for (rows, columns) in [(24, 80), (50, 132), (9, 20), (300, 400)] {
        rig.done(&resize("e", rows, columns));
        master.write_all(b"\n").unwrap();
        read_until(&mut master, &format!("{rows} {columns}\r\n"));
    }
    let plain = rig.exec("plain", "c", &["sleep", "1000"], None);
    rig.call(&Request::Exec(plain)).unwrap();
    let refused = rig.call(&resize("plain", 1, 1)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    rig.done(&Request::KillExec { id: "e".into() });
    rig.exec_exit("e");
    let gone = rig.call(&resize("e", 1, 1)).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
    rig.end();
}

#[test]
fn a_vanished_client_is_a_hang_up_and_no_kill() {
    let mut rig = rig!("hang-up");
    let before = rig.open_descriptors();
    let heeds = "trap 'echo hup >/tmp/heeds; exit 7' HUP; echo ready; while :; do sleep 0.02; done";
    let ignores = "trap '' HUP; echo ready; sleep 0.3; echo on >/tmp/ignores; exit 8";
    for (id, script, code) in [("heeds", heeds, 7), ("ignores", ignores, 8)] {
        let mut master = rig.exec_tty(id, "c", &["sh", "-c", script]);
        read_until(&mut master, "ready");
        drop(master);
        rig.done(&Request::HangUp { exec: id.into() });
        assert_eq!(rig.exec_exit(id), (code, false));
        assert!(!left(&rig, id).is_empty());
    }
    rig.done(&Request::HangUp {
        exec: "heeds".into(),
    });
    assert_eq!(rig.open_descriptors(), before);
    rig.end();
}

#[test]
fn execs_with_a_terminal_outlive_the_daemon_and_are_not_stopped_by_a_full_terminal() {
    let mut rig = rig!("restart");
    // More than a terminal holds, with nobody to read it.
    let work = "trap 'echo hup >/tmp/work; exit 9' HUP; echo ready; sleep 0.2; seq 1 100000; \
                echo done >/tmp/work; exit 4";
    let mut master = rig.exec_tty("work", "c", &["sh", "-c", work]);
    read_until(&mut master, "ready");
    let mut shell = rig.exec_tty("shell", "c", &["sh", "-i"]);
    read_until(&mut shell, "#");
    rig.connection
        .socket()
        .shutdown(std::net::Shutdown::Both)
        .unwrap();
    drop((master, shell));
    wait_until("the work is done", || left(&rig, "work") == "done\n");
    // A shell at its prompt has nobody to wait for.
    wait_until("the shell has ended", || rig.pids("c").len() == 1);
    rig.reconnect();
    let quick = rig.exec("quick", "c", &["true"], None);
    rig.call(&Request::Exec(quick)).unwrap();
    assert_eq!(rig.exec_exit("quick"), (0, false));
    rig.end();
}

#[test]
fn failed_starts_and_resizes_leave_no_descriptor() {
    let mut rig = rig!("f3");
    let before = rig.open_descriptors();
    for number in 0..500 {
        let id = format!("e{number}");
        let mut request = rig.exec(&id, "c", &["/no/such/program"], None);
        let mut process: serde_json::Value = serde_json::from_str(request.process.get()).unwrap();
        process["terminal"] = true.into();
        request.process = serde_json::value::to_raw_value(&process).unwrap();
        let error = rig.call(&Request::Exec(request)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CommandNotFound);
        assert!(rig.call(&resize(&id, 24, 80)).is_err());
    }
    for number in 0..50 {
        let id = format!("t{number}");
        let master = rig.exec_tty(&id, "c", &["sh", "-c", "exit 3"]);
        // It may have ended already.
        let _ended = rig.call(&resize(&id, 24, 80));
        assert_eq!(rig.exec_exit(&id), (3, false));
        drop(master);
    }
    wait_until("all is given back", || rig.open_descriptors() == before);
    assert_eq!(rig.zombies(), 0);
    rig.end();
}
