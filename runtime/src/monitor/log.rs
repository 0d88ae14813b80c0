//! A container's log file: opened below the pod's log directory without following a link, written
//! in whole records, reopened on request. Output that can't be written is dropped and counted, so
//! that a full disk never stalls the workload (threats G1–G3).

use std::path::{Component, Path};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, ftruncate, mkdirat, openat2};
use rustix::io::Errno;

use super::record::{HEADER, MAX_CONTENT, Splitter, Stamp, Stream, landed};
use super::wire::LogTarget;
use crate::error::{Doing, Error, Result};

/// Records are written when they amount to this many bytes, or no input is left.
const BATCH: usize = 64 << 10;

/// A log path's longest chain of directories; the kubelet uses one.
const MAX_DEPTH: usize = 16;

/// What every log of the monitor shares while it writes.
#[derive(Debug)]
pub(super) struct Scratch {
    records: Vec<u8>,
    stamp: Stamp,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            records: Vec::with_capacity(BATCH + 2 * (HEADER + MAX_CONTENT + 1)),
            stamp: Stamp::new(),
        }
    }

    fn now(&mut self) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.stamp.set(now.as_secs(), now.subsec_nanos());
    }
}

/// The log of one container.
#[derive(Debug)]
pub(super) struct Log {
    file: LogFile,
    stdout: Splitter,
    stderr: Splitter,
}

/// Where records go, and what of them didn't get there.
#[derive(Debug)]
struct LogFile {
    /// Where it is; none discards all output.
    target: Option<LogTarget>,
    open: Option<OwnedFd>,
    lost: u64,
    complained: bool,
}

impl Log {
    /// Opens or creates the file, its parent directories included.
    pub(super) fn open(target: Option<LogTarget>) -> Result<Self> {
        let file = LogFile {
            open: target.as_ref().map(open).transpose()?,
            target,
            lost: 0,
            complained: false,
        };
        Ok(Self {
            file,
            stdout: Splitter::new(Stream::Stdout),
            stderr: Splitter::new(Stream::Stderr),
        })
    }

    /// Opens the path anew; from here on nothing goes to the old file. If it fails, the old file
    /// stays in use.
    pub(super) fn reopen(&mut self) -> Result<()> {
        if let Some(target) = &self.file.target {
            self.file.open = Some(open(target)?);
            self.file.complained = false;
        }
        Ok(())
    }

    /// Bytes of output that didn't reach the log.
    pub(super) fn lost(&self) -> u64 {
        self.file.lost
    }

    /// Logs output of one stream.
    pub(super) fn write(&mut self, stream: Stream, mut output: &[u8], scratch: &mut Scratch) {
        if self.file.open.is_none() {
            return;
        }
        scratch.now();
        let splitter = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        while !output.is_empty() {
            let used = self.file.append(splitter, scratch, |splitter, scratch| {
                splitter.push(output, &mut scratch.stamp, &mut scratch.records, BATCH)
            });
            output = output.get(used..).unwrap_or_default();
        }
    }

    /// Both streams ended: writes what is held back.
    pub(super) fn finish(&mut self, scratch: &mut Scratch) {
        if self.file.open.is_none() {
            return;
        }
        scratch.now();
        for splitter in [&mut self.stdout, &mut self.stderr] {
            self.file.append(splitter, scratch, |splitter, scratch| {
                splitter.finish(&mut scratch.stamp, &mut scratch.records);
            });
        }
        self.file.open = None;
    }
}

impl LogFile {
    /// Appends the records that `make` puts into the scratch, and returns what it does.
    fn append<T>(
        &mut self,
        splitter: &mut Splitter,
        scratch: &mut Scratch,
        make: impl FnOnce(&mut Splitter, &mut Scratch) -> T,
    ) -> T {
        let was_open = splitter.open();
        scratch.records.clear();
        let made = make(splitter, scratch);
        if let Some(file) = &self.open
            && let Err((written, errno)) = write_all(file, &scratch.records)
        {
            let landed = landed(&scratch.records, written);
            if landed.torn > 0 {
                untear(file, landed.torn);
            }
            splitter.lost(landed.open.unwrap_or(was_open));
            self.note(landed.lost, errno);
        }
        made
    }

    /// Counts what was lost and says so once per file.
    fn note(&mut self, lost: u64, errno: Errno) {
        self.lost = self.lost.saturating_add(lost);
        if let Some(target) = self.target.as_ref().filter(|_| !self.complained) {
            let error = Error::system(format!("write to log {}", shown(target)), errno);
            super::complain(&error.context("output is dropped and counted"));
            self.complained = true;
        }
    }
}

/// Writes whole records; on failure says how many bytes were written, and why no more.
fn write_all(file: &OwnedFd, records: &[u8]) -> std::result::Result<(), (usize, Errno)> {
    let mut written = 0;
    while let Some(rest) = records.get(written..).filter(|rest| !rest.is_empty()) {
        match rustix::io::write(file, rest) {
            Ok(0) => return Err((written, Errno::IO)),
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err((written, errno)),
        }
    }
    Ok(())
}

/// Takes the beginning of a record that didn't fit out of the file again. We alone append to it.
fn untear(file: &OwnedFd, torn: usize) {
    let Ok(torn) = u64::try_from(torn) else {
        return;
    };
    let size = fstat(file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
    if let Some(size) = size.checked_sub(torn) {
        // If even that fails, a reader meets one cut line, which it must cope with anyway.
        let _cut_line_stays = ftruncate(file, size);
    }
}

fn shown(target: &LogTarget) -> String {
    format!("{}/{}", target.directory.display(), target.path.display())
}

/// Opens the log file: each component below the directory is a real directory or the file, never a
/// link; the file is regular and has one name.
fn open(target: &LogTarget) -> Result<OwnedFd> {
    open_below(target).map_err(|error| error.context(format!("open log {}", shown(target))))
}

fn open_below(target: &LogTarget) -> Result<OwnedFd> {
    let (parents, name) = components(&target.path)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory = rustix::fs::open(&target.directory, flags, Mode::empty())
        .doing(|| "open the log directory")?;
    for parent in parents {
        directory = enter(&directory, parent)?;
    }
    // Not blocking: a FIFO without a reader, or a device, must not hold us up before the check.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NONBLOCK
        | OFlags::NOCTTY
        | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
    let file = openat2(&directory, name, flags, mode, beneath()).doing(|| "open the file")?;
    let stat = fstat(&file).doing(|| "examine the file")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::invalid("it is not a regular file"));
    }
    if stat.st_nlink != 1 {
        return Err(Error::invalid(format!(
            "it has {} names: a log has one",
            stat.st_nlink
        )));
    }
    Ok(file)
}

/// Opens the directory `name`, making it (0755) if it isn't there.
fn enter(directory: impl AsFd, name: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || openat2(&directory, name, flags, Mode::empty(), beneath());
    match open() {
        Err(Errno::NOENT) => {}
        other => return other.doing(|| format!("enter directory {}", name.display())),
    }
    match mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).doing(|| format!("make directory {}", name.display())),
    }
    open().doing(|| format!("enter directory {}", name.display()))
}

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// Takes a relative path of plain names apart.
fn components(path: &Path) -> Result<(Vec<&Path>, &Path)> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) if names.len() < MAX_DEPTH => names.push(Path::new(name)),
            Component::Normal(_) => {
                return Err(Error::invalid(format!(
                    "the path has more than {MAX_DEPTH} directories"
                )));
            }
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::ParentDir => {
                return Err(Error::invalid(
                    "the path must be relative to the log directory and hold no `..`",
                ));
            }
        }
    }
    match names.pop() {
        Some(name) => Ok((names, name)),
        None => Err(Error::invalid("the path is empty")),
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
