//! What proves Bulkhead: drives the product from outside, over its socket and its files.
//!
//! Nothing here knows the product's other crates: `bulkhead-proto` gives the messages, all else is
//! what any client, registry or operator sees. Test images and the registry that serves them are
//! made on the spot; `node` runs a daemon on scratch folders and checks that it leaves nothing.

pub mod bench;
pub mod clients;
pub mod critest;
pub mod demo;
pub mod images;
pub mod inside;
pub mod node;
pub mod pairwise;
pub mod peers;
pub mod registry;
pub mod rig;
pub mod tar;
pub mod terminal;
pub mod wait;
pub mod websocket;
