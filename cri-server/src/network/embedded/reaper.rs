//! Deletes the links of detached pods behind everyone's back: the kernel takes some 35 ms for each,
//! which nobody needs to wait for. What is still to do stands in the leases marked `detaching`, so a
//! restart goes on with it.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::Shared;
use crate::failure::{Doing as _, Failure};

/// The thread's other end. It ends when this is dropped and the work is done.
#[derive(Debug)]
pub(super) struct Reaper {
    queue: Sender<String>,
    left: Arc<Left>,
}

#[derive(Debug, Default)]
struct Left {
    count: Mutex<usize>,
    none: Condvar,
}

impl Reaper {
    /// Starts the thread, in the calling thread's network namespace.
    pub(super) fn start(shared: &Arc<Shared>) -> Result<Self, Failure> {
        let (queue, work) = channel();
        let left = Arc::new(Left::default());
        let of_thread = (Arc::clone(shared), Arc::clone(&left));
        std::thread::Builder::new()
            .name("network-reaper".to_owned())
            .spawn(move || run(&of_thread.0, &work, &of_thread.1))
            .doing("start the network reaper")?;
        Ok(Self { queue, left })
    }

    /// Leaves a disconnected pod's links to the thread. Bounded by the number of leases: a pod comes
    /// here again only when asked to be detached again.
    pub(super) fn take(&self, pod_id: String) {
        *self
            .left
            .count
            .lock()
            .unwrap_or_else(PoisonError::into_inner) += 1;
        if self.queue.send(pod_id).is_err() {
            // The thread is gone only if it panicked; the lease stays for the next start.
            self.left.done();
        }
    }

    /// Waits until there is nothing left to do.
    pub(super) fn settle(&self) {
        let mut count = self
            .left
            .count
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            count = self
                .left
                .none
                .wait(count)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Left {
    fn done(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.none.notify_all();
        }
    }
}

fn run(shared: &Shared, work: &Receiver<String>, left: &Left) {
    for pod_id in work {
        if let Err(failure) = shared.demolish(&pod_id) {
            // The lease stays, so the address does too; another detach, gc or start tries again.
            tracing::warn!(pod = pod_id, %failure, "cannot delete a detached pod's links");
        }
        left.done();
    }
}
