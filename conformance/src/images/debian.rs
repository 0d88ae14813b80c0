//! Content for test images, from Debian packages: fetched by `apt-get download`, unpacked by
//! `dpkg-deb -x`, nothing installed. Works on Debian 12 and newer; where a package got another
//! name in a later release (the 64-bit time change), both names stand here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// What the images are made of; each line lists the names one package has had.
const PACKAGES: &[&[&str]] = &[
    &["busybox"],
    &["libc6"],
    &["libcrypt1"],
    &["libpcre2-8-0"],
    &["libssl3t64", "libssl3"],
    &["nginx"],
    &["util-linux"],
    &["zlib1g"],
];

/// The unpacked packages, all below one folder.
#[derive(Debug)]
pub struct Packages {
    root: PathBuf,
}

impl Packages {
    /// Fetches and unpacks the packages below `folder`, or finds them there.
    pub fn fetch(folder: &Path) -> Result<Self> {
        let root = folder.join("root");
        if folder.join("complete").exists() {
            return Ok(Self { root });
        }
        fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        for names in PACKAGES {
            let file = download(folder, names).or_else(|first| {
                // Package lists are empty on a fresh machine, or older than the archive.
                run(Command::new("apt-get").args(["-qq", "update"]))
                    .and_then(|()| download(folder, names))
                    .map_err(|second| first.context(second))
            })?;
            run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&root))?;
        }
        fs::write(folder.join("complete"), "")?;
        Ok(Self { root })
    }

    /// The first of these paths that exists, as file content.
    pub fn read(&self, candidates: &[&str]) -> Result<Vec<u8>> {
        for path in candidates {
            let mut full = self.root.join(path);
            // Libraries are symbolic links to their versioned file in the same folder.
            while let Ok(target) = fs::read_link(&full) {
                full = full.parent().unwrap_or(&self.root).join(target);
            }
            if full.is_file() {
                return fs::read(&full).with_context(|| format!("read {}", full.display()));
            }
        }
        bail!("none of {candidates:?} is in the Debian packages of the test images")
    }

    /// The libraries that programs in the images are linked with, by their file name.
    pub fn libraries(&self, names: &[&str]) -> Result<BTreeMap<String, Vec<u8>>> {
        let multiarch = multiarch();
        names
            .iter()
            .map(|name| {
                let paths = [
                    format!("lib/{multiarch}/{name}"),
                    format!("usr/lib/{multiarch}/{name}"),
                ];
                Ok(((*name).to_owned(), self.read(&[&paths[0], &paths[1]])?))
            })
            .collect()
    }

    /// Where an unpacked program stands on this machine.
    pub fn path(&self, candidates: &[&str]) -> Result<PathBuf> {
        let found = candidates
            .iter()
            .map(|path| self.root.join(path))
            .find(|path| path.is_file());
        found.with_context(|| format!("none of {candidates:?} is in the Debian packages"))
    }
}

/// Debian's name for this machine's library folder.
pub fn multiarch() -> String {
    format!("{}-linux-gnu", std::env::consts::ARCH)
}

fn download(folder: &Path, names: &[&str]) -> Result<PathBuf> {
    let mut cause = anyhow::anyhow!("no package name given");
    for name in names {
        // Root's download is "unsandboxed" where _apt cannot write: a warning, not a failure.
        match run(Command::new("apt-get")
            .args(["-qq", "download", name])
            .current_dir(folder))
        {
            Ok(()) => return newest_package(folder, name),
            Err(error) => cause = error,
        }
    }
    Err(cause)
}

fn newest_package(folder: &Path, name: &str) -> Result<PathBuf> {
    let prefix = format!("{name}_");
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            return Ok(entry.path());
        }
    }
    bail!("apt-get downloaded no {name} into {}", folder.display())
}

/// Runs a command to its end; a failure carries what it printed.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
