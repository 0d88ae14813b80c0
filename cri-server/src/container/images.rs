//! Images mounted as volumes: found and tried out at CreateContainer, built by the launcher at the start.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bulkhead_proto::runtime::v1::ContainerConfig;
use bulkhead_runtime::rootfs::ImageVolume;

use crate::failure::Failure;
use crate::image::{Image, ImageId};
use crate::node::NodeHandle;
use crate::records::{ContainerRecord, MountedImage};
use crate::request::container::ContainerRequest;
use crate::request::mount::MountRequest;

/// The images that are mounted, by the mount's place in the request.
pub(super) type Images = BTreeMap<usize, Arc<Image>>;

/// Looks up what the request names.
pub(super) fn find(node: &NodeHandle, request: &ContainerRequest) -> Result<Images, Failure> {
    let mut images = Images::new();
    for (index, mount) in request.mounts.iter().enumerate() {
        if let Some(source) = &mount.image {
            let name = &source.reference;
            let image = node.images.find(name)?.ok_or_else(|| {
                let why = format_args!("image {name:?} is not on this node; pull it first");
                failure(index, why)
            })?;
            images.insert(index, image);
        }
    }
    Ok(images)
}

/// With the reason the kubelet looks for.
fn failure(index: usize, why: impl fmt::Display) -> Failure {
    let why = format_args!("mounts[{index}].image: {why}");
    Failure::reasoned("ImageVolumeMountFailed", why)
}

/// What is recorded of them, by the path in the container as the client sent it.
pub(super) fn recorded(
    config: &ContainerConfig,
    request: &ContainerRequest,
    images: &Images,
) -> BTreeMap<String, MountedImage> {
    let sent = config.mounts.iter().zip(&request.mounts).enumerate();
    sent.filter_map(|(index, (sent, mount))| {
        let mounted = mounted(mount, &images.get(&index)?.id);
        Some((sent.container_path.clone(), mounted))
    })
    .collect()
}

fn mounted(mount: &MountRequest, image: &ImageId) -> MountedImage {
    MountedImage {
        id: image.to_string(),
        destination: mount.container_path.clone(),
        sub_path: mount
            .image
            .as_ref()
            .and_then(|image| image.sub_path.clone()),
    }
}

/// Builds each and lets it go again, so that what can't be mounted is an error of CreateContainer.
/// Blocks.
pub(super) fn try_out(
    node: &NodeHandle,
    request: &ContainerRequest,
    images: &Images,
) -> Result<(), Failure> {
    for (index, image) in images {
        if let Some(mount) = request.mounts.get(*index) {
            volume(node, mounted(mount, &image.id))?
                .build(&node.features)
                .map_err(|error| failure(*index, error))?;
        }
    }
    Ok(())
}

/// What the launcher is to mount for a container, by what was recorded at its creation.
pub(super) fn of(
    node: &NodeHandle,
    container: &ContainerRecord,
) -> Result<Vec<ImageVolume>, Failure> {
    let images = container.images.values();
    images.map(|image| volume(node, image.clone())).collect()
}

fn volume(node: &NodeHandle, image: MountedImage) -> Result<ImageVolume, Failure> {
    Ok(ImageVolume {
        destination: image.destination,
        lower: node.images.layers(&image.id.parse()?)?,
        sub_path: image.sub_path,
    })
}
