//! The time as the CRI counts it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Wall clock, nanoseconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
