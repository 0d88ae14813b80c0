//! Capability sets of the calling thread, by bit mask. Names are the plan's.
//!
//! The raw calls of rustix, never libcap or glibc: fit for a child.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// `1 << CAP_SYS_ADMIN`.
pub(crate) const SYS_ADMIN: u64 = 1 << 21;
/// `1 << CAP_SYS_RESOURCE`.
pub(crate) const SYS_RESOURCE: u64 = 1 << 24;

/// Removes from the bounding set what is not in `keep`, up to `last` (the kernel's cap_last_cap).
pub(crate) fn limit_bounding(keep: u64, last: u32) -> Result<(), Errno> {
    for number in 0..=last.min(63) {
        let bit = 1_u64 << number;
        if keep & bit == 0 {
            rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(
                bit,
            ))?;
        }
    }
    Ok(())
}

/// Sets effective, permitted and inheritable.
pub(crate) fn set(effective: u64, permitted: u64, inheritable: u64) -> Result<(), Errno> {
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::from_bits_retain(effective),
            permitted: CapabilitySet::from_bits_retain(permitted),
            inheritable: CapabilitySet::from_bits_retain(inheritable),
        },
    )
}

/// The permitted set.
pub(crate) fn permitted() -> Result<u64, Errno> {
    Ok(rustix::thread::capabilities(None)?.permitted.bits())
}

/// The effective set.
pub(crate) fn effective() -> Result<u64, Errno> {
    Ok(rustix::thread::capabilities(None)?.effective.bits())
}

/// Makes the ambient set exactly `wanted`.
pub(crate) fn set_ambient(wanted: u64) -> Result<(), Errno> {
    rustix::thread::clear_ambient_capability_set()?;
    for number in 0..64 {
        let bit = 1_u64 << number;
        if wanted & bit != 0 {
            rustix::thread::configure_capability_in_ambient_set(
                CapabilitySet::from_bits_retain(bit),
                true,
            )?;
        }
    }
    Ok(())
}
