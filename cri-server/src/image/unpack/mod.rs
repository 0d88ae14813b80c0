//! Unpacking one layer.

pub mod limits;
pub(crate) mod xattr;
