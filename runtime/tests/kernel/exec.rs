//! Execs: as confined as the container's init, in all of its namespaces.

use serde_json::json;

use crate::rig::{Scratch, exec, kill, null_stdio, pipes, process, ready, set, spec, with_script};

#[test]
fn an_exec_equals_the_containers_init_field_by_field() {
    if !ready() {
        return;
    }
    for (name, uid) in [("root", 0), ("user", 1000)] {
        let scratch = Scratch::new(&format!("exec-{name}"));
        let spec = set(&spec(), "/process/user/uid", json!(uid));
        let spec = set(&spec, "/process/noNewPrivileges", json!(true));
        let show = "cd /proc/self; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Sig(Blk|Ign)|Umask)' status; \
            cat cgroup limits oom_score_adj; for i in ns/*; do readlink $i; done; ls /proc/self/fd | wc -l; env | sort";
        // The shell's own directory is left before the comparison: the fields are of children alike.
        let (stdio, pipes) = pipes();
        let init = scratch
            .launch(
                &with_script(&spec, &format!("({show}); exec >&- 2>&-; sleep 100")),
                stdio,
            )
            .unwrap();
        let of_init = pipes.collect_after_exit();
        let output = exec(
            &init,
            &process(&spec, json!(["/bin/sh", "-c", format!("({show}); true")])),
        )
        .unwrap();
        assert_eq!(output.stdout, of_init, "{output:?}");
        assert!(of_init.contains("NoNewPrivs:\t1"));
        kill(&init);
    }
}

#[test]
fn an_exec_is_a_child_of_the_caller_in_the_containers_pid_namespace() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("exec-pid");
    let init = scratch
        .launch(&with_script(&spec(), "sleep 100"), null_stdio())
        .unwrap();
    let output = exec(
        &init,
        &process(
            &spec(),
            json!(["sh", "-c", "cut -d' ' -f4 /proc/$$/stat; exit 7"]),
        ),
    )
    .unwrap();
    assert_eq!(
        (output.status, output.stdout.as_str()),
        (7, "0\n"),
        "its parent is outside the namespace"
    );
    let killed = exec(&init, &process(&spec(), json!(["sh", "-c", "kill -9 $$"]))).unwrap();
    assert_eq!(killed.status, 137);
    kill(&init);
}

#[test]
fn an_execs_working_directory_must_exist_inside() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("exec-cwd");
    std::os::unix::fs::symlink("/proc/self/fd/3", scratch.image().join("out")).unwrap();
    let init = scratch
        .launch(&with_script(&spec(), "sleep 100"), null_stdio())
        .unwrap();
    for (cwd, works) in [
        ("/tmp", true),
        ("/none", false),
        ("/out", false),
        ("/proc/self/fd/7", false),
        ("/proc/self/cwd", false),
    ] {
        let command = set(
            &json!({"process": process(&spec(), json!(["pwd"]))}),
            "/process/cwd",
            json!(cwd),
        );
        let result = exec(&init, &command["process"]);
        assert_eq!(result.is_ok(), works, "{cwd}: {result:?}");
    }
    kill(&init);
}

#[test]
fn an_exec_into_an_ended_container_fails() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("exec-ended");
    let init = scratch
        .launch(&with_script(&spec(), "true"), null_stdio())
        .unwrap();
    crate::rig::wait(&init);
    let error = exec(&init, &process(&spec(), json!(["true"])))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("enter the container's namespaces"),
        "{error}"
    );
}

#[test]
fn a3_a_workload_that_may_trace_never_sees_an_exec_with_the_nodes_root() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("a3");
    let mut spec = spec();
    for sets in ["bounding", "permitted", "effective"] {
        let list = spec["process"]["capabilities"][sets].as_array_mut();
        list.unwrap()
            .extend([json!("CAP_SYS_PTRACE"), json!("CAP_DAC_READ_SEARCH")]);
    }
    // Looks for a directory of the node's behind the root of every process that appears.
    let canary = scratch.path.join("canary");
    std::fs::create_dir(&canary).unwrap();
    let spy = format!(
        "while :; do for p in /proc/[0-9]*; do test -e $p/root{0} && echo $p; \
         test -e $p/cwd{0} && echo $p; done; done",
        canary.display()
    );
    let (stdio, pipes) = pipes();
    let init = scratch.launch(&with_script(&spec, &spy), stdio).unwrap();
    for _ in 0..200 {
        let output = exec(&init, &process(&spec, json!(["true"]))).unwrap();
        assert_eq!(output.status, 0);
    }
    kill(&init);
    assert_eq!(pipes.collect_after_exit(), "");
}
