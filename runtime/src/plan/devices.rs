//! Device rules: what they mean, as an eBPF program for v2 and as lines for v1. Pure.
//!
//! Meaning: access is denied unless a rule allows it; the last rule that matches a device and a
//! permission decides on that permission. (v1 keeps one default and a list of exceptions; for the
//! lists that runtimes send, a denial of everything and then allowances, both are the same.)
//!
//! Sources: OCI runtime-spec `config-linux.md` §Device list; the kernel's
//! `admin-guide/cgroup-v1/devices`, `include/uapi/linux/bpf.h` (`bpf_cgroup_dev_ctx`, since 4.15).

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::{Error, ErrorKind, Result};

/// The most rules one container has: all devices of a node stay far below.
pub const MAX_RULES: usize = 1024;

/// Permissions, with the kernel's numbers (`BPF_DEVCG_ACC_*`).
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// The kinds of device, with the kernel's numbers (`BPF_DEVCG_DEV_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A block device.
    Block = 1,
    /// A character device.
    Character = 2,
}

/// One rule, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    allow: bool,
    /// `None` for both kinds.
    kind: Option<Kind>,
    /// `None` for all.
    major: Option<u32>,
    /// `None` for all.
    minor: Option<u32>,
    access: u32,
}

impl Rule {
    /// Does the rule speak of every device and permission?
    fn is_universal(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }

    /// The line for `devices.allow` or `devices.deny`.
    fn line(&self) -> String {
        if self.is_universal() {
            return "a".to_owned();
        }
        let kind = match self.kind {
            None => 'a',
            Some(Kind::Block) => 'b',
            Some(Kind::Character) => 'c',
        };
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let letters: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .iter()
            .filter(|(bit, _)| self.access & bit != 0)
            .map(|(_, letter)| letter)
            .collect();
        format!(
            "{kind} {}:{} {letters}",
            number(self.major),
            number(self.minor)
        )
    }
}

/// Checks rules and drops those that a later universal one overrides.
pub fn parse(devices: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    if devices.len() > MAX_RULES {
        return Err(Error::new(
            ErrorKind::Exhausted,
            format!(
                "{} device rules, at most {MAX_RULES} are taken",
                devices.len()
            ),
        ));
    }
    let mut rules = Vec::with_capacity(devices.len());
    for device in devices {
        if let Some(rule) = parse_one(device)? {
            if rule.is_universal() {
                rules.clear();
            }
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// `None` for a rule about FIFOs, which no control group governs.
fn parse_one(device: &LinuxDeviceCgroup) -> Result<Option<Rule>> {
    let kind = match device.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(Kind::Block),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(Kind::Character),
        Some(LinuxDeviceType::P) => return Ok(None),
    };
    let number = |value: Option<i64>, what: &str| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| Error::invalid(format!("device rule: {what} {value} is not a number"))),
    };
    let mut access = 0;
    match device.access() {
        None => access = ALL,
        Some(letters) => {
            for letter in letters.chars() {
                access |= match letter {
                    'r' => READ,
                    'w' => WRITE,
                    'm' => MKNOD,
                    other => {
                        return Err(Error::invalid(format!(
                            "device rule: access {letters:?} holds {other:?}, not only r, w and m"
                        )));
                    }
                };
            }
        }
    }
    if access == 0 {
        return Ok(None);
    }
    Ok(Some(Rule {
        allow: device.allow(),
        kind,
        major: number(device.major(), "major")?,
        minor: number(device.minor(), "minor")?,
        access,
    }))
}

/// Nothing is denied: no program is needed.
pub fn allows_all(rules: &[Rule]) -> bool {
    matches!(rules, [only] if only.allow && only.is_universal())
}

/// What to write on v1, in order: (`devices.allow` or `devices.deny`, line).
///
/// v1 refuses an exception of kind `a` with numbers: it is written once for each kind.
pub fn v1_lines(rules: &[Rule]) -> Vec<(&'static str, String)> {
    let mut lines = Vec::with_capacity(rules.len() + 1);
    if rules.first().is_none_or(|rule| !rule.is_universal()) {
        lines.push(("devices.deny", "a".to_owned()));
    }
    for rule in rules {
        let file = if rule.allow {
            "devices.allow"
        } else {
            "devices.deny"
        };
        match rule.kind {
            None if !rule.is_universal() => {
                for kind in [Kind::Character, Kind::Block] {
                    let kind = Some(kind);
                    lines.push((file, Rule { kind, ..*rule }.line()));
                }
            }
            _ => lines.push((file, rule.line())),
        }
    }
    lines
}

/// One eBPF instruction as the kernel wants it (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low half, source register in the high half.
    pub registers: u8,
    /// Jump distance or memory offset.
    pub offset: i16,
    /// Constant.
    pub immediate: i32,
}

// Operations (`include/uapi/linux/bpf.h`, `bpf_common.h`): class | size, operation or source.
const LOAD_WORD: u8 = 0x61; // LDX | MEM | W: dst = *(u32 *)(src + offset)
const MOVE: u8 = 0xbf; // ALU64 | MOV | X
const MOVE_CONSTANT: u8 = 0xb7; // ALU64 | MOV | K
const AND_CONSTANT: u8 = 0x54; // ALU | AND | K
const SHIFT_RIGHT: u8 = 0x74; // ALU | RSH | K
const JUMP_UNLESS_EQUAL: u8 = 0x56; // JMP32 | JNE | K
const JUMP_IF_EQUAL: u8 = 0x16; // JMP32 | JEQ | K
const EXIT: u8 = 0x95; // JMP | EXIT

// Registers. r1 is the context when the program begins, r0 the result.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction {
        code,
        registers: destination | source << 4,
        offset,
        immediate: immediate.cast_signed(),
    }
}

fn answer(allow: bool) -> [Instruction; 2] {
    [
        instruction(MOVE_CONSTANT, RESULT, 0, 0, u32::from(allow)),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// The device program: 1 lets the access happen, 0 denies it with EPERM.
///
/// `WANTED` holds the permissions that no rule has decided yet. From the last rule to the first,
/// one that matches takes its permissions out; a denial of one that is still wanted ends it, and
/// so does an empty rest. All jumps are a few instructions forward: a chain of compares.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, WANTED, CONTEXT, 0, 0),
        instruction(SHIFT_RIGHT, WANTED, 0, 0, 16),
    ];
    program.extend(load_device());
    for rule in rules.iter().rev() {
        program.extend(rule_program(rule));
        if rule.is_universal() {
            // What follows would never be reached, which old verifiers refuse.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

/// struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }
fn load_device() -> [Instruction; 4] {
    [
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(AND_CONSTANT, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ]
}

fn rule_program(rule: &Rule) -> Vec<Instruction> {
    let mut body = Vec::new();
    if rule.access != ALL && rule.allow {
        let others = !rule.access;
        body.push(instruction(AND_CONSTANT, WANTED, 0, 0, others));
        // Something is still wanted: go on with the next rule.
        body.push(instruction(JUMP_UNLESS_EQUAL, WANTED, 0, 2, 0));
    } else if rule.access != ALL {
        body.push(instruction(MOVE, SCRATCH, WANTED, 0, 0));
        body.push(instruction(AND_CONSTANT, SCRATCH, 0, 0, rule.access));
        body.push(instruction(JUMP_IF_EQUAL, SCRATCH, 0, 2, 0));
    }
    body.extend(answer(rule.allow));
    if rule.access != ALL {
        // Going on after a match, the verifier knows the numbers and would follow each rule's own
        // path through all others: with a thousand rules more than the million instructions it
        // walks (seen on 6.18). Read again, they are unknown, and the paths join.
        body.extend(load_device());
    }

    let tests = [
        (KIND, rule.kind.map(|kind| kind as u32)),
        (MAJOR, rule.major),
        (MINOR, rule.minor),
    ];
    let tests: Vec<_> = tests
        .into_iter()
        .filter_map(|(register, value)| value.map(|value| (register, value)))
        .collect();
    let mut program = Vec::with_capacity(tests.len() + body.len());
    for (index, (register, value)) in tests.iter().enumerate() {
        // Over the tests that follow and the body; at most 2 + 9.
        let distance = i16::try_from(tests.len() - index - 1 + body.len()).unwrap_or(i16::MAX);
        program.push(instruction(
            JUMP_UNLESS_EQUAL,
            *register,
            0,
            distance,
            *value,
        ));
    }
    program.extend(body);
    program
}

#[cfg(test)]
mod tests;
