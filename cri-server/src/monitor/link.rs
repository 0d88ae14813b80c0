//! One connection to one monitor: requests and their replies by id, events as they come.
//!
//! The decoder never asks for bytes beyond the frame it is in, so the descriptors a read brings
//! belong to that frame.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bulkhead_runtime::monitor::connection::{open_directory, short_socket_path};
use bulkhead_runtime::monitor::frame::{self, Decoder, Frame, Kind};
use bulkhead_runtime::monitor::wire::{Event, Reply, Request, VERSION};
use bulkhead_runtime::sys::scm;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::failure::{Class, Doing, Failure};
use crate::ops::tasks::Tasks;

/// The longest a monitor may take to greet; it is either alive and idle or not there.
const GREETING: Duration = Duration::from_secs(5);

/// A reply with the descriptors that came along.
#[derive(Debug)]
pub struct Answer {
    /// Never [`Reply::Failed`]: that is an error of the call.
    pub reply: Reply,
    /// In the order the message says.
    pub descriptors: Vec<OwnedFd>,
}

type Waiting = HashMap<u32, oneshot::Sender<Answer>>;

/// A connection to a monitor. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    stream: UnixStream,
    writing: AsyncMutex<()>,
    waiting: Mutex<Waiting>,
    next: AtomicU32,
    closed: CancellationToken,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Connects to the monitor of the pod with this directory, greets, and passes events on until
    /// the connection ends.
    ///
    /// # Errors
    /// When nobody listens, or doesn't greet in time, or speaks no version of ours.
    pub async fn connect(
        directory: &Path,
        tasks: &Tasks,
        events: mpsc::Sender<Event>,
    ) -> Result<(Self, i32), Failure> {
        let doing = || format!("connect to the monitor in {}", directory.display());
        let open = open_directory(directory)?;
        let connecting = UnixStream::connect(short_socket_path(&open)).await;
        let stream = connecting.doing(doing())?;
        let shared = Arc::new(Shared {
            stream,
            writing: AsyncMutex::new(()),
            waiting: Mutex::default(),
            next: AtomicU32::new(1),
            closed: CancellationToken::new(),
        });
        let reader = shared.clone();
        drop(tasks.spawn_untracked("monitor link", async move {
            let ended = reader.read_all(events).await;
            tracing::debug!(?ended, "a monitor's connection ended");
            reader.close();
        }));
        let link = Self { shared };
        let greeting = link.ask(Request::Hello { version: VERSION }, &[]);
        let answer = tokio::time::timeout(GREETING, greeting)
            .await
            .map_err(|_| Failure::new(Class::Unavailable, format!("{}: no greeting", doing())))?
            .map_err(|failure| failure.context(doing()))?;
        match answer.reply {
            Reply::Hello { version, pid } if version <= VERSION => Ok((link, pid)),
            other => Err(Failure::internal(format!(
                "{}: unexpected greeting {other:?}",
                doing()
            ))),
        }
    }

    /// Asks and waits for the answer, as long as the monitor lives.
    ///
    /// # Errors
    /// What the monitor answers; [`Class::Unavailable`] when the connection ends first.
    pub async fn ask(
        &self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, Failure> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let bytes = frame::encode(Kind::Request, id, &request)?;
        let (sender, receiver) = oneshot::channel();
        self.shared.waiting().insert(id, sender);
        let _forget = Forget {
            shared: &self.shared,
            id,
        };
        if self.is_closed() {
            return Err(lost());
        }
        self.shared.write(&bytes, descriptors).await?;
        let answer = receiver.await.map_err(|_| lost())?;
        match answer.reply {
            Reply::Failed(error) => Err(error.into()),
            _ => Ok(answer),
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.is_cancelled()
    }

    /// Resolves when the connection has ended.
    pub async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }
}

/// A caller that goes away leaves nothing behind in the table.
struct Forget<'a> {
    shared: &'a Shared,
    id: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.waiting().remove(&self.id);
    }
}

fn lost() -> Failure {
    Failure::new(
        Class::Unavailable,
        "the connection to the pod's monitor ended",
    )
}

impl Shared {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.closed.cancel();
        // Dropping the senders wakes everyone who waits.
        self.waiting().clear();
    }

    async fn write(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let _one_at_a_time = self.writing.lock().await;
        let mut sent = 0;
        while sent < bytes.len() {
            let with = if sent == 0 { descriptors } else { &[] };
            let rest = bytes.get(sent..).unwrap_or_default();
            let count = self
                .stream
                .async_io(Interest::WRITABLE, || {
                    scm::send(self.stream.as_fd(), rest, with).map_err(io::Error::from)
                })
                .await
                .doing("write to the pod's monitor");
            match count {
                Ok(count) => sent += count,
                Err(failure) => {
                    // Half a frame may be out, so nothing more can be said on this connection.
                    self.close();
                    return Err(failure);
                }
            }
        }
        Ok(())
    }

    async fn read_all(&self, events: mpsc::Sender<Event>) -> Result<(), Failure> {
        let mut decoder = Decoder::new();
        loop {
            let frame = self.read_frame(&mut decoder).await?;
            match frame.header.kind {
                Kind::Reply => {
                    let reply = frame.parse::<Reply>()?;
                    if let Some(waiting) = self.waiting().remove(&frame.header.id) {
                        // The caller may have gone in between.
                        drop(waiting.send(Answer {
                            reply,
                            descriptors: frame.descriptors,
                        }));
                    }
                }
                Kind::Event => {
                    if events.send(frame.parse::<Event>()?).await.is_err() {
                        return Ok(());
                    }
                }
                Kind::Request => return Err(Failure::internal("a monitor sent a request")),
            }
        }
    }

    async fn read_frame(&self, decoder: &mut Decoder) -> Result<Frame, Failure> {
        let mut descriptors = Vec::new();
        loop {
            let space = decoder.space();
            let count = self
                .stream
                .async_io(Interest::READABLE, || {
                    scm::receive(self.stream.as_fd(), space, &mut descriptors)
                        .map_err(io::Error::from)
                })
                .await
                .doing("read from the pod's monitor")?;
            if count == 0 {
                return Err(lost());
            }
            if let Some(frame) = decoder.received(count, &mut descriptors)? {
                return Ok(frame);
            }
        }
    }
}
