//! Attach, the daemon's half: the monitor copies between a container's own streams and pipes whose
//! other ends are here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bulkhead_runtime::monitor::wire::{Attach, Reply, Request};
use tokio::sync::oneshot;

use super::stream::pipe_of;
use crate::failure::{Class, Failure};
use crate::monitor::{AttachEnd, Monitors};
use crate::node::{NodeHandle, fresh_id};
use crate::records::ContainerRecord;

/// What a client may be behind before the monitor gives it up: the most a pipe holds without
/// privilege (`/proc/sys/fs/pipe-max-size`), since log and other clients don't wait for one.
const BACKLOG: usize = 1 << 20;

/// An attachment.
#[derive(Debug)]
pub struct Attached {
    monitors: Monitors,
    id: String,
    receiver: oneshot::Receiver<AttachEnd>,
}

/// A container's terminal.
#[derive(Debug)]
pub struct Terminal {
    monitors: Monitors,
    pod: String,
    container: String,
}

/// A pipe for output.
pub(super) fn pipe_pair() -> Result<(OwnedFd, OwnedFd), Failure> {
    pipe_of(BACKLOG)
}

/// Attaches the ends given: stdin to be read from, stdout and stderr to be written to.
///
/// # Errors
/// When the monitor refuses.
pub(super) async fn attach(
    node: &NodeHandle,
    container: &ContainerRecord,
    ends: [Option<OwnedFd>; 3],
) -> Result<Attached, Failure> {
    let [stdin, stdout, stderr] = &ends;
    let id = fresh_id();
    let request = Attach {
        id: id.clone(),
        container: container.id.clone(),
        stdin: stdin.is_some(),
        stdout: stdout.is_some(),
        stderr: stderr.is_some(),
    };
    let attached = Attached {
        monitors: node.monitors.clone(),
        receiver: node.monitors.expect_attach(&container.pod, &id),
        id,
    };
    let descriptors: Vec<BorrowedFd<'_>> = ends.iter().flatten().map(AsFd::as_fd).collect();
    let link = node.monitors.link(&container.pod)?;
    match link
        .ask(Request::Attach(request), &descriptors)
        .await?
        .reply
    {
        Reply::Done => Ok(attached),
        other => Err(Failure::internal(format!("unexpected answer {other:?}"))),
    }
}

impl Attached {
    /// Waits for the end; may be asked again if the wait was given up.
    ///
    /// # Errors
    /// When the pod's monitor goes first, or gave the client up.
    pub(super) async fn wait(&mut self) -> Result<(), Failure> {
        match (&mut self.receiver).await {
            Err(_) => Err(Failure::internal("the pod's monitor ended")),
            Ok(AttachEnd { dropped: None }) => Ok(()),
            Ok(AttachEnd { dropped: Some(why) }) => Err(Failure::new(
                Class::Exhausted,
                format!("detached by the runtime: {why}"),
            )),
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // The other ends of its pipes are closed by now or soon, which tells the monitor: it reads
        // what input there is to its end, and forgets the client.
        self.monitors.forget_attach(&self.id);
    }
}

impl Terminal {
    pub(super) fn of(node: &NodeHandle, container: &ContainerRecord) -> Self {
        Self {
            monitors: node.monitors.clone(),
            pod: container.pod.clone(),
            container: container.id.clone(),
        }
    }

    pub(super) async fn resize(&self, columns: u16, rows: u16) -> Result<(), Failure> {
        let request = Request::Resize {
            container: self.container.clone(),
            exec: None,
            rows,
            columns,
        };
        let link = self.monitors.link(&self.pod)?;
        link.ask(request, &[]).await.map(drop)
    }
}
