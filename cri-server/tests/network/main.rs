//! The embedded network on the real kernel, as root, each test in network namespaces of its own: one
//! is the node, one the world outside, and one for each pod. Needs `ip` and `nft` to look with.

#![expect(
    clippy::unwrap_used,
    reason = "what helpers of a test cannot do ends the test"
)]

mod cleanup;
mod host_ports;
mod namespaces;
mod node;
mod rules;
mod speed;
mod traffic;
