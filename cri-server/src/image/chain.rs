//! Looks into the layers below as one tree, the way overlay shows them.
//!
//! Used for what a layer takes from those below it: attributes of directories it implies, content
//! of hard links. The rules are overlayfs': the topmost layer that has a name decides; a character
//! device 0:0 hides it; an opaque directory hides what lies in the directories below it.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Stat, fgetxattr, readlinkat, statat};
use rustix::io::Errno;

use super::tree::{open_directory, open_folder};
use super::unpack::xattr::OPAQUE;
use crate::failure::{Doing as _, Failure};

/// Links followed on the way to one name, as the kernel's MAXSYMLINKS.
const MAX_LINKS: usize = 40;

/// Unpacked layers, topmost first.
#[derive(Debug)]
pub(crate) struct Chain(Vec<OwnedFd>);

/// Something found: its directory in the layer that has it, and its name there.
#[derive(Debug)]
pub(crate) struct Found {
    pub directory: OwnedFd,
    pub name: CString,
    pub stat: Stat,
}

impl Found {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// One layer's word on a path.
enum Word {
    Here(Found),
    /// Not here and not below.
    Hidden,
    Below,
}

impl Chain {
    pub(crate) fn open(lowers: &[PathBuf]) -> Result<Self, Failure> {
        let layers: Result<_, Failure> = lowers.iter().map(|path| open_folder(path)).collect();
        Ok(Self(layers?))
    }

    /// What the path leads to: links on the way are followed inside the tree, the last isn't.
    pub(crate) fn find(&self, path: &[u8]) -> Result<Option<Found>, Failure> {
        self.resolve(path).doing(format!(
            "look up {:?} in the layers below",
            String::from_utf8_lossy(path)
        ))
    }

    fn resolve(&self, path: &[u8]) -> rustix::io::Result<Option<Found>> {
        let mut links = 0;
        let mut place: Vec<Vec<u8>> = Vec::new();
        let mut ahead: Vec<Vec<u8>> = split_reversed(path);
        let mut last = self.exact(&place)?;
        while let Some(component) = ahead.pop() {
            match component.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    place.pop();
                    last = self.exact(&place)?;
                    continue;
                }
                _ => {}
            }
            place.push(component);
            let Some(found) = self.exact(&place)? else {
                return Ok(None);
            };
            if found.kind() == FileType::Symlink && !ahead.is_empty() {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = readlinkat(&found.directory, &found.name, Vec::new())?;
                let target = target.to_bytes();
                place.pop();
                if target.starts_with(b"/") {
                    place.clear();
                }
                ahead.extend(split_reversed(target));
                last = self.exact(&place)?;
                continue;
            }
            last = Some(found);
        }
        Ok(last)
    }

    /// A path without links on its way.
    fn exact(&self, path: &[Vec<u8>]) -> rustix::io::Result<Option<Found>> {
        for layer in &self.0 {
            match word(layer, path)? {
                Word::Here(found) => return Ok(Some(found)),
                Word::Hidden => return Ok(None),
                Word::Below => {}
            }
        }
        Ok(None)
    }
}

/// Components, the first one last.
fn split_reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/')
        .rev()
        .map(<[u8]>::to_vec)
        .collect()
}

fn word(layer: &OwnedFd, path: &[Vec<u8>]) -> rustix::io::Result<Word> {
    let mut directory = open_directory(layer.as_fd(), c".")?;
    let mut opaque = false;
    let absent = |opaque| if opaque { Word::Hidden } else { Word::Below };
    let Some((last, above)) = path.split_last() else {
        let stat = statat(&directory, c".", AtFlags::SYMLINK_NOFOLLOW)?;
        return Ok(Word::Here(Found {
            directory,
            name: c".".to_owned(),
            stat,
        }));
    };
    for component in above {
        let Some((name, stat)) = look(&directory, component)? else {
            return Ok(absent(opaque));
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(Word::Hidden);
        }
        directory = open_directory(directory.as_fd(), &name)?;
        opaque |= is_opaque(&directory)?;
    }
    let Some((name, stat)) = look(&directory, last)? else {
        return Ok(absent(opaque));
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
        return Ok(Word::Hidden);
    }
    Ok(Word::Here(Found {
        directory,
        name,
        stat,
    }))
}

fn look(directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<Option<(CString, Stat)>> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some((name, stat))),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether overlay treats the directory as opaque.
pub(crate) fn is_opaque(directory: &OwnedFd) -> rustix::io::Result<bool> {
    let mut value = [0; 2];
    match fgetxattr(directory, OPAQUE, value.as_mut_slice()) {
        Ok(1) => Ok(value.first() == Some(&b'y')),
        Ok(_) | Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(e) => Err(e),
    }
}
