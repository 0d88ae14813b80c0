//! Names of devices: `vendor.com/class=name`.

use std::fmt;

/// A device's full name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceName {
    /// `vendor.com/class`.
    pub kind: String,
    /// The device among those of its kind.
    pub device: String,
}

/// The longest name taken.
const LONGEST: usize = 512;

impl DeviceName {
    /// Reads a full name; the reason why it is none comes without the name.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "is not of the form vendor.com/class=name";
        if text.len() > LONGEST {
            return Err("is longer than 512 bytes");
        }
        let (kind, device) = text.split_once('=').ok_or(FORM)?;
        if !is_kind(kind) || !is_device(device) {
            return Err(FORM);
        }
        Ok(Self {
            kind: kind.to_owned(),
            device: device.to_owned(),
        })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// Whether this is `vendor.com/class`.
pub(super) fn is_kind(text: &str) -> bool {
    text.split_once('/')
        .is_some_and(|(vendor, class)| is_word(vendor, b"_-.") && is_word(class, b"_-"))
}

/// Whether this names a device within its kind.
pub(super) fn is_device(text: &str) -> bool {
    let [first, .., last] = text.as_bytes() else {
        return text.bytes().all(|byte| byte.is_ascii_alphanumeric()) && !text.is_empty();
    };
    first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() && has_only(text, b"_-.:")
}

/// Letters first, no sign last.
fn is_word(text: &str, signs: &[u8]) -> bool {
    let (first, last) = (text.bytes().next(), text.bytes().last());
    first.is_some_and(|byte| byte.is_ascii_alphabetic())
        && last.is_some_and(|byte| byte.is_ascii_alphanumeric())
        && has_only(text, signs)
}

fn has_only(text: &str, signs: &[u8]) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || signs.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_vendor_class_and_name() {
        for (text, good) in [
            ("vendor.com/gpu=0", true),
            ("vendor.com/gpu=all", true),
            ("v/c=GPU-1:2.3_4", true),
            ("vendor.com/gpu", false),
            ("vendor.com=0", false),
            ("/gpu=0", false),
            ("vendor.com/=0", false),
            ("vendor.com/gpu=", false),
            ("vendor.com/gpu=-0", false),
            ("vendor.com/gpu=0-", false),
            ("1vendor/gpu=0", false),
            ("vendor.com/g.pu=0", false),
            ("vendor.com/gpu=../x", false),
            ("vendor.com/../gpu=x", false),
        ] {
            assert_eq!(DeviceName::parse(text).is_ok(), good, "{text}");
        }
        let long = format!("v/c={}", "x".repeat(LONGEST));
        assert!(DeviceName::parse(&long).is_err());
    }
}
