//! Attached clients of a real monitor: what they see, what they send, how they end (cases X7; threats
//! F3, F5).

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod monitor;

use std::io::Write;
use std::time::{Duration, Instant};

use bulkhead_runtime::error::ErrorKind;
use bulkhead_runtime::monitor::wire::{PidMode, Request};
use monitor::clients::read_to_end;
use monitor::{Rig, may_run, wait_until};
use serde_json::json;

/// A test's monitor and pod, or a loud skip.
macro_rules! rig {
    ($name:literal) => {{
        if !may_run(concat!("monitor_attach ", $name)) {
            return;
        }
        Rig::with_pod(concat!("attach-", $name), PidMode::Container)
    }};
}

/// Starts a container that runs a script with stdin kept open.
fn run(rig: &mut Rig, id: &str, script: &str) {
    let mut request = rig.container(id, &["sh", "-c", script], |_| {});
    request.stdin = true;
    rig.start(request).unwrap();
}

/// The same with a terminal.
fn run_tty(rig: &mut Rig, id: &str, script: &str) {
    let mut request = rig.container(id, &["sh", "-c", script], |spec| {
        spec["process"]["terminal"] = json!(true);
    });
    request.stdin = true;
    rig.start(request).unwrap();
}

#[test]
fn several_clients_see_what_is_written_after_they_came_to_the_end() {
    let mut rig = rig!("several");
    run(
        &mut rig,
        "c",
        "echo before; read l; echo \"got $l\"; echo err >&2; exit 3",
    );
    wait_until("it runs", || !rig.log("c").is_empty());
    let mut one = rig.attach("one", "c", (true, true, true));
    let mut other = rig.attach("other", "c", (false, true, false));
    let mut errors = rig.attach("errors", "c", (false, false, true));
    one.send("x\n");
    assert_eq!(one.rest(), "got x\n");
    assert_eq!(other.rest(), "got x\n");
    assert_eq!(read_to_end(&mut one.stderr.unwrap()), "err\n");
    assert_eq!(read_to_end(&mut errors.stderr.take().unwrap()), "err\n");
    for id in ["one", "other", "errors"] {
        assert_eq!(rig.attach_end(id), None);
    }
    assert_eq!(rig.exit("c").exit_code, 3);
    rig.end();
}

#[test]
fn all_that_was_written_before_the_end_is_delivered_after_it() {
    let mut rig = rig!("tail");
    // More than the client's pipe holds, which it reads only when the container is long gone.
    run(&mut rig, "c", "read l; seq 1 20000; exit 0");
    let mut client = rig.attach("late", "c", (true, true, false));
    client.send("go\n");
    let started = Instant::now();
    rig.exit("c");
    assert!(started.elapsed() < Duration::from_secs(2));
    let expected: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    assert!(client.rest() == expected);
    assert_eq!(rig.attach_end("late"), None);
    rig.end();
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_harms_nobody() {
    let mut rig = rig!("slow");
    let script = "read l; i=0; while [ $i -lt 50 ]; do seq 1 2000; sleep 0.01; i=$((i+1)); done";
    run(&mut rig, "c", script);
    let slow = rig.attach("slow", "c", (false, true, true));
    let mut quick = rig.attach("quick", "c", (true, true, false));
    let started = Instant::now();
    quick.send("go\n");
    let all = quick.rest();
    assert_eq!(all.lines().count(), 100_000);
    assert!(started.elapsed() < Duration::from_secs(10));
    let why = rig.attach_end("slow").unwrap();
    assert!(why.contains("slowly"), "{why}");
    assert_eq!(rig.attach_end("quick"), None);
    rig.exit("c");
    assert_eq!(rig.log("c").len(), 100_000);
    drop(slow);
    rig.end();
}

#[test]
fn a_client_that_vanishes_is_forgotten_also_while_nothing_is_written() {
    let mut rig = rig!("vanish");
    rig.run("c", &["sleep", "1000"]);
    run(&mut rig, "busy", "while :; do echo x; sleep 0.002; done");
    let before = rig.open_descriptors();
    for to in ["c", "busy"] {
        for wanted in [
            (false, true, false),
            (true, true, true),
            (true, false, false),
        ] {
            drop(rig.attach("v", to, wanted));
            assert_eq!(rig.attach_end("v"), None, "{to} {wanted:?}");
        }
    }
    let stays = rig.attach("stays", "c", (false, true, false));
    rig.detach("stays");
    assert_eq!(rig.attach_end("stays"), None);
    rig.detach("stays");
    drop(stays);
    assert_eq!(rig.open_descriptors(), before);
    rig.end();
}

#[test]
fn x7_stdin_ends_with_the_first_client_only_if_it_is_once() {
    let mut rig = rig!("x7");
    for (id, once) in [("open", false), ("once", true)] {
        let mut request = rig.container(id, &["sh", "-c", "cat; echo closed; sleep 1000"], |_| {});
        (request.stdin, request.stdin_once) = (true, once);
        rig.start(request).unwrap();
        let mut first = rig.attach("first", id, (true, true, false));
        let mut second = rig.attach("second", id, (true, true, false));
        first.send("one\n");
        assert_eq!(first.read_until("\n"), "one\n");
        assert_eq!(second.read_until("\n"), "one\n");
        second.send("two\n");
        assert_eq!(first.read_until("\n"), "two\n");
        assert_eq!(second.read_until("\n"), "two\n");
        // Its last words are sent before it leaves, and arrive.
        first.send("last\n");
        rig.detach("first");
        assert_eq!(rig.attach_end("first"), None);
        let seen = second.read_until(if once { "closed\n" } else { "last\n" });
        if once {
            assert_eq!(seen, "last\nclosed\n");
            let error = second.stdin.take().unwrap().write_all(b"x").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        } else {
            second.stdin = None;
            drop(second);
            assert_eq!(rig.attach_end("second"), None);
            let mut third = rig.attach("third", id, (true, true, false));
            third.send("three\n");
            assert_eq!(third.read_until("\n"), "three\n");
            third.stdin = None;
            assert_eq!(
                rig.log(id),
                ["one", "two", "last", "three"].map(|l| format!("stdout F {l}"))
            );
        }
        rig.done(&Request::Kill {
            container: id.into(),
        });
        rig.exit(id);
    }
    rig.end();
}

#[test]
fn input_on_its_way_from_a_client_that_vanished_arrives() {
    let mut rig = rig!("last-words");
    let mut request = rig.container("c", &["sh", "-c", "cat; echo closed"], |_| {});
    (request.stdin, request.stdin_once) = (true, true);
    rig.start(request).unwrap();
    let mut client = rig.attach("a", "c", (true, true, false));
    client.stdout = None;
    client.send("early\n");
    wait_until("it arrives", || !rig.log("c").is_empty());
    client.send("late\n");
    client.stdin = None;
    assert_eq!(rig.attach_end("a"), None);
    rig.exit("c");
    let lines = ["early", "late", "closed"].map(|line| format!("stdout F {line}"));
    assert_eq!(rig.log("c"), lines);
    // One that never closes its input isn't waited for.
    let mut request = rig.container("d", &["cat"], |_| {});
    (request.stdin, request.stdin_once) = (true, true);
    rig.start(request).unwrap();
    let mut silent = rig.attach("b", "d", (true, true, false));
    silent.stdout = None;
    assert_eq!(rig.attach_end("b"), None);
    rig.exit("d");
    drop(silent);
    rig.end();
}

#[test]
fn x7_without_a_stdin_it_is_at_its_end_and_output_comes() {
    let mut rig = rig!("none");
    rig.run(
        "c",
        &[
            "sh",
            "-c",
            "cat; echo eof; while :; do echo x; sleep 0.01; done",
        ],
    );
    let mut client = rig.attach("a", "c", (true, true, false));
    let error = client.stdin.take().unwrap().write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    client.read_until("x\n");
    drop(client);
    assert_eq!(rig.attach_end("a"), None);
    // With nothing else asked for, there is nothing to be attached to.
    let only_stdin = rig.attach("b", "c", (true, false, false));
    assert_eq!(rig.attach_end("b"), None);
    drop(only_stdin);
    rig.end();
}

#[test]
fn what_the_container_does_not_read_waits_and_arrives_whole() {
    let mut rig = rig!("input");
    run(&mut rig, "c", "read l; sleep 0.3; wc -c");
    rig.run(
        "other",
        &["sh", "-c", "while :; do echo x; sleep 0.01; done"],
    );
    let mut client = rig.attach("a", "c", (true, true, false));
    let mut other = rig.attach("b", "other", (false, true, false));
    client.send("\n");
    let mut stdin = client.stdin.take().unwrap();
    let sender = std::thread::spawn(move || stdin.write_all(&vec![b'x'; 3 << 20]));
    for _ in 0..10 {
        other.read_until("x\n");
    }
    sender.join().unwrap().unwrap();
    // Half-closed: its end isn't the container's, which goes on for the next client.
    let mut next = rig.attach("c", "c", (true, false, false));
    next.send("tail");
    next.stdin = None;
    assert_eq!(rig.attach_end("c"), None);
    rig.done(&Request::Kill {
        container: "other".into(),
    });
    rig.exit("other");
    rig.done(&Request::Kill {
        container: "c".into(),
    });
    rig.exit("c");
    rig.end();
}

#[test]
fn a_quarter_of_a_gigabyte_goes_through_a_container_unharmed() {
    let mut rig = rig!("through");
    let mut request = rig.container("c", &["sh", "-c", "cat | wc -c"], |_| {});
    (request.stdin, request.stdin_once) = (true, true);
    rig.start(request).unwrap();
    let mut client = rig.attach("a", "c", (true, true, false));
    let mut stdin = client.stdin.take().unwrap();
    const PIECES: usize = 256;
    let piece = vec![7; 1 << 20];
    let sender = std::thread::spawn(move || {
        for _ in 0..PIECES {
            stdin.write_all(&piece).unwrap();
        }
    });
    assert_eq!(client.rest(), format!("{}\n", PIECES << 20));
    sender.join().unwrap();
    rig.exit("c");
    rig.end();
}

#[test]
fn a_terminal_is_shared_and_its_size_is_seen_inside() {
    let mut rig = rig!("tty");
    let script = "trap 'stty size' WINCH; echo ready; while :; do read l && echo \"got $l\"; done";
    run_tty(&mut rig, "c", script);
    let mut one = rig.attach("one", "c", (true, true, false));
    let mut other = rig.attach("other", "c", (true, true, false));
    let error = rig.try_attach("err", "c", (false, true, true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    wait_until("it runs", || !rig.log("c").is_empty());
    one.send("a\n");
    assert!(one.read_until("got a").ends_with("got a\r\n"));
    other.read_until("got a");
    for (rows, columns) in [(24, 80), (7, 300)] {
        rig.done(&Request::Resize {
            container: "c".into(),
            exec: None,
            rows,
            columns,
        });
        one.send("\n");
        one.read_until(&format!("{rows} {columns}\r\n"));
    }
    // The end of a client's input is not the terminal's.
    one.stdin = None;
    drop(one);
    assert_eq!(rig.attach_end("one"), None);
    other.send("b\n");
    other.read_until("got b");
    rig.done(&Request::Kill {
        container: "c".into(),
    });
    other.rest();
    assert_eq!(rig.attach_end("other"), None);
    rig.exit("c");
    rig.end();
}

#[test]
fn what_has_no_terminal_has_no_size_and_what_ended_no_client() {
    let mut rig = rig!("refused");
    rig.run("c", &["sleep", "1000"]);
    let resize = |container: &str, exec: Option<&str>| Request::Resize {
        container: container.into(),
        exec: exec.map(Into::into),
        rows: 1,
        columns: 1,
    };
    let mut refused = |request: Request| rig.call(&request).unwrap_err().kind();
    assert_eq!(refused(resize("c", None)), ErrorKind::Invalid);
    assert_eq!(refused(resize("c", Some("e"))), ErrorKind::NotFound);
    assert_eq!(refused(resize("q", None)), ErrorKind::NotFound);
    let clients: Vec<_> = (0..32)
        .map(|number| rig.attach(&format!("a{number}"), "c", (true, true, true)))
        .collect();
    let error = rig
        .try_attach("more", "c", (false, true, false))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    drop(clients);
    for number in 0..32 {
        rig.attach_end(&format!("a{number}"));
    }
    drop(rig.attach("again", "c", (false, true, false)));
    rig.done(&Request::Kill {
        container: "c".into(),
    });
    rig.exit("c");
    let error = rig
        .try_attach("late", "c", (false, true, false))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongState, "{error}");
    rig.end();
}

#[test]
fn five_hundred_attaches_leave_no_descriptor() {
    let mut rig = rig!("many");
    run(&mut rig, "c", "while read l; do echo $l; done");
    run_tty(&mut rig, "t", "while read l; do echo $l; done");
    let before = rig.open_descriptors();
    for number in 0..500 {
        let to = if number % 2 == 0 { "c" } else { "t" };
        let mut client = rig.attach("a", to, (true, true, false));
        client.send("x\n");
        match number % 3 {
            0 => {
                client.read_until("x");
                rig.detach("a");
            }
            1 => drop(client),
            _ => {
                client.stdin = None;
                client.read_until("x");
                drop(client.stdout.take());
            }
        }
        assert_eq!(rig.attach_end("a"), None);
    }
    assert_eq!(rig.open_descriptors(), before);
    rig.end();
}
