//! Exit records: `<pod directory>/exits/<container>.json`, each whole and durable before anyone is
//! told of the exit: written aside, synced, renamed, the directory synced.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, fsync, mkdirat, openat, openat2, renameat, unlinkat,
};
use rustix::io::Errno;

use super::wire::ExitRecord;
use crate::error::{Doing, Error, Result};

/// The directory of a pod's exit records.
#[derive(Debug)]
pub(super) struct Exits {
    directory: OwnedFd,
}

/// The directory's name in the pod's directory.
pub const DIRECTORY: &str = "exits";

impl Exits {
    /// Opens the directory below the pod's, making it (0700) if it isn't there.
    pub(super) fn open(pod: &Path) -> Result<Self> {
        let shown = || format!("open exit records in {}", pod.display());
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let pod = rustix::fs::open(pod, flags, Mode::empty()).doing(shown)?;
        match mkdirat(&pod, DIRECTORY, Mode::RWXU) {
            Ok(()) => fsync(&pod).doing(shown)?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).doing(shown),
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let directory = openat2(&pod, DIRECTORY, flags, Mode::empty(), resolve).doing(shown)?;
        Ok(Self { directory })
    }

    /// Writes a record, whole or not at all.
    pub(super) fn write(&self, record: &ExitRecord) -> Result<()> {
        self.write_aside(record)
            .map_err(|error| error.context(format!("record the exit of {}", record.container)))
    }

    fn write_aside(&self, record: &ExitRecord) -> Result<()> {
        let json = serde_json::to_vec(record)
            .map_err(|error| Error::invalid(format!("encode it: {error}")))?;
        let aside = format!(".{}.new", record.container);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.directory, &aside, flags, Mode::RUSR | Mode::WUSR)
            .doing(|| format!("create {aside}"))?;
        let mut file = File::from(file);
        let written = file.write_all(&json).and_then(|()| file.sync_all());
        let renamed = written.doing(|| format!("write {aside}")).and_then(|()| {
            let name = name(&record.container);
            renameat(&self.directory, &aside, &self.directory, &name)
                .doing(|| format!("rename {aside} to {name}"))
        });
        if let Err(error) = renamed {
            // The name is reused by the next try; what matters is the error.
            let _left_behind = unlinkat(&self.directory, &aside, AtFlags::empty());
            return Err(error);
        }
        fsync(&self.directory).doing(|| "sync the directory")
    }

    /// Removes a record; that there is none is fine.
    pub(super) fn remove(&self, container: &str) -> Result<()> {
        match unlinkat(&self.directory, name(container), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno).doing(|| format!("remove the exit record of {container}")),
        }
    }
}

fn name(container: &str) -> String {
    format!("{container}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_there_whole_replaced_whole_and_gone_once_removed() {
        let pod = std::env::temp_dir().join(format!("bulkhead-exits-{}", std::process::id()));
        std::fs::create_dir_all(&pod).unwrap();
        let exits = Exits::open(&pod).unwrap();
        let mut record = ExitRecord {
            container: "c1".into(),
            exit_code: 137,
            signal: Some(9),
            oom_killed: true,
            started_at: 5,
            finished_at: 7,
            log_bytes_lost: 0,
        };
        for code in [137, 0] {
            record.exit_code = code;
            exits.write(&record).unwrap();
            let text = std::fs::read(pod.join("exits/c1.json")).unwrap();
            let back: ExitRecord = serde_json::from_slice(&text).unwrap();
            assert_eq!(back, record);
        }
        assert_eq!(std::fs::read_dir(pod.join("exits")).unwrap().count(), 1);
        exits.remove("c1").unwrap();
        exits.remove("c1").unwrap();
        assert_eq!(std::fs::read_dir(pod.join("exits")).unwrap().count(), 0);
        std::fs::remove_dir_all(&pod).unwrap();
    }
}
