//! One layer: download and unpacking side by side, over as many places and attempts as it takes.
//!
//! A body that is cut goes on with a range from where it stopped; whatever the pieces came from, the
//! digest over all of them decides (threat K4). Dropping the future closes the channel, on which the
//! unpacking ends and takes its staging folder away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::header::CONTENT_RANGE;
use http::{Method, StatusCode};
use tokio::sync::mpsc::{Sender, channel};

use super::exchange::{cause, header, unavailable, unreachable};
use super::gc::Trash;
use super::hosts::host_of;
use super::manifest::Descriptor;
use super::registry::{Ask, Session};
use super::unpack::decompress::Piece;
use super::unpack::limits::Limits;
use super::unpack::{Expected, Ready, Staging, unpack};
use crate::failure::{Doing as _, Failure};

/// Interruptions of one download that are overcome.
const RESUMES: u32 = 8;
/// Least that must come within the no-progress time.
const PROGRESS: u64 = 16 << 10;
/// Chunks between network and unpacking; hyper's are 8 to 400 KiB.
const AHEAD: usize = 16;

/// What a download needs beside the session.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub expected: Expected,
    pub bottom: bool,
    pub limits: Limits,
    pub trash: Arc<Trash>,
    /// Compressed bytes so far, for whoever watches.
    pub done: Arc<AtomicU64>,
}

/// Fetches and unpacks a layer, trying each place until one gives the right bytes. `staging` names
/// a fresh folder for each attempt.
pub(crate) async fn layer(
    session: &Session<'_>,
    descriptor: &Descriptor,
    plan: &Plan,
    staging: impl Fn() -> std::path::PathBuf,
) -> Result<Ready, Failure> {
    let path = format!("blobs/{}", descriptor.digest);
    let mut attempts = session.attempts(&path, |e| e.pull);
    while let Some(index) = attempts.next() {
        match attempt(session, index, &path, descriptor, plan, staging()).await {
            Ok(ready) => return Ok(ready),
            Err(failure) => attempts.failed(index, failure)?,
        }
    }
    Err(attempts
        .end()
        .context(format!("layer {}", descriptor.digest)))
}

async fn attempt(
    session: &Session<'_>,
    index: usize,
    path: &str,
    descriptor: &Descriptor,
    plan: &Plan,
    staging: std::path::PathBuf,
) -> Result<Ready, Failure> {
    plan.done.store(0, Ordering::Relaxed);
    let (sender, pieces) = channel(AHEAD);
    let plan_there = plan.clone();
    let unpacking = tokio::task::spawn_blocking(move || {
        let staging = Staging::create(staging, Arc::clone(&plan_there.trash))?;
        unpack(
            pieces,
            &plan_there.expected,
            staging,
            plan_there.bottom,
            &plan_there.limits,
        )
    });
    let feeding = async {
        let fed = feed(session, index, path, descriptor.size, &plan.done, &sender).await;
        // Closed before the unpacking is awaited, or that would wait for more.
        drop(sender);
        fed
    };
    let fed = feeding.await;
    let unpacked = unpacking.await.doing("unpack")?;
    // Of the two, the download's failure is the cause, except when it only saw the channel close.
    fed?;
    unpacked
}

/// Sends the blob's bytes down the channel, and its end if it came whole.
async fn feed(
    session: &Session<'_>,
    index: usize,
    path: &str,
    size: u64,
    done: &AtomicU64,
    sender: &Sender<Piece>,
) -> Result<(), Failure> {
    let mut position = 0_u64;
    let mut interruptions = 0;
    let mut pace = Pace::new(session.settings.no_progress);
    // An empty blob is asked for as well: only the registry knows whether we may have it.
    loop {
        let before = position;
        let part = part(
            session,
            index,
            path,
            size,
            &mut position,
            &mut pace,
            done,
            sender,
        )
        .await;
        let failure = match part {
            Ok(Part::Whole) => {
                // Closed if the unpacking failed already; it has the better error.
                sender.send(Piece::End).await.ok();
                return Ok(());
            }
            Ok(Part::Unwanted) => return Ok(()),
            Ok(Part::Cut(failure)) => failure,
            Err(failure) => return Err(failure),
        };
        interruptions += 1;
        if interruptions > RESUMES {
            return Err(failure);
        }
        if position == before {
            tokio::time::sleep(Duration::from_millis(100) * interruptions).await;
        }
        tracing::debug!(path, position, %failure, "a download was cut; going on from there");
    }
}

enum Part {
    Whole,
    /// Nobody listens: the unpacking has failed.
    Unwanted,
    /// Another request may go on from here.
    Cut(Failure),
}

#[expect(
    clippy::too_many_arguments,
    reason = "the state of one loop, cut out of it"
)]
async fn part(
    session: &Session<'_>,
    index: usize,
    path: &str,
    size: u64,
    position: &mut u64,
    pace: &mut Pace,
    done: &AtomicU64,
    sender: &Sender<Piece>,
) -> Result<Part, Failure> {
    let ask = Ask {
        method: &Method::GET,
        path,
        accept: None,
        range: (*position > 0).then(|| (*position, size.saturating_sub(1))),
    };
    let mut response = session.send(index, ask).await?;
    let url = response.url().clone();
    let long = || session.lied(index, &format!("{path} has more than {size} bytes"));
    // Bytes of this answer that are here already.
    let mut skip = match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = header(response.headers(), &CONTENT_RANGE).unwrap_or_default();
            if !range.starts_with(&format!("bytes {position}-")) {
                return Err(session.lied(
                    index,
                    &format!("asked for {path} from byte {position}, it sends {range:?}"),
                ));
            }
            0
        }
        _ => *position,
    };
    if let Some(length) = response.content_length() {
        let promised = position.saturating_sub(skip).saturating_add(length);
        if promised > size {
            return Err(long());
        }
        if promised < size {
            return Err(session.lied(
                index,
                &format!("{path} has {promised} bytes where the manifest says {size}"),
            ));
        }
    }
    loop {
        let chunk = tokio::time::timeout(session.settings.stall, response.chunk()).await;
        let mut chunk = match chunk {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) if *position == size => return Ok(Part::Whole),
            Ok(Ok(None)) => {
                let text = format!("{path} ends after {position} of {size} bytes");
                return Ok(Part::Cut(unreachable(&url, &text)));
            }
            Ok(Err(error)) => return Ok(Part::Cut(unreachable(&url, &cause(error)))),
            Err(_) => {
                let text = format!("{path} stalls after {position} of {size} bytes");
                return Ok(Part::Cut(unreachable(&url, &text)));
            }
        };
        pace.step(chunk.len() as u64)
            .map_err(|text| unavailable(&format!("{}: {path} {text}", host_of(&url))))?;
        let known = skip.min(chunk.len() as u64);
        skip -= known;
        let known = usize::try_from(known).unwrap_or(chunk.len());
        let fresh = chunk.split_off(known);
        if fresh.is_empty() {
            continue;
        }
        *position = position.saturating_add(fresh.len() as u64);
        if *position > size {
            return Err(long());
        }
        done.store(*position, Ordering::Relaxed);
        let waited = Instant::now();
        if sender.send(Piece::Data(fresh)).await.is_err() {
            return Ok(Part::Unwanted);
        }
        // Waiting for the disk isn't the registry's fault.
        pace.excuse(waited.elapsed());
    }
}

/// Notices a download that goes on, but hardly: one byte a second passes every other time-out (K5).
struct Pace {
    window: Duration,
    end: Instant,
    bytes: u64,
}

impl Pace {
    fn new(window: Duration) -> Self {
        Self {
            window,
            end: Instant::now() + window,
            bytes: 0,
        }
    }

    fn step(&mut self, bytes: u64) -> Result<(), String> {
        self.bytes = self.bytes.saturating_add(bytes);
        let now = Instant::now();
        if now < self.end {
            return Ok(());
        }
        if self.bytes < PROGRESS {
            return Err(format!(
                "makes no progress: {} bytes in {:?}",
                self.bytes, self.window
            ));
        }
        self.bytes = 0;
        self.end = now + self.window;
        Ok(())
    }

    fn excuse(&mut self, time: Duration) {
        self.end += time;
    }
}
