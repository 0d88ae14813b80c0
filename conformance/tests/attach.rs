//! Attach: when stdin ends (case X7), several clients, one of them slow.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_conformance::node::pods::{container, mount};
use bulkhead_conformance::node::{Log, Streams};
use bulkhead_conformance::rig::{Pod, Rig};
use bulkhead_conformance::wait;
use bulkhead_conformance::websocket::{STDIN, STDOUT, V5, WebSocket};

const WITH_STDIN: Streams = Streams {
    stdin: true,
    tty: false,
};

/// `cat; echo closed`, with these of the container's stdin fields.
async fn cat(rig: &Rig, pod: &Pod, name: &str, stdin: bool, once: bool) -> Result<String> {
    let busybox = rig.busybox().await?;
    let command = ["sh", "-c", "cat; echo closed; exec sleep 1000"];
    let mut config = container(name, busybox, &command);
    (config.stdin, config.stdin_once) = (stdin, once);
    rig.start_in(pod, &config).await
}

async fn attach(rig: &Rig, id: &str, streams: Streams) -> Result<WebSocket> {
    WebSocket::connect(&rig.node.attach_url(id, streams).await?, V5)
}

async fn logged(rig: &Rig, id: &str, text: &str) -> Result<()> {
    let path = rig.node.status(id).await?.log_path;
    wait::until("the line in the log", Duration::from_secs(10), async || {
        Ok(Log::read(&path)?.stdout().contains(text).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn x7_stdin_stays_open_over_attaches_unless_it_is_for_one() -> Result<()> {
    let rig = Rig::start().await?;
    let pod = rig.pod("x7").await?;
    let open = cat(&rig, &pod, "open", true, false).await?;
    for word in ["first\n", "second\n"] {
        let mut client = attach(&rig, &open, WITH_STDIN).await?;
        client.send(STDIN, word.as_bytes())?;
        assert_eq!(client.read(STDOUT, word.len())?, word.as_bytes());
        client.send(255, &[STDIN])?;
        drop(client);
        logged(&rig, &open, word).await?;
    }
    let path = rig.node.status(&open).await?.log_path;
    assert!(!Log::read(&path)?.stdout().contains("closed"));

    for (name, half) in [("half-closes", true), ("leaves", false)] {
        let once = cat(&rig, &pod, name, true, true).await?;
        let mut client = attach(&rig, &once, WITH_STDIN).await?;
        client.send(STDIN, b"only\n")?;
        assert_eq!(client.read(STDOUT, 5)?, b"only\n");
        if half {
            client.send(255, &[STDIN])?;
            assert_eq!(client.read(STDOUT, 7)?, b"closed\n");
        } else {
            drop(client);
        }
        logged(&rig, &once, "closed").await.context(name)?;
    }

    let none = cat(&rig, &pod, "none", false, false).await?;
    logged(&rig, &none, "closed").await?;
    let client = attach(&rig, &none, WITH_STDIN).await;
    client.context("attached for its output all the same")?;
    rig.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn x7_two_clients_feed_one_process_and_both_see_its_output() -> Result<()> {
    let rig = Rig::start().await?;
    let pod = rig.pod("x7").await?;
    let id = cat(&rig, &pod, "shared", true, false).await?;
    let mut one = attach(&rig, &id, WITH_STDIN).await?;
    one.send(STDIN, b"early\n")?;
    assert_eq!(one.read(STDOUT, 6)?, b"early\n");
    let mut two = attach(&rig, &id, WITH_STDIN).await?;
    two.send(STDIN, b"late\n")?;
    assert_eq!(two.read(STDOUT, 5)?, b"late\n", "nothing before the attach");
    assert_eq!(one.read(STDOUT, 5)?, b"late\n");
    rig.node.stop_container(&id, 0).await?;
    for client in [&mut one, &mut two] {
        client.finish().context("attach ends with the container")?;
    }
    rig.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_is_dropped_and_harms_neither_log_nor_process_nor_others() -> Result<()> {
    const LINES: u64 = 200_000;
    let rig = Rig::start().await?;
    let busybox = rig.busybox().await?;
    let pod = rig.pod("slow").await?;
    let volume = rig.node.scratch("flood")?;
    let command = ["probe", "flood", "/vol/go", &LINES.to_string()];
    let mut config = container("main", busybox, &command);
    config.mounts = vec![mount(&volume, "/vol", false)];
    let id = rig.start_in(&pod, &config).await?;
    logged(&rig, &id, "ready").await?;
    let mut slow = attach(&rig, &id, Streams::default()).await?;
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut client = attach(&rig, &id, Streams::default()).await?;
        readers.push(std::thread::spawn(move || client.finish()));
    }
    fs::write(volume.join("go"), "")?;
    assert_eq!(rig.node.wait_exit(&id).await?.exit_code, 0);
    let took: u64 = fs::read_to_string(volume.join("go"))?.parse()?;
    assert!(took < 2000, "one line took {took} ms");
    let whole: String = (0..LINES).map(|line| format!("{line:099}\n")).collect();
    for reader in readers {
        let (output, _) = reader.join().expect("no panic")?;
        assert!(output == whole.as_bytes(), "{} bytes came", output.len());
    }
    let path = rig.node.status(&id).await?.log_path;
    let log = Log::read(&path)?.stdout();
    assert!(log.ends_with(&whole), "the log has {} bytes", log.len());
    // It gets what had been buffered for it, and then the end.
    let (output, _) = slow.finish()?;
    assert!(output.len() < whole.len(), "20 MB were kept for it");
    rig.finish().await
}
