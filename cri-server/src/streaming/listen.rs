//! The streaming server's socket and the HTTP that leads to an upgrade (RFC 9110 section 7.8).
//!
//! Everything is bounded before a token is shown: connections, their header's size and time, and
//! one request each. What can't be served looks the same whatever the reason.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::peer::{Peer, Watched};
use super::tls::Tls;
use super::upgrade::{self, Accepted, Carrier, Refused};
use super::{Streaming, Ticket, portforward, remotecommand, websocket};
use crate::config;
use crate::failure::{Doing as _, Failure};
use crate::node::NodeHandle;

/// Clients at once; further ones wait in the socket's backlog.
const CONNECTIONS: usize = 1024;

/// How long a client may take to greet and to send its request.
const GREETING: Duration = Duration::from_secs(10);

/// The most a request may have before its body.
const MAX_HEAD: usize = 16 << 10;

/// Between attempts to accept when the node is out of descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// The bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    tls: Option<Tls>,
}

impl Listener {
    /// Binds the configured address; URLs name it from then on.
    ///
    /// # Errors
    /// When it can't be bound, or the certificate can't be used.
    pub async fn bind(settings: &config::Streaming) -> Result<(Self, Streaming), Failure> {
        let doing = || format!("listen for streams on {}", settings.address);
        let socket = TcpListener::bind(settings.address).await.doing(doing())?;
        let address = socket.local_addr().doing(doing())?;
        let (tls, scheme) = match (&settings.tls_certificate, &settings.tls_key) {
            (Some(certificate), Some(key)) => {
                (Some(Tls::open(certificate.clone(), key.clone())?), "https")
            }
            _ => (None, "http"),
        };
        Ok((Self { socket, tls }, Streaming::new(address, scheme)))
    }
}

/// Serves clients until the daemon stops.
pub async fn serve(node: NodeHandle, listener: Listener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let next = async {
            // Never closed, so there is always a permit in the end.
            let slot = slots.clone().acquire_owned().await.ok();
            (slot, listener.socket.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            next = next => next,
            () = node.tasks.stopping() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let tls = listener.tls.as_ref().map(Tls::acceptor);
                let client = client(node.clone(), stream, tls, slot);
                drop(node.tasks.spawn("stream client", client));
            }
            Err(error) => {
                tracing::warn!(%error, "a stream's client could not be accepted");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// One client from its connection to its end.
async fn client(
    node: NodeHandle,
    stream: TcpStream,
    tls: Option<tokio_rustls::TlsAcceptor>,
    slot: Option<OwnedSemaphorePermit>,
) {
    let served = async {
        stream.set_nodelay(true)?;
        let (stream, peer) = Watched::new(stream)?;
        match tls {
            None => request(&node, stream, peer).await,
            Some(tls) => {
                let greeted = tokio::time::timeout(GREETING, tls.accept(stream));
                request(&node, greeted.await.map_err(io::Error::other)??, peer).await
            }
        }
    };
    if let Err(error) = served.await {
        // Scans and probes end here; there is nothing for an operator to do.
        tracing::debug!(%error, "a stream's client failed");
    }
    drop(slot);
}

/// What an upgraded connection is for.
struct Agreed {
    ticket: Ticket,
    carrier: Carrier,
    upgrade: OnUpgrade,
}

/// Answers one request; an upgrade is served to its end.
async fn request<I>(node: &NodeHandle, stream: I, peer: Peer) -> io::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let agreed = Arc::new(Mutex::new(None));
    let service = service_fn(|request| {
        let answer = match agree(node, request) {
            Ok((accepted, found)) => {
                *agreed.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
                switching(accepted)
            }
            Err(refused) => refuse(refused),
        };
        std::future::ready(Ok::<_, std::convert::Infallible>(answer))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(GREETING)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        served = connection => served.map_err(io::Error::other)?,
        () = node.tasks.stopping() => return Ok(()),
    }
    let agreed = agreed.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(agreed) = agreed else { return Ok(()) };
    let stream = agreed.upgrade.await.map_err(io::Error::other)?;
    let stream = TokioIo::new(stream);
    match agreed.carrier {
        Carrier::SpdyCommand { format, resize } => {
            remotecommand::over_spdy(node, agreed.ticket, stream, peer, format, resize).await;
        }
        Carrier::Channels(channels) => {
            remotecommand::over_websocket(node, agreed.ticket, stream, peer, channels).await;
        }
        Carrier::SpdyForward => portforward::over_spdy(node, agreed.ticket, stream, peer).await,
        Carrier::Tunnel => {
            let stream = websocket::Tunnel::new(stream).await;
            portforward::over_spdy(node, agreed.ticket, stream, peer).await;
        }
        Carrier::ForwardChannels(encoding) => {
            portforward::over_websocket(node, agreed.ticket, stream, peer, encoding).await;
        }
    }
    Ok(())
}

/// Judges a request. Its token is used up once it was shown to its own verb, whatever follows.
fn agree(node: &NodeHandle, mut request: Request<Incoming>) -> Result<(Accepted, Agreed), Refused> {
    let own = node.streaming.0.address;
    let (verb, token) =
        upgrade::route(request.method(), request.uri()).ok_or_else(upgrade::not_found)?;
    if !upgrade::is_meant(request.headers(), own) {
        return Err(upgrade::not_found());
    }
    let tokens = &node.streaming.0.tokens;
    let ticket = tokens
        .take(token, Instant::now())
        .filter(|ticket| ticket.verb() == verb)
        .ok_or_else(upgrade::not_found)?;
    let accepted = upgrade::negotiate(verb, request.headers())?;
    let agreed = Agreed {
        ticket,
        carrier: accepted.carrier,
        upgrade: hyper::upgrade::on(&mut request),
    };
    Ok((accepted, agreed))
}

fn switching(accepted: Accepted) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().extend(accepted.headers);
    response
}

fn refuse(refused: Refused) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(refused.message + "\n"));
    *response.status_mut() = refused.status;
    for (name, value) in refused.headers {
        response.headers_mut().append(name, value);
    }
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    // One request each: an answer that refuses is a connection's last.
    let last = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, last);
    response
}
