//! Terminals: the container's own pty, its console, and whose they are.

use std::fs::File;
use std::io::{Read, Write};

use bulkhead_runtime::launch::{Launched, Stdio};
use serde_json::json;

use crate::rig::{
    Scratch, exec_with, kill, null_stdio, process, ready, set, spec, wait, with_script,
};

/// What a terminal prints until its process ends (EIO when the last slave is closed).
pub(crate) fn read_all(launched: &mut Launched) -> String {
    let mut master = File::from(launched.terminal.take().unwrap());
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        text.extend(&buffer[..length]);
    }
    String::from_utf8(text).unwrap().replace("\r\n", "\n")
}

fn with_terminal(spec: &serde_json::Value) -> serde_json::Value {
    let spec = set(spec, "/process/terminal", json!(true));
    set(
        &spec,
        "/process/consoleSize",
        json!({"width": 111, "height": 22}),
    )
}

#[test]
fn a_terminal_is_the_containers_own_and_controls_it() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("tty");
    for uid in [0, 1000] {
        let spec = with_terminal(&set(&spec(), "/process/user/uid", json!(uid)));
        let script = "tty; stty size; stat -c %u:%F /dev/pts/0; test -c /dev/console && echo console; \
            echo there > /dev/tty; stat -c %t:%T /dev/console; ls /proc/self/fd | wc -l";
        let mut launched = scratch
            .launch(&with_script(&spec, script), Stdio::Terminal)
            .unwrap();
        let text = read_all(&mut launched);
        assert_eq!(
            text,
            format!("/dev/pts/0\n22 111\n{uid}:character special file\nconsole\nthere\n88:0\n4\n")
        );
        assert_eq!(wait(&launched), 0);
    }
}

#[test]
fn an_exec_gets_a_terminal_of_the_containers_devpts() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("tty-exec");
    let init = scratch
        .launch(&with_script(&spec(), "sleep 100"), null_stdio())
        .unwrap();
    let command = process(
        &with_terminal(&spec()),
        json!(["sh", "-c", "tty; read x; echo got $x"]),
    );
    let mut launched = exec_with(&init, &command, Stdio::Terminal).unwrap();
    let mut master = File::from(launched.terminal.as_ref().unwrap().try_clone().unwrap());
    master.write_all(b"hello\n").unwrap();
    drop(master);
    let text = read_all(&mut launched);
    assert!(
        text.contains("/dev/pts/0\n") && text.ends_with("got hello\n"),
        "{text}"
    );
    assert_eq!(wait(&launched), 0);
    kill(&init);
}

#[test]
fn streams_and_terminal_do_not_mix() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("tty-mix");
    assert!(scratch.launch(&spec(), Stdio::Terminal).is_err());
    assert!(
        scratch
            .launch(&with_terminal(&spec()), null_stdio())
            .is_err()
    );
}
