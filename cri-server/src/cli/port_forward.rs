//! `bulkhead port-forward`: local ports that lead to ports of a pod, until an interrupt.
//!
//! Each connection has a WebSocket of its own with the plain channels (`v4.channel.k8s.io`): data is
//! channel 0, an error channel 1, and each begins with the port.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use bulkhead_proto::runtime::v1;
use bytes::{BufMut as _, BytesMut};
use clap::Args;
use futures_util::stream::FuturesUnordered;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use super::client::{Asking as _, Client, block_on};
use super::terminal::{safe, say};
use super::{session, target};

const DATA: u8 = 0;
const ERROR: u8 = 1;

/// Connections at once.
const MOST: usize = 256;

#[derive(Args, Debug)]
pub(super) struct PortForwardArgs {
    /// A played pod, by name or namespace/name, or a pod's id
    #[arg(value_name = "POD")]
    target: String,
    /// The pod's ports, each with a local one in front if that is to differ; local port 0 is any
    #[arg(required = true, value_name = "[LOCAL:]PORT")]
    ports: Vec<Ports>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    local: u16,
    remote: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| {
            text.parse::<u16>()
                .map_err(|_| format!("{text:?} is no port"))
        };
        let (local, remote) = match text.split_once(':') {
            Some((local, remote)) => (port(local)?, port(remote)?),
            None => (port(text)?, port(text)?),
        };
        if remote == 0 {
            return Err("a pod has no port 0".to_owned());
        }
        Ok(Self { local, remote })
    }
}

pub(super) fn run(args: &PortForwardArgs, socket: &Path) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut client = Client::connect(socket).await?;
        let pod = target::sandbox(&mut client, &args.target).await?;
        let mut listening = FuturesUnordered::new();
        for ports in &args.ports {
            // Asked once, so that a pod that isn't there is an error now.
            url(&mut client, &pod, ports.remote).await?;
            let local = (Ipv4Addr::LOCALHOST, ports.local);
            let listener = TcpListener::bind(local)
                .await
                .with_context(|| format!("listen on port {}", ports.local))?;
            let address = listener.local_addr()?;
            say(&format!("{address} leads to port {}", ports.remote))?;
            listening.push(serve(client.clone(), &pod, ports.remote, listener));
        }
        tokio::select! {
            Some(failed) = listening.next() => failed?,
            interrupted = tokio::signal::ctrl_c() => interrupted?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn url(client: &mut Client, pod: &str, port: u16) -> anyhow::Result<String> {
    let request = v1::PortForwardRequest {
        pod_sandbox_id: pod.to_owned(),
        port: vec![port.into()],
    };
    let answer = client.runtime.port_forward(request).await;
    Ok(answer.asking(|| format!("forward port {port}"))?.url)
}

/// Accepts connections; one that fails is said and doesn't end the others.
async fn serve(client: Client, pod: &str, port: u16, listener: TcpListener) -> anyhow::Result<()> {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if open.len() < MOST => {
                let (local, _) = accepted.context("accept a connection")?;
                open.push(forward(client.clone(), pod, port, local));
            }
            Some(ended) = open.next(), if !open.is_empty() => if let Err(error) = ended {
                eprintln!("bulkhead: {}", safe(&format!("{error:#}")));
            },
        }
    }
}

async fn forward(
    mut client: Client,
    pod: &str,
    port: u16,
    mut local: TcpStream,
) -> anyhow::Result<()> {
    let url = url(&mut client, pod, port).await?;
    let (mut sink, mut stream) = session::open(&url, "v4.channel.k8s.io").await?.split();
    let (mut from, mut to) = local.split();
    let up = async {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            let mut message = BytesMut::with_capacity(count + 1);
            message.put_u8(DATA);
            message.put_slice(buffer.get(..count).unwrap_or_default());
            sink.send(Message::Binary(message.freeze())).await?;
        }
        // This protocol can't tell the end of one direction; the server ends the other.
        std::future::pending::<anyhow::Result<()>>().await
    };
    let down = async {
        let (mut data_begun, mut error_begun) = (false, false);
        while let Some(message) = stream.next().await {
            let Message::Binary(bytes) = message? else {
                continue;
            };
            match bytes.split_first() {
                // The first of each channel is the port.
                Some((&DATA, _)) if !data_begun => data_begun = true,
                Some((&ERROR, _)) if !error_begun => error_begun = true,
                Some((&DATA, data)) => to.write_all(data).await?,
                Some((&ERROR, text)) => bail!("{}", String::from_utf8_lossy(text)),
                _ => {}
            }
        }
        to.shutdown().await.context("end the connection")
    };
    tokio::select! {
        done = up => done,
        done = down => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_two_numbers() {
        let ports = |local, remote| Ok(Ports { local, remote });
        for (text, expected) in [
            ("80", ports(80, 80)),
            ("8080:80", ports(8080, 80)),
            ("0:80", ports(0, 80)),
            ("0", Err("a pod has no port 0")),
            ("80:0", Err("a pod has no port 0")),
            ("x", Err("\"x\" is no port")),
            (":80", Err("\"\" is no port")),
            ("1:2:3", Err("\"2:3\" is no port")),
        ] {
            assert_eq!(text.parse(), expected.map_err(str::to_owned), "{text}");
        }
    }
}
