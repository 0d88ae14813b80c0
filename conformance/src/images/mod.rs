//! Images made on the spot: layers, config and manifest, content by digest.
//!
//! Owns the model ([`Image`], [`Blob`]) and its builder; `debian` gets the content from Debian
//! packages, `catalog` says which image holds what, `layout` caches them as an OCI image layout.
//! Source: OCI image-spec 1.1 (`config.md`, `manifest.md`, `media-types.md`).

pub mod catalog;
pub mod debian;
pub mod layout;

use std::io::Write;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::tar::Layer;

/// `sha256:<hex>` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Content, its digest and the type a manifest gives it.
#[derive(Clone, Debug)]
pub struct Blob {
    /// `sha256:<hex>` of `bytes`.
    pub digest: String,
    /// The media type told in descriptors and by the registry.
    pub media_type: String,
    /// The content.
    pub bytes: Bytes,
}

impl Blob {
    /// Content under a media type.
    pub fn new(media_type: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            digest: digest(&bytes),
            media_type: media_type.to_owned(),
            bytes,
        }
    }

    /// The OCI descriptor of this content.
    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// One image for one platform.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest.
    pub manifest: Blob,
    /// The config, whose digest is the image's id.
    pub config: Blob,
    /// The layers, lowest first.
    pub layers: Vec<Blob>,
}

impl Image {
    /// All content: manifest, config, layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        [&self.manifest, &self.config]
            .into_iter()
            .chain(&self.layers)
    }
}

/// How a layer's bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip, the usual.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Compresses; equal input gives equal output.
    pub fn apply(self, tar: &[u8]) -> Result<Vec<u8>> {
        Ok(match self {
            Self::None => tar.to_vec(),
            Self::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar)?;
                encoder.finish()?
            }
            Self::Zstd => zstd::encode_all(tar, 3)?,
        })
    }

    fn oci_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A layer ready for a manifest: the blob and the digest of its uncompressed bytes.
#[derive(Clone, Debug)]
pub struct PackedLayer {
    /// The compressed content.
    pub blob: Blob,
    /// The digest of the tar archive.
    pub diff_id: String,
}

impl PackedLayer {
    /// Packs a layer with the media type that fits its compression.
    pub fn new(layer: Layer, compression: Compression) -> Result<Self> {
        let tar = layer.finish();
        let bytes = compression.apply(&tar).context("compress a layer")?;
        Ok(Self {
            blob: Blob::new(compression.oci_type(), bytes),
            diff_id: digest(&tar),
        })
    }

    /// The same content under another media type.
    #[must_use]
    pub fn typed(mut self, media_type: &str) -> Self {
        media_type.clone_into(&mut self.blob.media_type);
        self
    }
}

/// Puts layers and config together.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    layers: Vec<PackedLayer>,
    run: Map<String, Value>,
    config_type: String,
    manifest_type: String,
    platform: (String, String),
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self {
            layers: Vec::new(),
            run: Map::new(),
            config_type: "application/vnd.oci.image.config.v1+json".to_owned(),
            manifest_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            platform: ("linux".to_owned(), go_arch().to_owned()),
        }
    }
}

impl ImageBuilder {
    /// An OCI image for this machine's platform, without layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a gzip layer on top.
    pub fn layer(self, layer: Layer) -> Result<Self> {
        Ok(self.packed(PackedLayer::new(layer, Compression::Gzip)?))
    }

    /// Adds a layer packed by the caller on top.
    #[must_use]
    pub fn packed(mut self, layer: PackedLayer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets a field of the config's `config` object, by its JSON name (`Env`, `Cmd`, `User`, …).
    #[must_use]
    pub fn config(mut self, field: &str, value: Value) -> Self {
        self.run.insert(field.to_owned(), value);
        self
    }

    /// Replaces the media types of manifest and config.
    #[must_use]
    pub fn types(mut self, manifest: &str, config: &str) -> Self {
        manifest.clone_into(&mut self.manifest_type);
        config.clone_into(&mut self.config_type);
        self
    }

    /// Replaces the platform in the config.
    #[must_use]
    pub fn platform(mut self, os: &str, architecture: &str) -> Self {
        self.platform = (os.to_owned(), architecture.to_owned());
        self
    }

    /// The finished image.
    pub fn build(self) -> Result<Image> {
        let config = json!({
            "architecture": self.platform.1,
            "os": self.platform.0,
            "created": "1970-01-01T00:00:00Z",
            "config": self.run,
            "rootfs": {
                "type": "layers",
                "diff_ids": self.layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>(),
            },
        });
        let config = Blob::new(&self.config_type, serde_json::to_vec(&config)?);
        let layers: Vec<Blob> = self.layers.into_iter().map(|layer| layer.blob).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.manifest_type,
            "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob::new(&self.manifest_type, serde_json::to_vec(&manifest)?);
        Ok(Image {
            manifest,
            config,
            layers,
        })
    }
}

/// This machine's architecture as OCI and Go spell it.
pub fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_input_gives_equal_digests_whatever_the_compression() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let make = || {
                let layer = Layer::new().file("a", "1");
                let packed = PackedLayer::new(layer, compression).unwrap();
                ImageBuilder::new()
                    .packed(packed)
                    .config("User", json!("7"))
                    .build()
                    .unwrap()
            };
            let (one, two) = (make(), make());
            assert_eq!(one.manifest.digest, two.manifest.digest);
            assert_eq!(one.layers[0].digest, digest(&one.layers[0].bytes));
        }
    }
}
