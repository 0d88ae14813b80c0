//! What the child tells the parent: fixed-size messages over a close-on-exec socket, and what
//! they mean to people.
//!
//! The child can't format text, so it sends where it was (a stage and an index into the plan), the
//! errno, and for a failed execve the first bytes of the program. Names are put in here.

use std::fmt::Write as _;

use rustix::io::Errno;

use crate::error::{Error, ErrorKind};
use crate::plan::{Plan, ProcessPlan, namespaces};

/// Bytes of a program's beginning that are sent when its interpreter is missing.
pub(super) const TEXT: usize = 1024;
/// The size of every message.
pub(super) const SIZE: usize = 16 + TEXT;

/// What the child was doing. The numbers travel only between two halves of one process image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    Prepare,
    Cgroup,
    Join,
    UserNamespace,
    Enter,
    Fork,
    Root,
    Hostname,
    Mount,
    MountOption,
    MountTarget,
    MountLink,
    Procfs,
    Device,
    DeviceLink,
    Terminal,
    Console,
    Sysctl,
    LateReadonly,
    ReadonlyPath,
    MaskedPath,
    WorkingDirectory,
    RootReadonly,
    CgroupNamespace,
    Wait,
    Streams,
    Keyring,
    Limit,
    Label,
    NoNewPrivileges,
    Bounding,
    Groups,
    Ids,
    Capabilities,
    Seccomp,
    Ambient,
    Signals,
    Execute,
}

/// All stages, to find one by its number.
const STAGES: [Stage; 38] = [
    Stage::Prepare,
    Stage::Cgroup,
    Stage::Join,
    Stage::UserNamespace,
    Stage::Enter,
    Stage::Fork,
    Stage::Root,
    Stage::Hostname,
    Stage::Mount,
    Stage::MountOption,
    Stage::MountTarget,
    Stage::MountLink,
    Stage::Procfs,
    Stage::Device,
    Stage::DeviceLink,
    Stage::Terminal,
    Stage::Console,
    Stage::Sysctl,
    Stage::LateReadonly,
    Stage::ReadonlyPath,
    Stage::MaskedPath,
    Stage::WorkingDirectory,
    Stage::RootReadonly,
    Stage::CgroupNamespace,
    Stage::Wait,
    Stage::Streams,
    Stage::Keyring,
    Stage::Limit,
    Stage::Label,
    Stage::NoNewPrivileges,
    Stage::Bounding,
    Stage::Groups,
    Stage::Ids,
    Stage::Capabilities,
    Stage::Seccomp,
    Stage::Ambient,
    Stage::Signals,
    Stage::Execute,
];

/// Why, where the errno doesn't say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Note {
    /// The errno says it.
    None,
    /// A mount's target lies on procfs.
    OnProcfs,
    /// A mount's target is the container's root.
    IsRoot,
    /// A link where a real directory is needed.
    IsLink,
    /// The working directory is outside the container's root.
    Outside,
    /// The program exists; what interprets it does not.
    Interpreter,
    /// The program is a directory.
    Directory,
    /// What is there is something else than what is wanted.
    Mismatch,
}

const NOTES: [Note; 8] = [
    Note::None,
    Note::OnProcfs,
    Note::IsRoot,
    Note::IsLink,
    Note::Outside,
    Note::Interpreter,
    Note::Directory,
    Note::Mismatch,
];

/// A failure as the child knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) stage: Stage,
    pub(super) index: u16,
    pub(super) errno: Errno,
    pub(super) note: Note,
}

/// A message of the child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The process that goes on, with its pidfd.
    Forked(i32),
    /// The terminal's master, by descriptor.
    Terminal,
    /// The descriptor of the filter's notifications.
    Listener,
    /// Only execve is left to do.
    Ready,
    /// It failed, and the process ends.
    Failed(Failure, Vec<u8>),
}

const FORKED: u8 = 1;
const TERMINAL: u8 = 2;
const READY: u8 = 3;
const FAILED: u8 = 4;
const LISTENER: u8 = 5;

/// Messages without text, as bytes. Fit for a child.
pub(super) fn encode_forked(pid: i32) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    put(&mut bytes, 0, &[FORKED]);
    put(&mut bytes, 4, &pid.to_ne_bytes());
    bytes
}

pub(super) fn encode_terminal() -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    put(&mut bytes, 0, &[TERMINAL]);
    bytes
}

pub(super) fn encode_listener() -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    put(&mut bytes, 0, &[LISTENER]);
    bytes
}

pub(super) fn encode_ready() -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    put(&mut bytes, 0, &[READY]);
    bytes
}

pub(super) fn encode_failure(failure: &Failure, text: &[u8]) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    put(
        &mut bytes,
        0,
        &[FAILED, failure.stage as u8, failure.note as u8],
    );
    put(&mut bytes, 4, &failure.errno.raw_os_error().to_ne_bytes());
    put(&mut bytes, 8, &failure.index.to_ne_bytes());
    let length = text.len().min(TEXT);
    put(
        &mut bytes,
        10,
        &u16::try_from(length).unwrap_or(0).to_ne_bytes(),
    );
    put(&mut bytes, 16, text.get(..length).unwrap_or_default());
    bytes
}

fn put(bytes: &mut [u8; SIZE], at: usize, value: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(at).zip(value) {
        *place = *byte;
    }
}

/// Reads a message; none if it is not one.
pub(super) fn decode(bytes: &[u8]) -> Option<Message> {
    let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
    let [kind, stage, note, _, n0, n1, n2, n3, i0, i1, l0, l1, ..] = *bytes;
    let number = i32::from_ne_bytes([n0, n1, n2, n3]);
    match kind {
        FORKED => Some(Message::Forked(number)),
        TERMINAL => Some(Message::Terminal),
        LISTENER => Some(Message::Listener),
        READY => Some(Message::Ready),
        FAILED => {
            let failure = Failure {
                stage: *STAGES.get(usize::from(stage))?,
                note: *NOTES.get(usize::from(note))?,
                errno: Errno::from_raw_os_error(number),
                index: u16::from_ne_bytes([i0, i1]),
            };
            let length = usize::from(u16::from_ne_bytes([l0, l1]));
            let text = bytes.get(16..16 + length)?;
            Some(Message::Failed(failure, text.to_vec()))
        }
        _ => None,
    }
}

/// The error for a failure: what was being done to which object, and why it failed.
pub(super) fn explain(
    failure: &Failure,
    text: &[u8],
    plan: Option<&Plan>,
    process: &ProcessPlan,
) -> Error {
    if failure.stage == Stage::Execute {
        return explain_execute(failure, text, process);
    }
    let doing = describe(failure, plan, process);
    match failure.note {
        Note::None => Error::system(doing, failure.errno),
        Note::OnProcfs => Error::invalid(format!("{doing}: the target lies on procfs")),
        Note::IsRoot => Error::invalid(format!("{doing}: the target is the container's root")),
        Note::IsLink => Error::invalid(format!("{doing}: not a real directory")),
        Note::Outside => Error::invalid(format!("{doing}: outside the container's root")),
        Note::Mismatch => Error::invalid(format!("{doing}: something else is there already")),
        Note::Interpreter | Note::Directory => Error::system(doing, failure.errno),
    }
}

fn describe(failure: &Failure, plan: Option<&Plan>, process: &ProcessPlan) -> String {
    let index = usize::from(failure.index);
    let path = |list: Option<&Vec<std::ffi::CString>>| {
        list.and_then(|list| list.get(index))
            .map(|path| format!("/{}", path.to_string_lossy()))
            .unwrap_or_default()
    };
    let mount = plan.and_then(|plan| plan.mounts.get(index));
    let mounting = mount.map(|mount| mount.describe()).unwrap_or_default();
    let device = plan
        .and_then(|plan| plan.nodes.devices.get(index))
        .map(|node| {
            let directory = node.directory.to_string_lossy();
            format!("/{directory}/{}", node.name.to_string_lossy())
        });
    match failure.stage {
        Stage::Prepare => "prepare the process".to_owned(),
        Stage::Cgroup => "join the cgroup".to_owned(),
        Stage::Join => {
            let kind = plan.and_then(|plan| plan.namespaces.join.get(index));
            let (name, path) = kind.map_or(("", String::new()), |(kind, path)| {
                (namespaces::name(*kind), path.display().to_string())
            });
            format!("join the {name} namespace {path}")
        }
        Stage::UserNamespace => {
            "enter the user namespace and make the container's in it".to_owned()
        }
        Stage::Enter => "enter the container's namespaces".to_owned(),
        Stage::Fork => "start a process in the PID namespace".to_owned(),
        Stage::Root => "make the root file system the root".to_owned(),
        Stage::Hostname => "set the host name".to_owned(),
        Stage::Mount => mounting,
        Stage::MountOption => format!("{mounting}: set its options"),
        Stage::MountTarget => format!("{mounting}: find or make the target"),
        Stage::MountLink => format!("{mounting}: make its links"),
        Stage::Procfs => "make a private procfs".to_owned(),
        Stage::Device => format!("make device {}", device.unwrap_or_default()),
        Stage::DeviceLink => {
            let name = plan.and_then(|plan| plan.nodes.links.get(index));
            let name = name
                .map(|(name, _)| name.to_string_lossy())
                .unwrap_or_default();
            format!("make the link /dev/{name}")
        }
        Stage::Terminal => "make a terminal in the container's devpts".to_owned(),
        Stage::Console => "put the terminal on /dev/console".to_owned(),
        Stage::Sysctl => {
            let name = plan.and_then(|plan| plan.sysctls.get(index));
            let name = name.map(|(path, _)| path.to_string_lossy().into_owned());
            format!("write /proc/{}", name.unwrap_or_default())
        }
        Stage::LateReadonly => format!("{mounting}: make it read-only"),
        Stage::ReadonlyPath => format!("make {} read-only", path(plan.map(|plan| &plan.readonly))),
        Stage::MaskedPath => format!("mask {}", path(plan.map(|plan| &plan.masked))),
        Stage::WorkingDirectory => {
            format!(
                "enter the working directory /{}",
                process.command.cwd.to_string_lossy()
            )
        }
        Stage::RootReadonly => "set the root's attributes".to_owned(),
        Stage::CgroupNamespace => "make a cgroup namespace".to_owned(),
        Stage::Wait => "wait for the go-ahead".to_owned(),
        Stage::Streams => "put the standard streams in place".to_owned(),
        Stage::Keyring => "make a session keyring".to_owned(),
        Stage::Limit => {
            let limit = process.identity.limits.get(index).map(|limit| limit.name);
            format!("set {}", limit.unwrap_or("a resource limit"))
        }
        Stage::Label => {
            let label = process.identity.label.as_ref();
            let label = label.map(|(_, label)| String::from_utf8_lossy(label).into_owned());
            format!("set the security label {:?}", label.unwrap_or_default())
        }
        Stage::NoNewPrivileges => "set no_new_privs".to_owned(),
        Stage::Bounding => "limit the bounding set".to_owned(),
        Stage::Groups => "set the supplementary groups".to_owned(),
        Stage::Ids => format!(
            "become user {} and group {}",
            process.identity.uid, process.identity.gid
        ),
        Stage::Capabilities => "set the capabilities".to_owned(),
        Stage::Seccomp => "load the seccomp filter".to_owned(),
        Stage::Ambient => "set the ambient capabilities".to_owned(),
        Stage::Signals => "reset signals".to_owned(),
        Stage::Execute => "execute".to_owned(),
    }
}

/// The texts that Kubernetes' users know from runc, `exec: "name": reason`.
fn explain_execute(failure: &Failure, text: &[u8], process: &ProcessPlan) -> Error {
    let command = &process.command;
    let name = command.arguments.strings().first();
    let name = name.map(|name| name.to_string_lossy()).unwrap_or_default();
    let mut message = format!("exec: {name:?}: ");
    let kind = match failure.errno {
        Errno::NOENT | Errno::NOTDIR => ErrorKind::CommandNotFound,
        _ => ErrorKind::CommandNotExecutable,
    };
    let reason = match failure.note {
        Note::Interpreter => {
            return Error::system_words(
                kind,
                format!(
                    "{message}its interpreter {} is missing: no such file or directory",
                    interpreter(text)
                ),
                failure.errno,
            );
        }
        Note::Directory => "is a directory",
        _ => match failure.errno {
            Errno::NOENT if command.searched => "executable file not found in $PATH",
            Errno::NOENT => "no such file or directory",
            Errno::NOTDIR => "not a directory",
            Errno::ACCESS => "permission denied",
            Errno::NOEXEC => "exec format error",
            Errno::TOOBIG => "argument list too long",
            Errno::TXTBSY => "text file busy",
            Errno::NOMEM => "cannot allocate memory",
            Errno::LOOP => "too many levels of symbolic links",
            _ => "",
        },
    };
    message.push_str(reason);
    if reason.is_empty() {
        message.push_str(&std::io::Error::from(failure.errno).to_string());
    }
    if failure.errno == Errno::TOOBIG {
        let size = |strings: &[std::ffi::CString]| -> usize {
            strings
                .iter()
                .map(|string| string.as_bytes().len() + 1)
                .sum()
        };
        // A String takes any text: the write can't fail.
        let _infallible = write!(
            message,
            " ({} bytes of arguments, {} of environment)",
            size(command.arguments.strings()),
            size(command.environment.strings())
        );
    }
    Error::system_words(kind, message, failure.errno)
}

/// The interpreter a program names: a script's first line, or an ELF's PT_INTERP, as far as the bytes reach.
fn interpreter(program: &[u8]) -> String {
    let name = if let Some(line) = program.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        line.trim_ascii_start()
            .split(|byte| byte.is_ascii_whitespace())
            .next()
            .map(<[u8]>::to_vec)
    } else {
        elf_interpreter(program)
    };
    match name {
        Some(name) if !name.is_empty() => format!("{:?}", String::from_utf8_lossy(&name)),
        _ => "(unknown)".to_owned(),
    }
}

/// PT_INTERP of a 64-bit little-endian ELF (elf(5)).
fn elf_interpreter(program: &[u8]) -> Option<Vec<u8>> {
    if !program.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = program.get(at..at.checked_add(length)?)?;
        let value = bytes
            .iter()
            .rev()
            .fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let header = table.checked_add(index.checked_mul(size)?)?;
        if number(header, 4)? == 3 {
            let at = number(header.checked_add(8)?, 8)?;
            let length = number(header.checked_add(32)?, 8)?;
            let name = program.get(at..at.checked_add(length)?)?;
            return Some(name.split(|byte| *byte == 0).next()?.to_vec());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way() {
        let failure = Failure {
            stage: Stage::Mount,
            index: 300,
            errno: Errno::PERM,
            note: Note::OnProcfs,
        };
        for (bytes, wanted) in [
            (encode_forked(4711), Message::Forked(4711)),
            (encode_terminal(), Message::Terminal),
            (encode_ready(), Message::Ready),
            (
                encode_failure(&failure, b"#!/x"),
                Message::Failed(failure, b"#!/x".to_vec()),
            ),
            (
                encode_failure(&failure, &[7; 5000]),
                Message::Failed(failure, vec![7; TEXT]),
            ),
        ] {
            assert_eq!(decode(&bytes), Some(wanted));
        }
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&[9; SIZE]), None);
    }

    #[test]
    fn stages_are_found_by_their_number() {
        for (number, stage) in STAGES.into_iter().enumerate() {
            assert_eq!(usize::from(stage as u8), number);
        }
        for (number, note) in NOTES.into_iter().enumerate() {
            assert_eq!(usize::from(note as u8), number);
        }
    }

    #[test]
    fn interpreters_are_read_from_what_came() {
        let mut elf = vec![0_u8; 128];
        elf.splice(..6, *b"\x7fELF\x02\x01");
        elf.splice(32..40, 64_u64.to_le_bytes());
        elf.splice(54..58, [56, 0, 1, 0]);
        elf.splice(64..68, 3_u32.to_le_bytes());
        elf.splice(72..80, 120_u64.to_le_bytes());
        elf.splice(96..104, 5_u64.to_le_bytes());
        elf.splice(120..125, *b"/ld1\0");
        for (program, wanted) in [
            (&b"#!/bin/none -x\nrest"[..], "\"/bin/none\""),
            (b"#! /bin/none", "\"/bin/none\""),
            (b"#!", "(unknown)"),
            (b"\x7fELF", "(unknown)"),
            (&elf, "\"/ld1\""),
            (b"", "(unknown)"),
        ] {
            assert_eq!(interpreter(program), wanted);
        }
    }
}
