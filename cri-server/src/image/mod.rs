//! The image store: pulled images, their unpacked layers, and containers' writable layers.
//!
//! On disk, all 0700 below `root`: `metadata.redb` (records), `layers/<chain id>/fs` (one overlay
//! lower directory each), `staging/` (layers being unpacked), `writable/<container id>/{upper,work}`,
//! `empty/` (the lower directory of an image without layers), `trash/` (on its way out).
//! Blobs are not kept: a layer is unpacked while it arrives, and manifest and config are records.
//!
//! Layers are keyed by chain id, not diff id: what a layer's files are can depend on those below
//! (directories it implies take their attributes from there, hard links their content), so one diff
//! id over two parents is two directories. Download and unpacking still run side by side; only the
//! short last step of a layer waits for the one below (`unpack/finish.rs`).

mod auth;
mod catalog;
mod chain;
mod challenge;
mod client;
mod copy;
mod digest;
mod exchange;
mod fetch;
mod gc;
mod hosts;
mod manifest;
mod metadata;
mod pull;
mod reference;
mod registry;
#[cfg(test)]
mod tests;
mod token;
mod tree;
mod types;
pub mod unpack;
mod volume;
mod writable;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::auth::{RegistryAuth, Secret};
pub use self::digest::Digest;
pub use self::reference::Reference;
pub use self::types::{
    FsInfo, Image, ImageId, ImageSettings, LayerProgress, PullProgress, PullRequest, Usage,
    Writable,
};
pub use self::volume::seed_volume;

use self::catalog::Catalog;
use self::gc::Trash;
use self::pull::Pulls;
use self::writable::{WritableLayers, make_private};
use crate::clock::now;
use crate::failure::{Doing as _, Failure};

/// The store; clones share it.
#[derive(Clone, Debug)]
pub struct ImageStore(Arc<Store>);

#[derive(Debug)]
struct Store {
    settings: ImageSettings,
    trash: Arc<Trash>,
    catalog: Catalog,
    writable: WritableLayers,
    pulls: Pulls,
}

impl ImageStore {
    /// Opens the store, sweeping what an unclean end left. Blocking; once at start.
    pub fn open(settings: ImageSettings) -> Result<Self, Failure> {
        let root = settings.root.clone();
        std::fs::create_dir_all(&root).doing(format!("make {}", root.display()))?;
        make_private(&root)?;
        for folder in ["layers", "staging", "trash", "writable", "empty"] {
            make_private(&root.join(folder))?;
        }
        // It is seen as a container's `/`.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(root.join("empty"), open)
            .doing(format!("set the mode of {}", root.join("empty").display()))?;
        let trash = Arc::new(Trash::open(root.join("trash"))?);
        sweep_staging(&root.join("staging"), &trash)?;
        let catalog = Catalog::open(&root, Arc::clone(&trash))?;
        let writable = WritableLayers::open(root.join("writable"), Arc::clone(&trash))?;
        Ok(Self(Arc::new(Store {
            pulls: Pulls::new(settings.concurrent_layers),
            settings,
            trash,
            catalog,
            writable,
        })))
    }

    /// Every listed image, by id. A snapshot: never waits.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.0.catalog.snapshot().images.values().cloned().collect()
    }

    /// One image by id, bare hex, unambiguous prefix, tag or digest. Never waits.
    pub fn find(&self, name: &str) -> Result<Option<Arc<Image>>, Failure> {
        self.0.catalog.snapshot().find(name)
    }

    /// Removes an image with all its names; absent is fine. Content stays while held.
    pub async fn remove(&self, name: &str) -> Result<(), Failure> {
        let Some(image) = self.find(name)? else {
            return Ok(());
        };
        self.blocking(move |store| store.catalog.remove_image(&image.id))
            .await
    }

    /// Keeps an image's content for `holder` until released: a container's id, and `/` with a number for each
    /// image it mounts. Not durable: the containers' records say which images they use, and
    /// [`ImageStore::gc`] is told at start.
    pub fn hold(&self, id: &ImageId, holder: &str) -> Result<(), Failure> {
        self.0.catalog.hold(id, holder)
    }

    /// Ends all holds of a container; none is fine.
    pub async fn release(&self, holder: &str) -> Result<(), Failure> {
        let holder = holder.to_owned();
        self.blocking(move |store| store.catalog.release(&holder))
            .await
    }

    /// Overlay lower directories of an image, topmost first, never empty. Also of one that was
    /// removed while held.
    pub fn layers(&self, id: &ImageId) -> Result<Vec<PathBuf>, Failure> {
        self.0
            .catalog
            .snapshot()
            .lowers
            .get(id)
            .cloned()
            .ok_or_else(|| Failure::not_found(format!("no image {id}")))
    }

    /// Takes over who holds which image, and removes the writable layers of all others and the
    /// content that nothing needs; at start.
    pub async fn gc(&self, holders: BTreeMap<String, ImageId>) -> Result<(), Failure> {
        self.blocking(move |store| {
            store.writable.retain(&holders)?;
            store.catalog.retain(holders)
        })
        .await
    }

    /// Where the upper and work directory of a container are, once made.
    pub fn writable_paths(&self, container: &str) -> Result<Writable, Failure> {
        self.0.writable.paths(container)
    }

    /// The upper and work directory of a container of image `id`, made if they aren't there.
    pub async fn writable(&self, container: &str, id: &ImageId) -> Result<Writable, Failure> {
        let lowers = self.layers(id)?;
        let container = container.to_owned();
        self.blocking(move |store| {
            let top = lowers.first().map_or(Path::new("/"), PathBuf::as_path);
            store.writable.create(&container, top)
        })
        .await
    }

    /// Takes a container's writable layer away; absent is fine, its space comes back a little later.
    pub async fn remove_writable(&self, container: &str) -> Result<(), Failure> {
        let container = container.to_owned();
        self.blocking(move |store| store.writable.remove(&container))
            .await
    }

    /// Space of a container's writable layer, as last measured; renewed in the background when asked
    /// for after ten seconds. `None` if there is no such layer.
    pub fn writable_usage(&self, container: &str) -> Option<Usage> {
        self.0.writable.usage(container)
    }

    /// Space of layers and writable layers, from figures at hand.
    pub fn fs_info(&self) -> FsInfo {
        let snapshot = self.0.catalog.snapshot();
        let (bytes, inodes) = self.0.writable.total();
        FsInfo {
            mountpoint: self.0.settings.root.clone(),
            used_bytes: snapshot.bytes.saturating_add(bytes),
            inodes_used: snapshot.inodes.saturating_add(inodes),
            timestamp_ns: now(),
        }
    }

    /// Runs `work` on the blocking pool. Dropping the future doesn't stop it: each such step is
    /// whole in itself.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let store = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&store))
            .await
            .doing("run a step of the image store")?
    }
}

/// Half-unpacked layers of a daemon that was killed.
fn sweep_staging(staging: &Path, trash: &Trash) -> Result<(), Failure> {
    let what = format!("sweep {}", staging.display());
    for entry in std::fs::read_dir(staging).doing(&what)? {
        trash.take(&entry.doing(&what)?.path())?;
    }
    Ok(())
}
