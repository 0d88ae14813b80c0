//! Execs in a real monitor: streams, time-outs, what is left behind.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod monitor;

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use bulkhead_runtime::error::ErrorKind;
use bulkhead_runtime::monitor::wire::{PidMode, Reply, Request};
use monitor::{Rig, may_run, wait_until};
use serde_json::json;

/// A pod with one container `c` that sleeps, or a loud skip.
macro_rules! rig {
    ($name:literal, $pid:expr) => {{
        if !may_run(concat!("monitor_execs ", $name)) {
            return;
        }
        let mut rig = Rig::with_pod($name, $pid);
        rig.run("c", &["sleep", "1000"]);
        rig
    }};
    ($name:literal) => {
        rig!($name, PidMode::Container)
    };
}

fn read_all(end: OwnedFd) -> String {
    let mut text = String::new();
    fs::File::from(end).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn an_exec_has_its_own_streams_and_exit_code() {
    let mut rig = rig!("streams");
    let mut request = rig.exec("e", "c", &["sh", "-c", "cat; echo err >&2; exit 4"], None);
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((stdin, feed), (out, stdout), (err, stderr)) = (pipe(), pipe(), pipe());
    (request.stdin, request.stdout, request.stderr) = (true, true, true);
    let given = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let reply = rig.call_with(&Request::Exec(request), &given).unwrap();
    assert!(matches!(reply.0, Reply::ExecStarted(_)));
    drop((stdin, stdout, stderr));
    rustix::io::write(&feed, b"through").unwrap();
    drop(feed);
    assert_eq!(read_all(out), "through");
    assert_eq!(read_all(err), "err\n");
    assert_eq!(rig.exec_exit("e"), (4, false));
    assert!(
        rig.log("c").is_empty(),
        "nothing of it is in the container's log"
    );
    rig.end();
}

#[test]
fn an_exec_with_a_terminal_gets_its_master() {
    let mut rig = rig!("terminal");
    let mut request = rig.exec("e", "c", &["sh", "-c", "tty; exit 2"], None);
    let mut process: serde_json::Value = serde_json::from_str(request.process.get()).unwrap();
    process["terminal"] = true.into();
    request.process = serde_json::value::to_raw_value(&process).unwrap();
    let (_, descriptors) = rig.call_with(&Request::Exec(request), &[]).unwrap();
    let [master] = <[OwnedFd; 1]>::try_from(descriptors).unwrap();
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut buffer = [0; 64];
        let count = rustix::io::read(&master, &mut buffer).unwrap();
        line.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(line, b"/dev/pts/0\r\n");
    assert_eq!(rig.exec_exit("e"), (2, false));
    rig.end();
}

#[test]
fn f1_an_exec_is_as_confined_as_its_container_and_runs_as_whom_it_is_told() {
    if !may_run("monitor_execs f1") {
        return;
    }
    let mut rig = Rig::with_pod("f1", PidMode::Container);
    // One instruction: return SECCOMP_RET_ALLOW.
    let program = rustix::fs::memfd_create("program", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&program, &[6, 0, 0, 0, 0, 0, 0xff, 0x7f]).unwrap();
    let show = "cd /proc/self; tr '\\0' ' ' <attr/current; cat status limits cgroup oom_score_adj | \
                tr -s '\\t ' '  '; for n in ns/*; do readlink $n; done";
    let process = |uid: u32| {
        json!({
            "user": { "uid": uid, "gid": 7, "additionalGids": [8, 9] },
            "args": ["sh", "-c", format!("({show}); exec >&- 2>&-; sleep 1000")],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": ["CAP_NET_RAW", "CAP_CHOWN"],
                "permitted": ["CAP_NET_RAW"],
                "effective": ["CAP_NET_RAW"],
            },
            "noNewPrivileges": true,
            "oomScoreAdj": 321,
            "rlimits": [
                { "type": "RLIMIT_NOFILE", "soft": 77, "hard": 99 },
                { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
            ],
        })
    };
    let mut request = rig.container("c", &["true"], |spec| spec["process"] = process(0));
    request.seccomp = true;
    let given = [program.as_fd()];
    rig.call_with(&Request::Start(request), &given).unwrap();
    wait_until("it has shown itself", || {
        rig.log("c").iter().any(|line| line.contains("uts:"))
    });
    let log = rig.log("c").into_iter();
    let of_init: Vec<String> = log.map(|line| line["stdout F ".len()..].into()).collect();
    for uid in [0, 1000] {
        let id = format!("u{uid}");
        let (out, stdout) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut request = rig.exec(&id, "c", &["true"], Some(10_000));
        let mut wanted = process(uid);
        wanted["args"] = json!(["sh", "-c", format!("({show}); true")]);
        request.process = serde_json::value::to_raw_value(&wanted).unwrap();
        (request.seccomp, request.stdout) = (true, true);
        let given = [program.as_fd(), stdout.as_fd()];
        rig.call_with(&Request::Exec(request), &given).unwrap();
        drop(stdout);
        assert_eq!(rig.exec_exit(&id), (0, false));
        let shown = read_all(out);
        let fields = [
            "Uid:",
            "Gid:",
            "Groups:",
            "Cap",
            "NoNewPrivs:",
            "Seccomp",
            "Max ",
            "321",
        ];
        let compared =
            |line: &str| fields.iter().any(|field| line.starts_with(field)) || line.contains(":[");
        let mut expected: Vec<String> = of_init.iter().filter(|l| compared(l)).cloned().collect();
        assert!(expected.len() > 35, "{of_init:#?}");
        if uid != 0 {
            for line in &mut expected {
                if line.starts_with("Uid:") {
                    *line = format!("Uid: {uid} {uid} {uid} {uid}");
                } else if line.starts_with("CapPrm:") || line.starts_with("CapEff:") {
                    // Another user than root loses them with execve(2).
                    *line = format!("{} {:016x}", &line[..7], 0);
                }
            }
        }
        let found: Vec<&str> = shown.lines().filter(|line| compared(line)).collect();
        assert_eq!(found, expected, "uid {uid}");
    }
    rig.end();
}

#[test]
fn what_can_not_be_executed_says_so_and_leaves_nothing() {
    let mut rig = rig!("missing");
    let request = rig.exec("e", "c", &["no-such-program"], Some(1000));
    let error = rig.call(&Request::Exec(request)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommandNotFound);
    let request = rig.exec("e", "c", &["true"], None);
    rig.call(&Request::Exec(request)).unwrap();
    assert_eq!(rig.exec_exit("e"), (0, false));
    let request = rig.exec("e", "q", &["true"], None);
    let error = rig.call(&Request::Exec(request)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    rig.end();
}

#[test]
fn a_time_out_leaves_nothing_and_touches_nobody_else() {
    for (name, pid) in [("own", PidMode::Container), ("shared", PidMode::Pod)] {
        if !may_run("monitor_execs time-outs") {
            return;
        }
        let mut rig = Rig::with_pod(&format!("timeout-{name}"), pid);
        rig.run("c", &["sleep", "1000"]);
        let bystander = rig.exec("bystander", "c", &["sleep", "1000"], None);
        rig.call(&Request::Exec(bystander)).unwrap();
        let table = [
            ("children", "sleep 9999 & sleep 9999"),
            ("deaf", "trap '' TERM INT HUP; while :; do sleep 0.05; done"),
            (
                "double",
                "(setsid sh -c '(setsid sleep 9999 &) ; sleep 9999' &) ; sleep 9999",
            ),
        ];
        let before = rig.pids("c").len();
        for (id, script) in table {
            let request = rig.exec(id, "c", &["sh", "-c", script], Some(300));
            let started = Instant::now();
            rig.call(&Request::Exec(request)).unwrap();
            assert_eq!(rig.exec_exit(id), (137, true), "{name} {id}");
            let took = started.elapsed();
            assert!(took >= Duration::from_millis(300), "{name} {id}: {took:?}");
            assert!(took < Duration::from_millis(1300), "{name} {id}: {took:?}");
            assert_eq!(rig.pids("c").len(), before, "{name} {id}: nothing is left");
        }
        assert!(rig.state().running.contains_key("c"));
        rig.done(&Request::KillExec {
            id: "bystander".into(),
        });
        assert_eq!(rig.exec_exit("bystander"), (137, false));
        rig.end();
    }
}

#[test]
fn many_timed_out_execs_leave_no_process_no_cgroup_and_no_descriptor() {
    let mut rig = rig!("many");
    let before = rig.open_descriptors();
    for number in 0..40 {
        let id = format!("e{number}");
        let request = rig.exec(
            &id,
            "c",
            &["sh", "-c", "sleep 9999 & sleep 9999"],
            Some(100),
        );
        rig.call(&Request::Exec(request)).unwrap();
    }
    for number in 0..40 {
        assert_eq!(rig.exec_exit(&format!("e{number}")), (137, true));
    }
    wait_until("only the container's own is left", || {
        rig.pids("c").len() == 1
    });
    wait_until("descriptors are given back", || {
        rig.open_descriptors() == before
    });
    rig.end();
}

#[test]
fn a_background_process_outlives_its_exec_and_dies_with_the_container() {
    let mut rig = rig!("background");
    let script = "setsid sleep 1000 >/dev/null 2>&1 & echo started";
    let request = rig.exec("e", "c", &["sh", "-c", script], Some(10_000));
    let (_, out) = rig.exec_out(request).unwrap();
    assert_eq!(rig.exec_exit("e"), (0, false));
    assert_eq!(read_all(out), "started\n");
    assert_eq!(rig.pids("c").len(), 2);
    rig.done(&Request::Kill {
        container: "c".into(),
    });
    rig.exit("c");
    wait_until("all is gone", || rig.pids("c").is_empty());
    rig.end();
}

#[test]
fn an_exec_keeps_to_its_time_out_when_the_daemon_is_gone() {
    let mut rig = rig!("gone");
    let request = rig.exec("e", "c", &["sleep", "9999"], Some(200));
    rig.call(&Request::Exec(request)).unwrap();
    let endless = rig.exec("endless", "c", &["sleep", "9999"], None);
    rig.call(&Request::Exec(endless)).unwrap();
    assert_eq!(rig.pids("c").len(), 3);
    rig.connection
        .socket()
        .shutdown(std::net::Shutdown::Both)
        .unwrap();
    wait_until("its time is up", || rig.pids("c").len() == 2);
    rig.reconnect();
    rig.done(&Request::KillExec {
        id: "endless".into(),
    });
    assert_eq!(rig.exec_exit("endless"), (137, false));
    rig.end();
}

#[test]
fn execs_end_with_their_container() {
    let mut rig = rig!("with-container", PidMode::Pod);
    let request = rig.exec("e", "c", &["sh", "-c", "sleep 9999 & sleep 9999"], None);
    rig.call(&Request::Exec(request)).unwrap();
    rig.done(&Request::Kill {
        container: "c".into(),
    });
    assert_eq!(rig.exec_exit("e"), (137, false));
    assert_eq!(rig.exit("c").exit_code, 137);
    rig.end();
}
