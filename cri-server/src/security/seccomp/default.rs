//! The default profile (`RuntimeDefault`): an allow-list, EPERM for the rest.
//!
//! It means what the container world means by it (Docker's and containerd's profile): calls that
//! are safe for everybody, calls that a capability implies, and a few by argument. What is in no
//! table is denied: io_uring_*, keyctl and its kin, userfaultfd, kexec_*, swapon, nfsservctl,
//! uselib, vm86 and so on. Calls newer than the newest named here answer ENOSYS (`compile.rs`),
//! as do clone3's callers without CAP_SYS_ADMIN, because its flags are behind a pointer and libraries
//! fall back to clone on that answer only.

use caps::Capability;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator as Op, LinuxSyscall,
};

use super::super::capabilities::CapabilitySet;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// `CLONE_NEWNS`, `-CGROUP`, `-UTS`, `-IPC`, `-USER`, `-PID` and `-NET` (clone(2)); clone's flags
/// are a 64-bit register of which the kernel reads the low half.
const NEW_NAMESPACES: u64 = 0x7E02_0000;

/// The low half of an argument: what the kernel reads of an `int`. Comparing the whole register
/// would let a set upper half by.
const INT: u64 = 0xFFFF_FFFF;

/// Names that belong together, and why they are safe.
struct Group {
    names: &'static [&'static str],
    /// Only with this capability.
    with: Option<Capability>,
}

const fn always(names: &'static [&'static str]) -> Group {
    Group { names, with: None }
}

const fn with(capability: Capability, names: &'static [&'static str]) -> Group {
    Group {
        names,
        with: Some(capability),
    }
}

#[rustfmt::skip]
const GROUPS: &[Group] = &[
    // Files by descriptor and path: what they may do is decided by the file's permissions.
    always(&[
        "access", "chdir", "chmod", "chown", "chown32", "close", "close_range", "copy_file_range",
        "creat", "dup", "dup2", "dup3", "faccessat", "faccessat2", "fadvise64", "fadvise64_64",
        "fallocate", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat",
        "fcntl", "fcntl64", "fdatasync", "flock", "fstat", "fstat64", "fstatat64", "fstatfs",
        "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futimesat", "getcwd", "getdents",
        "getdents64", "ioctl", "lchown", "lchown32", "link", "linkat", "_llseek", "lseek", "lstat",
        "lstat64", "mkdir", "mkdirat", "mknod", "mknodat", "name_to_handle_at", "newfstatat", "open",
        "openat", "openat2", "pread64", "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2",
        "read", "readahead", "readlink", "readlinkat", "readv", "rename", "renameat", "renameat2",
        "rmdir", "sendfile", "sendfile64", "splice", "stat", "stat64", "statfs", "statfs64", "statx",
        "symlink", "symlinkat", "sync", "sync_file_range", "sync_file_range2", "syncfs", "tee",
        "truncate", "truncate64", "umask", "unlink", "unlinkat", "utime", "utimensat",
        "utimensat_time64", "utimes", "vmsplice", "write", "writev",
    ]),
    // Attributes of files, alike.
    always(&[
        "cachestat", "fgetxattr", "file_getattr", "file_setattr", "flistxattr", "fremovexattr",
        "fsetxattr", "getxattr", "getxattrat", "lgetxattr", "listxattr", "listxattrat", "llistxattr",
        "lremovexattr", "lsetxattr", "removexattr", "removexattrat", "setxattr", "setxattrat",
    ]),
    // Watching files; fanotify_mark needs a descriptor only fanotify_init gives.
    always(&["fanotify_mark", "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch"]),
    // Asynchronous file access of the old kind; io_uring stays out for its history of holes.
    always(&[
        "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64",
        "io_setup", "io_submit",
    ]),
    // The own address space.
    always(&[
        "brk", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret", "mincore",
        "mlock", "mlock2", "mlockall", "mmap", "mmap2", "mprotect", "mremap", "mseal", "msync",
        "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect",
        "process_mrelease", "remap_file_pages",
    ]),
    // Processes and threads. ptrace can't be used to leave a filter since Linux 4.8, where it runs
    // after the tracer; access to others follows ptrace's own rules.
    always(&[
        "execve", "execveat", "exit", "exit_group", "fork", "get_robust_list", "get_thread_area",
        "getcpu", "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getrlimit", "getrusage",
        "getsid", "gettid", "ioprio_get", "ioprio_set", "kill", "pidfd_open", "pidfd_send_signal",
        "prctl", "prlimit64", "process_vm_readv", "process_vm_writev", "ptrace", "restart_syscall",
        "rseq", "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity",
        "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
        "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam",
        "sched_setscheduler", "sched_yield", "set_robust_list", "set_thread_area",
        "set_tid_address", "setpgid", "setpriority", "setrlimit", "setsid", "tgkill", "times", "tkill",
        "ugetrlimit", "uname", "vfork", "wait4", "waitid", "waitpid",
    ]),
    // Architecture state of x86 threads.
    always(&["arch_prctl", "modify_ldt"]),
    // Identity: capabilities decide.
    always(&[
        "capget", "capset", "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32",
        "getgroups", "getgroups32", "getresgid", "getresgid32", "getresuid", "getresuid32", "getuid",
        "getuid32", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32",
        "setgroups", "setgroups32", "setregid", "setregid32", "setresgid", "setresgid32", "setresuid",
        "setresuid32", "setreuid", "setreuid32", "setuid", "setuid32",
    ]),
    // Signals.
    always(&[
        "alarm", "pause", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo",
        "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64",
        "rt_tgsigqueueinfo", "sigaltstack", "signalfd", "signalfd4", "sigprocmask", "sigreturn",
    ]),
    // Clocks and timers; setting one takes CAP_SYS_TIME, which adjtimex checks itself.
    always(&[
        "adjtimex", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64",
        "clock_gettime", "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "getitimer",
        "gettimeofday", "nanosleep", "setitimer", "time", "timer_create", "timer_delete",
        "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime", "timer_settime64",
        "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime",
        "timerfd_settime64",
    ]),
    // Waiting and waking.
    always(&[
        "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2",
        "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "futex", "futex_requeue",
        "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "_newselect", "pipe", "pipe2",
        "poll", "ppoll", "ppoll_time64", "pselect6", "pselect6_time64", "select",
    ]),
    // System V and POSIX IPC, in the pod's own namespace.
    always(&[
        "ipc", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64",
        "mq_timedsend", "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd",
        "semctl", "semget", "semop", "semtimedop", "semtimedop_time64", "shmat", "shmctl", "shmdt",
        "shmget",
    ]),
    // Sockets, once there is one. 32-bit programs make theirs through socketcall, whose arguments no
    // filter can see: there AppArmor or SELinux keeps families out.
    always(&[
        "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen",
        "recv", "recvfrom", "recvmmsg", "recvmmsg_time64", "recvmsg", "send", "sendmmsg", "sendmsg",
        "sendto", "setsockopt", "shutdown", "socketcall", "socketpair",
    ]),
    // Confining oneself further, and asking about it and the system.
    always(&[
        "getrandom", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self",
        "listmount", "lsm_get_self_attr", "lsm_list_modules", "seccomp", "statmount", "sysinfo",
    ]),
    // What a capability is for.
    with(Capability::CAP_BPF, &["bpf"]),
    with(Capability::CAP_DAC_READ_SEARCH, &["open_by_handle_at"]),
    with(Capability::CAP_PERFMON, &["perf_event_open"]),
    with(Capability::CAP_SYS_ADMIN, &[
        "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick",
        "lookup_dcookie", "mount", "mount_setattr", "move_mount", "open_tree", "open_tree_attr",
        "perf_event_open", "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns",
        "syslog", "umount", "umount2", "unshare",
    ]),
    with(Capability::CAP_SYS_BOOT, &["reboot"]),
    with(Capability::CAP_SYS_CHROOT, &["chroot"]),
    with(Capability::CAP_SYS_MODULE, &["delete_module", "finit_module", "init_module"]),
    with(Capability::CAP_SYS_NICE, &[
        "get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node",
    ]),
    with(Capability::CAP_SYS_PACCT, &["acct"]),
    with(Capability::CAP_SYS_PTRACE, &["kcmp", "pidfd_getfd", "process_madvise"]),
    with(Capability::CAP_SYS_RAWIO, &["ioperm", "iopl"]),
    with(Capability::CAP_SYS_TIME, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    with(Capability::CAP_SYS_TTY_CONFIG, &["vhangup"]),
    with(Capability::CAP_SYSLOG, &["syslog"]),
];

/// Execution domains that change nothing of consequence (personality(2)): Linux, 32-bit, a 2.6
/// version number, both, and the question for the present one. ADDR_NO_RANDOMIZE and
/// READ_IMPLIES_EXEC are not among them.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x20000, 0x20008, INT];

/// Socket families below 64 without AF_ALG (38) and AF_VSOCK (40), as blocks of a mask and what
/// remains under it: AF_ALG's kernel code had a hole that reached other pods through the page
/// cache (CVE-2026-31431), AF_VSOCK leads past the network to the hypervisor. Written as what is
/// allowed: two conditions "not equal" on one argument would be alternatives to some readers.
const FAMILIES: [(u64, u64); 8] = [
    (0xFFFF_FFE0, 0),
    (0xFFFF_FFFC, 32),
    (0xFFFF_FFFE, 36),
    (0xFFFF_FFFF, 39),
    (0xFFFF_FFFF, 41),
    (0xFFFF_FFFE, 42),
    (0xFFFF_FFFC, 44),
    (0xFFFF_FFF0, 48),
];

/// The profile for a container with these capabilities (its bounding set).
pub fn default_profile(capabilities: CapabilitySet) -> LinuxSeccomp {
    let mut names: Vec<&str> = GROUPS
        .iter()
        .filter(|group| {
            group
                .with
                .is_none_or(|capability| capabilities.contains(capability))
        })
        .flat_map(|group| group.names)
        .copied()
        .collect();
    names.sort_unstable();
    names.dedup();
    let mut rules = vec![rule(&names, Action::ScmpActAllow, None, None)];
    for domain in PERSONALITIES {
        rules.push(rule(
            &["personality"],
            Action::ScmpActAllow,
            None,
            Some(argument(0, Op::ScmpCmpEq, domain, None)),
        ));
    }
    for (mask, family) in FAMILIES {
        rules.push(rule(
            &["socket"],
            Action::ScmpActAllow,
            None,
            Some(argument(0, Op::ScmpCmpMaskedEq, mask, Some(family))),
        ));
    }
    if !capabilities.contains(Capability::CAP_SYS_ADMIN) {
        rules.push(rule(
            &["clone"],
            Action::ScmpActAllow,
            None,
            Some(argument(0, Op::ScmpCmpMaskedEq, NEW_NAMESPACES, Some(0))),
        ));
        rules.push(rule(&["clone3"], Action::ScmpActErrno, Some(ENOSYS), None));
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(Action::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(architectures()))
        .set_flags(None)
        .set_listener_path(None)
        .set_listener_metadata(None)
        .set_syscalls(Some(rules));
    profile
}

/// The machine's own and those it also runs: calls by any of them are judged alike (threat E4).
fn architectures() -> Vec<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => vec![Arch::ScmpArchNative],
    }
}

fn rule(
    names: &[&str],
    action: Action,
    errno: Option<u32>,
    argument: Option<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|name| (*name).to_owned()).collect())
        .set_action(action)
        .set_errno_ret(errno)
        .set_args(argument.map(|argument| vec![argument]));
    rule
}

fn argument(index: usize, op: Op, value: u64, value_two: Option<u64>) -> LinuxSeccompArg {
    let argument = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value);
    let argument = match value_two {
        Some(value_two) => argument.value_two(value_two),
        None => argument,
    };
    // The builder has a default for every field, so it can't fail.
    argument.build().unwrap_or_default()
}
