//! Starting a program: commands that can't be executed, filters, cgroups, limits.

use bulkhead_runtime::cgroup::Hierarchies;
use bulkhead_runtime::error::ErrorKind;
use serde_json::json;

use crate::rig::{
    Scratch, exec, field, kill, null_stdio, pipes, process, ready, set, spec, with_mount,
    with_script,
};

/// A filter that answers mkdir(2) with EPERM and allows all else.
fn no_mkdir() -> Vec<u8> {
    let mkdir = 83_u32; // x86_64
    let instructions: [(u16, u8, u8, u32); 4] = [
        (0x20, 0, 0, 0),           // load the call's number
        (0x15, 0, 1, mkdir),       // is it mkdir?
        (0x06, 0, 0, 0x0005_0001), // SECCOMP_RET_ERRNO, EPERM
        (0x06, 0, 0, 0x7fff_0000), // SECCOMP_RET_ALLOW
    ];
    let mut bytes = Vec::new();
    for (code, jt, jf, k) in instructions {
        bytes.extend(code.to_ne_bytes());
        bytes.extend([jt, jf]);
        bytes.extend(k.to_ne_bytes());
    }
    bytes
}

#[test]
fn a_command_that_cannot_be_executed_is_named_with_the_reason() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("commands");
    let image = scratch.image();
    std::fs::write(image.join("script"), "#!/no/such/interpreter -x\n").unwrap();
    std::fs::write(
        image.join("foreign"),
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xf3\0",
    )
    .unwrap();
    std::fs::write(image.join("plain"), "echo\n").unwrap();
    std::fs::write(scratch.volume().join("true"), "x").unwrap();
    for file in ["script", "foreign"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(image.join(file), mode).unwrap();
    }
    std::fs::copy("/bin/busybox", scratch.volume().join("sh")).unwrap();
    let base = with_mount(
        &spec(),
        json!({"destination": "/noexec", "source": scratch.volume(), "options": ["rbind", "noexec"]}),
    );
    let no_path = set(&base, "/process/env", json!(["A=1"]));
    let not_found = ErrorKind::CommandNotFound;
    let not_executable = ErrorKind::CommandNotExecutable;
    let (stdio, _pipes) = pipes();
    let init = scratch
        .launch(&with_script(&base, "sleep 100"), stdio)
        .unwrap();
    for (spec, command, kind, text) in [
        (
            &base,
            "nosuch",
            not_found,
            "exec: \"nosuch\": executable file not found in $PATH",
        ),
        (
            &no_path,
            "sh",
            not_found,
            "exec: \"sh\": executable file not found in $PATH",
        ),
        (
            &base,
            "/no/such",
            not_found,
            "exec: \"/no/such\": no such file or directory",
        ),
        (
            &base,
            "/bin/sh/x",
            not_found,
            "exec: \"/bin/sh/x\": not a directory",
        ),
        (
            &base,
            "/etc",
            not_executable,
            "exec: \"/etc\": is a directory",
        ),
        (
            &base,
            "/plain",
            not_executable,
            "exec: \"/plain\": permission denied",
        ),
        (
            &base,
            "/noexec/sh",
            not_executable,
            "exec: \"/noexec/sh\": permission denied",
        ),
        (
            &base,
            "/foreign",
            not_executable,
            "exec: \"/foreign\": exec format error",
        ),
        (
            &base,
            "/script",
            not_found,
            "exec: \"/script\": its interpreter \"/no/such/interpreter\" is missing: no such file or directory",
        ),
    ] {
        let wanted = set(spec, "/process/args", json!([command]));
        let error = scratch.try_run(&wanted).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (kind, text),
            "create"
        );
        let error = exec(&init, &process(spec, json!([command]))).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (kind, text),
            "exec"
        );
    }
    kill(&init);
}

#[test]
fn an_environment_that_is_too_long_is_explained() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("long");
    let long = |length: usize| {
        set(
            &spec(),
            "/process/env",
            json!(["PATH=/bin", format!("A={}", "x".repeat(length - 2))]),
        )
    };
    let error = scratch.try_run(&long(131_072)).unwrap_err().to_string();
    assert!(
        error.contains("process.env: A") && error.contains("argument list too long"),
        "{error}"
    );
    assert_eq!(scratch.run(&long(131_071)).status, 0);
    let many = (0..30).map(|number| format!("A{number}={}", "x".repeat(131_000)));
    let many: Vec<_> = many.chain(["PATH=/bin".to_owned()]).collect();
    let error = scratch
        .try_run(&set(&spec(), "/process/env", json!(many)))
        .unwrap_err();
    assert!(error.to_string().contains("of environment"), "{error}");
}

#[test]
fn a_filter_is_loaded_with_and_without_no_new_privileges() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("seccomp");
    let program = no_mkdir();
    for (uid, no_new_privileges) in [(0, false), (0, true), (1000, false), (1000, true)] {
        let spec = set(&spec(), "/process/user/uid", json!(uid));
        let spec = set(&spec, "/process/noNewPrivileges", json!(no_new_privileges));
        let (stdio, pipes) = pipes();
        let script = with_script(&spec, "cat /proc/self/status; mkdir /tmp/x");
        let launched = scratch
            .launch_with(&script, stdio, |input| {
                input.seccomp = Some(program.clone().leak())
            })
            .unwrap();
        let output = pipes.collect(&launched);
        let flag = if no_new_privileges { "1" } else { "0" };
        assert_eq!(field(&output.stdout, "NoNewPrivs"), flag);
        assert_eq!(field(&output.stdout, "Seccomp"), "2");
        let effective = if uid == 0 {
            "00000000000005fb"
        } else {
            "0000000000000000"
        };
        assert_eq!(field(&output.stdout, "CapEff"), effective);
        assert_eq!(field(&output.stdout, "CapBnd"), "00000000000005fb");
        assert!(
            output.stderr.contains("Operation not permitted"),
            "{output:?}"
        );
    }
    let error = scratch
        .launch_with(&spec(), null_stdio(), |input| {
            input.seccomp = Some(&[1, 2, 3])
        })
        .unwrap_err();
    assert!(error.to_string().contains("seccomp program"), "{error}");
}

#[test]
fn a_container_starts_in_its_cgroup_and_sees_only_that() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("cgroup");
    let hierarchies = Hierarchies::probe().unwrap();
    let path = format!("/bulkhead-launch-test-{}", std::process::id());
    let (cgroup, _) = hierarchies.create(&path).unwrap();
    let spec = set(&spec(), "/linux/cgroupsPath", json!(path));
    let script = "cat /proc/self/cgroup; ls /sys/fs/cgroup; mkdir /sys/fs/cgroup/x";
    let (stdio, pipes) = pipes();
    let cgroup = Box::leak(Box::new(cgroup));
    let launched = scratch
        .launch_with(&with_script(&spec, script), stdio, |input| {
            input.cgroup = Some(cgroup)
        })
        .unwrap();
    let output = pipes.collect(&launched);
    assert!(
        output.stderr.contains("Read-only file system"),
        "{output:?}"
    );
    let memory = output
        .stdout
        .lines()
        .find(|line| line.contains(":memory:") || line.starts_with("0::"));
    assert!(memory.unwrap().ends_with(":/"), "{output:?}");
    assert!(
        !output.stdout.contains("bulkhead-launch-test"),
        "{output:?}"
    );
    cgroup.remove().unwrap();
}

#[test]
fn limits_that_cannot_be_raised_are_clamped() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("limits");
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let spec = set(
        &spec(),
        "/process/rlimits",
        json!([{"type": "RLIMIT_NOFILE", "soft": 4096, "hard": u64::MAX >> 1}]),
    );
    let output = scratch.shell(&spec, "grep 'open files' /proc/self/limits");
    let fields: Vec<_> = output.split_whitespace().collect();
    assert_eq!(fields[3], "4096", "{output}");
    if !crate::rig::features().sys_resource {
        assert_eq!(fields[4], own.unwrap().to_string(), "{output}");
    }
    let spec = set(&spec, "/process/oomScoreAdj", json!(-900));
    let score: i32 = scratch
        .shell(&spec, "cat /proc/self/oom_score_adj")
        .trim()
        .parse()
        .unwrap();
    assert!(
        score == -900 || !crate::rig::features().sys_resource,
        "{score}"
    );
}

#[test]
fn a_failed_start_leaves_nothing_behind() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("failed");
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let _warm = scratch.try_run(&set(&spec(), "/process/args", json!(["/none"])));
    let before = descriptors();
    for _ in 0..20 {
        drop(
            scratch
                .try_run(&set(&spec(), "/process/args", json!(["/none"])))
                .unwrap_err(),
        );
        let mount = json!({"destination": "/x", "type": "nosuchfs", "source": "none"});
        let error = scratch
            .try_run(&with_mount(&spec(), mount))
            .unwrap_err()
            .to_string();
        assert!(error.contains("mount nosuchfs on /x"), "{error}");
        let mount = json!({"destination": "/x", "source": "/no/such/source", "options": ["rbind"]});
        let error = scratch
            .try_run(&with_mount(&spec(), mount))
            .unwrap_err()
            .to_string();
        assert!(error.contains("/no/such/source"), "{error}");
    }
    // Other tests of this process open some meanwhile, but not sixty times three.
    assert!(descriptors() < before + 40);
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains("bulkhead-launch"), "{table}");
}

/// `cargo test -- --ignored --nocapture` prints what a start costs, in this build.
#[test]
#[ignore = "a measurement, not a test"]
fn what_a_start_and_an_exec_cost() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("cost");
    let hierarchies = Hierarchies::probe().unwrap();
    let path = format!("/bulkhead-launch-cost-{}", std::process::id());
    let (cgroup, _) = hierarchies.create(&path).unwrap();
    let cgroup = Box::leak(Box::new(cgroup));
    let mut spec = set(&spec(), "/linux/cgroupsPath", json!(path));
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network" && namespace["type"] != "ipc");
    let mut starts = Vec::new();
    let mut ends = Vec::new();
    for _ in 0..200 {
        let begun = std::time::Instant::now();
        let launched = scratch
            .launch_with(&spec, null_stdio(), |input| input.cgroup = Some(cgroup))
            .unwrap();
        starts.push(begun.elapsed());
        crate::rig::wait(&launched);
        ends.push(begun.elapsed());
    }
    let init = scratch
        .launch(&with_script(&spec, "sleep 100"), null_stdio())
        .unwrap();
    let mut execs = Vec::new();
    for _ in 0..200 {
        let begun = std::time::Instant::now();
        let launched =
            crate::rig::exec_with(&init, &process(&spec, json!(["true"])), null_stdio()).unwrap();
        crate::rig::wait(&launched);
        execs.push(begun.elapsed());
    }
    kill(&init);
    cgroup.remove().unwrap();
    for (what, mut times) in [
        ("start", starts),
        ("to its end", ends),
        ("exec to its end", execs),
    ] {
        times.sort();
        println!("{what}: median {:?}, fastest {:?}", times[100], times[0]);
    }
}

#[test]
fn an_apparmor_profile_is_applied_or_the_start_fails_naming_it() {
    if !ready() {
        return;
    }
    let scratch = Scratch::new("apparmor");
    let with = |name: &str| set(&spec(), "/process/apparmorProfile", json!(name));
    let missing = scratch
        .try_run(&with("no-such-profile"))
        .unwrap_err()
        .to_string();
    if !crate::rig::features().apparmor {
        eprintln!("SKIPPED: needs AppArmor; without it a profile is refused");
        assert!(
            missing.contains("process.apparmorProfile: AppArmor is not enabled"),
            "{missing}"
        );
        return;
    }
    assert!(missing.contains("no-such-profile"), "{missing}");
    let shown = scratch.shell(&with("unconfined"), "cat /proc/self/attr/current");
    assert_eq!(shown.trim(), "unconfined");
    let init = scratch
        .launch(&with_script(&spec(), "sleep 100"), null_stdio())
        .unwrap();
    let command = process(
        &with("unconfined"),
        json!(["cat", "/proc/self/attr/current"]),
    );
    assert_eq!(exec(&init, &command).unwrap().stdout.trim(), "unconfined");
    let command = process(&with("no-such-profile"), json!(["true"]));
    let error = exec(&init, &command).unwrap_err().to_string();
    assert!(error.contains("no-such-profile"), "{error}");
    kill(&init);
}
