//! The program is run by a small interpreter and compared with the meaning of the rules; the
//! kernel's own verdict on it is in `runtime/tests/cgroup_devices.rs`.

use proptest::prelude::*;

use super::*;

/// Runs a program as the kernel would, for the operations we emit.
fn interpret(program: &[Instruction], kind: Kind, access: u32, major: u32, minor: u32) -> u64 {
    let context = [(access << 16) | kind as u32, major, minor];
    let mut registers = [0u64; 11];
    let mut next = 0usize;
    for _ in 0..1_000_000 {
        let step = program[next];
        next += 1;
        let destination = usize::from(step.registers & 15);
        let source = usize::from(step.registers >> 4);
        let constant = step.immediate.cast_unsigned();
        let low = u32::try_from(registers[destination] & 0xffff_ffff).unwrap();
        let jump = usize::try_from(step.offset).unwrap_or(usize::MAX);
        match step.code {
            LOAD_WORD => {
                assert_eq!(source, usize::from(CONTEXT));
                registers[destination] = context[usize::try_from(step.offset).unwrap() / 4].into();
            }
            MOVE => registers[destination] = registers[source],
            MOVE_CONSTANT => registers[destination] = constant.into(),
            AND_CONSTANT => registers[destination] = (low & constant).into(),
            SHIFT_RIGHT => registers[destination] = (low >> constant).into(),
            JUMP_UNLESS_EQUAL if low != constant => next += jump,
            JUMP_IF_EQUAL if low == constant => next += jump,
            JUMP_UNLESS_EQUAL | JUMP_IF_EQUAL => {}
            EXIT => return registers[0],
            other => panic!("operation {other:#x}"),
        }
    }
    panic!("the program does not end");
}

/// The meaning, said plainly: for each permission the last rule that speaks of it decides.
fn meaning(rules: &[Rule], kind: Kind, access: u32, major: u32, minor: u32) -> bool {
    [MKNOD, READ, WRITE]
        .into_iter()
        .filter(|bit| access & bit != 0)
        .all(|bit| {
            rules
                .iter()
                .rev()
                .find(|rule| {
                    rule.access & bit != 0
                        && rule.kind.is_none_or(|k| k == kind)
                        && rule.major.is_none_or(|n| n == major)
                        && rule.minor.is_none_or(|n| n == minor)
                })
                .is_some_and(|rule| rule.allow)
        })
}

fn rule(allow: bool, text: &str) -> LinuxDeviceCgroup {
    let parts: Vec<_> = text.split([' ', ':']).collect();
    let number = |text: &str| text.parse::<i64>().ok();
    let mut device = LinuxDeviceCgroup::default();
    device
        .set_allow(allow)
        .set_typ(Some(match parts[0] {
            "b" => LinuxDeviceType::B,
            "c" => LinuxDeviceType::C,
            "p" => LinuxDeviceType::P,
            _ => LinuxDeviceType::A,
        }))
        .set_major(number(parts[1]))
        .set_minor(number(parts[2]))
        .set_access(Some(parts[3].to_owned()));
    device
}

fn rules(texts: &[&str]) -> Vec<Rule> {
    let devices: Vec<_> = texts
        .iter()
        .map(|text| rule(text.starts_with('+'), &text[1..]))
        .collect();
    parse(&devices).unwrap()
}

#[test]
fn programs_decide_as_the_rules_say() {
    use Kind::{Block, Character};
    let usual = [
        "-a *:* rwm",
        "+c *:* m",
        "+b *:* m",
        "+c 1:3 rwm",
        "+c 136:* rwm",
    ];
    type Row<'a> = (&'a str, &'a [&'a str], Kind, u32, u32, u32, bool);
    let table: &[Row<'_>] = &[
        ("no rule denies", &[], Character, READ, 1, 3, false),
        (
            "the null device may be written",
            &usual,
            Character,
            READ | WRITE,
            1,
            3,
            true,
        ),
        ("every node may be made", &usual, Block, MKNOD, 8, 0, true),
        (
            "a made node can't be read",
            &usual,
            Block,
            READ,
            8,
            0,
            false,
        ),
        (
            "any pty may be used",
            &usual,
            Character,
            READ | WRITE,
            136,
            7,
            true,
        ),
        (
            "mem shares only the major number",
            &usual,
            Character,
            READ,
            1,
            1,
            false,
        ),
        (
            "block 1:3 is not character 1:3",
            &usual,
            Block,
            READ,
            1,
            3,
            false,
        ),
        ("all", &["+a *:* rwm"], Block, ALL, 8, 0, true),
        (
            "a later denial wins",
            &["+a *:* rwm", "-b 8:0 w"],
            Block,
            READ | WRITE,
            8,
            0,
            false,
        ),
        (
            "and leaves the rest",
            &["+a *:* rwm", "-b 8:0 w"],
            Block,
            READ,
            8,
            0,
            true,
        ),
        (
            "two rules add up",
            &["+c 5:1 r", "+c 5:1 w"],
            Character,
            READ | WRITE,
            5,
            1,
            true,
        ),
        (
            "one of two is not enough",
            &["+c 5:1 r"],
            Character,
            READ | WRITE,
            5,
            1,
            false,
        ),
        (
            "a large minor number",
            &["+c 4294967295:4294967294 r"],
            Character,
            READ,
            u32::MAX,
            u32::MAX - 1,
            true,
        ),
    ];
    for (name, texts, kind, access, major, minor, expected) in table {
        let rules = rules(texts);
        let got = interpret(&program(&rules), *kind, *access, *major, *minor);
        assert_eq!(got, u64::from(*expected), "{name}");
        assert_eq!(
            meaning(&rules, *kind, *access, *major, *minor),
            *expected,
            "{name}"
        );
    }
}

#[test]
fn v1_lines_of_rules() {
    let lines = |texts: &[&str]| {
        v1_lines(&rules(texts))
            .into_iter()
            .map(|(file, line)| format!("{} {line}", &file["devices.".len()..]))
            .collect::<Vec<_>>()
    };
    let table: &[(&str, &[&str], &[&str])] = &[
        ("nothing is allowed without rules", &[], &["deny a"]),
        (
            "a denial of all is written once",
            &["-a *:* rwm", "+c 1:3 rw", "+b *:* m"],
            &["deny a", "allow c 1:3 rw", "allow b *:* m"],
        ),
        ("all is allowed", &["+a *:* rwm"], &["allow a"]),
        (
            "all, after other rules",
            &["-c 1:3 rw", "+a *:* rwm"],
            &["allow a"],
        ),
        (
            "both kinds by number become two lines",
            &["+a 10:200 rw"],
            &["deny a", "allow c 10:200 rw", "allow b 10:200 rw"],
        ),
        ("fifos are nobody's business", &["+p *:* rwm"], &["deny a"]),
    ];
    for (name, texts, expected) in table {
        assert_eq!(lines(texts), *expected, "{name}");
    }
}

#[test]
fn bad_rules_are_refused() {
    let mut negative = rule(true, "c 1:3 r");
    negative.set_major(Some(-7));
    let many = vec![rule(true, "c 1:3 r"); MAX_RULES + 1];
    let table: &[(&str, Vec<LinuxDeviceCgroup>, &str)] = &[
        ("an unknown letter", vec![rule(true, "c 1:3 rx")], "'x'"),
        ("a negative number", vec![negative], "major -7"),
        ("too many", many, "at most 1024"),
    ];
    for (name, devices, expected) in table {
        let error = parse(devices).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

fn any_rule() -> impl Strategy<Value = Rule> {
    (
        any::<bool>(),
        prop::option::of(prop::sample::select(vec![Kind::Block, Kind::Character])),
        prop::option::of(0u32..3),
        prop::option::of(0u32..3),
        1u32..=ALL,
    )
        .prop_map(|(allow, kind, major, minor, access)| Rule {
            allow,
            kind,
            major,
            minor,
            access,
        })
}

proptest! {
    #[test]
    fn any_program_is_what_its_rules_mean(
        rules in prop::collection::vec(any_rule(), 0..12),
        block in any::<bool>(),
        access in 1u32..=ALL,
        major in 0u32..3,
        minor in 0u32..3,
    ) {
        let kind = if block { Kind::Block } else { Kind::Character };
        let got = interpret(&program(&rules), kind, access, major, minor);
        prop_assert_eq!(got == 1, meaning(&rules, kind, access, major, minor));
    }
}
