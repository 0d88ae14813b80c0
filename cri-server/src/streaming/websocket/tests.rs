use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use super::super::peer::{Peer, Watched};
use super::super::upgrade::Encoding;
use super::switch::{Incoming, decode, encode};
use super::*;

#[test]
fn a_message_is_a_channel_and_its_payload() {
    let binary = |bytes: &[u8]| Message::Binary(Bytes::copy_from_slice(bytes));
    let text = |text: &str| Message::Text(text.into());
    let data = |channel, bytes: &[u8]| Incoming::Data(channel, Bytes::copy_from_slice(bytes));
    for (case, encoding, signal, message, expected) in [
        (
            "binary",
            Encoding::Binary,
            false,
            binary(b"\0abc"),
            data(0, b"abc"),
        ),
        (
            "empty",
            Encoding::Binary,
            false,
            binary(b""),
            Incoming::Nothing,
        ),
        (
            "channel alone",
            Encoding::Binary,
            false,
            binary(b"\0"),
            Incoming::Nothing,
        ),
        (
            "end",
            Encoding::Binary,
            true,
            binary(b"\xff\0"),
            Incoming::End(0),
        ),
        (
            "end without a channel",
            Encoding::Binary,
            true,
            binary(b"\xff"),
            Incoming::Broken,
        ),
        (
            "end of too much",
            Encoding::Binary,
            true,
            binary(b"\xff\0\x01"),
            Incoming::Broken,
        ),
        (
            "no signal before v5",
            Encoding::Binary,
            false,
            binary(b"\xff\0"),
            data(255, b"\0"),
        ),
        (
            "base64",
            Encoding::Base64,
            false,
            text("0YWJj"),
            data(0, b"abc"),
        ),
        (
            "resize in base64",
            Encoding::Base64,
            false,
            text("4e30="),
            data(4, b"{}"),
        ),
        (
            "not base64",
            Encoding::Base64,
            false,
            text("0!"),
            Incoming::Broken,
        ),
        (
            "no digit",
            Encoding::Base64,
            false,
            text("xYWJj"),
            Incoming::Broken,
        ),
        (
            "text where binary is",
            Encoding::Binary,
            false,
            text("0YWJj"),
            Incoming::Broken,
        ),
        (
            "binary where text is",
            Encoding::Base64,
            false,
            binary(b"\0abc"),
            Incoming::Broken,
        ),
        (
            "ping",
            Encoding::Binary,
            false,
            Message::Ping(Bytes::new()),
            Incoming::Nothing,
        ),
    ] {
        assert_eq!(decode(encoding, signal, message), expected, "{case}");
    }
    assert_eq!(encode(Encoding::Binary, 1, b"abc"), binary(b"\x01abc"));
    assert_eq!(encode(Encoding::Base64, 1, b"abc"), text("1YWJj"));
}

async fn pair() -> (Watched, Peer, WebSocketStream<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let (watched, peer) = Watched::new(server).unwrap();
    let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    (watched, peer, client)
}

#[tokio::test]
async fn channels_carry_both_ways_and_the_end_comes_after_the_last_words() {
    let (server, peer, mut client) = pair().await;
    let mut switch = Switch::new(server, Encoding::Binary, true, peer).await;
    let (mut stdin, mut stdout) = (switch.reader(0), switch.writer(1));
    let serve = async {
        let echo = async {
            let mut all = Vec::new();
            stdin.read_to_end(&mut all).await.unwrap();
            stdout.write_all(&all).await.unwrap();
            drop(stdout);
        };
        tokio::join!(switch.run(), echo);
    };
    let ask = async {
        for part in [&b"\0one "[..], b"\x09nobody's", b"\0two", b"\xff\0"] {
            let message = Message::Binary(Bytes::copy_from_slice(part));
            client.send(message).await.unwrap();
        }
        let mut seen = Vec::new();
        while let Some(message) = client.next().await {
            match message.unwrap() {
                Message::Binary(bytes) => {
                    assert_eq!(bytes[0], 1);
                    seen.extend_from_slice(&bytes[1..]);
                }
                Message::Close(frame) => assert_eq!(u16::from(frame.unwrap().code), 1000),
                other => panic!("{other:?}"),
            }
        }
        seen
    };
    let ((), seen) = tokio::join!(serve, ask);
    assert_eq!(seen, b"one two");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_channels_with_an_error() {
    let (server, peer, client) = pair().await;
    let mut switch = Switch::new(server, Encoding::Binary, true, peer).await;
    let (mut stdin, stdout) = (switch.reader(0), switch.writer(1));
    let gone = switch.gone();
    drop(client);
    let reading = async {
        let failed = stdin.read_u8().await.unwrap_err();
        assert_eq!(failed.kind(), std::io::ErrorKind::ConnectionAborted);
        drop(stdout);
    };
    tokio::join!(switch.run(), reading);
    assert!(gone.is_cancelled());
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_while_nobody_reads_its_input() {
    let (server, peer, mut client) = pair().await;
    let mut switch = Switch::new(server, Encoding::Binary, true, peer).await;
    let (stdin, stdout) = (switch.reader(0), switch.writer(1));
    let gone = switch.gone();
    for _ in 0..8 {
        let message = Message::Binary(Bytes::from_static(b"\0unread"));
        client.send(message).await.unwrap();
    }
    drop(client);
    let waiting = async {
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, gone.cancelled()).await.unwrap();
        drop((stdin, stdout));
    };
    tokio::join!(switch.run(), waiting);
}

#[tokio::test]
async fn a_message_beyond_the_bound_ends_the_connection() {
    let (server, peer, mut client) = pair().await;
    let mut switch = Switch::new(server, Encoding::Binary, false, peer).await;
    let (mut stdin, stdout) = (switch.reader(0), switch.writer(1));
    let serve = async {
        let reading = async {
            assert!(stdin.read_u8().await.is_err());
            drop(stdout);
        };
        tokio::join!(switch.run(), reading);
    };
    let ask = async {
        let message = Message::Binary(Bytes::from(vec![0; MAX_MESSAGE + 1]));
        // The server may be gone before all of it was sent.
        drop(client.send(message).await);
    };
    tokio::join!(serve, ask);
}

#[tokio::test]
async fn a_tunnel_is_a_byte_stream() {
    let (server, peer, mut client) = pair().await;
    // It holds the socket open, too.
    drop(peer);
    let serve = async {
        let mut tunnel = Tunnel::new(server).await;
        let mut all = vec![0; 100_000];
        tunnel.read_exact(&mut all).await.unwrap();
        tunnel.write_all(&all).await.unwrap();
        tunnel.shutdown().await.unwrap();
    };
    let ask = async {
        let text: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        for part in text.chunks(33_333) {
            let message = Message::Binary(Bytes::copy_from_slice(part));
            client.send(message).await.unwrap();
        }
        let mut seen = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            if let Message::Binary(bytes) = message {
                seen.extend_from_slice(&bytes);
            }
        }
        assert_eq!(seen, text);
    };
    tokio::join!(serve, ask);
}
