//! Block I/O and RDMA.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxRdma, LinuxThrottleDevice};

use super::{Controller, Place, Placement, Setting, bounded, need, unsupported};
use crate::error::{Error, Result};

/// v1's and bfq's weights.
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

pub(super) fn plan(
    block: &LinuxBlockIo,
    node: &dyn Placement,
    settings: &mut Vec<Setting>,
) -> Result<()> {
    let leaf = block.leaf_weight().is_some_and(|weight| weight != 0)
        || block
            .weight_device()
            .iter()
            .flatten()
            .any(|device| device.leaf_weight().is_some_and(|weight| weight != 0));
    if leaf {
        return Err(unsupported(
            "blockIO.leafWeight is not supported: the kernel dropped it with the cfq scheduler",
        ));
    }
    let weights = plan_weights(block)?;
    let throttles = [
        (block.throttle_read_bps_device(), "read_bps", "rbps"),
        (block.throttle_write_bps_device(), "write_bps", "wbps"),
        (block.throttle_read_iops_device(), "read_iops", "riops"),
        (block.throttle_write_iops_device(), "write_iops", "wiops"),
    ];
    let throttled = throttles
        .iter()
        .any(|(list, ..)| list.iter().flatten().next().is_some());
    if weights.is_empty() && !throttled {
        return Ok(());
    }
    let place = need(node, Controller::Io, "blockIO")?;
    for (device, weight) in weights {
        settings.push(weight_setting(place, device.as_deref(), weight));
    }
    for (list, v1, v2) in throttles {
        let list = list.as_deref().unwrap_or_default();
        bounded(list.len(), "blockIO")?;
        for device in list {
            settings.push(throttle_setting(place, device, v1, v2)?);
        }
    }
    Ok(())
}

/// The weight of the group and those of single devices, checked.
fn plan_weights(block: &LinuxBlockIo) -> Result<Vec<(Option<String>, u16)>> {
    let mut weights = Vec::new();
    weights.extend(block.weight().map(|weight| (None, weight)));
    let devices = block.weight_device().as_deref().unwrap_or_default();
    bounded(devices.len(), "blockIO.weightDevice")?;
    for device in devices {
        let name = device_number(device.major(), device.minor())?;
        weights.extend(device.weight().map(|weight| (Some(name), weight)));
    }
    weights.retain(|(_, weight)| *weight != 0);
    if let Some((_, weight)) = weights.iter().find(|(_, weight)| !WEIGHTS.contains(weight)) {
        return Err(Error::invalid(format!(
            "blockIO weight {weight} is not between {} and {}",
            WEIGHTS.start(),
            WEIGHTS.end()
        )));
    }
    Ok(weights)
}

/// v1 has the weight of bfq (`blkio.bfq.weight`, since cfq is gone); v2's `io.weight` runs from 1
/// to 10000 and is mapped linearly.
fn weight_setting(place: Place, device: Option<&str>, weight: u16) -> Setting {
    match place {
        Place::V1 => {
            let (file, text) = match device {
                None => ("blkio.bfq.weight", weight.to_string()),
                Some(device) => ("blkio.bfq.weight_device", format!("{device} {weight}")),
            };
            Setting::new(Controller::Io, file, text)
        }
        _ => {
            let scaled = 1 + (u32::from(weight) - 10) * 9_999 / 990;
            let device = device.unwrap_or("default");
            Setting::new(Controller::Io, "io.weight", format!("{device} {scaled}"))
        }
    }
}

fn throttle_setting(
    place: Place,
    device: &LinuxThrottleDevice,
    v1: &str,
    v2: &str,
) -> Result<Setting> {
    let name = device_number(device.major(), device.minor())?;
    let rate = device.rate();
    Ok(match place {
        Place::V1 => Setting::new(
            Controller::Io,
            format!("blkio.throttle.{v1}_device"),
            format!("{name} {rate}"),
        ),
        // On v1 a rate of 0 removes the limit; v2 calls that max.
        _ if rate == 0 => Setting::new(Controller::Io, "io.max", format!("{name} {v2}=max")),
        _ => Setting::new(Controller::Io, "io.max", format!("{name} {v2}={rate}")),
    })
}

fn device_number(major: i64, minor: i64) -> Result<String> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(Error::invalid(format!(
            "blockIO: {major}:{minor} is not a device number"
        ))),
    }
}

pub(super) fn plan_rdma(
    rdma: &HashMap<String, LinuxRdma>,
    node: &dyn Placement,
    settings: &mut Vec<Setting>,
) -> Result<()> {
    bounded(rdma.len(), "rdma")?;
    let mut sorted: Vec<_> = rdma.iter().collect();
    sorted.sort_by_key(|(name, _)| *name);
    for (name, limit) in sorted {
        need(node, Controller::Rdma, "rdma")?;
        let plain = !name.is_empty()
            && name.len() <= 64
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if !plain {
            return Err(Error::invalid(format!(
                "rdma: {name:?} is not a device name"
            )));
        }
        let text = |value: Option<u32>| value.map_or("max".to_owned(), |value| value.to_string());
        settings.push(Setting::new(
            Controller::Rdma,
            "rdma.max",
            format!(
                "{name} hca_handle={} hca_object={}",
                text(limit.hca_handles()),
                text(limit.hca_objects())
            ),
        ));
    }
    Ok(())
}
