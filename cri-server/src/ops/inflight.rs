//! One operation per key at a time; an equal request joins the one in flight and gets its result.
//!
//! The kubelet gives up after its deadline and asks the same again about every two seconds. The
//! work goes on in a task of its own, so the retry finds it (or its result) instead of a reserved
//! name.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::failure::{Class, Failure};
use crate::ops::tasks::Tasks;

/// What a finished operation left for everyone who waits.
type Slot<T> = Option<Result<T, Failure>>;

struct Flight<T> {
    /// The request as it came, to tell an equal one from a different one.
    request: Vec<u8>,
    result: watch::Receiver<Slot<T>>,
}

/// The operations in flight, by key.
pub struct Inflight<K, T> {
    flights: Arc<Mutex<HashMap<K, Flight<T>>>>,
    tasks: Tasks,
}

impl<K, T> Inflight<K, T>
where
    K: Hash + Eq + Clone + fmt::Display + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// No operation in flight yet; they will run as `tasks`.
    pub fn new(tasks: Tasks) -> Self {
        Self {
            flights: Arc::default(),
            tasks,
        }
    }

    /// Runs `work` for `key`, or waits for the equal request already running.
    ///
    /// # Errors
    /// [`Class::Exists`] when a different request holds the key; otherwise what `work` returns.
    pub async fn run<F>(
        &self,
        name: &'static str,
        key: K,
        request: Vec<u8>,
        work: F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let mut receiver = self.join_or_start(name, key, request, work)?;
        let slot = receiver.wait_for(Option::is_some).await;
        match slot.as_deref() {
            Ok(Some(result)) => result.clone(),
            _ => Err(Failure::internal(format!(
                "{name}: the operation ended without a result"
            ))),
        }
    }

    fn join_or_start<F>(
        &self,
        name: &'static str,
        key: K,
        request: Vec<u8>,
        work: F,
    ) -> Result<watch::Receiver<Slot<T>>, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key) {
            if flight.request == request {
                return Ok(flight.result.clone());
            }
            return Err(Failure::new(
                Class::Exists,
                format!(
                    "{name}: {key} is being worked on with a different configuration; wait for it or use another attempt number"
                ),
            ));
        }
        let (sender, receiver) = watch::channel(None);
        flights.insert(
            key.clone(),
            Flight {
                request,
                result: receiver.clone(),
            },
        );
        let landing = Landing {
            flights: self.flights.clone(),
            key,
        };
        // The task is tracked; nobody needs its handle.
        drop(self.tasks.spawn(name, async move {
            let result = work.await;
            // The record vouches for the result from here on, so the key is free before anyone is told.
            drop(landing);
            sender.send_replace(Some(result));
        }));
        Ok(receiver)
    }
}

/// Frees the key however the work ended, a panic included.
struct Landing<K: Hash + Eq, T> {
    flights: Arc<Mutex<HashMap<K, Flight<T>>>>,
    key: K,
}

impl<K: Hash + Eq, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        self.flights
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

impl<K, T> fmt::Debug for Inflight<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflight").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_equal_request_joins_and_a_different_one_is_refused() {
        let inflight = Arc::new(Inflight::new(Tasks::default()));
        let runs = Arc::new(AtomicU32::new(0));
        let (open, gate) = watch::channel(false);
        let work = |value: u32| {
            let (runs, mut gate) = (runs.clone(), gate.clone());
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                gate.wait_for(|open| *open)
                    .await
                    .map_err(|_| Failure::internal("gone"))?;
                Ok(value)
            }
        };
        // The first caller gives up; its work goes on.
        let first = inflight.run("run", "k", b"x".to_vec(), work(1));
        assert!(
            tokio::time::timeout(Duration::from_millis(10), first)
                .await
                .is_err()
        );
        let other = inflight
            .run("run", "k", b"y".to_vec(), work(2))
            .await
            .unwrap_err();
        assert_eq!(other.class(), Class::Exists);
        let twin = inflight.run("run", "k", b"x".to_vec(), work(3));
        open.send_replace(true);
        assert_eq!(twin.await.unwrap(), 1);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        // The key is free again.
        assert_eq!(
            inflight
                .run("run", "k", b"y".to_vec(), work(4))
                .await
                .unwrap(),
            4
        );
    }

    #[tokio::test]
    async fn a_panicking_operation_frees_its_key() {
        let inflight = Inflight::<&str, u32>::new(Tasks::default());
        let failed = inflight
            .run("run", "k", vec![], async { panic!("test") })
            .await;
        assert!(failed.is_err());
        assert_eq!(
            inflight
                .run("run", "k", vec![], async { Ok(5) })
                .await
                .unwrap(),
            5
        );
    }
}
