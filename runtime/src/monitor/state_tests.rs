//! The table of requests and states, and what an exit becomes.

use super::*;
use crate::monitor::wire::{Attach, CreatePod, Exec, NamespaceMode, PidMode, RootfsSource, Start};

fn raw() -> Box<serde_json::value::RawValue> {
    serde_json::from_str("{}").unwrap()
}

fn create() -> Request {
    Request::CreatePod(CreatePod {
        id: "p".into(),
        directory: "/p".into(),
        hostname: None,
        network: NamespaceMode::New,
        ipc: NamespaceMode::New,
        uts: NamespaceMode::New,
        pid: PidMode::Container,
        user: None,
        sysctls: BTreeMap::new(),
        shm_size: None,
        cgroup: "/p".into(),
    })
}

fn start(container: &str, target: Option<&str>) -> Request {
    Request::Start(Start {
        container: container.into(),
        spec: raw(),
        images: Vec::new(),
        rootfs: RootfsSource {
            lower: Vec::new(),
            upper: "/u".into(),
            work: "/w".into(),
        },
        log: None,
        stdin: false,
        stdin_once: false,
        pid_target: target.map(str::to_owned),
        seccomp: false,
    })
}

fn exec(id: &str, container: &str) -> Request {
    Request::Exec(Exec {
        id: id.into(),
        container: container.into(),
        process: raw(),
        timeout_ms: None,
        seccomp: false,
        stdin: false,
        stdout: false,
        stderr: false,
    })
}

/// An attach; its streams as letters of `ioe`.
fn attach(id: &str, container: &str, streams: &str) -> Request {
    Request::Attach(Attach {
        id: id.into(),
        container: container.into(),
        stdin: streams.contains('i'),
        stdout: streams.contains('o'),
        stderr: streams.contains('e'),
    })
}

fn resize(container: &str) -> Request {
    Request::Resize {
        container: container.into(),
        exec: None,
        rows: 24,
        columns: 80,
    }
}

fn signal(container: &str, signal: i32) -> Request {
    Request::Signal {
        container: container.into(),
        signal,
    }
}

fn kill(container: &str) -> Request {
    Request::Kill {
        container: container.into(),
    }
}

fn reopen(container: &str) -> Request {
    Request::ReopenLog {
        container: container.into(),
    }
}

fn remove(container: &str) -> Request {
    Request::Remove {
        container: container.into(),
    }
}

fn info(started_at: i64) -> ProcessInfo {
    ProcessInfo {
        pid: 7,
        start_ticks: 1,
        started_at,
    }
}

/// A pod with one container in each state: r runs, e is ending, x has exited. Exec `one` runs in r, client `a`
/// is attached to it.
fn pod() -> Machine {
    let mut machine = Machine::new();
    machine.pod_created(PodPaths::default());
    for container in ["r", "e", "x"] {
        machine.started(container, info(100));
    }
    machine.exec_started("one", "r");
    machine.attached("a", "r");
    for container in ["e", "x"] {
        machine.ended(container, Outcome::Exited(3), 200);
    }
    let record = machine.record("x", false, 0).unwrap();
    machine.recorded(record);
    machine
}

#[test]
fn requests_are_allowed_where_the_state_allows_them() {
    use ErrorKind::{Invalid, NotFound, WrongState};
    let empty = Machine::new();
    let running = pod();
    let mut stopping = pod();
    stopping.stop();
    let mut stopped = Machine::new();
    stopped.stop();
    let long = "x".repeat(129);
    type Row<'a> = (&'a str, &'a Machine, Request, Option<ErrorKind>);
    let table: Vec<Row<'_>> = vec![
        ("create in an empty monitor", &empty, create(), None),
        ("create twice", &running, create(), Some(WrongState)),
        ("create after stop", &stopped, create(), Some(WrongState)),
        (
            "start before create",
            &empty,
            start("a", None),
            Some(WrongState),
        ),
        ("start", &running, start("a", None), None),
        (
            "start while stopping",
            &stopping,
            start("a", None),
            Some(WrongState),
        ),
        (
            "start what runs",
            &running,
            start("r", None),
            Some(WrongState),
        ),
        (
            "start what has exited",
            &running,
            start("x", None),
            Some(WrongState),
        ),
        (
            "start without a name",
            &running,
            start("", None),
            Some(Invalid),
        ),
        (
            "start with a path",
            &running,
            start("a/b", None),
            Some(Invalid),
        ),
        (
            "start with dots",
            &running,
            start("..", None),
            Some(Invalid),
        ),
        (
            "start with a newline",
            &running,
            start("a\n", None),
            Some(Invalid),
        ),
        (
            "start with a long name",
            &running,
            start(&long, None),
            Some(Invalid),
        ),
        (
            "target a running one",
            &running,
            start("a", Some("r")),
            None,
        ),
        (
            "target an exited one",
            &running,
            start("a", Some("x")),
            Some(WrongState),
        ),
        (
            "target an unknown one",
            &running,
            start("a", Some("q")),
            Some(NotFound),
        ),
        ("exec", &running, exec("two", "r"), None),
        (
            "exec twice with one id",
            &running,
            exec("one", "r"),
            Some(WrongState),
        ),
        (
            "exec with a path",
            &running,
            exec("../x", "r"),
            Some(Invalid),
        ),
        (
            "exec in an ending one",
            &running,
            exec("two", "e"),
            Some(WrongState),
        ),
        (
            "exec in an exited one",
            &running,
            exec("two", "x"),
            Some(WrongState),
        ),
        (
            "exec in an unknown one",
            &running,
            exec("two", "q"),
            Some(NotFound),
        ),
        (
            "exec while stopping",
            &stopping,
            exec("two", "r"),
            Some(WrongState),
        ),
        ("attach", &running, attach("b", "r", "ioe"), None),
        (
            "attach to stdin alone",
            &running,
            attach("b", "r", "i"),
            None,
        ),
        (
            "attach to nothing",
            &running,
            attach("b", "r", ""),
            Some(Invalid),
        ),
        (
            "attach twice with one id",
            &running,
            attach("a", "r", "o"),
            Some(WrongState),
        ),
        (
            "attach with a path",
            &running,
            attach("a/b", "r", "o"),
            Some(Invalid),
        ),
        (
            "attach to an ending one",
            &running,
            attach("b", "e", "o"),
            Some(WrongState),
        ),
        (
            "attach to an exited one",
            &running,
            attach("b", "x", "o"),
            Some(WrongState),
        ),
        (
            "attach to an unknown one",
            &running,
            attach("b", "q", "o"),
            Some(NotFound),
        ),
        (
            "attach while stopping",
            &stopping,
            attach("b", "r", "o"),
            None,
        ),
        ("detach", &running, Request::Detach { id: "a".into() }, None),
        (
            "detach an unknown one",
            &running,
            Request::Detach { id: "q".into() },
            None,
        ),
        ("resize", &running, resize("r"), None),
        (
            "resize an exited one",
            &running,
            resize("x"),
            Some(WrongState),
        ),
        (
            "resize an unknown one",
            &running,
            resize("q"),
            Some(NotFound),
        ),
        (
            "hang up an unknown one",
            &running,
            Request::HangUp { exec: "q".into() },
            None,
        ),
        ("signal", &running, signal("r", 15), None),
        ("real-time signal", &running, signal("r", 64), None),
        ("signal 0", &running, signal("r", 0), Some(Invalid)),
        ("signal 65", &running, signal("r", 65), Some(Invalid)),
        (
            "signal an ending one",
            &running,
            signal("e", 15),
            Some(WrongState),
        ),
        (
            "signal an unknown one",
            &running,
            signal("q", 15),
            Some(NotFound),
        ),
        ("kill", &running, kill("r"), None),
        ("kill an exited one", &running, kill("x"), None),
        ("kill an unknown one", &running, kill("q"), Some(NotFound)),
        ("reopen", &running, reopen("r"), None),
        (
            "reopen an exited one",
            &running,
            reopen("x"),
            Some(WrongState),
        ),
        (
            "reopen an unknown one",
            &running,
            reopen("q"),
            Some(NotFound),
        ),
        ("remove", &running, remove("x"), None),
        ("remove twice", &running, remove("q"), None),
        (
            "remove a running one",
            &running,
            remove("r"),
            Some(WrongState),
        ),
        (
            "remove an ending one",
            &running,
            remove("e"),
            Some(WrongState),
        ),
        ("status of nothing", &empty, Request::Status, None),
        ("stop of nothing", &empty, Request::StopPod, None),
        ("stop again", &stopping, Request::StopPod, None),
        ("shut down without a pod", &empty, Request::Shutdown, None),
        ("shut down a stopped pod", &stopped, Request::Shutdown, None),
        (
            "shut down a pod",
            &running,
            Request::Shutdown,
            Some(WrongState),
        ),
        (
            "shut down while stopping",
            &stopping,
            Request::Shutdown,
            Some(WrongState),
        ),
    ];
    for (name, machine, request, expected) in table {
        let result = machine.admit(&request);
        assert_eq!(
            result.as_ref().err().map(Error::kind),
            expected,
            "{name}: {result:?}"
        );
    }
}

#[test]
fn at_a_limit_the_error_comes_at_once_and_names_it() {
    let mut machine = pod();
    for number in 0..MAX_EXECS {
        machine.exec_started(&format!("e{number}"), "r");
    }
    let error = machine.admit(&exec("another", "r")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    for number in 0..MAX_CONTAINERS {
        machine.started(&format!("c{number}"), info(1));
    }
    machine.admit(&exec("another", "c0")).unwrap();
    let error = machine.admit(&start("another", None)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted);
}

#[test]
fn an_exit_is_dated_once_never_before_the_start_and_told_when_recorded() {
    for (name, outcome, now, code, signal, finished) in [
        ("a status", Outcome::Exited(3), 150, 3, None, 150),
        ("a signal", Outcome::Signalled(9), 150, 137, Some(9), 150),
        (
            "the clock was set back",
            Outcome::Exited(0),
            50,
            0,
            None,
            100,
        ),
    ] {
        let mut machine = Machine::new();
        machine.pod_created(PodPaths::default());
        machine.started("c", info(100));
        assert_eq!(machine.record("c", false, 0), None, "{name}: still runs");
        machine.ended("c", outcome, now);
        machine.ended("c", Outcome::Exited(99), 999);
        assert!(
            machine.snapshot().running.contains_key("c"),
            "{name}: not durable yet"
        );
        let record = machine.record("c", true, 5).unwrap();
        assert_eq!(
            (
                record.exit_code,
                record.signal,
                record.started_at,
                record.finished_at
            ),
            (code, signal, 100, finished),
            "{name}"
        );
        assert!(record.oom_killed && record.log_bytes_lost == 5);
        assert_eq!(
            machine.recorded(record.clone()),
            Event::ContainerExited(record.clone())
        );
        let snapshot = machine.snapshot();
        assert!(snapshot.running.is_empty());
        assert_eq!(snapshot.exited.get("c"), Some(&record), "{name}");
        machine.removed("c");
        assert!(machine.snapshot().exited.is_empty());
    }
}

#[test]
fn a_time_out_marks_only_an_exec_that_still_runs() {
    let mut machine = pod();
    assert!(machine.exec_timed_out("one"));
    assert_eq!(
        machine.exec_ended("one", Outcome::Signalled(9)),
        Some(Event::ExecExited {
            id: "one".into(),
            exit_code: 137,
            timed_out: true
        })
    );
    assert!(!machine.exec_timed_out("one"));
    assert_eq!(machine.exec_ended("one", Outcome::Exited(0)), None);
}

#[test]
fn a_stopped_pod_is_released_when_every_exit_is_recorded() {
    let mut machine = pod();
    assert!(!machine.may_release());
    assert_eq!(machine.stop(), ["e", "r"]);
    assert!(machine.snapshot().paths.is_some());
    machine.ended("r", Outcome::Signalled(9), 300);
    for container in ["e", "r"] {
        assert!(!machine.may_release());
        let record = machine.record(container, false, 0).unwrap();
        machine.recorded(record);
    }
    assert!(machine.may_release());
    machine.released();
    assert!(machine.is_stopped() && !machine.may_release());
    assert!(machine.stop().is_empty(), "idempotent");
    assert_eq!(machine.snapshot().exited.len(), 3);
    assert_eq!(machine.snapshot().paths, None);
}

#[test]
fn attached_clients_are_bounded_by_container_and_by_pod() {
    let mut machine = pod();
    for container in 0..9 {
        machine.started(&container.to_string(), info(1));
    }
    let kind = |machine: &Machine, container: &str| {
        let admitted = machine.admit(&attach("new", container, "o"));
        admitted.err().map(|error| error.kind())
    };
    let mut attached = 1; // "a"
    for container in 0..7 {
        let container = container.to_string();
        for number in 0..MAX_CLIENTS {
            assert_eq!(kind(&machine, &container), None);
            machine.attached(&format!("{container}-{number}"), &container);
            attached += 1;
        }
        assert_eq!(kind(&machine, &container), Some(ErrorKind::Exhausted));
    }
    for number in attached..MAX_POD_CLIENTS {
        assert_eq!(kind(&machine, "8"), None);
        machine.attached(&format!("8-{number}"), "8");
    }
    assert_eq!(kind(&machine, "7"), Some(ErrorKind::Exhausted));
    machine.detached("a");
    assert_eq!(kind(&machine, "7"), None);
}
