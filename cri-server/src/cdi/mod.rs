//! Devices by the Container Device Interface (CDI): a vendor's files on the node say what a container
//! needs to use a device. Source: the CNCF's "Container Device Interface Specification", 1.0.0.
//!
//! Devices come from the field `CDI_devices` alone: annotations never widen what a container gets
//! (threat I3). What a file asks for passes the same checks as the request's own mounts and devices.

mod merge;
mod name;
mod registry;
mod spec;

pub use merge::merge;
pub use name::DeviceName;
pub use registry::resolve;
pub use spec::Edits;
