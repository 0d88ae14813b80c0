//! A registry on loopback: serves images as it should, or answers exactly as a test tells it.
//!
//! Protocol: OCI distribution-spec 1.1, the pull half. Every request is logged with its headers.
//! A test's script sees each request first and may answer it; what it lets pass gets the ordinary
//! answer. One registry stands for any number of hosts: [`Registry::mirrors`] writes the
//! `certs.d/<host>/hosts.toml` that sends them here.

mod answer;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};

pub use self::answer::Answer;
use crate::images::layout::Stored;
use crate::images::{Blob, Image};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, without its question mark; may be empty.
    pub query: String,
    /// Header names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body, at most 64 KiB of it.
    pub body: String,
}

impl Seen {
    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

type Script = Box<dyn Fn(&Seen) -> Option<Answer> + Send>;

#[derive(Default)]
struct State {
    /// Content by digest, whatever repository it was added to.
    blobs: BTreeMap<String, Blob>,
    /// `repository:tag` → digest of a manifest.
    tags: BTreeMap<String, String>,
    /// Digests that may be asked for under `/manifests/`.
    manifests: BTreeSet<String>,
    log: Vec<Seen>,
    script: Option<Script>,
}

/// A running registry; ends when dropped.
pub struct Registry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    server: Option<thread::JoinHandle<()>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Registry")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Starts an empty registry on a free port of 127.0.0.1.
    pub fn start() -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("bind the registry")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let shared = Arc::clone(&state);
        let server = thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || serve::run(listener, shared, stopped))?;
        Ok(Self {
            address,
            state,
            stop: Some(stop),
            server: Some(server),
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `127.0.0.1:PORT/REPOSITORY`, a reference served by this registry under its own name.
    pub fn reference(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    /// Serves an image under `repository:tag`, or by its digest alone.
    pub fn add(&self, name: &str, image: &Image) {
        self.add_manifest(name, &image.manifest);
        let mut state = self.lock();
        for blob in image.blobs() {
            state.blobs.insert(blob.digest.clone(), blob.clone());
        }
    }

    /// Serves a manifest or index under `repository:tag`, or by its digest alone.
    pub fn add_manifest(&self, name: &str, manifest: &Blob) {
        let mut state = self.lock();
        state.manifests.insert(manifest.digest.clone());
        state
            .blobs
            .insert(manifest.digest.clone(), manifest.clone());
        if name.contains(':') {
            state.tags.insert(name.to_owned(), manifest.digest.clone());
        }
    }

    /// Serves the images of a layout; their hosts are dropped from the names.
    pub fn add_layout(&self, images: Vec<Stored>) {
        for Stored { reference, blobs } in images {
            let name = reference.split_once('/').map_or("", |(_, name)| name);
            if let Some(manifest) = blobs.first() {
                self.add_manifest(name, manifest);
            }
            let mut state = self.lock();
            state
                .blobs
                .extend(blobs.into_iter().map(|blob| (blob.digest.clone(), blob)));
        }
    }

    /// Lets `script` see every request first; it replaces the one before.
    pub fn script(&self, script: impl Fn(&Seen) -> Option<Answer> + Send + 'static) {
        self.lock().script = Some(Box::new(script));
    }

    /// What was asked so far; the log starts anew.
    pub fn take_log(&self) -> Vec<Seen> {
        std::mem::take(&mut self.lock().log)
    }

    /// Writes `hosts.toml` files that send these hosts here, and one for the registry's own name.
    pub fn mirrors(&self, certs_d: &Path, hosts: &[&str]) -> Result<()> {
        let own = self.host();
        for host in hosts.iter().copied().chain([own.as_str()]) {
            let folder = certs_d.join(host);
            fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
            let server = if host == own {
                format!("http://{own}")
            } else {
                format!("https://{host}")
            };
            let text = format!(
                "server = \"{server}\"\n\n[host.\"http://{own}\"]\n  \
                 capabilities = [\"pull\", \"resolve\"]\n"
            );
            fs::write(folder.join("hosts.toml"), text)?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// A test that panicked while it held the lock has failed already; the others go on.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(server) = self.server.take() {
            // A panic of the server thread has been printed; there is nothing to add.
            drop(server.join());
        }
    }
}
