//! Stop signals: from the CRI enum, from an image's `StopSignal` and from people, to numbers.
//!
//! Real-time signals count from 34, as glibc does (signal(7)): images mean that, and the runtime's
//! own C library must not matter (case T2; musl counts from 35).

use std::fmt;

use bulkhead_proto::runtime::v1;
use serde::{Deserialize, Serialize};

use super::enumeration;
use crate::failure::Failure;

/// First and last real-time signal by glibc's count.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Linux's signals but the real-time ones, by their first name (signal(7), x86 and Arm numbers).
const NAMES: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// Second names.
const ALIASES: [(&str, i32); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];

/// A signal's number, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal(i32);

impl Signal {
    /// What stops a container for which neither the pod nor the image says otherwise.
    pub const TERM: Self = Self(15);

    /// The number for kill(2).
    pub fn number(self) -> i32 {
        self.0
    }

    /// `SIGTERM`, `term`, `15`, `RTMIN+3`, `SIGRTMAX-1`, `37`; anything else is an error that shows
    /// the word.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let unknown = || Failure::invalid(format!("unknown signal \"{}\"", shortened(text)));
        let upper = text.trim().to_ascii_uppercase();
        if upper.len() > 16 {
            return Err(unknown());
        }
        if let Some(number) = digits(&upper) {
            return (1..=RTMAX)
                .contains(&number)
                .then_some(Self(number))
                .ok_or_else(unknown);
        }
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        NAMES
            .iter()
            .chain(&ALIASES)
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number)
            .or_else(|| real_time(name))
            .map(Self)
            .ok_or_else(unknown)
    }

    /// The CRI's enum; 0 (`SIGNAL_RUNTIME_DEFAULT`) is none.
    pub fn from_cri(field: &str, value: i32) -> Result<Option<Self>, Failure> {
        let signal: v1::Signal = enumeration(field, value)?;
        if signal == v1::Signal::RuntimeDefault {
            return Ok(None);
        }
        let name = signal.as_str_name();
        let name = name.strip_prefix("SIGNAL_").unwrap_or(name);
        Self::parse(&name.replace("PLUS", "+").replace("MINUS", "-"))
            .map(Some)
            .map_err(|failure| failure.context(field))
    }

    /// The CRI's enum, for `ContainerStatus.stop_signal`. Signals 32 and 33, glibc's own, have no
    /// name there and come out as the default.
    pub fn to_cri(self) -> v1::Signal {
        let name = match self.0 {
            RTMIN..=RTMAX => {
                let (low, high) = (self.0 - RTMIN, RTMAX - self.0);
                match (low, high) {
                    (0, _) => "RTMIN".to_owned(),
                    (_, 0) => "RTMAX".to_owned(),
                    (1..=15, _) => format!("RTMINPLUS{low}"),
                    _ => format!("RTMAXMINUS{high}"),
                }
            }
            number => NAMES
                .iter()
                .find(|(_, known)| *known == number)
                .map(|(name, _)| (*name).to_owned())
                .unwrap_or_default(),
        };
        v1::Signal::from_str_name(&format!("SIGNAL_SIG{name}"))
            .unwrap_or(v1::Signal::RuntimeDefault)
    }
}

/// `RTMIN`, `RTMIN+3`, `RTMAX-1`.
fn real_time(name: &str) -> Option<i32> {
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        RTMIN + offset(rest, '+')?
    } else {
        RTMAX - offset(name.strip_prefix("RTMAX")?, '-')?
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

fn offset(rest: &str, sign: char) -> Option<i32> {
    if rest.is_empty() {
        return Some(0);
    }
    digits(rest.strip_prefix(sign)?)
}

/// A short run of ASCII digits; no sign, no space.
fn digits(text: &str) -> Option<i32> {
    let plain = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn shortened(text: &str) -> String {
    text.chars().take(32).collect()
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None if self.0 >= RTMIN => write!(f, "SIGRTMIN+{}", self.0 - RTMIN),
            None => write!(f, "signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_signals_are_read_as_images_mean_them() {
        for (word, number) in [
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN+3", Some(37)),
            ("37", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+30", Some(64)),
            ("SIGRTMIN+31", None),
            ("SIGRTMAX-31", None),
            ("sigquit", Some(3)),
            ("QUIT", Some(3)),
            ("3", Some(3)),
            ("SIGIOT", Some(6)),
            ("cld", Some(17)),
            ("POLL", Some(29)),
            (" TERM ", Some(15)),
            ("", None),
            ("0", None),
            ("65", None),
            ("-1", None),
            ("+9", None),
            ("SIG9", None),
            ("RTMIN+-3", None),
            ("NONSENSE", None),
        ] {
            assert_eq!(
                Signal::parse(word).ok().map(Signal::number),
                number,
                "{word:?}"
            );
        }
    }

    #[test]
    fn every_value_of_the_cri_enum_goes_there_and_comes_back() {
        for value in 1..=65 {
            let signal = Signal::from_cri("stop_signal", value).unwrap().unwrap();
            let back = signal.to_cri();
            // The aliases SIGCLD, SIGIOT and SIGPOLL come back by their first name.
            let expected = match v1::Signal::try_from(value).unwrap().as_str_name() {
                "SIGNAL_SIGCLD" => "SIGNAL_SIGCHLD",
                "SIGNAL_SIGIOT" => "SIGNAL_SIGABRT",
                "SIGNAL_SIGPOLL" => "SIGNAL_SIGIO",
                name => name,
            };
            assert_eq!(back.as_str_name(), expected, "{value}");
        }
        assert_eq!(Signal::from_cri("stop_signal", 0).unwrap(), None);
        assert!(Signal::from_cri("stop_signal", 66).is_err());
    }
}
