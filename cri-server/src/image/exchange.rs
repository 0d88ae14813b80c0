//! One request to one place: proof if it asks for one, redirects, other tries, bounds.
//!
//! Every answer is bounded in size and time (threat K5). Redirects are followed by us, five at most;
//! a hop to another place carries nothing of ours, neither credentials nor configured headers
//! (CVE-2020-15157, K1), never leads from TLS to plain HTTP (K3), nor from a public place to this
//! node (K2). A 401 counts only from a place we were told to ask, never from one a redirect led to.

use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Response, Url};

use super::auth::Credentials;
use super::client::{is_local, names_local_address};
use super::gc::lock;
use super::hosts::{self, Endpoint, host_of, is_loopback_host};
use super::registry::{Ask, Session};
use crate::failure::{Class, Failure};

/// Redirects followed for one request.
const MAX_HOPS: usize = 5;
/// Tries of a request that the registry was too busy or too broken to answer.
const TRIES: u32 = 3;
/// Longest pause a registry may ask for before another try.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Largest body of an error that is looked at.
const MAX_ERROR: u64 = 64 << 10;

impl Session<'_> {
    /// Sends a request to a place, with proof if it asks for one, following redirects and trying
    /// again where that can help. Only success comes back.
    pub(crate) async fn send(&self, index: usize, ask: Ask<'_>) -> Result<Response, Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match self.send_once(index, ask).await {
                Ok(response) => return Ok(response),
                Err(Refusal { failure, pause }) => match pause {
                    Some(pause) if tries < TRIES => {
                        tokio::time::sleep(pause.unwrap_or(Duration::from_millis(200) * tries))
                            .await;
                        continue;
                    }
                    _ => failure,
                },
            };
            return Err(failure);
        }
    }

    async fn send_once(&self, index: usize, ask: Ask<'_>) -> Result<Response, Refusal> {
        let endpoint = self.endpoint(index)?;
        let url = self.url(endpoint, ask.path)?;
        let mut proven = false;
        loop {
            let mut headers = endpoint.headers.clone();
            if let Some(proof) = self.proof(index) {
                headers.insert(AUTHORIZATION, proof);
            }
            let client = self.clients.get(
                &url,
                &endpoint.tls,
                false,
                endpoint.dial_timeout,
                self.settings.stall,
            )?;
            let response = self.exchange(&client, ask, &url, headers.clone()).await?;
            if response.status() == StatusCode::UNAUTHORIZED && !proven {
                let proof = self.prove(index, endpoint, &response).await?;
                lock(&self.proofs).insert(index, proof);
                proven = true;
                continue;
            }
            let response = self.follow(endpoint, ask, url, headers, response).await?;
            return self.judge(response, ask).await;
        }
    }

    /// Follows redirects from `response`, which came from `url` of `endpoint`.
    async fn follow(
        &self,
        endpoint: &Endpoint,
        ask: Ask<'_>,
        mut url: Url,
        own_headers: HeaderMap,
        mut response: Response,
    ) -> Result<Response, Refusal> {
        // Whoever is on this node or link may point to it.
        let guarded = !response.remote_addr().is_some_and(|a| is_local(a.ip()));
        for _ in 0..MAX_HOPS {
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            let from = host_of(&url);
            let wrong = |why: String| Failure::precondition(format!("{from} redirects {why}"));
            let location = header(response.headers(), &LOCATION)
                .ok_or_else(|| wrong("without saying where".into()))?;
            let mut next = url
                .join(&location)
                .map_err(|e| wrong(format!("to something that is no URL: {e}")))?;
            // A fragment is never sent; user and password in it would be.
            next.set_fragment(None);
            if next.set_username("").is_err() || next.set_password(None).is_err() {
                return Err(wrong("to a URL without host".into()).into());
            }
            let own = next.origin() == endpoint.url.origin();
            check_scheme(&url, &next, own).map_err(wrong)?;
            if guarded && !own && names_local_address(&next) {
                return Err(wrong(format!(
                    "to {}, an address of this node or its link",
                    host_of(&next)
                ))
                .into());
            }
            let (tls, headers) = if own {
                (&endpoint.tls, own_headers.clone())
            } else {
                (&hosts::Tls::default(), HeaderMap::new())
            };
            let client =
                self.clients
                    .get(&next, tls, guarded && !own, None, self.settings.stall)?;
            response = self.exchange(&client, ask, &next, headers).await?;
            url = next;
        }
        if is_redirect(response.status()) {
            return Err(Failure::precondition(format!(
                "{} redirects more than {MAX_HOPS} times",
                endpoint.host()
            ))
            .into());
        }
        Ok(response)
    }

    /// One request and the head of its answer.
    async fn exchange(
        &self,
        client: &reqwest::Client,
        ask: Ask<'_>,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<Response, Refusal> {
        let mut request = client
            .request(ask.method.clone(), url.clone())
            .headers(headers);
        if let Some(accept) = ask.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some((first, last)) = ask.range {
            request = request.header(RANGE, format!("bytes={first}-{last}"));
        }
        match tokio::time::timeout(self.settings.stall, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Refusal::again(unreachable(url, &cause(error)))),
            Err(_) => Err(Refusal::again(unreachable(
                url,
                &format!("no answer within {:?}", self.settings.stall),
            ))),
        }
    }

    /// Success, or the failure that a status means.
    async fn judge(&self, response: Response, ask: Ask<'_>) -> Result<Response, Refusal> {
        let status = response.status();
        let wanted = match ask.range {
            Some(_) => status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT,
            None => status == StatusCode::OK,
        };
        if wanted {
            return Ok(response);
        }
        let pause = header(response.headers(), &RETRY_AFTER)
            .and_then(|text| text.parse().ok())
            .map(|seconds| Duration::from_secs(seconds).min(MAX_PAUSE));
        let host = host_of(response.url());
        let said = self.error_text(response).await;
        let name = format!("{}/{}", self.reference.path(), ask.path);
        let failure = match status {
            StatusCode::NOT_FOUND => {
                Failure::not_found(format!("{host} has no {name}: not found{said}"))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::new(
                Class::Denied,
                format!(
                    "{host} refuses {name}: unauthorized ({status}{}){said}",
                    match self.credentials {
                        Credentials::Anonymous => ", no credentials were given",
                        _ => "",
                    }
                ),
            ),
            StatusCode::TOO_MANY_REQUESTS => {
                return Err(Refusal {
                    failure: unavailable(&format!("{host} answers {status} to {name}{said}")),
                    pause: Some(pause),
                });
            }
            _ if status.is_server_error() => {
                return Err(Refusal {
                    failure: unavailable(&format!("{host} answers {status} to {name}{said}")),
                    pause: Some(pause),
                });
            }
            _ => Failure::precondition(format!("{host} answers {status} to {name}{said}")),
        };
        Err(failure.into())
    }

    /// What the registry says of its error: code and message of the first, cut short.
    async fn error_text(&self, response: Response) -> String {
        #[derive(serde::Deserialize)]
        struct Errors {
            errors: Vec<One>,
        }
        #[derive(serde::Deserialize)]
        struct One {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let Ok(bytes) = self.read(response, MAX_ERROR, "an error").await else {
            return String::new();
        };
        let Ok(body) = serde_json::from_slice::<Errors>(&bytes) else {
            return String::new();
        };
        let text = body.errors.first().map(|one| {
            let text = format!(": {} {}", one.code, one.message);
            text.chars().take(300).collect::<String>()
        });
        text.unwrap_or_default().trim_end().to_owned()
    }

    /// Reads a whole body of at most `limit` bytes, in bounded time.
    pub(crate) async fn read(
        &self,
        mut response: Response,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, Failure> {
        let url = response.url().clone();
        let large = || {
            Failure::precondition(format!(
                "{} sends more than {limit} bytes for {what}",
                host_of(&url)
            ))
        };
        if response
            .content_length()
            .is_some_and(|length| length > limit)
        {
            return Err(large());
        }
        let end = Instant::now() + self.settings.no_progress;
        let mut bytes = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let wait = left.min(self.settings.stall);
            match tokio::time::timeout(wait, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    if (bytes.len() as u64).saturating_add(chunk.len() as u64) > limit {
                        return Err(large());
                    }
                    bytes.extend_from_slice(&chunk);
                }
                Ok(Ok(None)) => return Ok(bytes),
                Ok(Err(error)) => return Err(unreachable(&url, &cause(error))),
                Err(_) => return Err(unreachable(&url, "the answer doesn't come to its end")),
            }
        }
    }
}

/// A failed request, and whether and when another try may help.
pub(crate) struct Refusal {
    pub failure: Failure,
    pub pause: Option<Option<Duration>>,
}

impl Refusal {
    pub(crate) fn again(failure: Failure) -> Self {
        Self {
            failure,
            pause: Some(None),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            pause: None,
        }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Never from TLS to plain HTTP, and plain HTTP only where that was configured: at the place itself,
/// or at loopback (K3).
fn check_scheme(from: &Url, to: &Url, own: bool) -> Result<(), String> {
    match to.scheme() {
        "https" => Ok(()),
        "http" if from.scheme() == "https" => {
            Err(format!("from TLS to plain HTTP at {}", host_of(to)))
        }
        "http" if own || is_loopback_host(&host_of(to)) => Ok(()),
        "http" => Err(format!(
            "to plain HTTP at {}, which no hosts.toml allows",
            host_of(to)
        )),
        other => Err(format!("to a URL of scheme {other}")),
    }
}

pub(crate) fn header(headers: &HeaderMap, name: &http::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

pub(crate) fn unavailable(what: &str) -> Failure {
    Failure::reasoned("RegistryUnavailable", what)
}

pub(crate) fn unreachable(url: &Url, why: &str) -> Failure {
    unavailable(&format!("{}: {why}", host_of(url)))
}

/// An error with its causes and without its URL, whose query may be a signature.
pub(crate) fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}
