//! Security layers as data and decisions: capability sets, seccomp and AppArmor profiles.
//!
//! Pure, but for the compiler of seccomp programs, which is a C library and keeps 1.1 MB of heap a
//! program: that is why only the daemon compiles, once per profile.

pub mod apparmor;
pub mod capabilities;
pub mod defaults;
pub mod seccomp;
