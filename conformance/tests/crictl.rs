//! crictl, unmodified, as an operator uses it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bulkhead_conformance::critest::crictl_path;
use bulkhead_conformance::images::catalog::BUSYBOX;
use bulkhead_conformance::node::pods::container;
use bulkhead_conformance::rig::Rig;
use bulkhead_conformance::terminal::Terminal;
use bulkhead_conformance::wait;
use bulkhead_proto::runtime::v1 as cri;
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

/// crictl's arguments up to the command's own.
fn endpoint(rig: &Rig) -> [String; 2] {
    let socket = format!("unix://{}", rig.node.socket().display());
    ["--runtime-endpoint".to_owned(), socket]
}

fn terminal(rig: &Rig, arguments: &[&str]) -> Result<Terminal> {
    let endpoint = endpoint(rig);
    let all: Vec<&str> = endpoint
        .iter()
        .map(String::as_str)
        .chain(arguments.iter().copied())
        .collect();
    Terminal::start(&crictl_path(), &all, 33, 101)
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_exec_at_a_terminal_follows_its_size_and_gives_the_exit_code() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("terminal").await?;
    let id = rig
        .start_in(&pod, &container("main", busybox, &["sleep", "1000"]))
        .await?;
    for transport in ["spdy", "websocket"] {
        let mut shell = terminal(
            &rig,
            &["exec", "--transport", transport, "-i", "-t", &id, "sh"],
        )?;
        shell.send("echo rea''dy\n")?;
        shell.expect("ready").await.context(transport)?;
        settled(&mut shell, "33 101").await.context(transport)?;
        shell.resize(44, 122)?;
        settled(&mut shell, "44 122").await.context(transport)?;
        // The interrupt character is the terminal's inside, not crictl's own.
        shell.send("echo go''ing; sleep 1000\n")?;
        shell.expect("going").await.context(transport)?;
        shell.send("\x03")?;
        shell.send("echo sti''ll\n")?;
        shell.expect("still").await.context(transport)?;
        shell.send("exit 3\n")?;
        let status = shell.end().await?;
        assert!(!status.success(), "{transport}: {status}");
    }
    rig.finish().await
}

/// Asks for the terminal's size until it is that: a resize has no answer.
async fn settled(shell: &mut Terminal, size: &str) -> Result<()> {
    let script =
        format!("until [ \"$(stty size)\" = '{size}' ]; do usleep 50000; done; echo fit''ted\n");
    shell.send(&script)?;
    shell.expect("fitted").await
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_attach_feeds_a_container_and_leaves_it_running() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("attach").await?;
    let mut config = container(
        "main",
        busybox,
        &["sh", "-c", "while read l; do echo got $l; done"],
    );
    config.stdin = true;
    config.tty = true;
    let id = rig.start_in(&pod, &config).await?;
    for transport in ["spdy", "websocket"] {
        let mut client = terminal(&rig, &["attach", "--transport", transport, "-i", "-t", &id])?;
        client.send("word\n")?;
        client.expect("got word").await.context(transport)?;
        drop(client);
    }
    assert_eq!(
        rig.node.status(&id).await?.state(),
        cri::ContainerState::ContainerRunning
    );
    rig.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn crictl_port_forward_reaches_a_server_in_the_pod() -> Result<()> {
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.networked_pod("forward").await?;
    let server = [
        "sh",
        "-c",
        "mkdir /www; echo page > /www/index.html; exec httpd -f -p 8080 -h /www",
    ];
    rig.start_in(&pod, &container("main", busybox, &server))
        .await?;
    for transport in ["spdy", "websocket"] {
        let client = terminal(
            &rig,
            &[
                "port-forward",
                "--transport",
                transport,
                &pod.id,
                "18099:8080",
            ],
        )?;
        client
            .expect("Forwarding from 127.0.0.1:18099")
            .await
            .context(transport)?;
        let page = wait::until("the page", Duration::from_secs(10), async || {
            Ok(fetch("127.0.0.1:18099")
                .ok()
                .filter(|answer| answer.contains("page")))
        });
        page.await.context(transport)?;
    }
    rig.finish().await
}

fn fetch(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
