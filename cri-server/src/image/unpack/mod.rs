//! Unpacking one layer: blob → digest → decompression → archive → directory, in one pass.
//!
//! Runs on a blocking thread, fed through a channel. Nothing it makes is visible before the catalog
//! publishes it; what is dropped half-way is taken away.

pub(crate) mod apply;
mod attributes;
pub(crate) mod decompress;
pub(crate) mod finish;
mod ground;
mod headers;
pub mod limits;
pub(crate) mod tar;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod xattr;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc::Receiver;

use self::apply::Layer;
use self::decompress::{Incoming, Piece, Seen, Unpacked};
use self::finish::Finished;
use self::limits::Limits;
use self::tar::Archive;
use super::chain::Chain;
use super::copy::Budget;
use super::digest::Digest;
use super::gc::Trash;
use super::tree::open_folder;
use super::writable::make_private;
use crate::failure::{Class, Doing as _, Failure};

/// What a layer must be.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub digest: Digest,
    pub size: u64,
    pub diff_id: Digest,
}

/// A private directory for one unpacking, gone when dropped unpublished.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    trash: Arc<Trash>,
}

impl Staging {
    /// Makes `path` with the folders a layer needs.
    pub(crate) fn create(path: PathBuf, trash: Arc<Trash>) -> Result<Self, Failure> {
        std::fs::create_dir(&path).doing(format!("make {}", path.display()))?;
        let staging = Self { path, trash };
        make_private(&staging.path)?;
        make_private(&staging.fs())?;
        make_private(&staging.discarded())?;
        Ok(staging)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The layer's own directory in it.
    pub(crate) fn fs(&self) -> PathBuf {
        self.path.join("fs")
    }

    fn discarded(&self) -> PathBuf {
        self.path.join("discarded")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Absent once published.
        if let Err(error) = self.trash.take(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot take a staging folder away; the next start does");
        }
    }
}

/// A layer unpacked and verified, waiting for those below it.
#[derive(Debug)]
pub(crate) struct Ready {
    layer: Layer,
    staging: Staging,
}

/// Unpacks what `pieces` bring into `staging`, checking size, digest and diff id (threats K4, D11).
pub(crate) fn unpack(
    pieces: Receiver<Piece>,
    expected: &Expected,
    staging: Staging,
    bottom: bool,
    limits: &Limits,
) -> Result<Ready, Failure> {
    let seen = Seen::new(expected.digest.algorithm());
    let mut incoming = Incoming::new(pieces, seen.clone());
    let diff = Seen::new(expected.diff_id.algorithm());
    let root = open_folder(&staging.fs())?;
    let mut layer = Layer::new(root, open_folder(&staging.discarded())?, bottom, limits);
    let applied = apply(&mut incoming, &diff, &mut layer, limits);
    // What is left is read as well: a wrong digest explains any other error.
    let mut rest = [0; 16 << 10];
    while incoming.read(&mut rest).is_ok_and(|count| count > 0) {}
    if seen.bytes() == expected.size {
        let digest = seen.digest(expected.digest.algorithm());
        if digest != expected.digest {
            return Err(Failure::precondition(format!(
                "its bytes have digest {digest}"
            )));
        }
    } else if incoming.ended() {
        return Err(Failure::precondition(format!(
            "it has {} bytes where the manifest says {}",
            seen.bytes(),
            expected.size
        )));
    }
    applied?;
    let diff_id = diff.digest(expected.diff_id.algorithm());
    if diff_id != expected.diff_id {
        return Err(Failure::precondition(format!(
            "it unpacks to {diff_id}, the config says {}",
            expected.diff_id
        )));
    }
    Ok(Ready { layer, staging })
}

fn apply(
    incoming: &mut Incoming,
    diff: &Seen,
    layer: &mut Layer,
    limits: &Limits,
) -> Result<(), Failure> {
    let unpacked = Unpacked::open(incoming, diff.clone(), limits).doing("read it")?;
    let mut archive = Archive::new(unpacked, limits);
    layer.apply(&mut archive).map_err(content)?;
    archive.drain().doing("read to its end").map_err(content)
}

/// Errors of reading come from the content, unless the disk is full.
fn content(failure: Failure) -> Failure {
    match failure.class() {
        Class::Internal => Failure::precondition(failure.message()),
        _ => failure,
    }
}

impl Ready {
    /// Completes the layer on top of `below`. The caller syncs before it publishes.
    pub(crate) fn finish(
        mut self,
        below: &Chain,
        limits: &Limits,
    ) -> Result<(Staging, Finished), Failure> {
        let mut budget = Budget {
            bytes: limits.bytes,
            entries: limits.entries,
        };
        let finished = self.layer.finish(below, &mut budget)?;
        self.staging.trash.take(&self.staging.discarded())?;
        Ok((self.staging, finished))
    }
}
