//! The only place that calls `tokio::spawn`: every task is named, spanned, tracked and joined at
//! shutdown.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

/// The daemon's tasks. Cheap to clone; all clones share one tracker.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
}

impl Tasks {
    /// Runs `work` to its end whatever becomes of the caller, inside the current span.
    #[expect(clippy::disallowed_methods, reason = "the one place where tasks begin")]
    pub fn spawn<F>(&self, name: &'static str, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let span = tracing::debug_span!(parent: Span::current(), "task", name);
        tokio::spawn(self.tracker.track_future(work).instrument(span))
    }

    /// Runs `work` that ends with something outside the daemon and needs no waiting for at shutdown.
    #[expect(clippy::disallowed_methods, reason = "the one place where tasks begin")]
    pub fn spawn_untracked<F>(&self, name: &'static str, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(work.instrument(tracing::debug_span!(parent: None, "task", name)))
    }

    /// Runs blocking `work` on the blocking pool and waits for it.
    ///
    /// # Errors
    /// When `work` panicked.
    pub async fn blocking<T, F>(&self, work: F) -> Result<T, tokio::task::JoinError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let span = Span::current();
        self.tracker
            .spawn_blocking(move || span.in_scope(work))
            .await
    }

    /// Resolves when the daemon begins to stop; loops without an end of their own watch it.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Whether the daemon is stopping.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Tells endless tasks to end and waits until all have, at most `limit`.
    /// Returns how many were still running then; the next start finishes or undoes their work.
    pub async fn stop(&self, limit: Duration) -> usize {
        self.stopping.cancel();
        self.tracker.close();
        match tokio::time::timeout(limit, self.tracker.wait()).await {
            Ok(()) => 0,
            Err(_) => self.tracker.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_outlives_its_caller() {
        let tasks = Tasks::default();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        drop(tasks.spawn("test", async move {
            tokio::task::yield_now().await;
            sender.send(7)
        }));
        assert_eq!(receiver.await, Ok(7));
    }

    #[tokio::test]
    async fn stop_counts_what_does_not_end() {
        let tasks = Tasks::default();
        drop(tasks.spawn("stuck", std::future::pending::<()>()));
        assert_eq!(tasks.stop(Duration::from_millis(20)).await, 1);
    }
}
