//! What the image store hands out and takes: images, settings, progress.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::auth::RegistryAuth;
use super::digest::Digest;
use super::unpack::limits::Limits;

/// An image's identity: the digest of its config, `sha256:<hex>` (cri-contract, "Id").
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(Digest);

impl ImageId {
    pub fn new(config: Digest) -> Self {
        Self(config)
    }

    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::str::FromStr for ImageId {
    type Err = crate::failure::Failure;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// An image as listed.
#[derive(Clone, Debug)]
pub struct Image {
    pub id: ImageId,
    /// Real names only, sorted; empty for an image pulled by digest (case R1).
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    /// Bytes its layers take unpacked, plus its documents: what removing it can free.
    pub size: u64,
    pub config: ImageConfiguration,
    /// The config as its author wrote it: the bytes `id` is the digest of.
    pub config_json: String,
    /// Chain id of the topmost layer; absent for an image without layers.
    pub chain_id: Option<Digest>,
    /// Annotations of the image's manifest. The author's words: information, never instruction (D9).
    pub annotations: BTreeMap<String, String>,
}

/// What `ImageStore::open` needs.
#[derive(Clone, Debug)]
pub struct ImageSettings {
    /// Everything of the store lies below; made with mode 0700.
    pub root: PathBuf,
    /// Folders holding `<host>/hosts.toml`; the first that has a folder for the host counts.
    pub certs_d: Vec<PathBuf>,
    /// Layers downloaded and unpacked at once, over all pulls.
    pub concurrent_layers: usize,
    /// A pull that moves less than 16 KiB in this time is given up.
    pub no_progress: Duration,
    /// Longest wait for a connection, and for the first or next bytes of an answer.
    pub stall: Duration,
    /// Hosts beside the registry's own that may be given credentials for a token.
    pub token_hosts: Vec<String>,
    /// Bounds on what a layer may unpack to.
    pub limits: Limits,
}

impl ImageSettings {
    /// The defaults, for a store below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            certs_d: Vec::new(),
            concurrent_layers: 4,
            // containerd's image_pull_progress_timeout.
            no_progress: Duration::from_secs(300),
            stall: Duration::from_secs(60),
            token_hosts: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// One PullImage.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// The name as the caller wrote it.
    pub reference: String,
    pub auth: Option<RegistryAuth>,
}

/// A container's own part of its root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writable {
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// Space taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
    /// When it was measured, in nanoseconds since 1970.
    pub timestamp_ns: i64,
}

/// The file system that holds images and writable layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsInfo {
    pub mountpoint: PathBuf,
    pub used_bytes: u64,
    pub inodes_used: u64,
    pub timestamp_ns: i64,
}

/// A pull that is running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    pub reference: String,
    /// In the manifest's order; empty until the manifest is there.
    pub layers: Vec<LayerProgress>,
}

/// One layer of it, in compressed bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerProgress {
    pub digest: String,
    pub done: u64,
    pub total: u64,
}
