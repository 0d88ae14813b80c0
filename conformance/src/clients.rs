//! Clients of others, run as programs: the driver of Kubernetes' Go client library, and crictl.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::node;

/// How long any of them may take; the largest transfers take a minute.
const LIMIT: Duration = Duration::from_secs(600);

/// The built driver of `client-go`.
pub fn client_go_path() -> PathBuf {
    node::target().join("client-go/client-go")
}

/// Starts the driver; it is killed when dropped.
pub fn start_client_go(arguments: &[&str]) -> Result<Child> {
    Command::new(client_go_path())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", client_go_path().display()))
}

/// Runs the driver to its end; what it says happened.
pub async fn client_go(arguments: &[&str]) -> Result<Value> {
    ended(start_client_go(arguments)?).await
}

/// What a started driver says happened.
pub async fn ended(child: Child) -> Result<Value> {
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
    let output = output.with_context(|| format!("not done within {LIMIT:?}"))??;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON; {errors}"))
}
