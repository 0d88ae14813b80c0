//! The driver over an in-memory socket, against the test client.

use std::time::Duration;

use tokio::io::{DuplexStream, duplex};
use tokio::time::timeout;

use super::*;
use crate::streaming::spdy::Status;
use crate::streaming::spdy::frame::Control;
use crate::streaming::spdy::testing::{Client, Said, data, encoded};

/// What the "kernel" holds of each direction.
const SOCKET: usize = 64 << 10;

struct Peer {
    socket: DuplexStream,
    client: Client,
    acceptor: Acceptor,
    tasks: Tasks,
    next: u32,
}

impl Peer {
    fn new(limits: Limits) -> Self {
        let (ours, socket) = duplex(SOCKET);
        let tasks = Tasks::default();
        Self {
            socket,
            client: Client::new(),
            acceptor: Connection::serve(ours, limits, &tasks),
            tasks,
            next: 1,
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    async fn open(&mut self) -> Stream {
        let frame = self.client.open(self.next, &[("streamtype", "data")]);
        self.next += 2;
        self.send(&frame).await;
        self.acceptor.accept().await.unwrap().stream
    }

    /// Reads until the server has said something that `wanted` accepts; all it said until then.
    async fn until(&mut self, wanted: impl Fn(&Said) -> bool) -> Vec<Said> {
        let mut all = Vec::new();
        let mut buffer = vec![0; 4 << 10];
        loop {
            let read = timeout(Duration::from_secs(60), self.socket.read(&mut buffer));
            let count = read.await.expect("in time").unwrap();
            assert!(count > 0, "closed after {all:?}");
            let said = self.client.read(&buffer[..count]);
            let found = said.iter().any(&wanted);
            all.extend(said);
            if found {
                return all;
            }
        }
    }

    /// Reads to the end; all that was said.
    async fn rest(&mut self) -> Vec<Said> {
        let mut bytes = Vec::new();
        self.socket.read_to_end(&mut bytes).await.unwrap();
        self.client.read(&bytes)
    }
}

fn is_go_away(said: &Said) -> bool {
    matches!(said, Said::Other(Control::GoAway { .. }))
}

fn is_reset(said: &Said) -> bool {
    matches!(said, Said::Other(Control::RstStream { .. }))
}

/// The data of `stream` among it, and whether it ended.
fn data_of(said: &[Said], of: u32) -> (Vec<u8>, bool) {
    let (mut all, mut ended) = (Vec::new(), false);
    for said in said {
        if let Said::Data { stream, bytes, fin } = said
            && *stream == of
        {
            all.extend_from_slice(bytes);
            ended |= fin;
        }
    }
    (all, ended)
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_half_ends_for_itself() {
    let mut peer = Peer::new(Limits::default());
    let mut stream = peer.open().await;
    peer.send(&data(1, b"question", true)).await;
    let mut question = String::new();
    stream.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    stream.write_all(b"answer").await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(stream.write_all(b"more").await.is_err(), "after the end");
    let said = peer
        .until(|said| matches!(said, Said::Data { fin: true, .. }))
        .await;
    assert_eq!(data_of(&said, 1), (b"answer".to_vec(), true));
    drop(stream);
    let ping = encoded(&Control::Ping(1));
    peer.send(&ping).await;
    let said = peer
        .until(|said| *said == Said::Other(Control::Ping(1)))
        .await;
    assert_eq!(said.len(), 1, "a stream that is over isn't reset: {said:?}");
}

#[tokio::test]
async fn headers_and_order_of_streams_are_the_clients() {
    let mut peer = Peer::new(Limits::default());
    let frames = [
        peer.client
            .open(1, &[("streamtype", "error"), ("port", "80")]),
        peer.client
            .open(7, &[("streamtype", "data"), ("port", "80")]),
    ];
    peer.send(&frames.concat()).await;
    for (id, kind) in [(1, "error"), (7, "data")] {
        let incoming = peer.acceptor.accept().await.unwrap();
        assert_eq!((incoming.id, incoming.stream.id()), (id, id));
        assert_eq!(incoming.header("streamtype"), Some(kind));
        assert_eq!(incoming.header("port"), Some("80"));
        assert_eq!(incoming.header("requestid"), None);
    }
}

#[tokio::test]
async fn the_last_words_arrive_before_the_connection_closes() {
    let mut peer = Peer::new(Limits::default());
    let mut stream = peer.open().await;
    let Peer {
        mut socket,
        mut client,
        acceptor,
        tasks,
        ..
    } = peer;
    let words = vec![7; 200_000];
    let sending = async {
        stream.write_all(&words).await.unwrap();
        stream.shutdown().await.unwrap();
        drop((stream, acceptor));
    };
    let mut bytes = Vec::new();
    let (_, read) = tokio::join!(sending, socket.read_to_end(&mut bytes));
    read.unwrap();
    let said = client.read(&bytes);
    assert_eq!(data_of(&said, 1), (words.clone(), true));
    assert!(said.last().is_some_and(is_go_away), "{:?}", said.last());
    drop(socket);
    assert_eq!(tasks.stop(Duration::from_secs(5)).await, 0, "no task stays");
}

#[tokio::test]
async fn a_stream_dropped_early_is_cancelled_after_what_it_wrote() {
    let mut peer = Peer::new(Limits::default());
    let mut stream = peer.open().await;
    stream.write_all(b"words").await.unwrap();
    drop(stream);
    let said = peer.until(is_reset).await;
    assert_eq!(data_of(&said, 1), (b"words".to_vec(), false));
    let stream = peer.open().await;
    stream.reset(Status::InternalError);
    let said = peer.until(is_reset).await;
    let reset = Control::RstStream {
        stream: 3,
        status: 6,
    };
    assert_eq!(said.last(), Some(&Said::Other(reset)));
}

#[tokio::test]
async fn a_reset_by_the_client_is_an_error_after_what_came_before() {
    let mut peer = Peer::new(Limits::default());
    let mut stream = peer.open().await;
    let reset = encoded(&Control::RstStream {
        stream: 1,
        status: 5,
    });
    peer.send(&[data(1, b"half", false), reset].concat()).await;
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).await.unwrap_err();
    assert_eq!(
        (bytes.as_slice(), error.kind()),
        (&b"half"[..], io::ErrorKind::ConnectionReset)
    );
    let error = stream.write_all(b"x").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_vanished_client_ends_everything_that_waits() {
    let mut peer = Peer::new(Limits::default());
    let mut reading = peer.open().await;
    let mut writing = peer.open().await;
    let Peer {
        socket,
        mut acceptor,
        tasks,
        ..
    } = peer;
    let closed = acceptor.closed();
    let waits = async {
        let mut buffer = [0; 8];
        let (read, wrote, accepted) = tokio::join!(
            reading.read(&mut buffer),
            writing.write_all(&[0; 1 << 20]),
            acceptor.accept(),
        );
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(wrote.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(accepted.is_none());
    };
    drop(socket);
    timeout(Duration::from_secs(10), waits)
        .await
        .expect("no waiting on");
    timeout(Duration::from_secs(10), closed.cancelled())
        .await
        .expect("closed");
    assert_eq!(tasks.stop(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_told_and_left() {
    let mut peer = Peer::new(Limits::default());
    let mut stream = peer.open().await;
    peer.send(&data(0, b"", false)).await;
    let error = stream.read_u8().await.unwrap_err();
    assert!(error.to_string().contains("a frame of stream 0"), "{error}");
    let said = peer.rest().await;
    let go_away = Control::GoAway { last: 1, status: 1 };
    assert_eq!(said.last(), Some(&Said::Other(go_away)));
}

#[tokio::test]
async fn streams_not_accepted_are_refused_with_the_acceptor() {
    let mut peer = Peer::new(Limits::default());
    let stream = peer.open().await;
    let waiting = peer.client.open(3, &[("a", "b")]);
    peer.send(&[waiting, encoded(&Control::Ping(1))].concat())
        .await;
    peer.until(|said| *said == Said::Other(Control::Ping(1)))
        .await;
    let other = Peer::new(Limits::default());
    drop(std::mem::replace(&mut peer.acceptor, other.acceptor));
    let late = peer.client.open(5, &[("a", "b")]);
    peer.send(&late).await;
    let mut said = peer.until(is_reset).await;
    if said.iter().filter(|said| is_reset(said)).count() < 2 {
        said.extend(peer.until(is_reset).await);
    }
    for stream in [3, 5] {
        let refused = Control::RstStream { stream, status: 3 };
        assert!(said.contains(&Said::Other(refused)), "{said:?}");
    }
    drop(stream);
    assert!(peer.rest().await.last().is_some_and(is_go_away));
}

#[tokio::test]
async fn a_client_that_leaves_is_served_to_the_end_of_its_streams() {
    let mut peer = Peer::new(Limits::default());
    let mut stream = peer.open().await;
    peer.send(&encoded(&Control::GoAway { last: 0, status: 0 }))
        .await;
    assert!(peer.acceptor.accept().await.is_none());
    stream.write_all(b"still").await.unwrap();
    stream.shutdown().await.unwrap();
    peer.send(&data(1, b"here", true)).await;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "here");
    drop(stream);
    let said = peer.rest().await;
    assert_eq!(data_of(&said, 1), (b"still".to_vec(), true));
}

#[tokio::test]
async fn an_idle_connection_ends_and_a_busy_one_does_not() {
    let idle = Duration::from_millis(600);
    let mut peer = Peer::new(Limits {
        idle,
        ..Limits::default()
    });
    let mut stream = peer.open().await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        peer.send(&encoded(&Control::Ping(1))).await;
        peer.until(|said| *said == Said::Other(Control::Ping(1)))
            .await;
    }
    let before = Instant::now();
    let error = stream.read_u8().await.unwrap_err();
    assert!(error.to_string().contains("idle"), "{error}");
    assert!(before.elapsed() >= Duration::from_millis(500));
    assert!(peer.rest().await.last().is_some_and(is_go_away));
}

#[tokio::test]
async fn a_stopping_daemon_says_goodbye() {
    let mut peer = Peer::new(Limits::default());
    let mut stream = peer.open().await;
    let tasks = peer.tasks.clone();
    let (left, said, error) = tokio::join!(
        tasks.stop(Duration::from_secs(5)),
        async {
            let said = peer.rest().await;
            drop(peer.socket);
            said
        },
        stream.read_u8(),
    );
    assert!(error.unwrap_err().to_string().contains("the daemon stops"));
    assert!(said.last().is_some_and(is_go_away));
    assert_eq!(left, 0);
}

/// Twenty streams that never stop writing, and one with a word to say, over a slow socket.
#[tokio::test]
async fn a_word_among_streams_that_never_stop_waits_a_round_at_most() {
    let mut peer = Peer::new(Limits::default());
    let mut floods = Vec::new();
    for _ in 0..20 {
        let mut stream = peer.open().await;
        floods.push(peer.tasks.spawn("flood", async move {
            let flood = vec![0; 1 << 20];
            while stream.write_all(&flood).await.is_ok() {}
        }));
    }
    let mut quiet = peer.open().await;
    // The output is full of the floods' frames first.
    peer.until(|said| matches!(said, Said::Data { .. })).await;
    tokio::task::yield_now().await;
    peer.tasks.spawn("quiet", async move {
        for _ in 0..5 {
            quiet.write_all(b"word").await.unwrap();
            tokio::task::yield_now().await;
        }
        quiet
    });
    for _ in 0..5 {
        let said = peer
            .until(|said| matches!(said, Said::Data { stream: 41, .. }))
            .await;
        let all: usize = said
            .iter()
            .map(|said| match said {
                Said::Data { bytes, .. } => bytes.len(),
                _ => 0,
            })
            .sum();
        // What is under way, and a frame of each flood before the word's turn.
        assert!(all < (20 << 15) + (3 << 18), "{all} bytes before a word");
    }
    drop(peer.socket);
    for flood in floods {
        flood.await.unwrap();
    }
}

#[tokio::test]
async fn memory_is_bounded_when_nobody_reads_and_the_rest_arrives_when_somebody_does() {
    let limits = Limits {
        window: 32 << 10,
        ..Limits::default()
    };
    let mut peer = Peer::new(limits);
    let mut stream = peer.open().await;
    let frame = data(1, &[9; 16 << 10], false);
    let mut sent = 0;
    let pause = Duration::from_millis(200);
    while timeout(pause, peer.socket.write_all(&frame)).await.is_ok() {
        sent += 16 << 10;
        assert!(sent < 1 << 20, "taken without end");
    }
    // A part of the last frame is out. The bytes go on when the reader does.
    let mut buffer = vec![0; sent];
    stream.read_exact(&mut buffer).await.unwrap();
    assert!(buffer.iter().all(|byte| *byte == 9));
}

#[tokio::test]
async fn a_vanished_client_is_noticed_even_while_it_is_not_read() {
    let limits = Limits {
        window: 1 << 10,
        ..Limits::default()
    };
    let mut peer = Peer::new(limits);
    let stream = peer.open().await;
    peer.send(&data(1, &[0; 4 << 10], false)).await;
    let ping = |said: &Said| matches!(said, Said::Other(Control::Ping(_)));
    peer.until(ping).await;
    let Peer {
        socket, acceptor, ..
    } = peer;
    let closed = acceptor.closed();
    drop(socket);
    timeout(Duration::from_secs(30), closed.cancelled())
        .await
        .expect("noticed");
    drop(stream);
}

/// Two connections forwarded over one session, one of which isn't read.
#[tokio::test]
async fn a_stream_nobody_reads_is_reset_when_it_holds_up_the_others_for_too_long() {
    let limits = Limits {
        window: 1 << 10,
        stalled: Some(Duration::from_millis(300)),
        ..Limits::default()
    };
    let mut peer = Peer::new(limits);
    let mut stuck = peer.open().await;
    let mut other = peer.open().await;
    let begun = Instant::now();
    // More than is read at once, so that what follows is behind it.
    peer.send(&data(1, &[0; 64 << 10], false)).await;
    peer.send(&data(3, b"hello", true)).await;
    let mut text = String::new();
    other.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    assert!(begun.elapsed() >= Duration::from_millis(250));
    let said = peer.until(is_reset).await;
    let reset = Control::RstStream {
        stream: 1,
        status: 7,
    };
    assert_eq!(said.last(), Some(&Said::Other(reset)));
    assert!(stuck.read_u8().await.is_err());
}

#[tokio::test]
async fn a_stream_that_is_read_slowly_is_left_alone() {
    let limits = Limits {
        window: 1 << 10,
        stalled: Some(Duration::from_secs(1)),
        ..Limits::default()
    };
    let mut peer = Peer::new(limits);
    let mut slow = peer.open().await;
    peer.send(&data(1, &[0; 4 << 10], true)).await;
    let mut buffer = [0; 512];
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        slow.read_exact(&mut buffer).await.unwrap();
    }
    assert_eq!(slow.read(&mut buffer).await.unwrap(), 0);
}
