//! The SPDY server against the Go package behind the clients of Kubernetes (`conformance/spdy`),
//! over TCP on loopback.

#![expect(
    clippy::unwrap_used,
    reason = "what helpers of a test cannot do ends the test"
)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use bulkhead_cri_server::ops::tasks::Tasks;
use bulkhead_cri_server::streaming::spdy::{Acceptor, Connection, IncomingStream, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const STREAMS: usize = 64;

/// The client, built once.
fn client() -> &'static Path {
    static CLIENT: OnceLock<PathBuf> = OnceLock::new();
    CLIENT.get_or_init(|| {
        let conformance = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("spdy-client");
        let built = std::process::Command::new(conformance.join("tools/go"))
            .args(["build", "-o"])
            .arg(&path)
            .arg(".")
            .current_dir(conformance.join("spdy"))
            .status()
            .expect("conformance/tools/go runs");
        assert!(built.success(), "the client doesn't build");
        path
    })
}

/// Serves one connection and runs the client's scenario on it; what it printed.
async fn run(scenario: &str, limits: Limits) -> String {
    let tasks = Tasks::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut command = Command::new(client());
    command
        .arg(listener.local_addr().unwrap().to_string())
        .args(scenario.split(' '))
        .kill_on_drop(true);
    let (output, ()) = tokio::join!(timeout(Duration::from_secs(120), command.output()), async {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        let acceptor = Connection::serve(socket, limits, &tasks);
        let ended = serve(acceptor, &tasks);
        timeout(Duration::from_secs(120), ended).await.unwrap();
    });
    let output = output.expect("in time").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(
        tasks.stop(Duration::from_secs(10)).await,
        0,
        "no task stays"
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

async fn serve(mut acceptor: Acceptor, tasks: &Tasks) {
    while let Some(incoming) = acceptor.accept().await {
        let last = incoming.header("streamtype") == Some("bye");
        drop(tasks.spawn("stream", answer(incoming, acceptor.closed())));
        if last {
            return;
        }
    }
    let closed = acceptor.closed();
    drop(acceptor);
    closed.cancelled().await;
}

async fn answer(incoming: IncomingStream, closed: CancellationToken) {
    let kind = incoming.header("streamtype").unwrap_or_default().to_owned();
    let bytes: u64 = incoming.header("bytes").unwrap().parse().unwrap();
    let mut stream = incoming.stream;
    // A client that breaks off makes all of these fail, as it should.
    match kind.as_str() {
        "echo" => {
            let (mut from, mut to) = tokio::io::split(stream);
            if tokio::io::copy(&mut from, &mut to).await.is_ok() {
                drop(to.shutdown().await);
            }
        }
        "source" | "bye" => {
            let zeros = tokio::io::repeat(0).take(bytes);
            let mut zeros = BufReader::with_capacity(64 << 10, zeros);
            if tokio::io::copy_buf(&mut zeros, &mut stream).await.is_ok() {
                drop(stream.shutdown().await);
            }
        }
        "sink" => {
            let mut buffer = vec![0; 64 << 10];
            let mut count = 0;
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                count += read;
            }
            if stream.write_all(count.to_string().as_bytes()).await.is_ok() {
                drop(stream.shutdown().await);
            }
        }
        "idle" => closed.cancelled().await,
        other => panic!("{other}"),
    }
}

fn limits() -> Limits {
    Limits {
        streams: STREAMS,
        ..Limits::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_come_back_unharmed_on_many_streams_at_once() {
    // In one frame, almost as long as one can be.
    assert_eq!(
        run("echo 1 16000000", limits()).await,
        "echoed 1 times 16000000"
    );
    assert_eq!(
        run(&format!("echo {STREAMS} 300000"), limits()).await,
        "echoed 64 times 300000"
    );
    assert_eq!(run("echo 3 0", limits()).await, "echoed 3 times 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_windows_is_sent_and_sends_more_than_any_window() {
    println!("{}", run("source 200000000", limits()).await);
    println!("{}", run("sink 200000000", limits()).await);
}

#[tokio::test]
async fn pings_are_answered() {
    assert_eq!(run("ping", limits()).await, "answered");
}

#[tokio::test]
async fn a_stream_too_many_is_refused_and_the_connection_stays() {
    let scenario = format!("refused {STREAMS}");
    assert_eq!(run(&scenario, limits()).await, "answered");
}

#[tokio::test]
async fn a_stream_nobody_reads_gives_way_to_the_others() {
    let limits = Limits {
        stalled: Some(Duration::from_secs(1)),
        ..limits()
    };
    run("stuck 10000000", limits).await;
}

#[tokio::test]
async fn the_last_words_are_read_before_the_connection_closes() {
    assert_eq!(run("bye 5000000", limits()).await, "left by the server");
}

#[tokio::test]
async fn a_client_can_close_at_any_time() {
    assert_eq!(run("close", limits()).await, "closed");
    assert_eq!(run("vanish", limits()).await, "gone");
}
