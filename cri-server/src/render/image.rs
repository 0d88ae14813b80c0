//! Images as the CRI shows them.

use bulkhead_proto::runtime::v1::{
    FilesystemIdentifier, FilesystemUsage, Image as CriImage, ImageSpec, Int64Value, UInt64Value,
};

use crate::failure::{Doing, Failure};
use crate::image::{FsInfo, Image};

/// One image, with all its names.
pub fn item(image: &Image) -> CriImage {
    let (uid, username) = user(configured_user(image));
    CriImage {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| Int64Value { value }),
        username,
        spec: Some(ImageSpec {
            image: image.id.to_string(),
            annotations: image.annotations.clone(),
            ..ImageSpec::default()
        }),
        pinned: false,
    }
}

fn configured_user(image: &Image) -> &str {
    let config = image.config.config().as_ref();
    config
        .and_then(|config| config.user().as_deref())
        .unwrap_or_default()
}

/// The user part of an image's `User`: a number, a name, or neither. The kubelet judges
/// `runAsNonRoot` by it, so what isn't a plain number stays a name.
fn user(text: &str) -> (Option<i64>, String) {
    let user = text.split(':').next().unwrap_or_default();
    if user.is_empty() {
        return (None, String::new());
    }
    let digits = user.bytes().all(|byte| byte.is_ascii_digit());
    match user.parse::<i64>() {
        Ok(uid) if digits => (Some(uid), String::new()),
        _ => (None, user.to_owned()),
    }
}

/// Verbose information: the image's configuration and chain ID, as node software reads it.
///
/// # Errors
/// When the stored configuration is no JSON.
pub fn info(image: &Image) -> Result<String, Failure> {
    let config: serde_json::Value =
        serde_json::from_str(&image.config_json).doing("read the image's configuration")?;
    let chain = image.chain_id.as_ref().map(ToString::to_string);
    Ok(serde_json::json!({ "chainID": chain, "imageSpec": config }).to_string())
}

/// What a file system of ours holds.
pub fn usage(info: &FsInfo) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: info.timestamp_ns,
        fs_id: Some(FilesystemIdentifier {
            mountpoint: info.mountpoint.to_string_lossy().into_owned(),
        }),
        used_bytes: Some(UInt64Value {
            value: info.used_bytes,
        }),
        inodes_used: Some(UInt64Value {
            value: info.inodes_used,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_an_image_is_a_number_a_name_or_neither() {
        for (text, expected) in [
            ("", (None, "")),
            ("1002", (Some(1002), "")),
            ("0:0", (Some(0), "")),
            ("www-data:1004", (None, "www-data")),
            (":5", (None, "")),
            ("+0", (None, "+0")),
            ("99999999999999999999", (None, "99999999999999999999")),
        ] {
            let (uid, name) = user(text);
            assert_eq!((uid, name.as_str()), expected, "{text:?}");
        }
    }
}
