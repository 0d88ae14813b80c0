//! Clocks for one daemon that a test sets (case T4) or puts forward.
//!
//! The machine's own clock is everybody's, and time namespaces move the monotonic clocks alone
//! (time_namespaces(7)). So the daemon, which is linked dynamically, preloads `clock.c`. The static
//! monitor keeps the true time: seen from it, a daemon whose clock is moved back has been ahead.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The clock's file and the library that reads it.
#[derive(Debug)]
pub(super) struct Clock {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl Clock {
    /// A clock that shows the true time, kept in `folder`.
    pub(super) fn make(folder: &Path) -> Result<Self> {
        let source = folder.join("clock.c");
        let library = folder.join("clock.so");
        fs::write(&source, include_str!("clock.c"))?;
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&library, &source])
            .output()
            .context("start cc")?;
        let errors = String::from_utf8_lossy(&compiled.stderr);
        ensure!(compiled.status.success(), "compile clock.c: {errors}");
        let path = folder.join("clock");
        let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        let clock = Self {
            library,
            path,
            file,
        };
        clock.set_wall(0)?;
        clock.set_monotonic(0)?;
        Ok(clock)
    }

    /// Sets the wall clock to that many seconds after (or before) the true time.
    pub(super) fn set_wall(&self, seconds: i64) -> Result<()> {
        self.write(0, seconds)
    }

    /// Sets the monotonic clock to that many seconds after the true one; it must not go back.
    pub(super) fn set_monotonic(&self, seconds: u32) -> Result<()> {
        self.write(1, seconds.into())
    }

    fn write(&self, index: u64, seconds: i64) -> Result<()> {
        let written = self.file.write_all_at(&seconds.to_ne_bytes(), 8 * index);
        written.context("move the clock")
    }

    /// Makes the clock that of the process to be started.
    pub(super) fn govern(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("BULKHEAD_TEST_CLOCK", &self.path);
    }
}
