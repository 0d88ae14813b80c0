//! The monitor over its socket, before any pod: greeting, succession of daemons, hostile frames,
//! signals, what it looks like from outside.

#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod monitor;

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bulkhead_runtime::error::ErrorKind;
use bulkhead_runtime::monitor::connection::{Connection, SOCKET};
use bulkhead_runtime::monitor::wire::{PodState, Reply, Request};
use monitor::{PATIENCE, Rig, may_run, wait_until};
use rustix::process::{Pid, Signal, kill_process};

fn raw(rig: &Rig) -> UnixStream {
    let stream = UnixStream::connect(rig.directory.join("pod").join(SOCKET)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn a_new_monitor_is_empty_and_shuts_down_on_request() {
    if !may_run("monitor_protocol") {
        return;
    }
    let mut rig = Rig::new("empty");
    assert_eq!(rig.state(), PodState::default());
    let error = rig
        .call(&Request::ReopenLog {
            container: "c".into(),
        })
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    rig.end();
}

#[test]
fn it_looks_as_it_should_from_outside() {
    if !may_run("monitor_protocol") {
        return;
    }
    let rig = Rig::new("outside");
    let proc = format!("/proc/{}", rig.process.pid);
    let status = fs::read_to_string(format!("{proc}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    assert_eq!(field("Name"), "bulkhead-monito");
    assert_eq!(field("Threads"), "1");
    assert_eq!(field("Umask"), "0022");
    assert_eq!(fs::read(format!("{proc}/environ")).unwrap(), b"");
    let arguments = fs::read(format!("{proc}/cmdline")).unwrap();
    assert_eq!(
        arguments,
        format!("bulkhead-monitor\0{}\0", rig.pod_id).as_bytes()
    );
    assert!(
        fs::read_link(format!("{proc}/exe"))
            .unwrap()
            .to_string_lossy()
            .contains("memfd:")
    );
    let link = |fd: &str| fs::read_link(format!("{proc}/fd/{fd}")).unwrap();
    assert_eq!(link("0").to_str(), Some("/dev/null"));
    assert_eq!(link("1").to_str(), Some("/dev/null"));
    assert_eq!(link("2"), rig.directory.join("monitor.log"));
    // Streams, listener, connection, signals, epoll: nothing of ours.
    assert_eq!(fs::read_dir(format!("{proc}/fd")).unwrap().count(), 7);
    let limits = fs::read_to_string(format!("{proc}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let soft: u64 = files.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(soft <= 4096, "{files}");
    let cgroups = fs::read_to_string(format!("{proc}/cgroup")).unwrap();
    assert!(cgroups.contains("/bulkhead/monitors"), "{cgroups}");
    // Lowered if the kernel allowed it, else said.
    let score = fs::read_to_string(format!("{proc}/oom_score_adj")).unwrap();
    assert!(score.trim() == "-999" || rig.complaints().contains("OOM score"));
    // Not dumpable: owned by root, whatever its ids; ptrace needs a capability.
    rig.end();
}

#[test]
fn a_monitor_ignores_the_signals_of_a_terminal_and_a_service_manager() {
    if !may_run("monitor_protocol") {
        return;
    }
    let mut rig = Rig::new("signals");
    let pid = Pid::from_raw(rig.process.pid).unwrap();
    for signal in [
        Signal::HUP,
        Signal::INT,
        Signal::TERM,
        Signal::QUIT,
        Signal::PIPE,
        Signal::USR1,
    ] {
        kill_process(pid, signal).unwrap();
    }
    assert_eq!(rig.state(), PodState::default());
    assert!(!rig.process.try_reap().unwrap());
    rig.end();
}

#[test]
fn a_new_daemon_supersedes_the_old_one_when_it_says_hello() {
    if !may_run("monitor_protocol") {
        return;
    }
    let mut rig = Rig::new("supersede");
    // One that connects and says nothing disturbs nobody.
    let silent = raw(&rig);
    assert_eq!(rig.state(), PodState::default());
    let mut second = Connection::connect(&rig.directory.join("pod")).unwrap();
    second.hello().unwrap();
    assert!(rig.connection.event().is_err(), "the old connection ended");
    let (reply, _) = second.call(&Request::Status, &[]).unwrap();
    assert!(matches!(reply, Reply::State(_)));
    drop(silent);
    rig.reconnect();
    rig.end();
}

#[test]
fn a_malformed_frame_ends_that_connection_only() {
    if !may_run("monitor_protocol") {
        return;
    }
    let mut rig = Rig::new("malformed");
    let hello = br#"{"hello":{"version":1}}"#;
    let frame = |length: u32, version: u16, kind: u16, body: &[u8]| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(body);
        bytes
    };
    let status = br#""status""#;
    let table: [(&str, Vec<u8>); 7] = [
        ("noise", vec![0xff; 4096]),
        ("too long", frame(u32::MAX, 1, 0, b"")),
        ("version 0", frame(2, 0, 0, b"{}")),
        ("no JSON", frame(4, 1, 0, b"\0\0\0\0")),
        ("an unknown request", frame(9, 1, 0, br#""explode""#)),
        ("a reply", frame(8, 1, 1, status)),
        ("a request before hello", frame(8, 1, 0, status)),
    ];
    for (name, bytes) in table {
        let mut stream = raw(&rig);
        stream.write_all(&bytes).unwrap();
        let mut rest = [0; 64];
        let read = std::io::Read::read(&mut stream, &mut rest);
        assert!(
            matches!(read, Ok(0) | Err(_)),
            "{name}: closed without an answer"
        );
        assert_eq!(
            rig.state(),
            PodState::default(),
            "{name}: the daemon's connection lives"
        );
    }
    // The same after a proper greeting costs that daemon its connection, not the monitor its life.
    let mut stream = raw(&rig);
    stream.write_all(&frame(23, 1, 0, hello)).unwrap();
    stream.write_all(&frame(u32::MAX, 1, 0, b"")).unwrap();
    let mut answer = Vec::new();
    let _reset = std::io::Read::read_to_end(&mut stream, &mut answer);
    assert!(answer.windows(5).any(|window| window == b"hello"));
    rig.reconnect();
    assert_eq!(rig.state(), PodState::default());
    rig.end();
}

#[test]
fn descriptors_that_were_not_announced_are_refused_and_closed() {
    if !may_run("monitor_protocol") {
        return;
    }
    let mut rig = Rig::new("descriptors");
    let proc = format!("/proc/{}/fd", rig.process.pid);
    let count = || fs::read_dir(&proc).unwrap().count();
    let before = count();
    let file = fs::File::open("/dev/null").unwrap();
    for many in [1, 8] {
        let error = rig
            .call_with(&Request::Status, &vec![file.as_fd(); many])
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert_eq!(count(), before);
    }
    let raw_number = file.as_raw_fd();
    drop(file);
    assert!(raw_number > 2);
    rig.end();
}

#[test]
fn a_frame_in_small_pieces_is_a_frame_and_half_a_frame_blocks_nobody() {
    if !may_run("monitor_protocol") {
        return;
    }
    let mut rig = Rig::new("pieces");
    let mut slow = raw(&rig);
    let body = br#"{"hello":{"version":1}}"#;
    let mut bytes = 23_u32.to_le_bytes().to_vec();
    bytes.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    bytes.extend(body);
    for byte in &bytes[..bytes.len() - 1] {
        slow.write_all(&[*byte]).unwrap();
        assert_eq!(rig.state(), PodState::default());
    }
    slow.write_all(&bytes[bytes.len() - 1..]).unwrap();
    wait_until("the slow one takes over", || {
        let timeout = Some(Duration::from_millis(50));
        rig.connection.socket().set_read_timeout(timeout).unwrap();
        rig.connection.call(&Request::Status, &[]).is_err()
    });
    rig.reconnect();
    rig.end();
}

#[test]
fn a_daemon_that_does_not_read_is_dropped_and_costs_no_memory() {
    if !may_run("monitor_protocol") {
        return;
    }
    let mut rig = Rig::new("stalled");
    let mut stalled = raw(&rig);
    stalled
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut bytes = 23_u32.to_le_bytes().to_vec();
    bytes.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    bytes.extend(br#"{"hello":{"version":1}}"#);
    stalled.write_all(&bytes).unwrap();
    let mut status = 8_u32.to_le_bytes().to_vec();
    status.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    status.extend(br#""status""#);
    // Until the socket is full in both directions.
    let many = status.repeat(1000);
    while stalled.write_all(&many).is_ok() {}
    let resident = || {
        let text = fs::read_to_string(format!("/proc/{}/status", rig.process.pid)).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("RssAnon"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert!(resident() < 4096, "{} kB", resident());
    rig.reconnect();
    assert_eq!(rig.state(), PodState::default());
    rig.end();
}
