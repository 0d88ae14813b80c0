//! The launcher against this kernel, as root: real namespaces, mounts, limits; asserted from inside the
//! container and from the node. Skipped loudly without root or a static busybox.
//!
//! All of it runs under an allocator that aborts in any process but the test's own: between clone and
//! execve the child allocates nothing, or the test sees it die.
#![expect(clippy::unwrap_used, reason = "what a test sets up must work")]

mod exec;
mod hostile;
mod inside;
mod namespaces;
mod rig;
mod start;
mod terminal;
mod user_namespaces;
mod user_namespaces_hostile;

#[global_allocator]
static ALLOCATOR: rig::allocator::ParentOnly = rig::allocator::ParentOnly;
