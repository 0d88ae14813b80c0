//! Exec as a stream: tokens, half-closed stdin (case X7), a daemon that restarts meanwhile.

use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_conformance::node::pods::container;
use bulkhead_conformance::node::{Options, Streams};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_conformance::websocket::{self, STDIN, STDOUT, V5, WebSocket};
use bulkhead_conformance::{clients, wait};
use tonic::Code;

const STDIN_ONLY: Streams = Streams {
    stdin: true,
    tty: false,
};

async fn idle(rig: &Rig, name: &str) -> Result<(Pod, String)> {
    let busybox = rig.busybox().await?;
    let pod = rig.pod(name).await?;
    let config = container("main", busybox, &["sleep", "1000"]);
    let id = rig.start_in(&pod, &config).await?;
    Ok((pod, id))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_once_for_a_minute_and_can_not_be_guessed() -> Result<()> {
    let rig = Rig::start_with(Options {
        movable_clock: true,
        ..Default::default()
    })
    .await?;
    let (_pod, id) = idle(&rig, "tokens").await?;
    let url = rig
        .node
        .exec_url(&id, &["true"], Streams::default())
        .await?;
    assert_eq!(websocket::status(&url)?, 101);
    assert_eq!(websocket::status(&url)?, 404, "used twice");

    let url = rig
        .node
        .exec_url(&id, &["true"], Streams::default())
        .await?;
    let (folder, token) = url.rsplit_once('/').context("no token")?;
    // 128 bits are 22 digits of base64.
    assert!(token.len() >= 22, "{token}");
    let swapped: String = token.chars().rev().collect();
    for guess in ["", "AAAAAAAAAAAAAAAAAAAAAA", &token[1..], &swapped] {
        assert_eq!(
            websocket::status(&format!("{folder}/{guess}"))?,
            404,
            "{guess:?}"
        );
    }
    let elsewhere = url.replace("/exec/", "/attach/");
    assert_eq!(websocket::status(&elsewhere)?, 404, "another verb");

    let url = rig
        .node
        .exec_url(&id, &["true"], Streams::default())
        .await?;
    rig.node.put_forward(59)?;
    assert_eq!(websocket::status(&url)?, 101, "within its minute");
    let url = rig
        .node
        .exec_url(&id, &["true"], Streams::default())
        .await?;
    rig.node.put_forward(59 + 61)?;
    assert_eq!(websocket::status(&url)?, 404, "a minute later");
    rig.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_open_tokens_is_bounded() -> Result<()> {
    let rig = Rig::start().await?;
    let (_pod, id) = idle(&rig, "bounded").await?;
    // All at once: on a busy machine one after the other, the first might be too old already.
    let ask = || rig.node.exec_url(&id, &["true"], Streams::default());
    let urls = futures_util::future::try_join_all((0..1000).map(|_| ask())).await?;
    let refused = rig.node.exec_url(&id, &["true"], Streams::default()).await;
    let refused = refused.expect_err("the thousand and first");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(websocket::status(&urls[0])?, 101);
    rig.node
        .exec_url(&id, &["true"], Streams::default())
        .await?;
    rig.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_can_not_be_served_are_refused_by_the_rpc() -> Result<()> {
    let rig = Rig::start().await?;
    let (pod, id) = idle(&rig, "refused").await?;
    let unknown = "f".repeat(64);
    for (name, answer, code) in [
        (
            "no command",
            rig.node.exec_url(&id, &[], Streams::default()).await,
            Code::InvalidArgument,
        ),
        (
            "unknown",
            rig.node
                .exec_url(&unknown, &["true"], Streams::default())
                .await,
            Code::NotFound,
        ),
        (
            "unknown",
            rig.node.attach_url(&unknown, Streams::default()).await,
            Code::NotFound,
        ),
        (
            "unknown",
            rig.node.forward_url(&unknown, &[80]).await,
            Code::NotFound,
        ),
        (
            "a terminal the container lacks",
            rig.node
                .attach_url(
                    &id,
                    Streams {
                        stdin: false,
                        tty: true,
                    },
                )
                .await,
            Code::InvalidArgument,
        ),
    ] {
        let refused = answer.expect_err(name);
        assert_eq!(refused.code(), code, "{name}: {refused:?}");
    }
    rig.node.stop_container(&id, 0).await?;
    let stopped = rig.node.exec_url(&id, &["true"], Streams::default()).await;
    assert_eq!(
        stopped.expect_err("stopped").code(),
        Code::FailedPrecondition
    );
    rig.node.stop_pod(&pod.id).await?;
    let stopped = rig.node.forward_url(&pod.id, &[80]).await;
    assert_eq!(
        stopped.expect_err("stopped").code(),
        Code::FailedPrecondition
    );
    rig.finish().await
}

/// Case S3 by Exec: what can't be executed comes back on the error stream, named.
#[tokio::test(flavor = "multi_thread")]
async fn s3_a_command_that_cannot_be_executed_is_named_on_the_error_stream() -> Result<()> {
    let rig = Rig::start().await?;
    let (_pod, id) = idle(&rig, "s3").await?;
    for (command, reason) in [
        ("no-such-command", "executable file not found in $PATH"),
        ("/absent", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ] {
        let url = rig
            .node
            .exec_url(&id, &[command], Streams::default())
            .await?;
        let (output, status) = WebSocket::connect(&url, V5)?.finish()?;
        assert_eq!(output, b"");
        let status: serde_json::Value = serde_json::from_str(&status)?;
        assert_eq!(status["status"], "Failure", "{status}");
        let message = status["message"].as_str().unwrap_or_default();
        let lower = message.to_lowercase();
        assert!(
            message.contains(command) && lower.contains(&reason.to_lowercase()),
            "{message}"
        );
    }
    rig.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn x7_half_closing_stdin_is_its_end_and_output_still_comes() -> Result<()> {
    let rig = Rig::start().await?;
    let (_pod, id) = idle(&rig, "x7").await?;
    let command = ["sh", "-c", "cat; echo closed; sleep 1; echo late; exit 5"];
    let url = rig.node.exec_url(&id, &command, STDIN_ONLY).await?;
    let mut client = WebSocket::connect(&url, V5)?;
    client.send(STDIN, b"word\n")?;
    assert_eq!(client.read(STDOUT, 5)?, b"word\n");
    client.send(255, &[STDIN])?;
    let (output, status) = client.finish()?;
    assert_eq!(String::from_utf8_lossy(&output), "closed\nlate\n");
    let status: serde_json::Value = serde_json::from_str(&status)?;
    assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
    assert_eq!(status["details"]["causes"][0]["message"], "5", "{status}");

    for protocol in ["spdy", "websocket"] {
        let url = rig.node.exec_url(&id, &command, STDIN_ONLY).await?;
        let arguments = ["exec", "-protocol", protocol, "-stdin", "word\n", &url];
        let done = clients::client_go(&arguments).await?;
        assert_eq!(done["stdout"], "word\nclosed\nlate\n", "{protocol}: {done}");
        assert_eq!(done["exit_code"], 5, "{protocol}: {done}");
    }

    // On a terminal the end of input is a character: the line discipline's, ^D.
    let terminal = Streams {
        stdin: true,
        tty: true,
    };
    let url = rig.node.exec_url(&id, &command, terminal).await?;
    let mut client = WebSocket::connect(&url, V5)?;
    client.send(STDIN, b"word\n\x04")?;
    let (output, _) = client.finish()?;
    let output = String::from_utf8_lossy(&output);
    assert!(output.ends_with("closed\r\nlate\r\n"), "{output:?}");
    rig.finish().await
}

/// The one process of the container whose command line is this.
async fn running(rig: &Rig, id: &str, command: &str) -> Result<bool> {
    let list = rig.node.output(id, &["ps", "-o", "args"]).await?;
    Ok(list.lines().any(|line| line.trim() == command))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_daemon_ends_the_client_and_not_the_process() -> Result<()> {
    let mut rig = Rig::start().await?;
    let (_pod, id) = idle(&rig, "restart").await?;
    for (seconds, tty, protocol) in [("7001", false, "spdy"), ("7002", true, "websocket")] {
        let command = ["sleep", seconds];
        let url = rig
            .node
            .exec_url(&id, &command, Streams { stdin: false, tty })
            .await?;
        let mut arguments = vec!["exec", "-no-stdin", "-protocol", protocol];
        if tty {
            arguments.push("-tty");
        }
        arguments.push(&url);
        let client = clients::start_client_go(&arguments)?;
        let shown = format!("sleep {seconds}");
        wait::until("the command", Duration::from_secs(10), async || {
            Ok(running(&rig, &id, &shown).await?.then_some(()))
        })
        .await?;
        rig.node.kill()?;
        let ended = tokio::time::timeout(Duration::from_secs(10), clients::ended(client)).await;
        let ended = ended.context("the client hangs")??;
        assert_eq!(ended["exit_code"], 0, "{ended}");
        rig.node.launch().await?;
        assert!(running(&rig, &id, &shown).await?, "{shown} is gone");
    }
    rig.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_closes_stdin_and_kills_nothing() -> Result<()> {
    let rig = Rig::start().await?;
    let (_pod, id) = idle(&rig, "vanish").await?;
    let command = [
        "sh",
        "-c",
        "cat > /dev/null; echo end > /seen; exec sleep 7003",
    ];
    let url = rig.node.exec_url(&id, &command, STDIN_ONLY).await?;
    let mut client = WebSocket::connect(&url, V5)?;
    client.send(STDIN, b"word\n")?;
    drop(client);
    wait::until("the end of stdin", Duration::from_secs(10), async || {
        Ok(running(&rig, &id, "sleep 7003").await?.then_some(()))
    })
    .await?;
    assert_eq!(rig.node.output(&id, &["cat", "/seen"]).await?, "end\n");
    rig.finish().await
}
