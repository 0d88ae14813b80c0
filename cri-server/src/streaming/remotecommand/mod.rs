//! A remote command (exec or attach): a client's streams joined to a process's, whichever protocol
//! carries them, until the process or the client ends.

mod channels;
mod copy;
mod size;
mod spdy;

use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

pub(super) use channels::over_websocket;
#[cfg(any(test, feature = "_test-fuzz"))]
pub(super) use size::fuzz;
pub(super) use spdy::over_spdy;

use super::peer::Peer;
use super::status::{Format, Outcome};
use super::{Ticket, idle};
use crate::container::stream::{self, Ending, Output, Streams};
use crate::failure::{Class, Failure};
use crate::node::NodeHandle;
use crate::request::exec::StreamsRequest;

type Reader = Pin<Box<dyn AsyncRead + Send>>;
type Writer = Pin<Box<dyn AsyncWrite + Send>>;

/// The client's side.
struct Client {
    stdin: Option<Reader>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    /// Where the outcome is told.
    error: Writer,
    format: Format,
    /// Terminal sizes, as JSON objects one after the other.
    resize: Option<Reader>,
    /// Cancelled when the protocol's connection has ended.
    gone: CancellationToken,
    peer: Peer,
}

/// Why a session ended.
enum Ended {
    /// The process and its output ended.
    Over(Result<i32, Failure>),
    /// The client is not there any more.
    ClientGone,
    /// We end it, for this reason.
    ByUs(Failure),
}

/// The request of a ticket for a remote command.
fn wanted(ticket: &Ticket) -> Option<&StreamsRequest> {
    match ticket {
        Ticket::Exec(request) | Ticket::Attach(request) => Some(request),
        Ticket::PortForward { .. } => None,
    }
}

/// Serves the client to the end: all output, then the outcome.
async fn run(node: &NodeHandle, ticket: Ticket, mut client: Client) {
    let started = match ticket {
        Ticket::Exec(request) => stream::exec(node, request).await,
        Ticket::Attach(request) => stream::attach(node, request).await,
        Ticket::PortForward { .. } => Err(Failure::internal("not a remote command")),
    };
    let outcome = match started {
        Err(failure) => Outcome::Failed(failure),
        Ok(streams) => match join(node, streams, &mut client).await {
            Ended::Over(Ok(code)) => Outcome::Exited(code),
            Ended::Over(Err(failure)) | Ended::ByUs(failure) => Outcome::Failed(failure),
            Ended::ClientGone => return,
        },
    };
    tell(&mut client, &outcome, idle(node)).await;
}

/// The outcome is the last thing said; a client that left doesn't hear it.
async fn tell(client: &mut Client, outcome: &Outcome, limit: Duration) {
    let bytes = outcome.render(client.format);
    let telling = async {
        client.error.write_all(&bytes).await?;
        client.error.shutdown().await
    };
    tokio::select! {
        told = telling => if let Err(error) = told {
            tracing::debug!(%error, "the outcome could not be told");
        },
        () = client.gone.cancelled() => {}
        () = client.peer.idle(limit) => {}
    }
}

/// Copies both ways until the process and its output, or the client, have ended.
async fn join(node: &NodeHandle, streams: Streams, client: &mut Client) -> Ended {
    let Streams {
        mut stdin,
        mut stdout,
        mut stderr,
        size,
        mut end,
    } = streams;
    let (exited, limit) = (CancellationToken::new(), idle(node));
    let ended = {
        let over = async {
            let waiting = async {
                let end = end.wait().await;
                exited.cancel();
                end
            };
            let output = async {
                tokio::try_join!(
                    copy::output(stdout.as_mut(), client.stdout.as_mut(), &exited),
                    copy::output(stderr.as_mut(), client.stderr.as_mut(), &exited),
                )
            };
            match tokio::join!(waiting, output) {
                (end, Ok(_)) => Ended::Over(end),
                (_, Err(error)) => gone(&error),
            }
        };
        let input = async {
            tokio::join!(
                copy::input(client.stdin.as_mut(), &mut stdin),
                size::follow(client.resize.as_mut(), size.as_ref()),
            );
            std::future::pending::<Ended>().await
        };
        tokio::select! {
            ended = over => ended,
            ended = input => ended,
            () = client.gone.cancelled() => Ended::ClientGone,
            () = client.peer.idle(limit) => Ended::ByUs(too_idle(limit)),
            () = node.tasks.stopping() => Ended::ByUs(stopping()),
        }
    };
    if !matches!(ended, Ended::Over(_)) && !exited.is_cancelled() {
        drop((stdin, size));
        if !node.tasks.is_stopping() {
            // A terminal outlives a daemon, but not its client.
            end.hang_up();
            leave(node, [stdout, stderr], end);
        }
    }
    ended
}

fn gone(error: &std::io::Error) -> Ended {
    tracing::debug!(%error, "a stream's client left");
    Ended::ClientGone
}

fn too_idle(limit: Duration) -> Failure {
    Failure::new(
        Class::Deadline,
        format!("nothing went over the connection for {limit:?}"),
    )
}

fn stopping() -> Failure {
    Failure::new(Class::Unavailable, "the runtime is stopping; connect again")
}

/// The process goes on without its client: its input has ended, a terminal hangs up, and what it
/// still writes into pipes is thrown away so that it is not held up.
fn leave(node: &NodeHandle, outputs: [Option<Output>; 2], mut end: Ending) {
    let [stdout, stderr] = outputs.map(|output| output.filter(Output::is_pipe));
    if stdout.is_none() && stderr.is_none() {
        return;
    }
    drop(node.tasks.spawn_untracked("discard output", async move {
        let discarding = async {
            let discard = |output: Option<Output>| async {
                if let Some(output) = output {
                    output.discard().await;
                }
            };
            tokio::join!(discard(stdout), discard(stderr));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = end.wait() => {}
            () = discarding => {}
        }
    }));
}
