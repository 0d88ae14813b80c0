//! Kubernetes quantities (`500m`, `1.5Gi`, `1e3`) as whole numbers. Pure.
//!
//! Source: the grammar of `k8s.io/apimachinery/pkg/api/resource`; like there, what is finer than
//! the unit asked for is rounded up.

/// Digits kept behind the point: Kubernetes knows nothing finer than a billionth.
const NANO: i128 = 1_000_000_000;

/// A CPU quantity in thousandths of a core.
pub(super) fn milli(text: &str) -> Result<i64, String> {
    scaled(text, NANO / 1000)
}

/// A memory quantity in bytes.
pub(super) fn bytes(text: &str) -> Result<i64, String> {
    scaled(text, NANO)
}

/// The quantity in billionths, divided by `unit` and rounded up.
fn scaled(text: &str, unit: i128) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no quantity: 100m, 0.5, 64Mi or 2G are");
    let number_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+' && c != '-')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    if number.starts_with('-') {
        return Err(format!("{text:?} is negative"));
    }
    let number = number.strip_prefix('+').unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    if whole.len() > 20 || fraction.len() > 9 {
        return Err(format!("{text:?} has too many digits"));
    }
    let whole: i128 = format!("0{whole}").parse().map_err(|_| wrong())?;
    let fraction: i128 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    let too_large = || format!("{text:?} is too large");
    let nanos = whole
        .checked_mul(NANO)
        .and_then(|nanos| nanos.checked_add(fraction))
        .ok_or_else(too_large)?;
    let (up, down) = factor(suffix).ok_or_else(wrong)?;
    let nanos = nanos.checked_mul(up).ok_or_else(too_large)?;
    let divisor = down.checked_mul(unit).ok_or_else(too_large)?;
    let rounded_up = nanos.checked_add(divisor - 1).ok_or_else(too_large)? / divisor;
    i64::try_from(rounded_up).map_err(|_| too_large())
}

/// What a suffix multiplies with and divides by.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    let up = |exponent: u32| Some((10_i128.pow(exponent), 1));
    let binary = |exponent: u32| Some((1_i128 << exponent, 1));
    match suffix {
        "n" => Some((1, NANO)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "" => Some((1, 1)),
        "k" => up(3),
        "M" => up(6),
        "G" => up(9),
        "T" => up(12),
        "P" => up(15),
        "E" => up(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            match exponent.parse::<i32>().ok()? {
                e @ 0..=18 => up(u32::try_from(e).ok()?),
                e @ -9..0 => Some((1, 10_i128.pow(e.unsigned_abs()))),
                _ => None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_does_and_rounded_up() {
        for (text, millis) in [
            ("1", 1000),
            ("100m", 100),
            ("0.5", 500),
            (".5", 500),
            ("1.5", 1500),
            ("1e2", 100_000),
            ("1u", 1),
            ("0", 0),
            ("+2", 2000),
        ] {
            assert_eq!(milli(text), Ok(millis), "{text}");
        }
        for (text, want) in [
            ("64Mi", 64 << 20),
            ("1.5Gi", 3 << 29),
            ("1G", 1_000_000_000),
            ("128974848", 128_974_848),
            ("129e6", 129_000_000),
            ("100m", 1),
            ("1E", 1_000_000_000_000_000_000),
        ] {
            assert_eq!(bytes(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "", "Mi", "1 Mi", "1mi", "1.2.3", "1-2", "-1", "1e99", "99999Ei", "1KB", "é",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
