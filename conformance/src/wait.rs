//! Waiting for what comes by itself: looked for again and again, within a bound.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// Looks until `look` finds something, at most `limit`; `what` is what is missing then.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(LOOK).await;
    }
}
