//! A person's end of a remote command: the streaming URL over WebSocket, as any client would use it
//! (`v5.channel.k8s.io`), joined to this process's own standard streams.

mod keys;
mod outcome;
mod raw;
mod stdin;

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

use self::keys::DetachKeys;
use self::raw::Raw;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const OUTCOME: u8 = 3;
const RESIZE: u8 = 4;
/// Half-closes the channel it is followed by.
const CLOSE: u8 = 255;

/// What of this process is joined.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams {
    pub(super) stdin: bool,
    pub(super) tty: bool,
}

/// Opens a streaming URL with one of its sub-protocols.
pub(super) async fn open(
    url: &str,
    protocol: &'static str,
) -> anyhow::Result<WebSocketStream<TcpStream>> {
    let Some(rest) = url.strip_prefix("http://") else {
        bail!("the daemon serves streams over TLS; use a client that knows its certificate");
    };
    let address = rest.split('/').next().unwrap_or_default();
    let connecting = || format!("connect to the daemon's streaming server at {address}");
    let stream = TcpStream::connect(address).await.with_context(connecting)?;
    stream.set_nodelay(true).with_context(connecting)?;
    let mut request = format!("ws://{rest}").into_client_request()?;
    let protocol = HeaderValue::from_static(protocol);
    request
        .headers_mut()
        .insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(answer)) => bail!("{}: {}", connecting(), answer.status()),
        Err(error) => Err(error).with_context(connecting),
    }
}

/// Whether a terminal can be asked for.
pub(super) fn check(streams: Streams) -> anyhow::Result<()> {
    ensure!(
        !streams.tty || rustix::termios::isatty(io::stdin()),
        "--tty: standard input is no terminal"
    );
    Ok(())
}

/// Joins the command at `url` to this process until it ends; its exit code is ours. The terminal is
/// as it was before, whatever ends it.
pub(super) async fn run(url: &str, streams: Streams) -> anyhow::Result<ExitCode> {
    let socket = open(url, "v5.channel.k8s.io").await?;
    let raw = streams.tty.then(Raw::enter).transpose()?;
    let ended = talk(socket, streams).await;
    drop(raw);
    ended
}

async fn talk(socket: WebSocketStream<TcpStream>, streams: Streams) -> anyhow::Result<ExitCode> {
    let (mut sink, mut stream) = socket.split();
    let mut keys = streams.tty.then(DetachKeys::default);
    let mut input = streams.stdin.then(stdin::read);
    let mut resized = signal(SignalKind::window_change())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    if streams.tty {
        sink.send(size()?).await?;
    }
    let mut outcome = Vec::new();
    loop {
        tokio::select! {
            message = stream.next() => match message.transpose() {
                Ok(Some(Message::Binary(bytes))) => show(&bytes, &mut outcome)?,
                Ok(Some(_)) => {}
                Ok(None) => return outcome::read(&outcome),
                // What was told before the connection broke counts.
                Err(_) if !outcome.is_empty() => return outcome::read(&outcome),
                Err(error) => return Err(error).context("the connection to the daemon broke"),
            },
            bytes = stdin::next(&mut input) => match bytes {
                Some(bytes) => {
                    let (bytes, detached) = match &mut keys {
                        Some(keys) => keys.feed(&bytes),
                        None => (bytes, false),
                    };
                    if !bytes.is_empty() {
                        sink.send(message(STDIN, &bytes)).await?;
                    }
                    if detached {
                        drop(sink.close().await);
                        return Ok(ExitCode::SUCCESS);
                    }
                }
                None => {
                    input = None;
                    sink.send(message(CLOSE, &[STDIN])).await?;
                }
            },
            _ = resized.recv(), if streams.tty => sink.send(size()?).await?,
            _ = terminated.recv() => bail!("ended by SIGTERM"),
            _ = hung_up.recv() => bail!("ended by SIGHUP"),
            _ = interrupted.recv() => bail!("ended by SIGINT"),
        }
    }
}

/// Output goes where it belongs; what is said of the outcome is kept.
fn show(message: &[u8], outcome: &mut Vec<u8>) -> io::Result<()> {
    let Some((channel, bytes)) = message.split_first() else {
        return Ok(());
    };
    match *channel {
        STDOUT => {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
        STDERR => io::stderr().lock().write_all(bytes),
        OUTCOME => {
            outcome.extend(
                bytes
                    .iter()
                    .take(outcome::MAX.saturating_sub(outcome.len())),
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

fn message(channel: u8, payload: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(payload.len() + 1);
    bytes.put_u8(channel);
    bytes.put_slice(payload);
    Message::Binary(bytes.freeze())
}

/// The size of our terminal, for that of the command.
fn size() -> anyhow::Result<Message> {
    let size = rustix::termios::tcgetwinsize(io::stdin()).context("ask for the terminal's size")?;
    let text = format!(r#"{{"Width":{},"Height":{}}}"#, size.ws_col, size.ws_row);
    Ok(message(RESIZE, text.as_bytes()))
}

/// Standard input as it comes.
type Input = tokio::sync::mpsc::Receiver<Bytes>;
