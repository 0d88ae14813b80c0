//! The last step of a layer, which needs the layers below it: hard links to their files, attributes
//! of directories the layer implies, and at the end the directories' times.
//!
//! Where a lower layer has something other than a directory at an implied path, a link for instance,
//! the directory takes its place, as in Docker's and CRI-O's storage; containerd would follow the
//! link. A layer that means to write behind a link lists what it leads to.

use std::collections::HashMap;
use std::os::fd::AsFd as _;

use rustix::fs::{AtFlags, FileType, Mode, fchmod, fstat, futimens, linkat};

use super::apply::{Directory, Layer};
use super::attributes::timestamps;
use super::ground::{c_name, refused, reopen};
use super::tar::Time;
use crate::failure::{Doing as _, Failure};
use crate::image::chain::{Chain, is_opaque};
use crate::image::copy::{self, Budget};
use crate::image::tree::open_directory;

/// What became of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub bytes: u64,
    pub inodes: u64,
    pub opaque_root: bool,
}

impl Layer {
    /// Completes the layer on top of `below`.
    pub(crate) fn finish(
        &mut self,
        below: &Chain,
        budget: &mut Budget,
    ) -> Result<Finished, Failure> {
        self.link_below(below, budget)?;
        self.directories_from(below)?;
        Ok(Finished {
            bytes: self.bytes,
            inodes: self.inodes,
            opaque_root: self.opaque_root,
        })
    }

    /// Hard links whose target is in a lower layer get its bytes: links can't cross directories
    /// that come and go apart (case L2). Several links to one target become links to one copy.
    fn link_below(&mut self, below: &Chain, budget: &mut Budget) -> Result<(), Failure> {
        let mut copies: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        for link in std::mem::take(&mut self.links) {
            let what = || {
                format!(
                    "hard link {:?} to {:?}",
                    String::from_utf8_lossy(&link.path),
                    String::from_utf8_lossy(&link.target)
                )
            };
            let (directory, name) = split(&link.path);
            let name = c_name(name)?;
            let parent = self.parent(directory).map_err(|e| e.context(what()))?;
            if self.existing(parent.as_fd(), &name).is_ok() {
                // A later entry of the archive took the name.
                continue;
            }
            if let Some(first) = copies.get(&link.target).cloned() {
                let (directory, first) = split(&first);
                let source = self.parent(directory).map_err(|e| e.context(what()))?;
                linkat(&source, &c_name(first)?, &parent, &name, AtFlags::empty()).doing(what())?;
                copies.insert(link.path.clone(), link.path);
                continue;
            }
            let found = below.find(&link.target).map_err(|e| e.context(what()))?;
            let Some(found) = found.filter(|f| f.kind() != FileType::Directory) else {
                return Err(
                    refused("neither this layer nor those below have the target").context(what()),
                );
            };
            copy::node(
                found.directory.as_fd(),
                &found.name,
                &found.stat,
                parent.as_fd(),
                &name,
                budget,
            )
            .map_err(|e| e.context(what()))?;
            let size = u64::try_from(found.stat.st_size).unwrap_or(0);
            self.wrote(size)?;
            self.bytes = self.bytes.saturating_add(size);
            self.inodes = self.inodes.saturating_add(1);
            copies.insert(link.target, link.path.clone());
            copies.insert(link.path.clone(), link.path);
        }
        Ok(())
    }

    /// Attributes of implied directories, then every directory's time.
    fn directories_from(&mut self, below: &Chain) -> Result<(), Failure> {
        for (path, directory) in std::mem::take(&mut self.directories) {
            let what = || format!("directory {:?}", String::from_utf8_lossy(&path));
            let name = if path.is_empty() {
                b"."
            } else {
                path.as_slice()
            };
            // Late, so opened anew, through no link (threat D2). One that lies behind a link of its
            // own layer is reached under its other name, or keeps the time of its unpacking.
            let Ok(fd) = open_directory(self.root.as_fd(), &c_name(name)?) else {
                continue;
            };
            let time = match directory {
                Directory::Listed(time) => time,
                Directory::Implied if !self.hidden(&path)? => {
                    let found = below.find(&path).map_err(|e| e.context(what()))?;
                    match found.filter(|f| f.kind() == FileType::Directory) {
                        Some(found) => {
                            let from = reopen(found.directory.as_fd(), &found.name)?;
                            let stat = fstat(&from).doing(what())?;
                            copy::attributes(from.as_fd(), &stat, fd.as_fd())
                                .map_err(|e| e.context(what()))?;
                            Time {
                                seconds: stat.st_mtime,
                                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
                            }
                        }
                        None => plain(&fd)?,
                    }
                }
                Directory::Implied | Directory::ImpliedAnew => plain(&fd)?,
            };
            futimens(&fd, &timestamps(time)).doing(what())?;
        }
        Ok(())
    }

    /// Whether a directory above `path` in this layer is opaque.
    fn hidden(&self, path: &[u8]) -> Result<bool, Failure> {
        for (end, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            let above = c_name(path.get(..end).unwrap_or(b"."))?;
            if let Ok(directory) = open_directory(self.root.as_fd(), &above)
                && is_opaque(&directory).doing("look for an opaque directory")?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What nobody describes is root's, mode 0755, as every tool of the field makes it.
fn plain(fd: &std::os::fd::OwnedFd) -> Result<Time, Failure> {
    fchmod(fd, Mode::from_raw_mode(0o755)).doing("set a directory's mode")?;
    Ok(Time::default())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (
            path.get(..slash).unwrap_or(&[]),
            path.get(slash + 1..).unwrap_or(&[]),
        ),
        None => (&[], path),
    }
}
