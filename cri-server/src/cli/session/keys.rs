//! The keys that leave a session without ending it: ctrl-p ctrl-q, as with the field's other tools.
//! Pure.

use bytes::Bytes;

const FIRST: u8 = 0x10;
const SECOND: u8 = 0x11;

/// Watches what is typed.
#[derive(Debug, Default)]
pub(super) struct DetachKeys {
    /// The first key was typed and is kept back.
    begun: bool,
}

impl DetachKeys {
    /// What of `typed` goes to the command, and whether the keys were typed; what follows them is
    /// nobody's.
    pub(super) fn feed(&mut self, typed: &[u8]) -> (Bytes, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for &key in typed {
            match (self.begun, key) {
                (true, SECOND) => return (passed.into(), true),
                // The first key twice is one of them for the command.
                (true, FIRST) => passed.push(FIRST),
                (false, FIRST) => self.begun = true,
                (true, _) => {
                    self.begun = false;
                    passed.extend([FIRST, key]);
                }
                (false, _) => passed.push(key),
            }
        }
        (passed.into(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_both_keys_one_after_the_other_detach() {
        for (case, typed, passed, detached) in [
            ("text", &["ls\r"][..], "ls\r", false),
            ("both", &["a\x10\x11b"], "a", true),
            ("both, one at a time", &["\x10", "\x11"], "", true),
            ("the first and another", &["\x10", "x"], "\x10x", false),
            (
                "the first twice, then the second",
                &["\x10\x10\x11"],
                "\x10",
                true,
            ),
            ("the second alone", &["\x11"], "\x11", false),
            ("not in a row", &["\x10x\x11"], "\x10x\x11", false),
        ] {
            let (mut keys, mut seen, mut left) = (DetachKeys::default(), Vec::new(), false);
            for part in typed {
                let (bytes, detached) = keys.feed(part.as_bytes());
                seen.extend_from_slice(&bytes);
                left = detached;
            }
            assert_eq!(
                (seen.as_slice(), left),
                (passed.as_bytes(), detached),
                "{case}"
            );
        }
    }
}
