//! Durable state of pods and containers: intent before effect, one writer, lock-free listing.
//!
//! Every change is an [`Records::edit`]: a closure that runs alone, on the one writer thread, over a
//! [`Draft`] of the current state. It checks and changes; what it changed is committed to redb with
//! the other edits that were waiting, and only then published (steps that start-up can do without
//! are only published, [`Records::edit_in_memory`]: a commit waits for the disk). Readers take a
//! [`Snapshot`], which never waits and never changes. Transitions that exclude each other (starting and removing, two
//! pods of one name) are decided inside an edit, so there is no lock to hold over I/O.

mod container;
mod pod;
mod snapshot;
mod store;
mod stored;
#[cfg(test)]
mod tests;

pub use container::{ContainerKey, ContainerRecord, ContainerState, ExitReason, MountedImage};
pub use pod::{MonitorRecord, PodRecord, PodState};
pub use snapshot::{Draft, Snapshot};
pub use stored::Stored;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, mpsc};

use tokio::sync::{oneshot, watch};

use crate::failure::{Class, Failure};
use store::{Change, Store};

/// The most edits committed together; bounds the delay of the first among them.
const MAX_BATCH: usize = 64;

type Edit = Box<dyn FnOnce(&mut Draft) -> EditOutcome + Send>;
/// Tells the caller after the commit; given whether the commit succeeded.
type Notify = Box<dyn FnOnce(Result<(), Failure>) + Send>;

struct EditOutcome {
    keep: bool,
    durable: bool,
    notify: Notify,
}

/// The records. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Records {
    current: Arc<RwLock<Arc<Snapshot>>>,
    edits: mpsc::Sender<Edit>,
    generation: watch::Receiver<u64>,
    store: Arc<Store>,
}

impl Records {
    /// Opens (or creates) the records in `file` and reads them all.
    ///
    /// # Errors
    /// When the file can't be opened, or was written by a newer version.
    pub fn open(file: &Path) -> Result<Self, Failure> {
        let store = Arc::new(Store::open(file)?);
        let snapshot = Arc::new(store.load()?);
        let current = Arc::new(RwLock::new(snapshot));
        let (edits, queue) = mpsc::channel();
        let (changed, generation) = watch::channel(0);
        let writer = Writer {
            store: store.clone(),
            current: current.clone(),
            queue,
            changed,
        };
        std::thread::Builder::new()
            .name("records".into())
            .spawn(move || writer.run())
            .map_err(|error| Failure::internal(format!("start the records' writer: {error}")))?;
        Ok(Self {
            current,
            edits,
            generation,
            store,
        })
    }

    /// The state as of the last commit.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes the state: runs `edit` alone, commits durably, publishes, and returns its result.
    /// When `edit` fails nothing of it is kept.
    ///
    /// # Errors
    /// The edit's own failure, or that of the commit.
    pub async fn edit<T, F>(&self, edit: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&mut Draft) -> Result<T, Failure> + Send + 'static,
    {
        self.queue(true, edit).await
    }

    /// As [`Records::edit`], but only published: it is written with the record's next durable edit.
    /// For what start-up does without or learns elsewhere, since an end of the daemon loses it;
    /// each caller says where from.
    ///
    /// # Errors
    /// The edit's own failure.
    pub async fn edit_in_memory<T, F>(&self, edit: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&mut Draft) -> Result<T, Failure> + Send + 'static,
    {
        self.queue(false, edit).await
    }

    async fn queue<T, F>(&self, durable: bool, edit: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&mut Draft) -> Result<T, Failure> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let boxed: Edit = Box::new(move |draft| {
            let result = edit(draft);
            let keep = result.is_ok();
            let notify: Notify = Box::new(move |committed| {
                // The caller may be gone; the change stands all the same.
                drop(sender.send(committed.and(result)));
            });
            EditOutcome {
                keep,
                durable,
                notify,
            }
        });
        self.edits.send(boxed).map_err(|_| closed())?;
        receiver.await.map_err(|_| closed())?
    }

    /// Waits until `check` yields something for the current state; looks again at every change.
    pub async fn wait_for<T>(&self, mut check: impl FnMut(&Snapshot) -> Option<T>) -> T {
        let mut generation = self.generation.clone();
        loop {
            generation.borrow_and_update();
            if let Some(found) = check(&self.snapshot()) {
                return found;
            }
            if generation.changed().await.is_err() {
                // The writer is gone, so nothing will ever change: the daemon is ending.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The OCI spec recorded for a container, as JSON.
    ///
    /// # Errors
    /// [`Class::NotFound`] when there is none.
    pub fn spec(&self, container: &str) -> Result<Vec<u8>, Failure> {
        self.store.spec(container)?.ok_or_else(|| {
            Failure::new(
                Class::NotFound,
                format!("no OCI spec recorded for container {container}"),
            )
        })
    }
}

fn closed() -> Failure {
    Failure::new(
        Class::Unavailable,
        "the records are closed: the daemon is stopping",
    )
}

/// The one thread that changes the records.
struct Writer {
    store: Arc<Store>,
    current: Arc<RwLock<Arc<Snapshot>>>,
    queue: mpsc::Receiver<Edit>,
    changed: watch::Sender<u64>,
}

impl Writer {
    fn run(self) {
        while let Ok(first) = self.queue.recv() {
            let batch: Vec<Edit> = std::iter::once(first)
                .chain(self.queue.try_iter().take(MAX_BATCH - 1))
                .collect();
            self.commit(batch);
        }
    }

    fn commit(&self, batch: Vec<Edit>) {
        let mut state = self
            .current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut changed = false;
        let mut changes: Vec<Change> = Vec::new();
        let mut notifications = Vec::with_capacity(batch.len());
        for edit in batch {
            let mut draft = Draft::new(state.clone());
            let outcome = edit(&mut draft);
            if outcome.keep {
                let (next, made) = draft.finish();
                state = next;
                changed |= !made.is_empty();
                if outcome.durable {
                    changes.extend(made);
                }
            }
            notifications.push(outcome.notify);
        }
        let committed = if changes.is_empty() {
            Ok(())
        } else {
            self.store.commit(&changes)
        };
        if committed.is_ok() && changed {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = state;
            self.changed
                .send_modify(|generation| *generation = generation.wrapping_add(1));
        }
        for notify in notifications {
            notify(committed.clone());
        }
    }
}
