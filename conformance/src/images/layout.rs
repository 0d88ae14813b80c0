//! The test images on disk: an OCI image layout, named by a hash of all that goes in.
//!
//! Source: OCI image-spec 1.1, `image-layout.md`. Each manifest of `index.json` carries the
//! reference it is served under in `org.opencontainers.image.ref.name`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::catalog::{self, Named};
use super::debian::Packages;
use super::{Blob, digest};

const REFERENCE: &str = "org.opencontainers.image.ref.name";

/// The images' folder below `target`, built if it isn't there.
pub fn ensure(target: &Path) -> Result<PathBuf> {
    let base = target.join("images");
    let folder = base.join(&input_hash()[..16]);
    if folder.join("index.json").exists() {
        return Ok(folder);
    }
    let work = base.join(format!("work-{}", std::process::id()));
    let packages = Packages::fetch(&base.join("debian"))?;
    let probe = catalog::compile_probe(&work)?;
    let named = catalog::build(&packages, &probe)?;
    write(&work, &named)?;
    fs::remove_file(work.join("probe"))?;
    fs::remove_file(work.join("probe.rs"))?;
    match fs::rename(&work, &folder) {
        // Another run was faster: its folder holds the same.
        Err(_) if folder.join("index.json").exists() => fs::remove_dir_all(&work)?,
        renamed => renamed.with_context(|| format!("publish {}", folder.display()))?,
    }
    Ok(folder)
}

/// What the images depend on: the code that builds them, and the release their packages are of.
fn input_hash() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let sources = [
        include_str!("../tar.rs"),
        include_str!("mod.rs"),
        include_str!("catalog.rs"),
        include_str!("debian.rs"),
        include_str!("layout.rs"),
        include_str!("../bin/probe.rs"),
        std::env::consts::ARCH,
        &release,
    ];
    digest(sources.concat().as_bytes())["sha256:".len()..].to_owned()
}

fn write(folder: &Path, named: &[Named]) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    let mut manifests = Vec::new();
    for Named { references, image } in named {
        for blob in image.blobs() {
            let name = blob.digest.trim_start_matches("sha256:");
            fs::write(blobs.join(name), &blob.bytes)?;
        }
        for reference in references {
            let mut descriptor = image.manifest.descriptor();
            descriptor["annotations"] = json!({REFERENCE: reference});
            manifests.push(descriptor);
        }
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    // Last, since its presence says that the layout is whole.
    fs::write(
        folder.join("index.json"),
        serde_json::to_vec_pretty(&index)?,
    )?;
    Ok(())
}

/// A manifest of the layout with its content.
#[derive(Debug)]
pub struct Stored {
    /// The reference in the index.
    pub reference: String,
    /// Manifest, config and layers.
    pub blobs: Vec<Blob>,
}

/// Reads a layout; the manifest comes first among each image's blobs.
pub fn read(folder: &Path) -> Result<Vec<Stored>> {
    let index: Value = parse(&fs::read(folder.join("index.json"))?)?;
    let mut images = Vec::new();
    for descriptor in index["manifests"].as_array().into_iter().flatten() {
        let manifest = load(folder, descriptor)?;
        let body: Value = parse(&manifest.bytes)?;
        let mut blobs = vec![manifest, load(folder, &body["config"])?];
        for layer in body["layers"].as_array().into_iter().flatten() {
            blobs.push(load(folder, layer)?);
        }
        let reference = descriptor["annotations"][REFERENCE]
            .as_str()
            .unwrap_or_default();
        images.push(Stored {
            reference: reference.to_owned(),
            blobs,
        });
    }
    Ok(images)
}

fn parse(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).context("parse a JSON file of the image layout")
}

fn load(folder: &Path, descriptor: &Value) -> Result<Blob> {
    let digest = descriptor["digest"]
        .as_str()
        .context("a descriptor without digest")?;
    let path = folder.join("blobs").join(digest.replace(':', "/"));
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let media_type = descriptor["mediaType"]
        .as_str()
        .unwrap_or("application/octet-stream");
    Ok(Blob::new(media_type, bytes))
}
