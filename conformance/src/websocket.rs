//! A WebSocket client by hand (RFC 6455), for what well-behaved clients never do: reading nothing,
//! going away in the middle, lying about channels.
//!
//! Blocking, on a plain TCP connection; every message is one frame, as the streaming servers send
//! them. The first byte of a message is its channel (Kubernetes' remote command protocol).

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// The newest remote command protocol.
pub const V5: &str = "v5.channel.k8s.io";
/// The one before it, which has no way to half-close stdin.
pub const V4: &str = "v4.channel.k8s.io";
/// Channel numbers of remote command.
pub const STDIN: u8 = 0;
/// See [`STDIN`].
pub const STDOUT: u8 = 1;
/// See [`STDIN`].
pub const STDERR: u8 = 2;
/// The Status in JSON, last.
pub const ERROR: u8 = 3;

/// How long a read waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most a frame may hold; servers send pieces of some tens of KiB.
const MAX_FRAME: usize = 1 << 20;

/// An open connection.
#[derive(Debug)]
pub struct WebSocket {
    stream: TcpStream,
}

/// What a plain HTTP request for an upgrade got.
pub fn answer(url: &str, headers: &[(&str, &str)]) -> Result<(TcpStream, String)> {
    let rest = url.strip_prefix("http://").context("a plain URL")?;
    let (host, path) = rest.split_once('/').context("a path")?;
    let mut stream = TcpStream::connect(host).with_context(|| format!("connect to {host}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        let count = stream.read(&mut byte).context("read the answer's head")?;
        ensure!(
            count == 1,
            "the answer was cut: {}",
            String::from_utf8_lossy(&head)
        );
        head.push(byte[0]);
    }
    Ok((stream, String::from_utf8_lossy(&head).into_owned()))
}

/// The status code of a request for an upgrade to WebSocket.
pub fn status(url: &str) -> Result<u16> {
    code(&answer(url, &upgrade(V5))?.1)
}

fn code(head: &str) -> Result<u16> {
    let word = head.split(' ').nth(1).context("no status line")?;
    Ok(word.parse()?)
}

fn upgrade(protocol: &str) -> [(&'static str, &str); 5] {
    [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", protocol),
    ]
}

impl WebSocket {
    /// Connects and asks for one protocol.
    pub fn connect(url: &str, protocol: &str) -> Result<Self> {
        let (stream, head) = answer(url, &upgrade(protocol))?;
        ensure!(code(&head)? == 101, "not upgraded: {head}");
        ensure!(head.contains(protocol), "another protocol: {head}");
        Ok(Self { stream })
    }

    /// Sends one message, masked by zeroes as any client may choose.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() + 1;
        let mut frame = vec![0x82];
        match u16::try_from(length)? {
            short @ 0..=125 => frame.push(0x80 | u8::try_from(short)?),
            long => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&long.to_be_bytes());
            }
        }
        frame.extend_from_slice(&[0; 4]);
        frame.push(channel);
        frame.extend_from_slice(bytes);
        Ok(self.stream.write_all(&frame)?)
    }

    /// The next message: its channel and bytes. Nothing once the server has closed.
    pub fn receive(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            let Some(head) = self.bytes(2)? else {
                return Ok(None);
            };
            let length = match head[1] & 0x7f {
                126 => self.number(2)?,
                127 => self.number(8)?,
                short => usize::from(short),
            };
            ensure!(length <= MAX_FRAME, "a frame of {length} bytes");
            let payload = self.bytes(length)?.context("a frame was cut")?;
            match head[0] & 0x0f {
                1 | 2 => {
                    let (channel, rest) = payload.split_first().context("an empty message")?;
                    return Ok(Some((*channel, rest.to_vec())));
                }
                8 => return Ok(None),
                9 | 10 => {}
                other => bail!("opcode {other}"),
            }
        }
    }

    /// What comes on a channel until it is at least that long or the server closes.
    pub fn read(&mut self, channel: u8, least: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while all.len() < least {
            match self.receive()? {
                Some((from, bytes)) if from == channel => all.extend(bytes),
                Some(_) => {}
                None => break,
            }
        }
        Ok(all)
    }

    /// Like [`Self::read`], but only counts.
    pub fn skip(&mut self, channel: u8, least: usize) -> Result<usize> {
        let mut count = 0;
        while count < least {
            match self.receive()? {
                Some((from, bytes)) if from == channel => count += bytes.len(),
                Some(_) => {}
                None => break,
            }
        }
        Ok(count)
    }

    /// Another handle on the same connection, to send while this one receives.
    pub fn duplicate(&self) -> Result<Self> {
        let stream = self.stream.try_clone()?;
        Ok(Self { stream })
    }

    /// All that comes on stdout, and the Status, until the server closes.
    pub fn finish(&mut self) -> Result<(Vec<u8>, String)> {
        let (mut output, mut status) = (Vec::new(), Vec::new());
        while let Some((channel, bytes)) = self.receive()? {
            match channel {
                STDOUT => output.extend(bytes),
                ERROR => status.extend(bytes),
                _ => {}
            }
        }
        Ok((output, String::from_utf8_lossy(&status).into_owned()))
    }

    fn number(&mut self, length: usize) -> Result<usize> {
        let bytes = self.bytes(length)?.context("a frame was cut")?;
        let number = bytes
            .iter()
            .fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
        Ok(usize::try_from(number)?)
    }

    /// Exactly that many bytes, or nothing where the connection ended before.
    fn bytes(&mut self, length: usize) -> Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; length];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).context("read from the server"),
        }
    }
}
