//! PullImage, told from end to end.
//!
//! The registry is asked for the manifest every time, with the caller's own credentials: whether an
//! image is here already decides what is downloaded, never who may have it (cri-contract,
//! PullImage). Layers come side by side; each waits for the ones below only for its last step.
//! The future may be dropped anywhere: what it was doing is taken away.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::{OwnedMutexGuard, Semaphore};

use super::auth::RegistryAuth;
use super::chain::Chain;
use super::client::Clients;
use super::digest::{Digest, chain_ids};
use super::fetch::{self, Plan};
use super::gc::lock;
use super::manifest::{self, Descriptor, Document, MAX_CONFIG, MAX_DEPTH, Manifest};
use super::metadata::{ImageRecord, LayerRecord};
use super::reference::Reference;
use super::registry::Session;
use super::tree::open_folder;
use super::types::{Image, ImageId, LayerProgress, PullProgress, PullRequest};
use super::unpack::{Expected, Ready};
use super::{ImageStore, Store};
use crate::clock::now;
use crate::failure::{Class, Doing as _, Failure};

/// Layers completed and synced together at most.
const BATCH: usize = 16;

/// What pulls share.
#[derive(Debug)]
pub(crate) struct Pulls {
    pub clients: Clients,
    permits: Arc<Semaphore>,
    serial: AtomicU64,
    running: Mutex<BTreeMap<u64, Running>>,
    /// One lock for each layer being fetched, with whose credentials: a layer asked for twice at
    /// once is fetched once, but nobody gets it on another's credentials.
    fetching: Mutex<HashMap<Fetching, Arc<tokio::sync::Mutex<()>>>>,
}

type Fetching = (Digest, [u8; 32]);

#[derive(Debug)]
struct Running {
    reference: String,
    layers: Vec<(Descriptor, Arc<AtomicU64>)>,
}

impl Pulls {
    pub(crate) fn new(concurrent_layers: usize) -> Self {
        Self {
            clients: Clients::default(),
            permits: Arc::new(Semaphore::new(concurrent_layers.max(1))),
            serial: AtomicU64::new(0),
            running: Mutex::default(),
            fetching: Mutex::default(),
        }
    }

    pub(crate) fn progress(&self) -> Vec<PullProgress> {
        let show = |(descriptor, done): &(Descriptor, Arc<AtomicU64>)| LayerProgress {
            digest: descriptor.digest.to_string(),
            done: done.load(Ordering::Relaxed),
            total: descriptor.size,
        };
        lock(&self.running)
            .values()
            .map(|pull| PullProgress {
                reference: pull.reference.clone(),
                layers: pull.layers.iter().map(show).collect(),
            })
            .collect()
    }

    /// Waits until nobody else with these credentials fetches this layer.
    async fn alone(&self, key: &Fetching) -> OwnedMutexGuard<()> {
        let mutex = {
            let mut fetching = lock(&self.fetching);
            // Those nobody has or waits for.
            fetching.retain(|_, mutex| Arc::strong_count(mutex) > 1);
            Arc::clone(fetching.entry(key.clone()).or_default())
        };
        mutex.lock_owned().await
    }
}

/// What a pull must undo when it ends in any way: its entry among the running ones, its pins.
struct Ending {
    store: Arc<Store>,
    serial: u64,
    pins: Vec<Digest>,
    collect: bool,
}

impl Ending {
    fn begin(store: &Arc<Store>, reference: &Reference) -> Self {
        let serial = store.pulls.serial.fetch_add(1, Ordering::Relaxed);
        let running = Running {
            reference: reference.to_string(),
            layers: Vec::new(),
        };
        lock(&store.pulls.running).insert(serial, running);
        Self {
            store: Arc::clone(store),
            serial,
            pins: Vec::new(),
            collect: true,
        }
    }

    /// Shows the layers, and hands out their counters.
    fn layers(&self, layers: &[Descriptor]) -> Vec<Arc<AtomicU64>> {
        let counted: Vec<_> = layers
            .iter()
            .map(|layer| (layer.clone(), Arc::new(AtomicU64::new(0))))
            .collect();
        let counters = counted.iter().map(|(_, done)| Arc::clone(done)).collect();
        if let Some(running) = lock(&self.store.pulls.running).get_mut(&self.serial) {
            running.layers = counted;
        }
        counters
    }

    /// Lets go of the layers; blocking.
    fn unpin(&mut self) {
        let pins = std::mem::take(&mut self.pins);
        if pins.is_empty() {
            return;
        }
        if let Err(failure) = self.store.catalog.unpin(&pins, self.collect) {
            tracing::warn!(%failure, "layers of an ended pull stay until the next collection");
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        lock(&self.store.pulls.running).remove(&self.serial);
        if self.pins.is_empty() {
            return;
        }
        // Dropped half-way by the caller, on a thread that mustn't wait for the disk.
        let mut rest = Self {
            store: Arc::clone(&self.store),
            serial: self.serial,
            pins: std::mem::take(&mut self.pins),
            collect: self.collect,
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || rest.unpin())),
            Err(_) => rest.unpin(),
        }
    }
}

/// A layer on its way: held already, or unpacked and waiting for those below it.
struct Arrived {
    number: usize,
    ready: Option<Ready>,
    /// Kept until the layer is published.
    alone: Option<OwnedMutexGuard<()>>,
}

impl ImageStore {
    /// Pulls an image; on return it is listed. Dropping the future stops the work.
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<Image>, Failure> {
        let reference = Reference::parse(&request.reference)?;
        let result = self.pull_reference(&reference, request.auth.as_ref()).await;
        result.map_err(|e| e.context(format!("pull {reference}")))
    }

    /// Pulls that are running, with the bytes of each layer so far.
    pub fn progress(&self) -> Vec<PullProgress> {
        self.0.pulls.progress()
    }

    async fn pull_reference(
        &self,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
    ) -> Result<Arc<Image>, Failure> {
        let store = &self.0;
        let session = Session::new(&store.pulls.clients, &store.settings, reference, auth)?;
        let mut ending = Ending::begin(store, reference);
        if let Some(image) = self.unchanged(&session).await {
            return Ok(image);
        }
        let top = session
            .manifest(&reference.target(), reference.digest())
            .await?;
        let mut documents = top.bytes.len() as u64;
        let name = reference.at(&top.digest);
        let manifest = platform_manifest(&session, top, &mut documents).await?;
        let id = ImageId::new(manifest.config.digest.clone());
        let config = self.config(&session, &id, &manifest.config).await?;
        documents = documents.saturating_add(config.len() as u64);
        let (_, diff_ids) = manifest::parse_config(&config, manifest.layers.len())?;
        let config_json = String::from_utf8(config)
            .map_err(|_| Failure::precondition("the config is refused: it is not UTF-8"))?;

        let chain = chain_ids(&diff_ids);
        ending.pins = chain.clone();
        store.catalog.pin(&chain);
        let layers = Layers {
            store,
            session: &session,
            descriptors: &manifest.layers,
            diff_ids: &diff_ids,
            chain: &chain,
            fingerprint: auth.map_or([0; 32], RegistryAuth::fingerprint),
            counters: ending.layers(&manifest.layers),
        };
        let record = ImageRecord {
            config_json,
            chain: chain.clone(),
            annotations: manifest.annotations.clone(),
            documents,
            listed: true,
        };
        let mut names = vec![name];
        if reference.tag().is_some() {
            names.push(reference.to_string());
        }
        let fetched = layers.all().await;
        // What came whole is kept for another try if the registry only went away.
        ending.collect = !fetched
            .as_ref()
            .is_err_and(|failure| failure.class() == Class::Reasoned);
        self.blocking(move |store| {
            let published = fetched.and_then(|()| store.catalog.publish_image(&id, record, names));
            ending.unpin();
            published
        })
        .await
    }

    /// The image a tag or digest names here, if the registry says that it still does. Saves the
    /// manifest, which public registries count and limit; HEAD they don't.
    async fn unchanged(&self, session: &Session<'_>) -> Option<Arc<Image>> {
        let snapshot = self.0.catalog.snapshot();
        let reference = session.reference;
        let id = snapshot.names.get(&reference.to_string())?;
        let digest = session.head(&reference.target()).await?;
        if reference.digest().is_some_and(|asked| *asked != digest)
            || snapshot.names.get(&reference.at(&digest)) != Some(id)
        {
            return None;
        }
        // As it is now: it may have been removed meanwhile.
        let snapshot = self.0.catalog.snapshot();
        (snapshot.names.get(&reference.to_string()) == Some(id))
            .then(|| snapshot.images.get(id).cloned())
            .flatten()
    }

    /// The config's bytes, from the registry unless they are here.
    async fn config(
        &self,
        session: &Session<'_>,
        id: &ImageId,
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, Failure> {
        if let Some(image) = self.0.catalog.snapshot().images.get(id) {
            return Ok(image.config_json.clone().into_bytes());
        }
        session.blob(descriptor, MAX_CONFIG).await
    }
}

/// From what a name stands for to the manifest for this machine.
async fn platform_manifest(
    session: &Session<'_>,
    top: super::registry::Fetched,
    documents: &mut u64,
) -> Result<Manifest, Failure> {
    let host = manifest::host_platform();
    let mut current = top;
    for _ in 0..=MAX_DEPTH {
        let entries = match manifest::parse(&current.bytes, current.media_type.as_deref())? {
            Document::Manifest(manifest) => return Ok(manifest),
            Document::Index(entries) => entries,
        };
        let entry = manifest::choose(&entries, &host)
            .ok_or_else(|| manifest::nothing_for(&host, &entries))?;
        current = session
            .manifest(&entry.digest.to_string(), Some(&entry.digest))
            .await?;
        if current.bytes.len() as u64 != entry.size {
            return Err(Failure::precondition(format!(
                "manifest {} has {} bytes where the index says {}",
                entry.digest,
                current.bytes.len(),
                entry.size
            )));
        }
        *documents = documents.saturating_add(current.bytes.len() as u64);
    }
    Err(Failure::precondition(format!(
        "indexes lie within each other more than {MAX_DEPTH} deep"
    )))
}

/// The layers of one pull.
struct Layers<'a> {
    store: &'a Arc<Store>,
    session: &'a Session<'a>,
    descriptors: &'a [Descriptor],
    diff_ids: &'a [Digest],
    chain: &'a [Digest],
    fingerprint: [u8; 32],
    counters: Vec<Arc<AtomicU64>>,
}

impl Layers<'_> {
    /// Brings all layers here: fetching side by side, completing from the lowest up.
    async fn all(&self) -> Result<(), Failure> {
        let (sender, mut arrivals) = tokio::sync::mpsc::channel(BATCH);
        let fetching = async {
            let count = self.store.settings.concurrent_layers.max(1);
            let mut layers = futures_util::stream::iter(0..self.chain.len())
                .map(|number| self.one(number))
                .buffered(count);
            while let Some(arrived) = layers.try_next().await? {
                // Closed if completing failed, which is then the answer.
                if sender.send(arrived).await.is_err() {
                    break;
                }
            }
            drop(sender);
            Ok(())
        };
        let completing = async {
            while let Some(first) = arrivals.recv().await {
                let mut batch = vec![first];
                while let (true, Ok(next)) = (batch.len() < BATCH, arrivals.try_recv()) {
                    batch.push(next);
                }
                self.complete(batch).await?;
            }
            Ok(())
        };
        futures_util::future::try_join(fetching, completing)
            .await
            .map(|((), ())| ())
    }

    /// Fetches and unpacks one layer unless it is here.
    async fn one(&self, number: usize) -> Result<Arrived, Failure> {
        let held = Arrived {
            number,
            ready: None,
            alone: None,
        };
        let (Some(chain), Some(descriptor), Some(diff_id), Some(done)) = (
            self.chain.get(number),
            self.descriptors.get(number),
            self.diff_ids.get(number),
            self.counters.get(number),
        ) else {
            return Err(Failure::internal(format!("no layer {number}")));
        };
        let is_here = || {
            let here = self.store.catalog.layer(chain).is_some();
            if here {
                done.store(descriptor.size, Ordering::Relaxed);
            }
            here
        };
        if is_here() {
            return Ok(held);
        }
        let key = (chain.clone(), self.fingerprint);
        let alone = self.store.pulls.alone(&key).await;
        if is_here() {
            return Ok(held);
        }
        let plan = Plan {
            expected: Expected {
                digest: descriptor.digest.clone(),
                size: descriptor.size,
                diff_id: diff_id.clone(),
            },
            bottom: number == 0,
            limits: self.store.settings.limits.clone(),
            trash: Arc::clone(&self.store.trash),
            done: Arc::clone(done),
        };
        // Held while bytes flow and never while waiting for another layer, so pulls can't block
        // each other for good.
        let _permit = self.store.pulls.permits.acquire().await;
        let ready = fetch::layer(self.session, descriptor, &plan, || self.staging()).await?;
        Ok(Arrived {
            number,
            ready: Some(ready),
            alone: Some(alone),
        })
    }

    fn staging(&self) -> PathBuf {
        let serial = self.store.pulls.serial.fetch_add(1, Ordering::Relaxed);
        self.store
            .settings
            .root
            .join("staging")
            .join(format!("{:x}.{serial}", now()))
    }

    /// Completes, syncs and publishes layers that follow each other.
    async fn complete(&self, batch: Vec<Arrived>) -> Result<(), Failure> {
        if batch.iter().all(|arrived| arrived.ready.is_none()) {
            return Ok(());
        }
        let store = Arc::clone(self.store);
        let chain = self.chain.to_vec();
        let diff_ids = self.diff_ids.to_vec();
        let digests: Vec<Digest> = self.descriptors.iter().map(|d| d.digest.clone()).collect();
        ImageStore(Arc::clone(self.store))
            .blocking(move |_| publish(&store, batch, &chain, &diff_ids, &digests))
            .await
    }
}

/// Blocking: the last step of each layer, on top of those below; then one sync for all of them
/// before they are published (case T6: a rename orders nothing for the data of files).
fn publish(
    store: &Store,
    batch: Vec<Arrived>,
    chain: &[Digest],
    diff_ids: &[Digest],
    digests: &[Digest],
) -> Result<(), Failure> {
    let first = batch.first().map_or(0, |arrived| arrived.number);
    let mut below = store.catalog.below(chain.get(..first).unwrap_or(&[]));
    let mut finished_layers = Vec::with_capacity(batch.len());
    // Dropped at the end: staging folders not published go, and only then may others fetch them.
    let mut keep = Vec::with_capacity(batch.len());
    for arrived in batch {
        let number = arrived.number;
        let (Some(id), Some(diff_id), Some(digest)) =
            (chain.get(number), diff_ids.get(number), digests.get(number))
        else {
            return Err(Failure::internal(format!("no layer {number}")));
        };
        let Some(ready) = arrived.ready else {
            below = store.catalog.below(chain.get(..=number).unwrap_or(&[]));
            continue;
        };
        let (staging, finished) = Chain::open(&below)
            .and_then(|below| ready.finish(&below, &store.settings.limits))
            .map_err(|e| e.context(format!("layer {digest}")))?;
        if finished.opaque_root {
            below.clear();
        }
        below.insert(0, staging.fs());
        let record = LayerRecord {
            diff_id: diff_id.clone(),
            bytes: finished.bytes,
            inodes: finished.inodes,
            opaque_root: finished.opaque_root,
        };
        finished_layers.push((staging.path().to_owned(), id.clone(), record));
        keep.push((staging, arrived.alone));
    }
    let root = &store.settings.root;
    open_folder(root)
        .and_then(|root| rustix::fs::syncfs(root).doing("bring the layers to the disk"))?;
    store.catalog.publish_layers(&finished_layers)
}
