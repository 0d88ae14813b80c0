//! Manifests and indexes: what they are, what an index offers this machine, what a config says.
//!
//! Foreign documents (threat D10): bounded before they come here, read strictly, a doubled key is an
//! error. What a document is follows from its body, not from the header it came with (case G2), and
//! the two may not contradict (CVE-2021-41190). What a blob is follows from its place in the
//! manifest, not from its media type (case M2). `urls` of foreign layers are never read (K1).

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use super::digest::Digest;
use crate::failure::{Class, Failure};

/// Largest manifest or index, as the distribution project has it.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Largest config.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// Overlay takes 500 lower directories (kernel: OVL_MAX_STACK).
const MAX_LAYERS: usize = 500;
/// An index may hold an index, no deeper.
pub(crate) const MAX_DEPTH: usize = 2;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What is asked for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/json;q=0.5";

/// A reference to content.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
}

/// What an entry of an index runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: String,
}

/// A document under `/manifests/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    pub annotations: BTreeMap<String, String>,
}

/// Both shapes in one, to see which it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
    annotations: Option<BTreeMap<String, String>>,
}

fn bad(why: impl std::fmt::Display) -> Failure {
    Failure::precondition(format!("the manifest is refused: {why}"))
}

/// Reads a document; `declared` is the Content-Type it came with.
pub(crate) fn parse(bytes: &[u8], declared: Option<&str>) -> Result<Document, Failure> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(bad)?;
    if raw.fs_layers.is_some() || raw.schema_version == Some(1) {
        return Err(bad("it has schema version 1, retired in 2017"));
    }
    if let Some(version) = raw.schema_version.filter(|v| *v != 2) {
        return Err(bad(format!("its schema version is {version}, not 2")));
    }
    let declared = declared
        .and_then(|text| text.split(';').next())
        .map(str::trim)
        .filter(|t| kind(t).is_some());
    if let (Some(header), Some(body)) = (declared, raw.media_type.as_deref())
        && header != body
    {
        return Err(bad(format!("it came as {header} and calls itself {body}")));
    }
    let named = raw.media_type.as_deref().or(declared);
    let document = match (raw.config, raw.layers, raw.manifests) {
        (None, None, Some(manifests)) => Document::Index(manifests),
        (Some(config), layers, None) => Document::Manifest(Manifest {
            config,
            layers: layers.unwrap_or_default(),
            annotations: raw.annotations.unwrap_or_default(),
        }),
        (None, None, None) | (None, Some(_), None) => return Err(bad("it names no config")),
        _ => return Err(bad("it is a manifest and an index at once")),
    };
    let is_index = matches!(document, Document::Index(_));
    match named {
        // OCI makes the type optional.
        None => {}
        Some(name) => match kind(name) {
            Some(index) if index != is_index => {
                return Err(bad(format!("it calls itself {name} and has another shape")));
            }
            Some(_) => {}
            None => return Err(bad(format!("its media type is {name:?}"))),
        },
    }
    if let Document::Manifest(manifest) = &document
        && manifest.layers.len() > MAX_LAYERS
    {
        return Err(bad(format!(
            "it has {} layers, overlay takes {MAX_LAYERS}",
            manifest.layers.len()
        )));
    }
    Ok(document)
}

/// Whether a media type is an index's; `None` if it is nothing we know.
fn kind(media_type: &str) -> Option<bool> {
    match media_type {
        OCI_INDEX | DOCKER_LIST => Some(true),
        OCI_MANIFEST | DOCKER_MANIFEST => Some(false),
        _ => None,
    }
}

/// This machine, in the words of Go's GOOS and GOARCH (image-spec, "image-index.md").
pub(crate) fn host_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", "v1"),
        "x86" => ("386", ""),
        "aarch64" => ("arm64", "v8"),
        "arm" => ("arm", "v7"),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
        "loongarch64" => ("loong64", ""),
        other => (other, ""),
    };
    Platform {
        os: "linux".into(),
        architecture: architecture.into(),
        variant: variant.into(),
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// The entry for `host`: its own variant or none first, then older variants, then an entry that
/// names no platform. `unknown` (attestations) matches nothing (case M1).
pub(crate) fn choose<'a>(entries: &'a [Descriptor], host: &Platform) -> Option<&'a Descriptor> {
    let rank = |entry: &Descriptor| {
        // Other types in an index (charts, signatures) aren't images; an absent one may be.
        if !entry.media_type.is_empty() && kind(&entry.media_type).is_none() {
            return None;
        }
        let Some(platform) = &entry.platform else {
            return Some(100);
        };
        if platform.os != host.os || platform.architecture != host.architecture {
            return None;
        }
        if platform.variant == host.variant {
            return Some(0);
        }
        if platform.variant.is_empty() {
            return Some(1);
        }
        // `v6` on `v7`; never a newer one than this machine is known to be.
        let number = |v: &str| v.strip_prefix('v').and_then(|n| n.parse::<u32>().ok());
        match (number(&platform.variant), number(&host.variant)) {
            (Some(theirs), Some(ours)) if theirs < ours => Some(2 + ours - theirs),
            _ => None,
        }
    };
    entries
        .iter()
        .filter_map(|entry| Some((rank(entry)?, entry)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, entry)| entry)
}

/// The error for an index without anything for this machine.
pub(crate) fn nothing_for(host: &Platform, entries: &[Descriptor]) -> Failure {
    let mut offered: Vec<String> = entries
        .iter()
        .filter_map(|e| e.platform.as_ref())
        .map(Platform::to_string)
        .collect();
    offered.sort();
    offered.dedup();
    offered.truncate(20);
    Failure::new(
        Class::NotFound,
        format!(
            "it has no image for {host}, only for {}",
            offered.join(", ")
        ),
    )
}

/// A config, and the diff ids that its manifest's layers must have, one each.
pub(crate) fn parse_config(
    bytes: &[u8],
    layers: usize,
) -> Result<(ImageConfiguration, Vec<Digest>), Failure> {
    let refused = |why: String| Failure::precondition(format!("the config is refused: {why}"));
    let config: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|e| refused(e.to_string()))?;
    let diff_ids: Vec<Digest> = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|id| id.parse::<Digest>())
        .collect::<Result<_, _>>()
        .map_err(|e| refused(e.message().to_owned()))?;
    if diff_ids.len() != layers {
        return Err(refused(format!(
            "it lists {} diff ids, the manifest {layers} layers",
            diff_ids.len()
        )));
    }
    Ok((config, diff_ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: &str) -> String {
        Digest::of(of.as_bytes()).to_string()
    }

    fn entry(platform: &str, media_type: &str) -> Descriptor {
        let mut parts = platform.split('/');
        let mut part = || parts.next().unwrap_or("").to_owned();
        let read = Platform {
            os: part(),
            architecture: part(),
            variant: part(),
        };
        Descriptor {
            media_type: media_type.into(),
            digest: Digest::of(platform.as_bytes()),
            size: 1,
            platform: (!platform.is_empty()).then_some(read),
        }
    }

    #[test]
    fn m1_an_index_entry_is_chosen_by_platform() {
        for (host, offered, chosen) in [
            (
                "linux/amd64/v1",
                "unknown/unknown linux/arm64 linux/amd64",
                Some(2),
            ),
            ("linux/amd64/v1", "linux/amd64/v3 linux/amd64", Some(1)),
            ("linux/amd64/v1", "linux/amd64/v3", None),
            ("linux/amd64/v1", "windows/amd64 linux/amd64/v1", Some(1)),
            ("linux/amd64/v1", "unknown/unknown linux/arm64/v8", None),
            ("linux/arm64/v8", "linux/arm64 linux/arm64/v8", Some(1)),
            (
                "linux/arm/v7",
                "linux/arm/v5 linux/arm/v6 linux/arm64",
                Some(1),
            ),
        ] {
            let entries: Vec<_> = offered
                .split(' ')
                .map(|platform| entry(platform, OCI_MANIFEST))
                .collect();
            let host = entry(host, "").platform.unwrap();
            let found = choose(&entries, &host).map(|e| e.digest.clone());
            let expected = chosen.map(|i: usize| entries[i].digest.clone());
            assert_eq!(found, expected, "{host} of {offered}");
        }
        let entries = [
            entry("", "application/vnd.cncf.helm.config.v1+json"),
            entry("", OCI_MANIFEST),
        ];
        let host = entry("linux/amd64/v1", "").platform.unwrap();
        assert_eq!(choose(&entries, &host), Some(&entries[1]));
    }

    #[test]
    fn a_document_is_what_its_body_is() {
        let part = format!(r#"{{"mediaType":"x","digest":"{}","size":3}}"#, digest("a"));
        let manifest = |more: &str| format!(r#"{{{more}"config":{part},"layers":[{part}]}}"#);
        let index = |more: &str| format!(r#"{{{more}"manifests":[{part}]}}"#);
        let typed = |t: &str| format!(r#""schemaVersion":2,"mediaType":"{t}","#);
        for (body, header, good) in [
            (manifest(""), None, "manifest"),
            (
                manifest(&typed(OCI_MANIFEST)),
                Some(OCI_MANIFEST),
                "manifest",
            ),
            (
                manifest(&typed(DOCKER_MANIFEST)),
                Some("text/plain"),
                "manifest",
            ),
            (manifest(""), Some("application/octet-stream"), "manifest"),
            (manifest(""), Some(DOCKER_MANIFEST), "manifest"),
            (index(&typed(OCI_INDEX)), None, "index"),
            (
                index(&typed(DOCKER_LIST)),
                Some(&format!("{DOCKER_LIST}; charset=utf-8")),
                "index",
            ),
        ] {
            let document = parse(body.as_bytes(), header).unwrap();
            let found = match document {
                Document::Index(_) => "index",
                Document::Manifest(_) => "manifest",
            };
            assert_eq!(found, good, "{body}");
        }
    }

    #[test]
    fn d10_ambiguous_and_malformed_documents_are_refused() {
        let part = format!(r#"{{"digest":"{}","size":3}}"#, digest("a"));
        let typed = |t: &str| format!(r#""mediaType":"{t}","#);
        let deep = format!(r#"{{"a":{}"#, "[".repeat(100_000));
        let many = vec![part.as_str(); 501].join(",");
        for (body, header, why) in [
            (
                format!(r#"{{"config":{part},"manifests":[{part}]}}"#),
                None,
                "at once",
            ),
            (
                format!(r#"{{"layers":[{part}],"manifests":[{part}]}}"#),
                None,
                "at once",
            ),
            (
                format!(r#"{{{}"config":{part}}}"#, typed(OCI_INDEX)),
                None,
                "another shape",
            ),
            (
                format!(r#"{{{}"manifests":[]}}"#, typed(OCI_MANIFEST)),
                None,
                "another shape",
            ),
            (
                format!(r#"{{"config":{part}}}"#),
                Some(OCI_INDEX),
                "another shape",
            ),
            (
                format!(r#"{{{}"config":{part}}}"#, typed(OCI_MANIFEST)),
                Some(DOCKER_MANIFEST),
                "calls itself",
            ),
            (
                format!(r#"{{{}"config":{part}}}"#, typed("x/y")),
                None,
                "media type",
            ),
            (
                format!(r#"{{"config":{part},"config":{part}}}"#),
                None,
                "duplicate field",
            ),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#.into(),
                None,
                "schema version 1",
            ),
            (
                format!(r#"{{"schemaVersion":3,"config":{part}}}"#),
                None,
                "schema version is 3",
            ),
            (
                r#"{"config":{"digest":"md5:00","size":3}}"#.into(),
                None,
                "neither sha256",
            ),
            (
                format!(r#"{{"config":{{"digest":"{}","size":-1}}}}"#, digest("a")),
                None,
                "invalid value",
            ),
            (
                format!(r#"{{"config":{part},"layers":[{many}]}}"#),
                None,
                "501 layers",
            ),
            (deep, None, "EOF"),
            ("{}".into(), None, "no config"),
            ("[]".into(), None, "refused"),
            ("".into(), None, "EOF"),
            (format!(r#"{{"config":{part}}} x"#), None, "trailing"),
        ] {
            let failure = parse(body.as_bytes(), header).expect_err(why);
            assert!(failure.message().contains(why), "{why}: {failure}");
        }
    }

    #[test]
    fn a_config_lists_a_diff_id_for_each_layer() {
        let config = |ids: &str| {
            format!(
                r#"{{"architecture":"amd64","os":"linux","config":{{"Env":null,"Cmd":["a"]}},
                    "rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#
            )
        };
        let good = format!("\"{}\"", digest("l"));
        let (_, ids) = parse_config(config(&good).as_bytes(), 1).unwrap();
        assert_eq!(ids, [Digest::of(b"l")]);
        for (text, layers, why) in [
            (config(""), 1, "0 diff ids"),
            (config(&good), 0, "1 diff ids"),
            (config("\"sha256:x\""), 1, "digits"),
            ("{}".into(), 0, "missing field"),
            ("\x1f\u{8b}".into(), 0, "refused"),
        ] {
            let failure = parse_config(text.as_bytes(), layers).expect_err(why);
            assert!(failure.message().contains(why), "{why}: {failure}");
        }
    }
}
