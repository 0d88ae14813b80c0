//! Compiled programs are run by an interpreter of classic BPF, so that what the kernel will decide
//! is tabled here; that the kernel loads them is for the product's tests.

use caps::Capability;

use super::*;
use crate::failure::Class;
use crate::security::capabilities::CapabilitySet;

const X86_64: u32 = 0xC000_003E;
const I386: u32 = 0x4000_0003;
const X32: u32 = 0x4000_0000;
const ALLOW: u32 = 0x7FFF_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL_PROCESS: u32 = 0x8000_0000;

/// Runs a program on one call; panics on what the kernel's checker would refuse.
fn run(program: &[u8], arch: u32, nr: u32, args: &[u64]) -> u32 {
    let mut data = [0_u8; 64];
    data[..4].copy_from_slice(&nr.to_ne_bytes());
    data[4..8].copy_from_slice(&arch.to_ne_bytes());
    for (index, arg) in args.iter().enumerate() {
        data[16 + index * 8..24 + index * 8].copy_from_slice(&arg.to_ne_bytes());
    }
    let code: Vec<(u16, u8, u8, u32)> = program
        .chunks_exact(8)
        .map(|i| {
            (
                u16::from_ne_bytes([i[0], i[1]]),
                i[2],
                i[3],
                u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
            )
        })
        .collect();
    let (mut a, mut pc) = (0_u32, 0_usize);
    for _ in 0..4096 {
        let (op, yes, no, k) = code[pc];
        pc += 1;
        let branch = |taken: bool| usize::from(if taken { yes } else { no });
        match op {
            0x20 => {
                let at = usize::try_from(k).unwrap();
                a = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
            }
            0x54 => a &= k,
            0x05 => pc += usize::try_from(k).unwrap(),
            0x15 => pc += branch(a == k),
            0x25 => pc += branch(a > k),
            0x35 => pc += branch(a >= k),
            0x45 => pc += branch(a & k != 0),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
    panic!("the program has no end");
}

fn none() -> CapabilitySet {
    CapabilitySet::EMPTY
}

fn with(capabilities: &[Capability]) -> CapabilitySet {
    capabilities.iter().copied().collect()
}

fn compiled(capabilities: CapabilitySet) -> Vec<u8> {
    compile(&default_profile(capabilities)).unwrap()
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_default_profile_decides_as_tabled_on_every_abi() {
    let program = compiled(none());
    let high = 1 << 32;
    for (what, arch, nr, args, expected) in [
        ("read", X86_64, 0, &[][..], ALLOW),
        ("read", I386, 3, &[], ALLOW),
        ("read by x32", X86_64, X32, &[], ALLOW),
        ("mkdir", X86_64, 83, &[], ALLOW),
        ("ptrace", X86_64, 101, &[], ALLOW),
        ("keyctl", X86_64, 250, &[], EPERM),
        ("keyctl", I386, 288, &[], EPERM),
        ("keyctl by x32", X86_64, X32 | 250, &[], EPERM),
        ("add_key", X86_64, 248, &[], EPERM),
        ("bpf", X86_64, 321, &[], EPERM),
        ("userfaultfd", X86_64, 323, &[], EPERM),
        ("io_uring_setup", X86_64, 425, &[], EPERM),
        ("io_uring_setup", I386, 425, &[], EPERM),
        ("mount", X86_64, 165, &[], EPERM),
        ("unshare", X86_64, 272, &[], EPERM),
        ("setns", X86_64, 308, &[], EPERM),
        ("pivot_root", X86_64, 155, &[], EPERM),
        ("kexec_load", X86_64, 246, &[], EPERM),
        ("perf_event_open", X86_64, 298, &[], EPERM),
        ("open_by_handle_at", X86_64, 304, &[], EPERM),
        ("reboot", X86_64, 169, &[], EPERM),
        ("chroot", X86_64, 161, &[], EPERM),
        ("clock_settime", X86_64, 227, &[], EPERM),
        ("clone3", X86_64, 435, &[], ENOSYS),
        ("clone3", I386, 435, &[], ENOSYS),
        ("clone of a thread", X86_64, 56, &[0x3d_0f00], ALLOW),
        ("clone NEWUSER", X86_64, 56, &[0x1000_0011], EPERM),
        (
            "clone NEWNET, upper half set",
            X86_64,
            56,
            &[0x4000_0011 | high],
            EPERM,
        ),
        ("clone NEWNS", I386, 120, &[0x0002_0011], EPERM),
        ("personality 0", X86_64, 135, &[0], ALLOW),
        ("personality query", X86_64, 135, &[0xffff_ffff], ALLOW),
        (
            "personality ADDR_NO_RANDOMIZE",
            X86_64,
            135,
            &[0x0004_0000],
            EPERM,
        ),
        ("personality UNAME26", X86_64, 135, &[0x2_0000], ALLOW),
        ("socket AF_UNIX", X86_64, 41, &[1], ALLOW),
        ("socket AF_INET6", X86_64, 41, &[10], ALLOW),
        ("socket AF_NETLINK", X86_64, 41, &[16], ALLOW),
        ("socket AF_ALG", X86_64, 41, &[38], EPERM),
        (
            "socket AF_ALG, upper half set",
            X86_64,
            41,
            &[38 | high],
            EPERM,
        ),
        ("socket 39", X86_64, 41, &[39], ALLOW),
        ("socket AF_VSOCK", X86_64, 41, &[40], EPERM),
        ("socket 41", X86_64, 41, &[41], ALLOW),
        ("socket AF_XDP", X86_64, 41, &[44], ALLOW),
        ("socket AF_ALG by x32", X86_64, X32 | 41, &[38], EPERM),
        ("socket AF_ALG", I386, 359, &[38], EPERM),
        ("socket AF_VSOCK", I386, 359, &[40], EPERM),
        ("socket AF_INET", I386, 359, &[2], ALLOW),
        ("fchmodat2", X86_64, 452, &[], ALLOW),
        ("fchmodat2", I386, 452, &[], ALLOW),
        ("mseal by x32", X86_64, X32 | 462, &[], ALLOW),
        ("lsm_set_self_attr", X86_64, 460, &[], EPERM),
        ("open_tree_attr", X86_64, 467, &[], EPERM),
        ("newer than all", X86_64, 470, &[], ENOSYS),
        ("newer than all", I386, 1000, &[], ENOSYS),
        ("newer than all by x32", X86_64, X32 | 470, &[], ENOSYS),
        ("the call a tracer skipped", X86_64, u32::MAX, &[], EPERM),
        ("another machine's read", 0xC000_00B7, 63, &[], KILL_PROCESS),
        (
            "another machine's recent call",
            0xC000_00B7,
            452,
            &[],
            KILL_PROCESS,
        ),
    ] {
        let found = run(&program, arch, nr, args);
        assert_eq!(found, expected, "{what} ({nr}) on {arch:#x}: {found:#x}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn every_family_but_alg_and_vsock_below_64_is_allowed() {
    let program = compiled(none());
    for family in 0..64 {
        let expected = if family == 38 || family == 40 {
            EPERM
        } else {
            ALLOW
        };
        assert_eq!(run(&program, X86_64, 41, &[family]), expected, "{family}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_capability_allows_what_it_is_for() {
    for (capability, nr, what) in [
        (Capability::CAP_SYS_ADMIN, 165, "mount"),
        (Capability::CAP_SYS_ADMIN, 272, "unshare"),
        (Capability::CAP_SYS_ADMIN, 435, "clone3"),
        (Capability::CAP_SYS_ADMIN, 467, "open_tree_attr"),
        (Capability::CAP_BPF, 321, "bpf"),
        (Capability::CAP_PERFMON, 298, "perf_event_open"),
        (Capability::CAP_SYS_CHROOT, 161, "chroot"),
        (Capability::CAP_SYS_PTRACE, 438, "pidfd_getfd"),
        (Capability::CAP_SYS_TIME, 227, "clock_settime"),
        (Capability::CAP_SYSLOG, 103, "syslog"),
        (Capability::CAP_DAC_READ_SEARCH, 304, "open_by_handle_at"),
        (Capability::CAP_SYS_MODULE, 313, "finit_module"),
    ] {
        assert_eq!(
            run(&compiled(with(&[capability])), X86_64, nr, &[]),
            ALLOW,
            "{what}"
        );
    }
    let admin = compiled(with(&[Capability::CAP_SYS_ADMIN]));
    assert_eq!(
        run(&admin, X86_64, 56, &[0x1000_0011]),
        ALLOW,
        "clone NEWUSER"
    );
    assert_eq!(run(&admin, X86_64, 41, &[38]), EPERM, "socket AF_ALG");
    assert_eq!(run(&admin, X86_64, 250, &[]), EPERM, "keyctl");
}

/// This library may not know a name of another architecture or a later kernel; on x86-64 and with
/// the recent table there must be none left.
#[test]
fn every_name_of_the_default_profile_is_known() {
    let all = CapabilitySet::all(40, CapabilitySet::from_mask(u64::MAX));
    let profile = default_profile(all);
    let unknown: Vec<_> = profile
        .syscalls()
        .iter()
        .flatten()
        .flat_map(|rule| rule.names())
        .filter(|name| !compile::is_known(name))
        .collect();
    assert_eq!(unknown, Vec::<&String>::new());
}

fn parse(text: &str) -> Result<Parsed, Failure> {
    parse_json(
        "/p.json",
        text.as_bytes(),
        with(&[Capability::CAP_SYS_CHROOT]),
        (6, 1),
    )
}

#[cfg(target_arch = "x86_64")]
#[test]
fn profiles_of_both_json_forms_are_read_and_settled() {
    let docker = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13, "comment": "unknown fields pass",
        "archMap": [
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}
        ],
        "syscalls": [
            {"names": ["read", "no_such_call", "mseal"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}, "excludes": {}},
            {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["mkdir"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_CHROOT"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["rmdir"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}},
            {"names": ["rename"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
            {"names": ["link"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS"}
        ]}"#;
    let parsed = parse(docker).unwrap();
    assert_eq!(parsed.unknown, ["no_such_call"]);
    let program = compile(&parsed.profile).unwrap();
    const EACCES: u32 = 0x0005_000D;
    for (what, arch, nr, args, expected) in [
        ("read", X86_64, 0, &[][..], ALLOW),
        ("read", I386, 3, &[], ALLOW),
        ("read by x32, not listed", X86_64, X32, &[], KILL_PROCESS),
        ("mseal", X86_64, 462, &[], ALLOW),
        ("newer than mseal", X86_64, 463, &[], ENOSYS),
        ("chroot", X86_64, 161, &[], ALLOW),
        ("mount", X86_64, 165, &[], EACCES),
        ("mkdir", X86_64, 83, &[], EACCES),
        ("ptrace", X86_64, 101, &[], ALLOW),
        ("rmdir", X86_64, 84, &[], EACCES),
        ("rename", X86_64, 82, &[], EACCES),
        ("link", X86_64, 86, &[], ALLOW),
        ("personality 8", X86_64, 135, &[8], ALLOW),
        ("personality 9", X86_64, 135, &[9], EACCES),
        ("clone NEWNET", X86_64, 56, &[0x4000_0000], EACCES),
        ("clone3", X86_64, 435, &[], ENOSYS),
        ("kill", X86_64, 62, &[], KILL_PROCESS),
    ] {
        let found = run(&program, arch, nr, args);
        assert_eq!(found, expected, "{what}: {found:#x}");
    }
    let open = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"name": "mkdir", "action": "SCMP_ACT_ERRNO", "args": null},
        {"names": ["mseal"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"#;
    let program = compile(&parse(open).unwrap().profile).unwrap();
    assert_eq!(run(&program, X86_64, 83, &[]), EPERM);
    assert_eq!(run(&program, X86_64, 462, &[]), EPERM);
    assert_eq!(run(&program, X86_64, 1000, &[]), ALLOW);
    assert_eq!(run(&program, X86_64, 0, &[]), ALLOW);
}

#[test]
fn profiles_that_can_not_be_carried_out_are_refused() {
    let rule =
        |rule: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{rule}]}}"#);
    for (text, class) in [
        (String::new(), Class::Invalid),
        ("[]".into(), Class::Invalid),
        ("{}".into(), Class::Invalid),
        (
            r#"{"defaultAction": "SCMP_ACT_NONSENSE"}"#.into(),
            Class::Invalid,
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}"#.into(),
            Class::Invalid,
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/a"}"#.into(),
            Class::Invalid,
        ),
        (
            rule(r#"{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}"#),
            Class::Invalid,
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/a", "syscalls": [
                {"names": ["sendmsg"], "action": "SCMP_ACT_NOTIFY"}]}"#
                .into(),
            Class::Invalid,
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW"]}"#.into(),
            Class::Invalid,
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW",
                "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#
                .into(),
            Class::Invalid,
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
                "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}"#
                .into(),
            Class::Invalid,
        ),
        (rule(r#"{"action": "SCMP_ACT_ALLOW"}"#), Class::Invalid),
        (rule(r#"{"names": ["read"]}"#), Class::Invalid),
        (
            rule(r#"{"names": ["read"], "name": "write", "action": "SCMP_ACT_ALLOW"}"#),
            Class::Invalid,
        ),
        (
            rule(
                r#"{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": 0, "value": 38, "op": "SCMP_CMP_NE"},
                    {"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]}"#,
            ),
            Class::Invalid,
        ),
        (
            rule(
                r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}"#,
            ),
            Class::Invalid,
        ),
        (
            rule(
                r#"{"names": ["mseal"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]}"#,
            ),
            Class::Unsupported,
        ),
        (
            rule(
                r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_X"]}}"#,
            ),
            Class::Invalid,
        ),
        (
            rule(
                r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "x"}}"#,
            ),
            Class::Invalid,
        ),
        ("[".repeat(10_000), Class::Invalid),
        (" ".repeat(MAX_FILE + 1), Class::Invalid),
    ] {
        let failure = parse(&text).expect_err(&text.chars().take(200).collect::<String>());
        assert_eq!(failure.class(), class, "{failure}");
        assert!(
            failure.message().starts_with("seccomp profile /p.json: "),
            "{failure}"
        );
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn flags_and_the_agent_of_a_file_are_kept_where_they_mean_something() {
    let parsed = |action: &str| {
        let text = format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent",
                "listenerMetadata": "m",
                "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"],
                "syscalls": [{{"names": ["mkdir", "statmount"], "action": "{action}"}}]}}"#
        );
        parse(&text).unwrap().profile
    };
    let with = parsed("SCMP_ACT_NOTIFY");
    let program = compile(&with).unwrap();
    assert_eq!(
        with.listener_path().as_deref(),
        Some(std::path::Path::new("/run/agent"))
    );
    assert_eq!(with.listener_metadata().as_deref(), Some("m"));
    assert_eq!(with.flags().as_ref().map(Vec::len), Some(1));
    // mkdir, which libseccomp compiles, and statmount, which the head of ours does.
    for call in [83, 457] {
        assert_eq!(run(&program, X86_64, call, &[]), 0x7FC0_0000);
    }
    let without = parsed("SCMP_ACT_LOG");
    assert_eq!(without.listener_path(), &None);
    let program = compile(&without).unwrap();
    assert_eq!(run(&program, X86_64, 83, &[]), 0x7FFC_0000);
}

#[test]
fn the_profile_follows_request_privilege_and_the_node_s_setting() {
    use crate::request::security::Profile;
    let unset = SeccompWhenUnset::Unconfined;
    let raised = SeccompWhenUnset::RuntimeDefault;
    let file = Profile::Localhost("/p".into());
    for (asked, privileged, unset, expected) in [
        (None, false, unset, SeccompChoice::Unconfined),
        (None, false, raised, SeccompChoice::RuntimeDefault),
        (None, true, raised, SeccompChoice::Unconfined),
        (
            Some(&Profile::RuntimeDefault),
            false,
            unset,
            SeccompChoice::RuntimeDefault,
        ),
        (
            Some(&Profile::RuntimeDefault),
            true,
            unset,
            SeccompChoice::Unconfined,
        ),
        (
            Some(&Profile::Unconfined),
            false,
            raised,
            SeccompChoice::Unconfined,
        ),
        (
            Some(&file),
            false,
            unset,
            SeccompChoice::Localhost("/p".into()),
        ),
        (Some(&file), true, unset, SeccompChoice::Unconfined),
    ] {
        assert_eq!(
            choose(asked, privileged, unset),
            expected,
            "{asked:?} {privileged}"
        );
    }
}

#[test]
fn a_profile_is_compiled_once_and_found_in_a_spec() {
    let cache = SeccompCache::default();
    let profile = default_profile(none());
    let first = cache.program(&profile).unwrap();
    let second = cache.program(&profile).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    assert!(first.len() / 8 < 4096, "{} instructions", first.len() / 8);
    let spec =
        serde_json::json!({"ociVersion": "1.2.0", "linux": {"seccomp": profile}}).to_string();
    assert_eq!(of_spec(&spec).unwrap(), Some(profile));
    assert_eq!(
        of_spec(r#"{"ociVersion": "1.2.0", "linux": {}}"#).unwrap(),
        None
    );
    assert_eq!(of_spec(r#"{"ociVersion": "1.2.0"}"#).unwrap(), None);
}
