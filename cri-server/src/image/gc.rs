//! What happens to space after its last user: renamed aside at once, removed and measured behind.
//!
//! Two threads, because removing a large tree takes seconds and must hold up neither a request
//! nor the measuring of writable layers. Both end when the store is dropped. What a killed daemon
//! leaves in the trash folder is found there at the next start.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::tree;
use super::types::Usage;
use crate::clock::now;
use crate::failure::{Doing as _, Failure};

/// Age at which a measurement is renewed when somebody asks.
const STALE: Duration = Duration::from_secs(10);

/// The folder things are moved to before they are removed.
#[derive(Debug)]
pub(crate) struct Trash {
    folder: PathBuf,
    serial: AtomicU64,
    sweeper: Sender<CString>,
}

impl Trash {
    /// Starts the sweeper on `folder`, beginning with what already lies there.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, Failure> {
        let what = format!("open {}", folder.display());
        let fd: OwnedFd = std::fs::File::open(&folder).doing(&what)?.into();
        let (sweeper, work) = channel();
        for entry in std::fs::read_dir(&folder).doing(&what)? {
            let entry = entry.doing(&what)?;
            let name = CString::new(entry.file_name().as_bytes()).doing(&what)?;
            sweeper.send(name).doing(&what)?;
        }
        std::thread::Builder::new()
            .name("image-sweep".into())
            .spawn(move || sweep(&fd, &work))
            .doing("start the thread image-sweep")?;
        Ok(Self {
            folder,
            serial: AtomicU64::new(0),
            sweeper,
        })
    }

    /// Moves `path` away, at once and for good; its space comes back a little later. Absent is fine.
    pub(crate) fn take(&self, path: &Path) -> Result<(), Failure> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let name = format!("{:x}.{:x}.{serial}", now(), std::process::id());
        match std::fs::rename(path, self.folder.join(&name)) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).doing(format!("move {} aside", path.display())),
        }
        let name = CString::new(name).doing("name something in the trash")?;
        if self.sweeper.send(name).is_err() {
            // The thread is gone only if it panicked; the next start sweeps.
            tracing::warn!(path = %path.display(), "the image-sweep thread is gone: space stays used");
        }
        Ok(())
    }
}

fn sweep(folder: &OwnedFd, work: &Receiver<CString>) {
    while let Ok(name) = work.recv() {
        if let Err(error) = tree::remove(folder.as_fd(), &name) {
            tracing::warn!(name = %name.to_string_lossy(), %error, "cannot remove from the trash; tried again at the next start");
        }
    }
}

/// Measures writable layers when asked, in the background.
#[derive(Debug)]
pub(crate) struct Meter {
    known: Arc<Mutex<BTreeMap<String, Known>>>,
    work: Sender<(String, PathBuf)>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    usage: Usage,
    queued: bool,
}

impl Meter {
    pub(crate) fn start() -> Result<Self, Failure> {
        let known: Arc<Mutex<BTreeMap<String, Known>>> = Arc::default();
        let (work, jobs) = channel();
        let shared = Arc::clone(&known);
        std::thread::Builder::new()
            .name("image-meter".into())
            .spawn(move || meter(&shared, &jobs))
            .doing("start the thread image-meter")?;
        Ok(Self { known, work })
    }

    /// Notes a layer whose size is known to be `usage` now.
    pub(crate) fn set(&self, id: &str, usage: Usage) {
        let queued = false;
        lock(&self.known).insert(id.to_owned(), Known { usage, queued });
    }

    pub(crate) fn forget(&self, id: &str) {
        lock(&self.known).remove(id);
    }

    /// The last measurement of `id`; a stale one is renewed behind.
    pub(crate) fn get(&self, id: &str, path: PathBuf) -> Option<Usage> {
        let mut known = lock(&self.known);
        let entry = known.get_mut(id)?;
        let age = now().saturating_sub(entry.usage.timestamp_ns);
        let stale = u128::try_from(age).is_ok_and(|age| age >= STALE.as_nanos());
        if stale && !entry.queued {
            entry.queued = self.work.send((id.to_owned(), path)).is_ok();
        }
        Some(entry.usage)
    }

    /// All measured layers together.
    pub(crate) fn total(&self) -> (u64, u64) {
        lock(&self.known).values().fold((0, 0), |(b, i), known| {
            (
                b.saturating_add(known.usage.bytes),
                i.saturating_add(known.usage.inodes),
            )
        })
    }
}

fn meter(known: &Mutex<BTreeMap<String, Known>>, jobs: &Receiver<(String, PathBuf)>) {
    while let Ok((id, path)) = jobs.recv() {
        let measured = std::fs::File::open(&path).and_then(|f| tree::measure(f.as_fd()));
        let mut known = lock(known);
        let Some(entry) = known.get_mut(&id) else {
            continue;
        };
        entry.queued = false;
        match measured {
            Ok((bytes, inodes)) => {
                entry.usage = Usage {
                    bytes,
                    inodes,
                    timestamp_ns: now(),
                };
            }
            // The container may be removed at this moment; else the old figure stands.
            Err(error) => tracing::debug!(id, %error, "cannot measure a writable layer"),
        }
    }
}

/// A panic while holding such a lock leaves plain data behind, still usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
