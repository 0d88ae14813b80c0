//! ExecSync: a command in a running container, its output collected within bounds.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::process::{End, Wanted, running, start};
use crate::failure::{Class, Doing, Failure};
use crate::monitor::ExecEnd;
use crate::node::NodeHandle;

/// The most kept of one stream; what comes after is discarded (`cri-contract.md`; threat F2,
/// CVE-2022-31030).
const MAX_STREAM: usize = 16 << 20;

/// Taken by what is in the answer beside output.
const OVERHEAD: usize = 64 << 10;

/// How long output is still read after the command ended: a descendant may hold the pipe.
const DRAIN: Duration = Duration::from_secs(1);

/// How much longer than the time-out the monitor may take to tell that it enforced it.
const SLACK: Duration = Duration::from_secs(10);

/// What a command left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output, cut at the bound.
    pub stdout: Vec<u8>,
    /// Standard error, cut at the bound.
    pub stderr: Vec<u8>,
    /// Exit status, or 128 + signal.
    pub exit_code: i32,
}

/// Runs `command` to its end, at most `timeout`. If the caller goes away the command and its
/// descendants are killed.
///
/// # Errors
/// [`Class::Precondition`] unless the container runs; [`Class::Deadline`] when the time was up;
/// when the command can't be started.
pub async fn exec_sync(
    node: &NodeHandle,
    id: &str,
    command: Vec<String>,
    timeout: Option<Duration>,
) -> Result<Output, Failure> {
    let container = running(node, id, "exec in")?;
    let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC).doing("make a pipe")?;
    let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC).doing("make a pipe")?;
    let wanted = Wanted {
        command,
        tty: false,
        timeout,
        stdin: None,
        stdout: Some(out_write),
        stderr: Some(err_write),
    };
    let mut started = start(node, &container, wanted, true).await?;
    let budget = node.config.limits.message_bytes.saturating_sub(OVERHEAD);
    let (stdout, stderr, end) =
        collect(out_read, err_read, &mut started.end, timeout, budget).await?;
    if end.timed_out {
        let limit = timeout.unwrap_or_default();
        return Err(Failure::new(
            Class::Deadline,
            format!("command timed out: it did not end within {limit:?} and was killed"),
        ));
    }
    Ok(Output {
        stdout,
        stderr,
        exit_code: end.exit_code,
    })
}

/// Reads both streams until they and the command have ended.
async fn collect(
    stdout: OwnedFd,
    stderr: OwnedFd,
    end: &mut End,
    timeout: Option<Duration>,
    budget: usize,
) -> Result<(Vec<u8>, Vec<u8>, ExecEnd), Failure> {
    let budget = AtomicUsize::new(budget);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ended = {
        let reading = async {
            tokio::join!(
                read_bounded(stdout, &mut out, &budget),
                read_bounded(stderr, &mut err, &budget)
            )
        };
        tokio::pin!(reading);
        let waiting = async {
            match timeout {
                None => end.wait().await,
                Some(limit) => tokio::time::timeout(limit.saturating_add(SLACK), end.wait())
                    .await
                    .map_err(|_| Failure::new(Class::Deadline, "command timed out"))?,
            }
        };
        tokio::pin!(waiting);
        let mut output = None;
        let ended = loop {
            tokio::select! {
                read = &mut reading, if output.is_none() => output = Some(read),
                ended = &mut waiting => break ended?,
            }
        };
        if output.is_none() {
            // A descendant that holds the pipe doesn't hold up the answer.
            output = tokio::time::timeout(DRAIN, &mut reading).await.ok();
        }
        if let Some((stdout, stderr)) = output {
            stdout.and(stderr)?;
        }
        ended
    };
    Ok((out, err, ended))
}

/// Keeps what its own bound and the shared budget allow and discards the rest, while the command
/// runs on.
async fn read_bounded(
    from: OwnedFd,
    into: &mut Vec<u8>,
    budget: &AtomicUsize,
) -> Result<(), Failure> {
    let mut pipe = pipe::Receiver::from_owned_fd(from).doing("read the command's output")?;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let count = pipe
            .read(&mut buffer)
            .await
            .doing("read the command's output")?;
        if count == 0 {
            return Ok(());
        }
        let kept = take(budget, count.min(MAX_STREAM.saturating_sub(into.len())));
        into.extend_from_slice(buffer.get(..kept).unwrap_or_default());
    }
}

/// Takes up to `wanted` from the budget both streams share.
fn take(budget: &AtomicUsize, wanted: usize) -> usize {
    let left = budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        Some(left.saturating_sub(wanted))
    });
    // The closure never refuses, so both arms hold what was left before.
    wanted.min(left.unwrap_or_else(|left| left))
}
