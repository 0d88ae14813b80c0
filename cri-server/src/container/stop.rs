//! StopContainer: the stop signal once, a wait, SIGKILL to the whole cgroup, the recorded exit.
//!
//! All callers of one container share one wait; a shorter grace period shortens it, and a caller
//! that goes away changes nothing.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_runtime::monitor::wire::Request;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::failure::{Class, Failure};
use crate::node::NodeHandle;
use crate::records::{ContainerRecord, ContainerState, Snapshot};

/// The longest a kill may take to show as an exit: uninterruptible tasks can hold it up.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// Deadlines of the stops in progress, by container.
#[derive(Clone, Default)]
pub struct Stops {
    deadlines: Arc<Mutex<HashMap<String, watch::Sender<Instant>>>>,
}

impl fmt::Debug for Stops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stops").finish_non_exhaustive()
    }
}

impl Stops {
    /// Joins the stop in progress, bringing its deadline forward if `deadline` is sooner; or
    /// begins one, whose deadline is then watched by the receiver.
    fn join(&self, id: &str, deadline: Instant) -> Option<watch::Receiver<Instant>> {
        let mut deadlines = self
            .deadlines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = deadlines.get(id) {
            running.send_if_modified(|current| {
                let sooner = deadline < *current;
                if sooner {
                    *current = deadline;
                }
                sooner
            });
            return None;
        }
        let (sender, receiver) = watch::channel(deadline);
        deadlines.insert(id.to_owned(), sender);
        Some(receiver)
    }

    fn leave(&self, id: &str) {
        self.deadlines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}

/// Stops a container within `grace`. One that doesn't run is stopped already.
///
/// # Errors
/// [`Class::NotFound`]; when the kill didn't show as an exit in time.
pub async fn stop(node: NodeHandle, id: String, grace: Duration) -> Result<(), Failure> {
    let container = node.records.snapshot().find_container(&id)?.clone();
    if !runs(&container) {
        return Ok(());
    }
    let deadline = Instant::now() + grace;
    if let Some(deadlines) = node.stops.join(&id, deadline) {
        let (task_node, id) = (node.clone(), id.clone());
        drop(node.tasks.spawn("stop container", async move {
            if let Err(failure) = end(&task_node, &container, deadlines).await {
                tracing::error!(container = id, %failure, "could not be stopped");
            }
            task_node.stops.leave(&id);
        }));
    }
    let longest = grace.saturating_add(KILL_LIMIT);
    tokio::time::timeout(longest, node.records.wait_for(|state| stopped(state, &id)))
        .await
        .map_err(|_| {
            Failure::new(
                Class::Deadline,
                format!("container {id} was killed, but its processes have not ended yet"),
            )
        })
}

/// Whether there is a process to end.
pub fn runs(container: &ContainerRecord) -> bool {
    match container.state {
        ContainerState::Starting | ContainerState::Running => true,
        ContainerState::Removing => container.process.is_some(),
        ContainerState::Creating
        | ContainerState::Created
        | ContainerState::Exited
        | ContainerState::Unknown => false,
    }
}

fn stopped(state: &Snapshot, id: &str) -> Option<()> {
    match state.container(id) {
        Some(container) if runs(container) => None,
        _ => Some(()),
    }
}

async fn end(
    node: &NodeHandle,
    container: &ContainerRecord,
    mut deadlines: watch::Receiver<Instant>,
) -> Result<(), Failure> {
    let id = &container.id;
    // A start in progress is waited for: there is nothing to signal yet.
    node.records
        .wait_for(|state| match state.container(id) {
            Some(found) if found.state == ContainerState::Starting => None,
            _ => Some(()),
        })
        .await;
    let link = node.monitors.link(&container.pod)?;
    if *deadlines.borrow_and_update() > Instant::now() {
        let signal = Request::Signal {
            container: id.clone(),
            signal: container.stop_signal.number(),
        };
        match link.ask(signal, &[]).await {
            Err(failure) if failure.class() == Class::NotFound => {}
            other => drop(other?),
        }
    }
    loop {
        let deadline = *deadlines.borrow_and_update();
        tokio::select! {
            () = node.records.wait_for(|state| stopped(state, id)) => return Ok(()),
            () = tokio::time::sleep_until(deadline) => break,
            changed = deadlines.changed() => if changed.is_err() { break },
        }
    }
    tracing::debug!(container = id, "grace period over: killing");
    match link
        .ask(
            Request::Kill {
                container: id.clone(),
            },
            &[],
        )
        .await
    {
        Err(failure) if failure.class() == Class::NotFound => Ok(()),
        other => other.map(|_| ()),
    }
}
