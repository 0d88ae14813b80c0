//! proto3 → domain types: defaults, unknown enum values, mutual exclusions and bounds are settled
//! here once; past this folder no protobuf type is seen.
//!
//! Pure. A refusal names the field's path as the proto spells it, the reason and, where there is
//! one, the way out. What becomes of each field is listed in `fields.rs`, and a test compares that
//! list with the table the wire is generated from.

#![warn(clippy::wildcard_enum_match_arm)]

pub mod container;
pub mod exec;
#[cfg(test)]
mod fields;
pub mod filter;
pub mod ids;
pub mod image;
pub mod mount;
pub mod namespaces;
pub mod resources;
#[cfg(test)]
mod rows;
pub mod sandbox;
pub mod security;
pub mod signal;
pub mod sysctl;
mod text;

pub use container::ContainerRequest;
pub use resources::Resources;
pub use sandbox::SandboxRequest;
pub use signal::Signal;

use crate::failure::Failure;

/// A field whose value can't be meant: names it and why.
fn invalid(field: &str, reason: impl std::fmt::Display) -> Failure {
    Failure::invalid(format!("{field}: {reason}"))
}

/// Turns a wire enum's number into its value; an unknown one is an error (`cri-contract`, general).
fn enumeration<E>(field: &str, value: i32) -> Result<E, Failure>
where
    E: TryFrom<i32>,
{
    E::try_from(value).map_err(|_| {
        invalid(
            field,
            format_args!("unknown value {value}; this build speaks an older CRI"),
        )
    })
}
