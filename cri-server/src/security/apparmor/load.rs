//! The default profile into the kernel, by the node's `apparmor_parser`, and the list of what is
//! loaded.
//!
//! The kernel takes compiled policy only, and no crate compiles it; `docs/decisions` has the choice.
//! The parser runs when the daemon starts, and again when the profile is found to be gone (tools
//! that tidy up remove what stands in no policy directory). Never at a container's start.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use bulkhead_runtime::features::Features;
use tokio::io::AsyncWriteExt as _;

use super::profile::{self, DEFAULT_PROFILE};
use super::{DefaultProfile, Policy};
use crate::failure::{Class, Doing, Failure};

/// Where distributions have it; never searched for by PATH (threat P2).
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];

/// How long compiling may take; a second in an emulated machine, a fraction of it elsewhere.
const LIMIT: Duration = Duration::from_secs(30);

/// The most of the parser's words that is passed on, in bytes.
const MAX_WORDS: usize = 1024;

/// The names of loaded profiles, a line each (apparmorfs).
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// AppArmor as the daemon has it.
#[derive(Debug)]
pub struct AppArmor {
    /// None on a node without AppArmor.
    default: Option<Mutex<DefaultProfile>>,
    /// One load at a time.
    loading: tokio::sync::Mutex<()>,
}

impl AppArmor {
    /// Loads the default profile, replacing that of an earlier version. A failure is told here and
    /// refuses containers later; it doesn't keep the daemon from serving the others.
    pub async fn start(features: &Features) -> Self {
        let this = Self {
            default: features
                .apparmor
                .then(|| Mutex::new(DefaultProfile::NoParser)),
            loading: tokio::sync::Mutex::default(),
        };
        if this.default.is_some() {
            this.load().await;
        }
        this
    }

    /// What is loaded now; the default profile is put back if it is gone.
    ///
    /// # Errors
    /// When the kernel's list can't be read.
    pub async fn policy(&self) -> Result<Option<Policy>, Failure> {
        if self.default.is_none() {
            return Ok(None);
        }
        let mut loaded = profiles()?;
        if self.state() != DefaultProfile::NoParser && !loaded.contains(DEFAULT_PROFILE) {
            self.load().await;
            loaded = profiles()?;
        }
        Ok(Some(Policy {
            default: self.state(),
            loaded,
        }))
    }

    async fn load(&self) {
        let _one_at_a_time = self.loading.lock().await;
        let state = match parser() {
            None => {
                tracing::warn!(
                    "AppArmor is enabled, but {}: containers that ask for no profile are not \
                     confined by one",
                    no_parser()
                );
                DefaultProfile::NoParser
            }
            Some(parser) => match run(parser, &profile::text()).await {
                Ok(()) => {
                    tracing::info!(profile = DEFAULT_PROFILE, "loaded the AppArmor profile");
                    DefaultProfile::Loaded
                }
                Err(failure) => {
                    tracing::error!(%failure, "the default AppArmor profile could not be loaded");
                    DefaultProfile::Failed(failure.message().to_owned())
                }
            },
        };
        if let Some(default) = &self.default {
            *default
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner()) = state;
        }
    }

    fn state(&self) -> DefaultProfile {
        match &self.default {
            Some(default) => default
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .clone(),
            None => DefaultProfile::NoParser,
        }
    }
}

/// The node's parser.
pub fn parser() -> Option<&'static Path> {
    PARSERS.iter().map(Path::new).find(|path| path.exists())
}

/// What it would take to have one.
pub fn no_parser() -> String {
    format!(
        "there is no apparmor_parser ({}; Debian has it in the package apparmor)",
        PARSERS.join(", ")
    )
}

/// Compiles and loads a profile. Nothing of the daemon's environment, and no cache: it would lie
/// in a directory of the node, and this runs once per start.
async fn run(parser: &Path, text: &str) -> Result<(), Failure> {
    let doing = || format!("run {}", parser.display());
    let mut child = tokio::process::Command::new(parser)
        .args(["--replace", "--skip-cache", "--quiet"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .doing(doing())?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has failed already reads no more: its status and words say why.
        stdin.write_all(text.as_bytes()).await.ok();
    }
    let output = tokio::time::timeout(LIMIT, child.wait_with_output())
        .await
        .map_err(|_| Failure::new(Class::Deadline, format!("{}: no end in {LIMIT:?}", doing())))?
        .doing(doing())?;
    if output.status.success() {
        return Ok(());
    }
    let words = output.stderr.get(..MAX_WORDS).unwrap_or(&output.stderr);
    Err(Failure::internal(format!(
        "{}: {}: {}",
        doing(),
        output.status,
        String::from_utf8_lossy(words).trim()
    )))
}

/// Names of the profiles loaded now: `name (mode)` a line.
fn profiles() -> Result<BTreeSet<String>, Failure> {
    let text = std::fs::read_to_string(LOADED).doing(format!("read {LOADED}"))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.rsplit_once(" ("))
        .map(|(name, _)| name.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_profiles_are_read_whatever_they_hold() {
        let text = "bulkhead-default (enforce)\n/usr/bin/man (complain)\na (b) (kill)\n\n";
        let names: Vec<_> = parse(text).into_iter().collect();
        assert_eq!(names, ["/usr/bin/man", "a (b)", "bulkhead-default"]);
    }

    #[tokio::test]
    async fn a_parser_s_failure_is_told_in_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("parser");
        let script = "#!/bin/sh\nread -r first\necho \"$* $first at line 3\" >&2\nexit 7\n";
        std::fs::write(&path, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        let failure = run(&path, "profile x {\n").await.unwrap_err();
        for word in ["exit status: 7", "--replace", "profile x { at line 3"] {
            assert!(failure.message().contains(word), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_node_without_apparmor_has_no_policy() {
        let without = AppArmor {
            default: None,
            loading: tokio::sync::Mutex::default(),
        };
        assert_eq!(without.policy().await.unwrap(), None);
    }
}
