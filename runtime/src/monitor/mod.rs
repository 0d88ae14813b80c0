//! The per-pod monitor process: one single-threaded loop that launches a pod's containers and
//! execs, reaps them, writes their logs and records their exits. It needs nothing from the daemon
//! to keep its pod running. The daemon's side is [`start`] (a new monitor) and [`connection`].

mod attach;
mod children;
mod client;
pub mod connection;
mod deadline;
mod defaults;
mod endings;
mod event_loop;
pub mod exits;
mod feed;
pub mod frame;
mod log;
mod outputs;
mod patience;
mod peer;
mod pod;
mod process;
mod record;
mod requests;
mod sources;
pub mod start;
mod state;
mod stdio;
mod terminals;
pub mod wire;

pub use process::run;

/// Says on the monitor's log (standard error) what nobody can be told in a reply.
fn complain(error: &crate::error::Error) {
    use std::io::Write;
    // With the log gone too there is nobody left to tell.
    let _unheard = writeln!(std::io::stderr(), "bulkhead-monitor: {error}");
}
