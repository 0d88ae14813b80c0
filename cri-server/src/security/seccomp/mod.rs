//! Seccomp: which profile a container gets, the default one, files of others, and their compiled
//! programs.
//!
//! A profile is an OCI `LinuxSeccomp` with everything conditional already settled, and stands in
//! the container's OCI spec; its program goes to the monitor as bytes.

mod compile;
mod default;
#[cfg(test)]
mod documented;
mod file;
mod recent;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::LinuxSeccomp;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

pub use compile::compile;
pub use default::default_profile;
pub use file::{MAX_FILE, Parsed, parse_json};

use crate::config::SeccompWhenUnset;
use crate::failure::{Doing as _, Failure};
use crate::request::security::Profile;

/// The most programs kept. A node has few profiles, one or two sets of capabilities each.
const KEPT: usize = 64;

/// The profile a container gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeccompChoice {
    /// None.
    Unconfined,
    /// [`default_profile`] for its capabilities.
    RuntimeDefault,
    /// The file at this absolute path, read by the caller (at most [`MAX_FILE`] bytes) and given to
    /// [`parse_json`].
    Localhost(String),
}

/// Decides for a container. Privileged ones have none, whatever they ask for, as the CRI's peers.
pub fn choose(asked: Option<&Profile>, privileged: bool, unset: SeccompWhenUnset) -> SeccompChoice {
    match asked {
        _ if privileged => SeccompChoice::Unconfined,
        Some(Profile::RuntimeDefault) => SeccompChoice::RuntimeDefault,
        Some(Profile::Unconfined) => SeccompChoice::Unconfined,
        Some(Profile::Localhost(path)) => SeccompChoice::Localhost(path.clone()),
        None => match unset {
            SeccompWhenUnset::Unconfined => SeccompChoice::Unconfined,
            SeccompWhenUnset::RuntimeDefault => SeccompChoice::RuntimeDefault,
        },
    }
}

/// The profile in an OCI spec's text, without reading the rest of it.
pub fn of_spec(spec: &str) -> Result<Option<LinuxSeccomp>, Failure> {
    #[derive(Deserialize)]
    struct Spec {
        #[serde(default)]
        linux: Option<Linux>,
    }
    #[derive(Deserialize)]
    struct Linux {
        #[serde(default)]
        seccomp: Option<LinuxSeccomp>,
    }
    let spec: Spec = serde_json::from_str(spec).doing("read the seccomp profile of an OCI spec")?;
    Ok(spec.linux.and_then(|linux| linux.seccomp))
}

/// Programs by the SHA-256 of their profile.
type Programs = HashMap<[u8; 32], Arc<[u8]>>;

/// Programs compiled before: one takes 10 ms.
#[derive(Clone, Debug, Default)]
pub struct SeccompCache(Arc<Mutex<Programs>>);

impl SeccompCache {
    /// The program of `profile`, compiled at the first asking. Blocks for as long.
    pub fn program(&self, profile: &LinuxSeccomp) -> Result<Arc<[u8]>, Failure> {
        let text = serde_json::to_vec(profile).doing("write a seccomp profile")?;
        let key: [u8; 32] = Sha256::digest(&text).into();
        if let Some(program) = self.lock().get(&key) {
            return Ok(program.clone());
        }
        let program: Arc<[u8]> = compile(profile)?.into();
        let mut programs = self.lock();
        if programs.len() >= KEPT {
            // Whatever it is, it can be compiled again.
            programs.clear();
        }
        programs.insert(key, program.clone());
        Ok(program)
    }

    /// A panic elsewhere leaves the map as good as it was.
    fn lock(&self) -> MutexGuard<'_, Programs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
