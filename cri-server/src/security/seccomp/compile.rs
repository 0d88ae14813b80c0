//! Profile → program: classic BPF, an array of `struct sock_filter`, for seccomp(2).
//!
//! libseccomp compiles the calls it knows. In front stands a head of ours for calls newer than
//! Linux 5.17, which Debian 12's libseccomp doesn't know: those the profile names get its action, and
//! those newer than any it names answer ENOSYS where the profile answers an errno, so that programs fall
//! back as on an older kernel (glibc retries only on ENOSYS; runc does the same).

use std::io::{Read as _, Seek as _};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator as Op, LinuxSyscall,
};

use super::recent;
use crate::failure::{Class, Doing as _, Failure};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// The kernel cuts an errno at this (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;
/// The kernel takes no longer program (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// Compiles a profile. Takes some 10 ms and leaves a megabyte of heap behind.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>, Failure> {
    check(profile)?;
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).doing("start a seccomp filter")?;
    let architectures = supported(profile);
    for architecture in &architectures {
        context
            .add_arch(*architecture)
            .doing(format!("add {architecture:?} to a seccomp filter"))?;
    }
    context
        .set_act_badarch(ScmpAction::KillProcess)
        .doing("set the action for other architectures")?
        .set_ctl_optimize(2)
        .doing("ask for a tree of compares")?;
    for rule in profile.syscalls().iter().flatten() {
        let action = action(
            rule.action(),
            rule.errno_ret().or(profile.default_errno_ret()),
        )?;
        if action == default {
            // libseccomp refuses a rule that says what is so anyway.
            continue;
        }
        for name in rule.names() {
            if recent::number(name).is_none()
                && let Ok(syscall) = ScmpSyscall::from_name(name)
            {
                add(&mut context, action, syscall, name, rule)?;
            }
        }
    }
    let mut program = head(profile, &architectures)?;
    program.extend(export(&context)?);
    if program.len() / INSTRUCTION > MAX_INSTRUCTIONS {
        return Err(Failure::invalid(format!(
            "a seccomp profile of {} instructions; the kernel takes {MAX_INSTRUCTIONS}",
            program.len() / INSTRUCTION
        )));
    }
    Ok(program)
}

/// Whether a call of this name exists on any architecture, as far as anything here knows.
pub(super) fn is_known(name: &str) -> bool {
    recent::number(name).is_some() || ScmpSyscall::from_name(name).is_ok()
}

/// The architecture this is built for.
pub(super) fn native() -> Option<Arch> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Arch::ScmpArchX86_64),
        "aarch64" => Some(Arch::ScmpArchAarch64),
        _ => None,
    }
}

/// Refuses what can't be carried out, before anything is compiled.
pub(super) fn check(profile: &LinuxSeccomp) -> Result<(), Failure> {
    action(profile.default_action(), profile.default_errno_ret())?;
    check_notify(profile)?;
    for rule in profile.syscalls().iter().flatten() {
        let named = |why: &str| {
            Failure::invalid(format!("{}: {why}", rule.names().first().map_or("", |n| n)))
        };
        action(rule.action(), rule.errno_ret()).map_err(|f| f.context("a system call's action"))?;
        let args = rule.args().as_deref().unwrap_or_default();
        if args.iter().any(|argument| argument.index() > 5) {
            return Err(named("an argument's index is 0 to 5"));
        }
        for argument in args {
            let same = args
                .iter()
                .filter(|other| other.index() == argument.index());
            if same.clone().count() > 1 && same.clone().any(|other| other.op() != Op::ScmpCmpEq) {
                return Err(named(
                    "several conditions on one argument would be taken as alternatives; \
                     only SCMP_CMP_EQ can be repeated: list what is allowed in entries of their own",
                ));
            }
        }
        if !args.is_empty()
            && let Some(name) = rule
                .names()
                .iter()
                .find(|name| recent::number(name).is_some())
        {
            return Err(Failure::new(
                Class::Unsupported,
                format!("{name}: conditions on calls newer than Linux 5.17 are not provided"),
            ));
        }
    }
    Ok(())
}

/// Whether some call's action is to ask an agent.
pub(super) fn notifies(profile: &LinuxSeccomp) -> bool {
    let notify = LinuxSeccompAction::ScmpActNotify;
    let rules = profile.syscalls().iter().flatten();
    profile.default_action() == notify || rules.into_iter().any(|rule| rule.action() == notify)
}

/// Notifications need an agent, and one call without them: sendmsg hands their descriptor over, so
/// nobody could answer for it yet.
fn check_notify(profile: &LinuxSeccomp) -> Result<(), Failure> {
    const NOTIFY: LinuxSeccompAction = LinuxSeccompAction::ScmpActNotify;
    let waits_for_killable = LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv;
    if !notifies(profile) {
        if profile
            .flags()
            .iter()
            .flatten()
            .any(|flag| *flag == waits_for_killable)
        {
            return Err(Failure::invalid(
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a call with SCMP_ACT_NOTIFY",
            ));
        }
        return Ok(());
    }
    if profile.default_action() == NOTIFY {
        return Err(Failure::invalid(
            "defaultAction can't be SCMP_ACT_NOTIFY: name the calls that are to notify",
        ));
    }
    let mut rules = profile.syscalls().iter().flatten();
    if rules
        .any(|rule| rule.action() == NOTIFY && rule.names().iter().any(|name| name == "sendmsg"))
    {
        return Err(Failure::invalid(
            "sendmsg can't have SCMP_ACT_NOTIFY: it hands the listener over",
        ));
    }
    match profile.listener_path() {
        Some(path) if path.is_absolute() => Ok(()),
        _ => Err(Failure::invalid(
            "SCMP_ACT_NOTIFY needs listenerPath, an absolute path of the agent's socket",
        )),
    }
}

/// Adds one call. Repeated EQ on one argument are alternatives, so a rule each.
fn add(
    context: &mut ScmpFilterContext,
    action: ScmpAction,
    syscall: ScmpSyscall,
    name: &str,
    rule: &LinuxSyscall,
) -> Result<(), Failure> {
    for conditions in alternatives(rule.args().as_deref().unwrap_or_default()) {
        let conditions: Vec<ScmpArgCompare> = conditions.iter().map(|arg| compare(arg)).collect();
        context
            .add_rule_conditional(action, syscall, &conditions)
            .doing(format!("add {name} to a seccomp filter"))?;
    }
    Ok(())
}

/// All ways to take one condition per argument.
fn alternatives(args: &[LinuxSeccompArg]) -> Vec<Vec<&LinuxSeccompArg>> {
    let mut ways: Vec<Vec<&LinuxSeccompArg>> = vec![Vec::new()];
    for index in 0..=5 {
        let choices: Vec<_> = args.iter().filter(|arg| arg.index() == index).collect();
        if !choices.is_empty() {
            ways = ways
                .iter()
                .flat_map(|way| {
                    choices
                        .iter()
                        .map(|choice| way.iter().copied().chain([*choice]).collect())
                })
                .collect();
        }
    }
    ways
}

fn compare(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let value = argument.value();
    let (op, datum) = match argument.op() {
        Op::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
        Op::ScmpCmpLt => (ScmpCompareOp::Less, value),
        Op::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
        Op::ScmpCmpEq => (ScmpCompareOp::Equal, value),
        Op::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
        Op::ScmpCmpGt => (ScmpCompareOp::Greater, value),
        // The specification's value is the mask, and valueTwo what must remain.
        Op::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(value),
            argument.value_two().unwrap_or(0),
        ),
    };
    // `check` made sure of the index.
    ScmpArgCompare::new(u32::try_from(argument.index()).unwrap_or(5), op, datum)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, Failure> {
    let errno = errno.unwrap_or(EPERM);
    if errno > MAX_ERRNO {
        return Err(Failure::invalid(format!(
            "errnoRet {errno} is more than {MAX_ERRNO}"
        )));
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => {
            ScmpAction::Errno(i32::try_from(errno).unwrap_or(i32::MAX))
        }
        LinuxSeccompAction::ScmpActTrace => {
            ScmpAction::Trace(u16::try_from(errno).unwrap_or(u16::MAX))
        }
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    })
}

/// The profile's architectures beside the machine's own; those it can't run are left out.
fn supported(profile: &LinuxSeccomp) -> Vec<ScmpArch> {
    let mut found = vec![ScmpArch::native()];
    for architecture in profile.architectures().iter().flatten() {
        let known = match architecture {
            Arch::ScmpArchNative => Some(ScmpArch::native()),
            Arch::ScmpArchX86_64 => on("x86_64", ScmpArch::X8664),
            Arch::ScmpArchX86 => on("x86_64", ScmpArch::X86),
            Arch::ScmpArchX32 => on("x86_64", ScmpArch::X32),
            Arch::ScmpArchAarch64 => on("aarch64", ScmpArch::Aarch64),
            Arch::ScmpArchArm => on("aarch64", ScmpArch::Arm),
            _ => None,
        };
        if let Some(known) = known.filter(|known| !found.contains(known)) {
            found.push(known);
        }
    }
    found
}

fn on(machine: &str, architecture: ScmpArch) -> Option<ScmpArch> {
    (std::env::consts::ARCH == machine).then_some(architecture)
}

/// Through a memfd: `export_bpf_mem` exists only with libseccomp 2.6.
fn export(context: &ScmpFilterContext) -> Result<Vec<u8>, Failure> {
    const DOING: &str = "export a seccomp program";
    let memory =
        rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC).doing(DOING)?;
    context.export_bpf(&memory).doing(DOING)?;
    let mut file = std::fs::File::from(memory);
    file.rewind().doing(DOING)?;
    let mut program = Vec::new();
    file.read_to_end(&mut program).doing(DOING)?;
    Ok(program)
}

/// Bytes of one instruction (`struct sock_filter`, linux/filter.h).
const INSTRUCTION: usize = 8;

/// `BPF_LD | BPF_W | BPF_ABS`
const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`
const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JEQ | BPF_K`
const JUMP_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`
const JUMP_GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JA`
const JUMP: u16 = 0x05;
/// `BPF_RET | BPF_K`
const RETURN: u16 = 0x06;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The bit that marks x32 calls.
const X32: u32 = 0x4000_0000;

/// The head: per architecture of the profile, the actions of recent calls, then ENOSYS above the
/// newest; everything else goes on to libseccomp's program.
fn head(profile: &LinuxSeccomp, architectures: &[ScmpArch]) -> Result<Vec<u8>, Failure> {
    let mut actions: Vec<(u32, u32)> = Vec::new();
    let mut newest = recent::COMMON_NEWEST;
    for rule in profile.syscalls().iter().flatten() {
        let value = value(action(
            rule.action(),
            rule.errno_ret().or(profile.default_errno_ret()),
        )?);
        for number in rule.names().iter().filter_map(|name| recent::number(name)) {
            newest = newest.max(number);
            if !actions.iter().any(|(known, _)| *known == number) {
                actions.push((number, value));
            }
        }
    }
    let answers_errno = profile.default_action() == LinuxSeccompAction::ScmpActErrno;
    if actions.is_empty() && !answers_errno {
        return Ok(Vec::new());
    }
    let mut tokens: Vec<u32> = architectures
        .iter()
        .filter_map(|arch| token(*arch))
        .collect();
    tokens.dedup();
    let has_x32 = architectures.contains(&ScmpArch::X32);
    // Body: what runs for a known architecture; its last instruction is the jump target "on".
    let mut body = vec![(LOAD, 0, 0, NUMBER)];
    if has_x32 {
        body.push((AND, 0, 0, !X32));
    }
    for (number, value) in &actions {
        body.push((JUMP_EQUAL, 0, 1, *number));
        body.push((RETURN, 0, 0, *value));
    }
    if answers_errno {
        // Numbers with a high bit (-1: skipped by a tracer) are libseccomp's to judge.
        body.push((JUMP_GREATER, 2, 0, X32 - 1));
        body.push((JUMP_GREATER, 0, 1, newest));
        body.push((
            RETURN,
            0,
            0,
            value(ScmpAction::Errno(i32::try_from(ENOSYS).unwrap_or(1))),
        ));
    }
    let mut code = vec![(LOAD, 0, 0, ARCHITECTURE)];
    for (index, token) in tokens.iter().enumerate() {
        // Over the other tokens and the jump past the body.
        let over = u8::try_from(tokens.len() - index).doing("lay out a seccomp program")?;
        code.push((JUMP_EQUAL, over, 0, *token));
    }
    code.push((
        JUMP,
        0,
        0,
        u32::try_from(body.len()).doing("lay out a seccomp program")?,
    ));
    code.extend(body);
    Ok(code
        .into_iter()
        .flat_map(|(code, yes, no, k): (u16, u8, u8, u32)| {
            let mut bytes = [0; INSTRUCTION];
            bytes[..2].copy_from_slice(&code.to_ne_bytes());
            bytes[2] = yes;
            bytes[3] = no;
            bytes[4..].copy_from_slice(&k.to_ne_bytes());
            bytes
        })
        .collect())
}

/// `SECCOMP_RET_*` (linux/seccomp.h).
fn value(action: ScmpAction) -> u32 {
    match action {
        ScmpAction::KillProcess => 0x8000_0000,
        ScmpAction::KillThread => 0,
        ScmpAction::Trap => 0x0003_0000,
        ScmpAction::Errno(errno) => 0x0005_0000 | u32::try_from(errno).unwrap_or(EPERM) & 0xFFFF,
        ScmpAction::Trace(message) => 0x7FF0_0000 | u32::from(message),
        ScmpAction::Notify => 0x7FC0_0000,
        ScmpAction::Log => 0x7FFC_0000,
        ScmpAction::Allow => 0x7FFF_0000,
        // `action` makes no other.
        _ => 0x8000_0000,
    }
}

/// `AUDIT_ARCH_*` (linux/audit.h); x32 has x86-64's.
fn token(architecture: ScmpArch) -> Option<u32> {
    match architecture {
        ScmpArch::X8664 => Some(0xC000_003E),
        ScmpArch::X86 => Some(0x4000_0003),
        ScmpArch::Aarch64 => Some(0xC000_00B7),
        ScmpArch::Arm => Some(0x4000_0028),
        _ => None,
    }
}
