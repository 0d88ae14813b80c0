//! The registry's HTTP side: one connection a task, one runtime of its own.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{Answer, Seen, State, lock};

/// How much of a request's body is kept; token requests are the only ones that have one.
const BODY_LIMIT: usize = 64 << 10;
/// The piece size of a streamed body.
const PIECE: usize = 256 << 10;

/// Serves until the sender is dropped.
pub(super) fn run(
    listener: std::net::TcpListener,
    state: Arc<Mutex<State>>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return eprintln!("registry: no runtime: {error}"),
    };
    runtime.block_on(async move {
        tokio::select! {
            served = accept(listener, state) => {
                if let Err(error) = served {
                    eprintln!("registry: {error}");
                }
            }
            _ = stopped => {}
        }
    });
}

async fn accept(listener: std::net::TcpListener, state: Arc<Mutex<State>>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&state), request));
            // A client that goes away in the middle is ordinary here.
            drop(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
        while connections.try_join_next().is_some() {}
    }
}

type Body = BoxBody<Bytes, io::Error>;

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(error) => format!("unreadable: {error}"),
    };
    let headers: BTreeMap<String, String> = parts
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers,
        body,
    };
    let answer = {
        let mut state = lock(&state);
        state.log.push(seen.clone());
        let scripted = state.script.as_ref().and_then(|script| script(&seen));
        scripted.unwrap_or_else(|| ordinary(&state, &seen))
    };
    Ok(respond(&seen, answer))
}

/// The answer of an honest registry.
fn ordinary(state: &State, seen: &Seen) -> Answer {
    let Some(rest) = seen.path.strip_prefix("/v2/") else {
        return unknown("NAME_UNKNOWN");
    };
    if rest.is_empty() {
        return Answer::json(&json!({}));
    }
    if let Some((repository, reference)) = rest.split_once("/manifests/") {
        let tagged = state.tags.get(&format!("{repository}:{reference}"));
        let digest = tagged.map_or(reference, String::as_str);
        return match state.blobs.get(digest) {
            Some(blob) if state.manifests.contains(digest) => Answer::blob(blob),
            _ => unknown("MANIFEST_UNKNOWN"),
        };
    }
    if let Some((_, digest)) = rest.split_once("/blobs/")
        && let Some(blob) = state.blobs.get(digest)
    {
        return ranged(seen.header("range"), Answer::blob(blob));
    }
    unknown("BLOB_UNKNOWN")
}

fn unknown(code: &str) -> Answer {
    let errors = json!({"errors": [{"code": code, "message": "not served here"}]});
    let mut answer = Answer::json(&errors);
    answer.status = 404;
    answer
}

/// Serves `bytes=FIRST-[LAST]`; anything else gets the whole (RFC 9110 §14.2 allows it).
fn ranged(range: &str, mut answer: Answer) -> Answer {
    let size = answer.body.len();
    let bounds = range
        .strip_prefix("bytes=")
        .and_then(|text| text.split_once('-'));
    let Some((first, last)) = bounds else {
        return answer;
    };
    let Ok(first) = first.parse::<usize>() else {
        return answer;
    };
    if first >= size {
        return Answer::status(416).header("content-range", &format!("bytes */{size}"));
    }
    let last = last
        .parse::<usize>()
        .unwrap_or(size - 1)
        .min(size - 1)
        .max(first);
    answer.status = 206;
    answer.body = answer.body.slice(first..=last);
    answer.header("content-range", &format!("bytes {first}-{last}/{size}"))
}

fn respond(seen: &Seen, answer: Answer) -> Response<Body> {
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        for line in value.split('\n') {
            response = response.header(name, line);
        }
    }
    let declared = answer.length.unwrap_or(answer.body.len());
    if !answer.chunked {
        response = response.header("content-length", declared);
    }
    let body = if seen.method == "HEAD" {
        Bytes::new()
    } else {
        answer.body
    };
    let cut = seen.method != "HEAD" && !answer.chunked && declared > body.len();
    let pieces = (0..body.len())
        .step_by(PIECE)
        .map(|at| body.slice(at..body.len().min(at + PIECE)))
        .map(|piece| Ok(Frame::data(piece)))
        .chain(cut.then(|| Err(io::Error::other("cut as the test asked"))))
        .collect::<Vec<_>>();
    let stream = StreamBody::new(tokio_stream::iter(pieces)).boxed();
    response.body(stream).unwrap_or_else(|error| {
        eprintln!("registry: a script's answer cannot be sent: {error}");
        Response::new(StreamBody::new(tokio_stream::iter(Vec::new())).boxed())
    })
}
