//! Pod sandboxes: one story per operation.
//!
//! Whatever is made for a pod carries its id and is recorded before it is made, so one idempotent
//! [`teardown`](teardown::teardown) undoes a pod in any state: it serves Stop, a failed Run and the
//! start of the daemon alike.

pub mod files;
pub mod forward;
pub mod remove;
pub mod run;
pub mod scope;
pub mod stop;
pub mod supervise;
pub mod teardown;
pub mod update;
mod user_ids;
