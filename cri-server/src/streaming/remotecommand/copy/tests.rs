use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::DuplexStream;
use tokio::net::unix::pipe;

use super::*;

/// An output, and the descriptor a process would write to.
fn process_output() -> (Output, OwnedFd) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let read = pipe::Receiver::from_owned_fd(read).unwrap();
    (Output::Pipe(read), write)
}

fn client() -> (Writer, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    (Box::pin(ours), theirs)
}

async fn received(mut theirs: DuplexStream) -> Vec<u8> {
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    all
}

#[tokio::test]
async fn what_was_written_before_the_end_arrives_after_it() {
    let (mut from, process) = process_output();
    let (mut to, theirs) = client();
    rustix::io::write(&process, b"last words").unwrap();
    let exited = CancellationToken::new();
    exited.cancel();
    drop(process);
    output(Some(&mut from), Some(&mut to), &exited)
        .await
        .unwrap();
    drop(to);
    assert_eq!(received(theirs).await, b"last words");
}

#[tokio::test]
async fn a_descendant_that_is_silent_holds_nobody_up() {
    let (mut from, held) = process_output();
    let (mut to, theirs) = client();
    rustix::io::write(&held, b"said").unwrap();
    let exited = CancellationToken::new();
    exited.cancel();
    let begin = Instant::now();
    output(Some(&mut from), Some(&mut to), &exited)
        .await
        .unwrap();
    assert!(begin.elapsed() < 3 * LINGER);
    drop(to);
    assert_eq!(received(theirs).await, b"said");
    drop(held);
}

#[tokio::test]
async fn a_descendant_that_never_stops_talking_holds_nobody_up() {
    let (mut from, held) = process_output();
    let exited = CancellationToken::new();
    exited.cancel();
    let talking = std::thread::spawn(move || {
        // Ends by EPIPE (Rust's runtime ignores SIGPIPE).
        while rustix::io::write(&held, &[b'x'; 4096]).is_ok() {}
    });
    output(Some(&mut from), None, &exited).await.unwrap();
    drop(from);
    talking.join().unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_reading_of_the_pipe() {
    let (mut from, process) = process_output();
    rustix::io::ioctl_fionbio(&process, true).unwrap();
    let (ours, theirs) = tokio::io::duplex(1024);
    let mut to: Writer = Box::pin(ours);
    let exited = CancellationToken::new();
    let copying = async {
        output(Some(&mut from), Some(&mut to), &exited)
            .await
            .unwrap();
    };
    let filling = async {
        let mut written = 0;
        // It is full when nothing was taken for a while.
        let mut idle = 0;
        while idle < 20 {
            match rustix::io::write(&process, &[0; 4096]) {
                Ok(count) => (written, idle) = (written + count, 0),
                Err(_) => idle += 1,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        written
    };
    let written = tokio::select! {
        () = copying => unreachable!("the client doesn't read"),
        written = filling => written,
    };
    assert!(written < (256 << 10), "{written} bytes were taken");
    drop(theirs);
}

/// A sink whose client has left.
#[derive(Debug)]
struct Left;

impl tokio::io::AsyncWrite for Left {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_client_that_left_is_an_error() {
    let (mut from, process) = process_output();
    rustix::io::write(&process, b"x").unwrap();
    let mut to: Writer = Box::pin(Left);
    let exited = CancellationToken::new();
    assert!(
        output(Some(&mut from), Some(&mut to), &exited)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_end_of_the_clients_input_is_the_end_of_the_file() {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut to = Some(Input::Pipe(pipe::Sender::from_owned_fd(write).unwrap()));
    let mut from: Reader = Box::pin(&b"all of it"[..]);
    input(Some(&mut from), &mut to).await;
    let mut seen = [0; 64];
    assert_eq!(rustix::io::read(&read, &mut seen), Ok(9));
    assert_eq!(rustix::io::read(&read, &mut seen), Ok(0));
}

#[tokio::test]
async fn a_process_that_reads_no_more_does_not_stop_the_client() {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    drop(read);
    let mut to = Some(Input::Pipe(pipe::Sender::from_owned_fd(write).unwrap()));
    let text = vec![b'x'; 1 << 20];
    let mut from: Reader = Box::pin(std::io::Cursor::new(text));
    input(Some(&mut from), &mut to).await;
    assert!(to.is_none());
}
