//! Kubernetes' own client library against exec: bulk both ways, resizes, abrupt ends.
//!
//! BULKHEAD_STREAM_BYTES sets how much goes through; 64 MiB if unset, a full run takes a gibibyte.

use std::time::Duration;

use anyhow::{Context, Result};
use bulkhead_conformance::clients::{client_go, start_client_go};
use bulkhead_conformance::node::pods::container;
use bulkhead_conformance::node::{Streams, monitor_of};
use bulkhead_conformance::rig::Rig;
use bulkhead_conformance::wait;

const PROTOCOLS: [&str; 2] = ["spdy", "websocket"];

async fn idle(rig: &Rig) -> Result<String> {
    let busybox = rig.busybox().await?;
    let pod = rig.pod("client").await?;
    let config = container("main", busybox, &["sleep", "1000"]);
    rig.start_in(&pod, &config).await
}

/// Descriptors a process holds.
fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_in_comes_out_with_equal_checksum() -> Result<()> {
    let bytes = std::env::var("BULKHEAD_STREAM_BYTES").unwrap_or((64 << 20).to_string());
    let rig = Rig::start().await?;
    let id = idle(&rig).await?;
    for protocol in PROTOCOLS {
        let streams = Streams {
            stdin: true,
            tty: false,
        };
        let url = rig.node.exec_url(&id, &["cat"], streams).await?;
        let done = client_go(&["exec", "-protocol", protocol, "-bytes", &bytes, &url]).await?;
        assert_eq!(done["error"], "", "{protocol}: {done}");
        assert_eq!(done["bytes"].to_string(), bytes, "{protocol}: {done}");
        assert_eq!(done["sent"], done["received"], "{protocol}: {done}");
        eprintln!(
            "{protocol}: {bytes} bytes through cat in {} ms",
            done["milliseconds"]
        );
    }
    rig.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_outputs_and_failures_arrive_as_the_library_expects_them() -> Result<()> {
    let rig = Rig::start().await?;
    let id = idle(&rig).await?;
    for protocol in PROTOCOLS {
        for (script, code) in [
            ("echo out; echo err >&2; exit 3", 3),
            ("echo out; echo err >&2", 0),
        ] {
            let command = ["sh", "-c", script];
            let url = rig.node.exec_url(&id, &command, Streams::default()).await?;
            let done = client_go(&["exec", "-no-stdin", "-protocol", protocol, &url]).await?;
            assert_eq!(done["stdout"], "out\n", "{protocol}: {done}");
            assert_eq!(done["stderr"], "err\n", "{protocol}: {done}");
            assert_eq!(done["exit_code"], code, "{protocol}: {done}");
            assert_eq!(done["error"], "", "{protocol}: {done}");
        }
        let url = rig
            .node
            .exec_url(&id, &["absent"], Streams::default())
            .await?;
        let done = client_go(&["exec", "-no-stdin", "-protocol", protocol, &url]).await?;
        let error = done["error"].as_str().unwrap_or_default();
        assert!(error.contains("absent"), "{protocol}: {done}");
    }
    rig.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_resizes_ends_in_the_last_size() -> Result<()> {
    let rig = Rig::start().await?;
    let id = idle(&rig).await?;
    let script = "i=0; while [ $i -lt 100 ]; do i=$((i+1)); \
                  [ \"$(stty size)\" = '111 222' ] && echo settled && exit; usleep 100000; done";
    for protocol in PROTOCOLS {
        let streams = Streams {
            stdin: true,
            tty: true,
        };
        let url = rig
            .node
            .exec_url(&id, &["sh", "-c", script], streams)
            .await?;
        let arguments = [
            "-protocol",
            protocol,
            "-tty",
            "-resizes",
            "5000",
            "-hold-stdin",
            "15s",
        ];
        let mut all = vec!["exec"];
        all.extend(arguments);
        all.push(&url);
        let done = client_go(&all).await?;
        assert_eq!(done["stdout"], "settled\r\n", "{protocol}: {done}");
    }
    rig.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn abrupt_ends_leave_neither_descriptors_nor_processes() -> Result<()> {
    let rig = Rig::start().await?;
    let id = idle(&rig).await?;
    let init = rig.node.init_pid(&id).await?;
    let monitor = monitor_of(init)?;
    let before = (descriptors(rig.node.pid())?, descriptors(monitor)?);
    // Nobody kills the command of a client that vanished: its stdin ends (`docs/streaming.md`).
    let script = "while echo line; do :; done & cat > /dev/null; kill $!";
    let streams = Streams {
        stdin: true,
        tty: false,
    };
    for round in 0..20 {
        let protocol = PROTOCOLS[round % 2];
        let command = ["sh", "-c", script];
        let url = rig.node.exec_url(&id, &command, streams).await?;
        let mut arguments = vec!["exec", "-protocol", protocol, "-hold-stdin", "5m"];
        if round % 4 < 2 {
            arguments.extend(["-abort-after", "100000", &url]);
            let done = client_go(&arguments).await?;
            assert!(done["bytes"].as_u64() >= Some(100_000), "{done}");
        } else {
            arguments.push(&url);
            let mut client = start_client_go(&arguments)?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.kill().await?;
        }
    }
    wait::until("the commands' end", Duration::from_secs(20), async || {
        let list = rig.node.output(&id, &["ps", "-o", "args"]).await?;
        let left = list.lines().any(|line| line.contains("while echo"));
        let now = (descriptors(rig.node.pid())?, descriptors(monitor)?);
        Ok((!left && now.0 <= before.0 + 1 && now.1 <= before.1).then_some(()))
    })
    .await
    .with_context(|| format!("before: {before:?}; now: {:?}", descriptors(monitor)))?;
    rig.finish().await
}
