//! Exec and port-forward as streams: how soon they start, how much goes through.
//!
//! Over WebSocket with `v4.channel.k8s.io`, which every runtime's server speaks, by the same client
//! whichever it is.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::runtime::v1 as cri;

use super::samples::Samples;
use super::subject::{Network, Subject, ms};
use crate::images::catalog;
use crate::node;
use crate::websocket::{STDOUT, V4, WebSocket};

/// The port of the server in the pod.
const PORT: u16 = 8080;
/// How much one throughput sample moves.
const BULK: usize = 64 << 20;
/// A message of the client's: what servers read at once.
const PIECE: usize = 32 << 10;
/// Port-forward's channels of the first port: data, then errors.
const DATA: u8 = 0;

impl Subject {
    /// Samples of `exec_stream_start` (until the first byte of output), `exec_stdout`,
    /// `port_forward_round_trip` and `port_forward_throughput`.
    pub async fn streams(&mut self, samples: u32, into: &mut Samples) -> Result<()> {
        let pod_config = self.pod_config(Network::Pod);
        let pod = self.run(&pod_config).await?;
        let server = ["probe", "echo", &format!("127.0.0.1:{PORT}")];
        let config = node::pods::container("server", catalog::BUSYBOX, &server);
        let id = self.create(&pod, &pod_config, &config).await?;
        self.start(&id).await?;
        let done = self.sample(&pod, &id, samples, into).await;
        self.end(&pod).await?;
        done
    }

    async fn sample(&mut self, pod: &str, id: &str, count: u32, into: &mut Samples) -> Result<()> {
        let name = self.name.clone();
        for _ in 0..count {
            let begin = Instant::now();
            let url = self.exec_url(id, &["echo", "first"]).await?;
            let first = blocking(move || WebSocket::connect(&url, V4)?.read(STDOUT, 1)).await?;
            ensure!(!first.is_empty(), "no output");
            into.add(&name, "exec_stream_start", "ms", ms(begin));
        }
        for _ in 0..count.div_ceil(4) {
            let megabytes = (BULK >> 20).to_string();
            let count = format!("count={megabytes}");
            let command = ["dd", "if=/dev/zero", "bs=1M", &count];
            let url = self.exec_url(id, &command).await?;
            let took = blocking(move || drained(&url)).await?;
            into.add(&name, "exec_stdout", "MB/s", rate(took));
        }
        let url = self.forward_url(pod).await?;
        let trips = blocking(move || round_trips(&url, count)).await?;
        for trip in trips {
            into.add(
                &name,
                "port_forward_round_trip",
                "ms",
                trip.as_secs_f64() * 1e3,
            );
        }
        for _ in 0..count.div_ceil(4) {
            let url = self.forward_url(pod).await?;
            let took = blocking(move || echoed(&url)).await?;
            into.add(&name, "port_forward_throughput", "MB/s", rate(took));
        }
        Ok(())
    }

    async fn exec_url(&mut self, id: &str, command: &[&str]) -> Result<String> {
        let request = cri::ExecRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        Ok(self.runtime.exec(request).await?.into_inner().url)
    }

    async fn forward_url(&mut self, pod: &str) -> Result<String> {
        let request = cri::PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: vec![i32::from(PORT)],
        };
        Ok(self.runtime.port_forward(request).await?.into_inner().url)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// How fast `BULK` went, in MB/s; both fit the number exactly.
fn rate(took: Duration) -> f64 {
    f64::from(u32::try_from(BULK >> 20).unwrap_or(u32::MAX)) / took.as_secs_f64()
}

/// How long the output takes from its first byte to its last.
fn drained(url: &str) -> Result<Duration> {
    let mut client = WebSocket::connect(url, V4)?;
    let first = client.read(STDOUT, 1)?.len();
    let begin = Instant::now();
    let rest = client.skip(STDOUT, BULK - first)?;
    ensure!(first + rest == BULK, "{} bytes came", first + rest);
    Ok(begin.elapsed())
}

fn forwarding(url: &str) -> Result<WebSocket> {
    let mut client = WebSocket::connect(url, V4)?;
    // Each of the two channels opens with the port, two bytes, the low one first. An empty message
    // may come before.
    let mut opened = 0;
    while opened < 2 {
        let (_, port) = client.receive()?.context("closed at once")?;
        ensure!(
            port.is_empty() || port == PORT.to_le_bytes(),
            "opens with {port:?}"
        );
        opened += usize::from(!port.is_empty());
    }
    Ok(client)
}

fn round_trips(url: &str, count: u32) -> Result<Vec<Duration>> {
    let mut client = forwarding(url)?;
    let mut trips = Vec::new();
    for _ in 0..count {
        let begin = Instant::now();
        client.send(DATA, b"x")?;
        ensure!(client.read(DATA, 1)? == b"x", "not what was sent");
        trips.push(begin.elapsed());
    }
    Ok(trips)
}

/// How long `BULK` takes through the pod's server and back.
fn echoed(url: &str) -> Result<Duration> {
    let mut client = forwarding(url)?;
    let mut sending = client.duplicate()?;
    let begin = Instant::now();
    let sender = thread::spawn(move || -> Result<()> {
        for _ in 0..BULK / PIECE {
            sending.send(DATA, &[7; PIECE])?;
        }
        Ok(())
    });
    let received = client.skip(DATA, BULK)?;
    sender.join().ok().context("the sender panicked")??;
    ensure!(received == BULK, "{received} bytes came back");
    Ok(begin.elapsed())
}
