//! crictl, unmodified, as an operator uses it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use bulkhead_conformance::critest::crictl_path;
use bulkhead_conformance::images::catalog::BUSYBOX;
use bulkhead_conformance::rig::Rig;
use serde_json::{Value, json};

fn crictl(rig: &Rig, arguments: &[&str]) -> Result<String> {
    let endpoint = format!("unix://{}", rig.node.socket().display());
    let output = Command::new(crictl_path())
        .args([
            "--runtime-endpoint",
            &endpoint,
            "--image-endpoint",
            &endpoint,
        ])
        .args(arguments)
        .output()
        .with_context(|| format!("start {}", crictl_path().display()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "crictl {arguments:?}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn parsed(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("no JSON: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_pulls_runs_looks_and_removes() -> Result<()> {
    let rig = Rig::start().await?;
    let info = parsed(&crictl(&rig, &["info"])?)?;
    let conditions = info["status"]["conditions"]
        .as_array()
        .context("conditions")?;
    assert!(
        conditions
            .iter()
            .all(|condition| condition["status"] == json!(true)),
        "{info}"
    );
    crictl(&rig, &["pull", BUSYBOX])?;
    let images = parsed(&crictl(&rig, &["images", "-o", "json"])?)?;
    assert_eq!(images["images"][0]["repoTags"], json!([BUSYBOX]));

    let folder = rig.node.scratch("crictl")?;
    let pod_file = folder.join("pod.json");
    std::fs::write(
        &pod_file,
        json!({
            "metadata": {"name": "pod", "uid": "u", "namespace": "crictl", "attempt": 0},
            "log_directory": folder,
            "linux": {"cgroup_parent": "/bulkhead-conformance"},
        })
        .to_string(),
    )?;
    let container_file = folder.join("container.json");
    std::fs::write(
        &container_file,
        json!({
            "metadata": {"name": "main"},
            "image": {"image": BUSYBOX},
            "command": ["sh", "-c", "echo hello; sleep 1000"],
            "log_path": "main.log",
            "linux": {},
        })
        .to_string(),
    )?;
    let (pod_file, container_file) = (
        pod_file.display().to_string(),
        container_file.display().to_string(),
    );
    let pod = crictl(&rig, &["runp", &pod_file])?;
    let id = crictl(&rig, &["create", &pod, &container_file, &pod_file])?;
    crictl(&rig, &["start", &id])?;
    assert_eq!(
        crictl(&rig, &["exec", "--sync", &id, "echo", "inside"])?,
        "inside"
    );
    assert_eq!(crictl(&rig, &["logs", &id])?, "hello");
    let listed = parsed(&crictl(&rig, &["ps", "-o", "json"])?)?;
    assert_eq!(listed["containers"][0]["id"], json!(id));
    assert_eq!(listed["containers"][0]["state"], json!("CONTAINER_RUNNING"));
    let inspected = parsed(&crictl(&rig, &["inspect", &id])?)?;
    assert!(
        inspected["info"]["pid"].as_u64().is_some_and(|pid| pid > 1),
        "{inspected}"
    );
    let pods = parsed(&crictl(&rig, &["pods", "-o", "json"])?)?;
    assert_eq!(pods["items"][0]["state"], json!("SANDBOX_READY"));
    let status = parsed(&crictl(&rig, &["inspectp", &pod])?)?;
    assert!(
        status["status"]["network"]["ip"]
            .as_str()
            .is_some_and(|ip| !ip.is_empty())
    );
    crictl(&rig, &["stats", "-o", "json"])?;
    crictl(&rig, &["stop", "--timeout", "1", &id])?;
    crictl(&rig, &["rm", &id])?;
    crictl(&rig, &["stopp", &pod])?;
    crictl(&rig, &["rmp", &pod])?;
    crictl(&rig, &["rmi", BUSYBOX])?;
    rig.finish().await
}
