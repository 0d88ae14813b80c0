//! The store's durable records, in redb: images, their names, and layers.
//!
//! Every change is one transaction, durable when the call returns, with quick repair (an unclean
//! open otherwise scans everything: redb#639). A layer's record is written after its files are
//! synced and in place, an image's after its layers' (case T6), so a record vouches for the disk.
//! The catalog in `catalog.rs` is the only caller and the only writer.

use std::collections::BTreeMap;
use std::path::Path;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::types::ImageId;
use crate::failure::{Doing as _, Failure};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
const NAMES: TableDefinition<'_, &str, &str> = TableDefinition::new("names");
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers");

/// Version of the tables; a newer one is refused, not guessed at (threat P3).
const VERSION: u64 = 1;

/// An image, without its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub config_json: String,
    /// Chain ids, lowest layer first.
    pub chain: Vec<Digest>,
    pub annotations: BTreeMap<String, String>,
    /// Bytes of config and manifests.
    pub documents: u64,
    /// False once removed: kept only because a container holds it.
    pub listed: bool,
}

/// An unpacked layer, keyed by its chain id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub diff_id: Digest,
    /// Disk space and files it takes.
    pub bytes: u64,
    pub inodes: u64,
    /// Its root is opaque: nothing below it shows. The kernel doesn't look at the mark on a layer's
    /// root, so the chain is cut here.
    pub opaque_root: bool,
}

/// Everything on record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pub images: BTreeMap<ImageId, ImageRecord>,
    pub names: BTreeMap<String, ImageId>,
    pub layers: BTreeMap<Digest, LayerRecord>,
}

/// One step of a change.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    PutImage(ImageId, ImageRecord),
    DropImage(ImageId),
    PutName(String, ImageId),
    DropName(String),
    PutLayer(Digest, LayerRecord),
    DropLayer(Digest),
}

impl Change {
    /// For errors.
    fn subject(&self) -> &'static str {
        match self {
            Self::PutImage(..) | Self::DropImage(_) => "image",
            Self::PutName(..) | Self::DropName(_) => "name",
            Self::PutLayer(..) | Self::DropLayer(_) => "layer",
        }
    }
}

/// The open database.
#[derive(Debug)]
pub(crate) struct Metadata {
    database: Database,
}

impl Metadata {
    /// Opens or creates the file and reads it whole: some hundred images at most.
    pub(crate) fn open(path: &Path) -> Result<(Self, Content), Failure> {
        let what = format!("open image records {}", path.display());
        let database = Database::builder()
            // Records are small and mirrored in memory; the default cache is 1 GiB.
            .set_cache_size(4 << 20)
            .create(path)
            .doing(&what)?;
        let metadata = Self { database };
        metadata.prepare().map_err(|e| e.context(&what))?;
        let content = metadata.read().map_err(|e| e.context(&what))?;
        Ok((metadata, content))
    }

    fn prepare(&self) -> Result<(), Failure> {
        let mut transaction = self.database.begin_write().doing("begin")?;
        transaction.set_quick_repair(true);
        {
            let mut meta = transaction.open_table(META).doing("open table meta")?;
            let found = meta
                .get("version")
                .doing("read version")?
                .map(|v| v.value());
            match found {
                None => {
                    meta.insert("version", VERSION).doing("write version")?;
                }
                Some(VERSION) => {}
                Some(other) => {
                    return Err(Failure::precondition(format!(
                        "they have version {other}, this build knows {VERSION}"
                    )));
                }
            }
            transaction.open_table(IMAGES).doing("open table images")?;
            transaction.open_table(NAMES).doing("open table names")?;
            transaction.open_table(LAYERS).doing("open table layers")?;
        }
        transaction.commit().doing("commit")
    }

    fn read(&self) -> Result<Content, Failure> {
        let transaction = self.database.begin_read().doing("begin")?;
        let mut content = Content::default();
        let images = transaction.open_table(IMAGES).doing("open table images")?;
        for row in images.iter().doing("read images")? {
            let (key, value) = row.doing("read images")?;
            let record = serde_json::from_slice(value.value()).doing("read an image's record")?;
            content.images.insert(key.value().parse()?, record);
        }
        let names = transaction.open_table(NAMES).doing("open table names")?;
        for row in names.iter().doing("read names")? {
            let (key, value) = row.doing("read names")?;
            let id = value.value().parse()?;
            content.names.insert(key.value().to_owned(), id);
        }
        let layers = transaction.open_table(LAYERS).doing("open table layers")?;
        for row in layers.iter().doing("read layers")? {
            let (key, value) = row.doing("read layers")?;
            let record = serde_json::from_slice(value.value()).doing("read a layer's record")?;
            content.layers.insert(key.value().parse()?, record);
        }
        Ok(content)
    }

    /// Makes all of `changes` or none; durable on return.
    pub(crate) fn commit(&self, changes: &[Change]) -> Result<(), Failure> {
        self.write(changes)
            .map_err(|e| e.context("write image records"))
    }

    fn write(&self, changes: &[Change]) -> Result<(), Failure> {
        let mut transaction = self.database.begin_write().doing("begin")?;
        transaction.set_quick_repair(true);
        {
            let mut images = transaction.open_table(IMAGES).doing("open table images")?;
            let mut names = transaction.open_table(NAMES).doing("open table names")?;
            let mut layers = transaction.open_table(LAYERS).doing("open table layers")?;
            for change in changes {
                let what = change.subject();
                match change {
                    Change::PutImage(id, record) => {
                        let bytes = serde_json::to_vec(record).doing(what)?;
                        images
                            .insert(id.to_string().as_str(), bytes.as_slice())
                            .doing(what)?;
                    }
                    Change::DropImage(id) => {
                        images.remove(id.to_string().as_str()).doing(what)?;
                    }
                    Change::PutName(name, id) => {
                        names
                            .insert(name.as_str(), id.to_string().as_str())
                            .doing(what)?;
                    }
                    Change::DropName(name) => {
                        names.remove(name.as_str()).doing(what)?;
                    }
                    Change::PutLayer(chain, record) => {
                        let bytes = serde_json::to_vec(record).doing(what)?;
                        layers
                            .insert(chain.to_string().as_str(), bytes.as_slice())
                            .doing(what)?;
                    }
                    Change::DropLayer(chain) => {
                        layers.remove(chain.to_string().as_str()).doing(what)?;
                    }
                }
            }
        }
        transaction.commit().doing("commit")
    }
}

impl Content {
    /// The same changes on the copy in memory.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::PutImage(id, record) => {
                    self.images.insert(id, record);
                }
                Change::DropImage(id) => {
                    self.images.remove(&id);
                }
                Change::PutName(name, id) => {
                    self.names.insert(name, id);
                }
                Change::DropName(name) => {
                    self.names.remove(&name);
                }
                Change::PutLayer(chain, record) => {
                    self.layers.insert(chain, record);
                }
                Change::DropLayer(chain) => {
                    self.layers.remove(&chain);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_is_there_after_an_unclean_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.redb");
        let id = ImageId::new(Digest::of(b"config"));
        let record = ImageRecord {
            config_json: "{}".into(),
            chain: vec![Digest::of(b"layer")],
            annotations: BTreeMap::new(),
            documents: 2,
            listed: true,
        };
        let (metadata, content) = Metadata::open(&path).unwrap();
        assert!(content.images.is_empty());
        metadata
            .commit(&[
                Change::PutImage(id.clone(), record.clone()),
                Change::PutName("r.io/x:1".into(), id.clone()),
            ])
            .unwrap();
        // As after kill -9: the file as it is on disk while the database is still open.
        let copy = folder.path().join("copy.redb");
        std::fs::copy(&path, &copy).unwrap();
        let (_, content) = Metadata::open(&copy).unwrap();
        assert_eq!(content.images.get(&id), Some(&record));
        assert_eq!(content.names.get("r.io/x:1"), Some(&id));
    }
}
