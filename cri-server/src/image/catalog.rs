//! The images, names and layers of the store, in memory and on record alike, and who holds what.
//!
//! Changes go one at a time through one lock, each a durable commit; they run on blocking threads.
//! Readers take a snapshot and never wait for a change. Lock order: `state`, then `snapshot`.
//!
//! A layer is kept while an image's record or a running pull (a pin) refers to it; an image's
//! record while it is listed or held. Nothing goes by age.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use oci_spec::image::ImageConfiguration;

use super::digest::Digest;
use super::gc::{Trash, lock};
use super::metadata::{Change, Content, ImageRecord, LayerRecord, Metadata};
use super::reference::Reference;
use super::types::{Image, ImageId};
use crate::failure::{Class, Doing as _, Failure};

/// What readers see.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// Listed images by id.
    pub images: BTreeMap<ImageId, Arc<Image>>,
    /// Tags and digests of listed images.
    pub names: BTreeMap<String, ImageId>,
    /// Lower directories of every image on record, topmost first.
    pub lowers: BTreeMap<ImageId, Vec<PathBuf>>,
    /// Space of all layers.
    pub bytes: u64,
    pub inodes: u64,
}

/// The one owner of the records and of the `layers` folder.
#[derive(Debug)]
pub(crate) struct Catalog {
    layers: PathBuf,
    empty: PathBuf,
    trash: Arc<Trash>,
    metadata: Metadata,
    state: Mutex<State>,
    snapshot: RwLock<Arc<Snapshot>>,
}

#[derive(Debug)]
struct State {
    content: Content,
    /// Holder (a container's id) → image. Not on record: the holders' own records say it.
    holds: BTreeMap<String, ImageId>,
    /// Chain ids that running pulls need, counted.
    pins: HashMap<Digest, usize>,
}

impl Catalog {
    /// Opens the records and makes disk and records agree: what is listed is whole, what is half or
    /// unreferenced goes (case T6).
    pub(crate) fn open(root: &Path, trash: Arc<Trash>) -> Result<Self, Failure> {
        let layers = root.join("layers");
        let empty = root.join("empty");
        let (metadata, content) = Metadata::open(&root.join("metadata.redb"))?;
        let catalog = Self {
            layers,
            empty,
            trash,
            metadata,
            state: Mutex::new(State {
                content,
                holds: BTreeMap::new(),
                pins: HashMap::new(),
            }),
            snapshot: RwLock::default(),
        };
        {
            let mut state = lock(&catalog.state);
            // Nothing is collected before the holders are known.
            catalog.repair(&mut state)?;
            catalog.publish(&state);
        }
        Ok(catalog)
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Folder of an unpacked layer; its content is in `fs` below.
    fn folder(&self, chain: &Digest) -> PathBuf {
        self.layers.join(chain.hex())
    }

    /// The lower directory of an unpacked layer.
    pub(crate) fn lower(&self, chain: &Digest) -> PathBuf {
        self.folder(chain).join("fs")
    }

    /// The record of a layer that is unpacked and in place.
    pub(crate) fn layer(&self, chain: &Digest) -> Option<LayerRecord> {
        lock(&self.state).content.layers.get(chain).cloned()
    }

    /// Keeps `chain` from collection until [`Self::unpin`].
    pub(crate) fn pin(&self, chain: &[Digest]) {
        let mut state = lock(&self.state);
        for id in chain {
            *state.pins.entry(id.clone()).or_insert(0) += 1;
        }
    }

    /// Ends a pin; with `collect`, layers nobody needs any more go.
    pub(crate) fn unpin(&self, chain: &[Digest], collect: bool) -> Result<(), Failure> {
        let mut state = lock(&self.state);
        for id in chain {
            if let Some(count) = state.pins.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(id);
                }
            }
        }
        if collect {
            self.collect(&mut state)?;
            self.publish(&state);
        }
        Ok(())
    }

    /// Puts finished, synced folders in place as layers, then records them all at once. Where another
    /// pull was first, its layer stays.
    pub(crate) fn publish_layers(
        &self,
        layers: &[(PathBuf, Digest, LayerRecord)],
    ) -> Result<(), Failure> {
        let mut state = lock(&self.state);
        let mut changes = Vec::with_capacity(layers.len());
        for (staging, chain, record) in layers {
            if state.content.layers.contains_key(chain) {
                continue;
            }
            // The pull was dropped while this ran on its blocking thread: nobody would collect it.
            if !state.pins.contains_key(chain) {
                return Err(Failure::new(Class::Cancelled, "the pull was given up"));
            }
            let target = self.folder(chain);
            // Left without a record, by a crash or a failure here.
            self.trash.take(&target)?;
            std::fs::rename(staging, &target)
                .doing(format!("publish layer {chain} as {}", target.display()))?;
            changes.push(Change::PutLayer(chain.clone(), record.clone()));
        }
        sync_folder(&self.layers)?;
        self.commit(&mut state, changes)?;
        self.publish(&state);
        Ok(())
    }

    /// Lists an image under `names`, which leave whatever image they named before.
    pub(crate) fn publish_image(
        &self,
        id: &ImageId,
        record: ImageRecord,
        names: Vec<String>,
    ) -> Result<Arc<Image>, Failure> {
        let mut state = lock(&self.state);
        if let Some(missing) = record
            .chain
            .iter()
            .find(|chain| !state.content.layers.contains_key(chain))
        {
            return Err(Failure::internal(format!(
                "list image {id}: layer {missing} is not unpacked"
            )));
        }
        let mut changes = vec![Change::PutImage(id.clone(), record)];
        changes.extend(
            names
                .into_iter()
                .map(|name| Change::PutName(name, id.clone())),
        );
        self.commit(&mut state, changes)?;
        self.publish(&state);
        self.snapshot()
            .images
            .get(id)
            .cloned()
            .ok_or_else(|| Failure::internal(format!("list image {id}: its config is unreadable")))
    }

    /// Drops an image with all its names. Its content stays while held (case R2).
    pub(crate) fn remove_image(&self, id: &ImageId) -> Result<(), Failure> {
        let mut state = lock(&self.state);
        let Some(record) = state.content.images.get(id).cloned() else {
            return Ok(());
        };
        let mut changes: Vec<Change> = state
            .content
            .names
            .iter()
            .filter(|(_, named)| *named == id)
            .map(|(name, _)| Change::DropName(name.clone()))
            .collect();
        if state.holds.values().any(|held| held == id) {
            let listed = false;
            changes.push(Change::PutImage(
                id.clone(),
                ImageRecord { listed, ..record },
            ));
        } else {
            changes.push(Change::DropImage(id.clone()));
        }
        self.commit(&mut state, changes)?;
        // Gone from the lists before its layers go.
        self.publish(&state);
        self.collect(&mut state)?;
        self.publish(&state);
        Ok(())
    }

    /// Notes that `holder` uses the image's content: a container's id, and `/` with a number of its own
    /// for each further image.
    pub(crate) fn hold(&self, id: &ImageId, holder: &str) -> Result<(), Failure> {
        let mut state = lock(&self.state);
        if !state.content.images.contains_key(id) {
            return Err(Failure::not_found(format!("no image {id}")));
        }
        state.holds.insert(holder.to_owned(), id.clone());
        Ok(())
    }

    /// Ends all holds of a container, if it has some, and lets go what only they kept.
    pub(crate) fn release(&self, container: &str) -> Result<(), Failure> {
        let mut state = lock(&self.state);
        let before = state.holds.len();
        state.holds.retain(|holder, _| owner(holder) != container);
        if state.holds.len() == before {
            return Ok(());
        }
        self.collect(&mut state)?;
        self.publish(&state);
        Ok(())
    }

    /// Takes over all holds, and lets go what nothing keeps.
    pub(crate) fn retain(&self, holders: BTreeMap<String, ImageId>) -> Result<(), Failure> {
        let mut state = lock(&self.state);
        state.holds = holders;
        self.collect(&mut state)?;
        self.publish(&state);
        Ok(())
    }

    /// Drops images that are neither listed nor held, then layers without image or pin.
    fn collect(&self, state: &mut State) -> Result<(), Failure> {
        let content = &state.content;
        let held: BTreeSet<&ImageId> = state.holds.values().collect();
        let (kept, dropped): (Vec<_>, Vec<_>) = content
            .images
            .iter()
            .partition(|(id, record)| record.listed || held.contains(id));
        let needed: BTreeSet<&Digest> = kept
            .iter()
            .flat_map(|(_, record)| &record.chain)
            .chain(state.pins.keys())
            .collect();
        let unneeded: Vec<Digest> = content
            .layers
            .keys()
            .filter(|chain| !needed.contains(chain))
            .cloned()
            .collect();
        let mut changes: Vec<Change> = dropped
            .into_iter()
            .map(|(id, _)| Change::DropImage(id.clone()))
            .collect();
        changes.extend(unneeded.iter().cloned().map(Change::DropLayer));
        self.commit(state, changes)?;
        // Records first: a crash in between leaves a folder without record, swept at the next start.
        for chain in &unneeded {
            self.trash.take(&self.folder(chain))?;
        }
        Ok(())
    }

    /// Drops what the records promise and the disk lacks, and the reverse.
    fn repair(&self, state: &mut State) -> Result<(), Failure> {
        let mut changes = Vec::new();
        let mut lost = BTreeSet::new();
        for chain in state.content.layers.keys() {
            if !self.lower(chain).is_dir() {
                tracing::warn!(%chain, "an unpacked layer is gone; images with it are dropped");
                lost.insert(chain.clone());
                changes.push(Change::DropLayer(chain.clone()));
            }
        }
        let whole = |record: &ImageRecord| {
            record
                .chain
                .iter()
                .all(|c| state.content.layers.contains_key(c) && !lost.contains(c))
        };
        for (id, record) in &state.content.images {
            if !whole(record) {
                changes.push(Change::DropImage(id.clone()));
                let names = state.content.names.iter().filter(|(_, named)| *named == id);
                changes.extend(names.map(|(name, _)| Change::DropName(name.clone())));
            }
        }
        self.commit(state, changes)?;
        let known: BTreeSet<&str> = state.content.layers.keys().map(Digest::hex).collect();
        let what = format!("read {}", self.layers.display());
        for entry in std::fs::read_dir(&self.layers).doing(&what)? {
            let entry = entry.doing(&what)?;
            if !entry
                .file_name()
                .to_str()
                .is_some_and(|name| known.contains(name))
            {
                self.trash.take(&entry.path())?;
            }
        }
        Ok(())
    }

    fn commit(&self, state: &mut State, changes: Vec<Change>) -> Result<(), Failure> {
        if changes.is_empty() {
            return Ok(());
        }
        self.metadata.commit(&changes)?;
        state.content.apply(changes);
        Ok(())
    }

    /// Renews the snapshot from the records.
    fn publish(&self, state: &State) {
        let content = &state.content;
        let mut names: BTreeMap<&ImageId, Vec<&String>> = BTreeMap::new();
        for (name, id) in &content.names {
            names.entry(id).or_default().push(name);
        }
        let before = self.snapshot();
        let mut snapshot = Snapshot {
            names: content.names.clone(),
            ..Snapshot::default()
        };
        for layer in content.layers.values() {
            snapshot.bytes = snapshot.bytes.saturating_add(layer.bytes);
            snapshot.inodes = snapshot.inodes.saturating_add(layer.inodes);
        }
        for (id, record) in &content.images {
            snapshot
                .lowers
                .insert(id.clone(), self.lowers(content, record));
            if !record.listed {
                continue;
            }
            let config = match before.images.get(id) {
                Some(image) => image.config.clone(),
                None => match serde_json::from_str::<ImageConfiguration>(&record.config_json) {
                    Ok(config) => config,
                    Err(error) => {
                        tracing::error!(%id, %error, "the config on record is unreadable; not listed");
                        continue;
                    }
                },
            };
            let names = names.remove(id).unwrap_or_default();
            let (digests, tags) = names.into_iter().cloned().partition(|n| n.contains('@'));
            let layers = record.chain.iter().filter_map(|c| content.layers.get(c));
            let image = Image {
                id: id.clone(),
                repo_tags: tags,
                repo_digests: digests,
                size: layers.fold(record.documents, |sum, l| sum.saturating_add(l.bytes)),
                config,
                config_json: record.config_json.clone(),
                chain_id: record.chain.last().cloned(),
                annotations: record.annotations.clone(),
            };
            snapshot.images.insert(id.clone(), Arc::new(image));
        }
        *self
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    /// Lower directories of a chain given lowest first, for completing the layer above it.
    pub(crate) fn below(&self, chain: &[Digest]) -> Vec<PathBuf> {
        let state = lock(&self.state);
        self.visible(&state.content, chain)
    }

    /// The image's lower directories, topmost first. An overlay needs one, hence the empty one; it
    /// also stands below a cut chain, so that whiteouts in the layer above it stay marks and don't
    /// show as device nodes.
    fn lowers(&self, content: &Content, record: &ImageRecord) -> Vec<PathBuf> {
        let mut lowers = self.visible(content, &record.chain);
        if lowers.is_empty() || lowers.len() < record.chain.len() {
            lowers.push(self.empty.clone());
        }
        lowers
    }

    /// Topmost first, down to a layer whose root hides all below.
    fn visible(&self, content: &Content, chain: &[Digest]) -> Vec<PathBuf> {
        let mut lowers = Vec::with_capacity(chain.len());
        for id in chain.iter().rev() {
            lowers.push(self.lower(id));
            if content.layers.get(id).is_some_and(|l| l.opaque_root) {
                break;
            }
        }
        lowers
    }
}

impl Snapshot {
    /// Finds a listed image by id, bare hex, name, or unambiguous beginning of the hex digits; equal
    /// answers for all of them (cri-contract, "References"). A text that can be none of these is an
    /// error, so that a typing mistake isn't taken for a missing image.
    pub(crate) fn find(&self, text: &str) -> Result<Option<Arc<Image>>, Failure> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let digits = !hex.is_empty()
            && hex.len() <= 64
            && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if let Ok(id) = text.parse::<ImageId>() {
            return Ok(self.images.get(&id).cloned());
        }
        let named = match Reference::parse(text) {
            Ok(reference) => self.names.get(&reference.to_string()),
            Err(failure) if !digits => return Err(failure),
            Err(_) => None,
        };
        if let Some(id) = named {
            return Ok(self.images.get(id).cloned());
        }
        if !digits {
            return Ok(None);
        }
        let mut matching = self
            .images
            .iter()
            .filter(|(id, _)| id.digest().hex().starts_with(hex));
        match (matching.next(), matching.next()) {
            (Some(_), Some(_)) => Err(Failure::invalid(format!(
                "image id {text:?} is ambiguous: several begin with it"
            ))),
            (Some((_, image)), None) => Ok(Some(Arc::clone(image))),
            (None, _) => Ok(None),
        }
    }
}

/// Whose a hold is.
fn owner(holder: &str) -> &str {
    holder.split('/').next().unwrap_or(holder)
}

/// Makes renames within `path` durable.
pub(crate) fn sync_folder(path: &Path) -> Result<(), Failure> {
    std::fs::File::open(path)
        .and_then(|folder| folder.sync_all())
        .doing(format!("sync {}", path.display()))
}
