//! Ends that somebody waits for, by the id of what ends.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Who waits for the end of what, and in which pod.
#[derive(Debug)]
pub(super) struct Expected<T>(Mutex<HashMap<String, Waiting<T>>>);

#[derive(Debug)]
struct Waiting<T> {
    pod: String,
    sender: oneshot::Sender<T>,
}

impl<T> Default for Expected<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Expected<T> {
    /// Registers interest, before the thing is asked for.
    pub(super) fn expect(&self, pod: &str, id: &str) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let pod = pod.to_owned();
        self.lock().insert(id.to_owned(), Waiting { pod, sender });
        receiver
    }

    /// Nobody waits for it any more.
    pub(super) fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    /// It ended.
    pub(super) fn ended(&self, id: &str, end: T) {
        let waiting = self.lock().remove(id);
        if waiting.is_some_and(|waiting| waiting.sender.send(end).is_err()) {
            tracing::debug!(id, "nobody waits for its end any more");
        }
    }

    /// Nothing more will be heard of this pod: whoever waits is told by the sender's end.
    pub(super) fn lost(&self, pod: &str) {
        self.lock().retain(|_, waiting| waiting.pod != pod);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Waiting<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_reaches_who_waits_and_a_lost_pod_ends_the_wait() {
        let expected = Expected::default();
        let (one, two) = (expected.expect("p", "1"), expected.expect("q", "2"));
        expected.ended("1", 7);
        expected.ended("unknown", 8);
        expected.lost("q");
        assert_eq!(one.await, Ok(7));
        assert!(two.await.is_err());
        assert!(expected.lock().is_empty());
    }
}
