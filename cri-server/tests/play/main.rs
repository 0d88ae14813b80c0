//! `bulkhead play`, `ps`, `logs` and `down`, the executable itself, against a daemon that pretends:
//! what is asked for and in which order, what people see, and that failures leave nothing.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod daemon;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use daemon::Daemon;

/// A daemon and a scratch directory with its configuration.
struct Bench {
    daemon: Daemon,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        let config = format!("root = \"{root}/root\"\n[socket]\npath = \"{root}/s\"\n");
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let daemon = Daemon::default();
        daemon.serve(&dir.path().join("s"));
        Self { daemon, dir }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_bulkhead"))
            .arg("--config")
            .arg(self.dir.path().join("config.toml"))
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Plays a pod `p` with this spec.
    fn play(&self, spec: &str, arguments: &[&str]) -> Output {
        let file = self.manifest();
        let head = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n";
        fs::write(&file, format!("{head}{spec}")).unwrap();
        let file = file.display().to_string();
        self.run(&[&["play", &file], arguments].concat())
    }

    fn manifest(&self) -> PathBuf {
        self.dir.path().join("pod.yaml")
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.daemon.state().calls)
    }

    /// What played pods left below the root.
    fn left(&self) -> usize {
        fs::read_dir(self.dir.path().join("root/play")).map_or(0, Iterator::count)
    }
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const MAIN: &str = "  containers:\n  - name: main\n    image: a:1\n";

#[test]
fn containers_come_up_in_order_and_their_logs_are_shown() {
    let bench = Bench::new();
    let spec = "  restartPolicy: Never\n  terminationGracePeriodSeconds: 7\n  initContainers:\n  \
                - {name: first, image: 'a:1', env: [{name: EXIT, value: '0'}, {name: SAY, value: one}]}\n  \
                - {name: side, image: 'b:1', restartPolicy: Always, env: [{name: SAY, value: two}]}\n  \
                containers:\n  \
                - {name: main, image: a, env: [{name: EXIT, value: '0'}, {name: SAY, value: three}]}\n";
    let output = bench.play(spec, &["--follow"]);
    assert!(output.status.success(), "{}", err(&output));
    // b:1 and a:1 are here already; a without a tag is asked for again.
    let wanted = [
        "pull a",
        "run",
        "create first 0",
        "create side 0",
        "create main 0",
        "stop side 7",
    ];
    assert_eq!(bench.calls(), wanted);
    let shown = out(&output);
    for line in [
        "default/p runs",
        "first | one",
        "side  | two",
        "main  | three",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
}

#[test]
fn a_main_container_that_fails_for_good_fails_play() {
    let bench = Bench::new();
    let spec = format!("  restartPolicy: Never\n{MAIN}    env: [{{name: EXIT, value: '3'}}]\n");
    let output = bench.play(&spec, &["--follow"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("main ended with code 3 (Error)"),
        "{}",
        err(&output)
    );
}

#[test]
fn a_container_is_started_again_as_its_policy_says() {
    let bench = Bench::new();
    let spec =
        format!("  restartPolicy: OnFailure\n{MAIN}    env: [{{name: EXIT, value: '1,0'}}]\n");
    let output = bench.play(&spec, &["--follow"]);
    assert!(output.status.success(), "{}", err(&output));
    assert_eq!(bench.calls(), ["run", "create main 0", "create main 1"]);
}

#[test]
fn what_fails_half_way_is_taken_down_again() {
    for (case, spec, wanted) in [
        (
            "an init container that fails",
            format!(
                "  restartPolicy: Never\n  initContainers:\n  - {{name: i, image: 'a:1', env: \
                 [{{name: EXIT, value: '2'}}, {{name: SAY, value: no disk}}]}}\n{MAIN}"
            ),
            "init container i ended with code 2 (Error); its last words: no disk",
        ),
        (
            "a container that can't start",
            format!("{MAIN}    env: [{{name: REFUSE, value: 'exec: \"x\": not found'}}]\n"),
            "start container main: exec: \"x\": not found",
        ),
    ] {
        let bench = Bench::new();
        let output = bench.play(&spec, &[]);
        assert_eq!(output.status.code(), Some(1), "{case}");
        assert!(err(&output).contains(wanted), "{case}: {}", err(&output));
        assert!(
            bench.daemon.state().sandboxes.is_empty(),
            "{case}: the sandbox stays"
        );
        assert_eq!(bench.left(), 0, "{case}: its folder stays");
    }
}

#[test]
fn nothing_is_asked_for_where_an_image_stands_in_the_way() {
    for (case, image, more, wanted) in [
        (
            "an image nobody has",
            "absent:1",
            "",
            "pull absent:1: no such image\\u{1b}[2J",
        ),
        (
            "one that must not be pulled",
            "absent:1",
            "    imagePullPolicy: Never\n",
            "image absent:1 is not here, and its imagePullPolicy is Never",
        ),
        (
            "root where it must not be",
            "a:1",
            "    securityContext: {runAsNonRoot: true}\n",
            "container main has runAsNonRoot, but its image's user is root",
        ),
        (
            "a name that may be root",
            "named:1",
            "    securityContext: {runAsNonRoot: true}\n",
            "its image's user is \"www\", which may be root: set runAsUser",
        ),
    ] {
        let bench = Bench::new();
        let spec = format!("  containers:\n  - name: main\n    image: {image}\n{more}");
        let output = bench.play(&spec, &[]);
        assert_eq!(output.status.code(), Some(1), "{case}");
        assert!(err(&output).contains(wanted), "{case}: {}", err(&output));
        assert!(!bench.calls().contains(&"run".to_owned()), "{case}");
        assert_eq!(bench.left(), 0, "{case}");
    }
}

#[test]
fn a_pod_is_listed_its_logs_shown_and_ended_by_name_or_by_manifest() {
    let bench = Bench::new();
    let spec = format!(
        "{MAIN}    env: [{{name: SAY, value: hello}}]\n    \
         volumeMounts: [{{name: v, mountPath: /v}}]\n  volumes: [{{name: v, emptyDir: {{}}}}]\n"
    );
    assert!(bench.play(&spec, &[]).status.success());
    let mounted = {
        let state = bench.daemon.state();
        let container = state.containers.values().next().unwrap();
        PathBuf::from(&container.config.mounts[0].host_path)
    };
    assert!(mounted.is_dir(), "the volume is there");

    let table = out(&bench.run(&["ps"]));
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..3], ["default/p", "main", "running"], "{table}");
    assert_eq!(out(&bench.run(&["logs", "p"])), "main | hello\n");

    let again = bench.play(&spec, &[]);
    assert!(
        err(&again).contains("pod default/p is there already"),
        "{}",
        err(&again)
    );
    bench.calls();
    assert!(bench.play(&spec, &["--replace"]).status.success());
    let wanted = [
        "stop main 30",
        "stop pod",
        "remove pod",
        "run",
        "create main 0",
    ];
    assert_eq!(bench.calls(), wanted);

    let missing = bench.run(&["down", "q"]);
    assert!(
        err(&missing).contains("no played pod q"),
        "{}",
        err(&missing)
    );
    let manifest = bench.manifest().display().to_string();
    let down = bench.run(&["down", &manifest, "--grace", "3"]);
    assert_eq!(out(&down), "default/p is down\n", "{}", err(&down));
    assert_eq!(bench.calls(), ["stop main 3", "stop pod", "remove pod"]);
    assert_eq!(bench.left(), 0);
    assert!(
        bench.run(&["down", "--all"]).status.success(),
        "nothing left is no failure"
    );
}

#[test]
fn problems_of_a_manifest_are_shown_with_file_and_line() {
    let bench = Bench::new();
    let output = bench.play(
        &format!("{MAIN}    livenessProbe: {{}}\n    lifecycle: {{}}\n"),
        &[],
    );
    assert_eq!(output.status.code(), Some(1));
    let shown = err(&output);
    assert!(shown.contains("pod.yaml:8: bulkhead play can't do spec.containers[0].livenessProbe"));
    assert!(shown.contains("pod.yaml:9: bulkhead play can't do spec.containers[0].lifecycle"));
    assert_eq!(bench.calls(), [""; 0]);
}
