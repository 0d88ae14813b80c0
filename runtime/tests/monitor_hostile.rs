//! A container that goes for the monitor while execs enter it: its executable, its descriptors
//! (threats A1–A3).

mod monitor;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use bulkhead_runtime::monitor::wire::{PidMode, Request};
use monitor::clients::read_to_end;
use monitor::{Rig, may_run, wait_until};
use serde_json::json;

/// Tries to open every process's program for writing, and names every descriptor of another process
/// that is neither a pipe nor a socket nor of the container's own devices. Reading links is a system
/// call of a process of its own, so the spy meets itself as well.
const SPY: &str = "echo watching; while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] && continue; \
    { true >>$p/exe; } 2>/dev/null && echo \"opened $p/exe\"; \
    for f in $p/fd/*; do case $(readlink $f 2>/dev/null) in ''|pipe:*|socket:*|/dev/*) ;; \
    *) echo \"$f is $(readlink $f)\";; esac; done; done; done 2>/dev/null";

#[test]
fn a1_execs_give_a_container_neither_the_monitors_executable_nor_its_descriptors() {
    for (name, capabilities) in [
        ("plain", json!([])),
        ("tracer", json!(["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"])),
    ] {
        if !may_run("monitor_hostile a1") {
            return;
        }
        let mut rig = Rig::with_pod(&format!("a1-{name}"), PidMode::Container);
        let request = rig.container("c", &["sh", "-c", SPY], |spec| {
            for set in ["bounding", "permitted", "effective"] {
                spec["process"]["capabilities"][set] = capabilities.clone();
            }
        });
        let evil = rig.directory.join("root/bin/evil");
        fs::write(&evil, "#!/proc/self/exe\n").unwrap();
        fs::set_permissions(&evil, fs::Permissions::from_mode(0o755)).unwrap();
        rig.start(request).unwrap();
        wait_until("the spy is at work", || !rig.log("c").is_empty());
        for number in 0..200 {
            let id = format!("e{number}");
            let program = if number % 2 == 0 { "true" } else { "/bin/evil" };
            let request = rig.exec(&id, "c", &[program], Some(10_000));
            // The monitor's own program, run by the interpreter's line, refuses to work.
            match rig.call(&Request::Exec(request)) {
                Ok(_) => assert_eq!(rig.exec_exit(&id).0 == 0, number % 2 == 0, "{id}"),
                Err(error) => assert_eq!(program, "/bin/evil", "{error}"),
            }
        }
        assert_eq!(rig.log("c"), ["stdout F watching"], "{name}");
        // It would have seen one.
        let leaky = ["sh", "-c", "exec 5</bin/busybox; sleep 9999"];
        let request = rig.exec("leaky", "c", &leaky, None);
        rig.call(&Request::Exec(request)).unwrap();
        wait_until("the spy sees a descriptor", || {
            rig.log("c")
                .iter()
                .any(|line| line.ends_with("is /bin/busybox"))
        });
        let mut running = Vec::new();
        let path = format!("/proc/{}/exe", rig.process.pid);
        let mut file = fs::File::open(path).unwrap();
        file.read_to_end(&mut running).unwrap();
        assert!(running == fs::read(env!("CARGO_BIN_EXE_bulkhead-monitor")).unwrap());
        rig.end();
    }
}

#[test]
fn a2_an_exec_has_three_descriptors_however_many_the_monitor_has() {
    if !may_run("monitor_hostile a2") {
        return;
    }
    let mut rig = Rig::with_pod("a2", PidMode::Container);
    for id in ["c", "d"] {
        let mut request = rig.container(id, &["sleep", "1000"], |_| {});
        request.stdin = true;
        rig.start(request).unwrap();
    }
    let _client = rig.attach("client", "d", (true, true, true));
    let _terminal = rig.exec_tty("other", "d", &["sleep", "1000"]);
    let list = ["sh", "-c", "ls /proc/$$/fd; cat"];
    let request = rig.exec("pipes", "c", &list, None);
    let (_, out) = rig.exec_out(request).unwrap();
    assert_eq!(read_to_end(&mut out.into()), "0\n1\n2\n");
    let mut terminal = rig.exec_tty(
        "tty",
        "c",
        &["sh", "-c", "for f in /proc/$$/fd/*; do echo $f; done"],
    );
    let lines = read_to_end(&mut terminal);
    let numbers: Vec<&str> = lines.lines().filter_map(|l| l.rsplit('/').next()).collect();
    // The shell has its script's terminal open once more, above 9.
    assert!(numbers.starts_with(&["0", "1", "2"]), "{lines}");
    assert!(numbers.len() <= 4, "{lines}");
    rig.end();
}
