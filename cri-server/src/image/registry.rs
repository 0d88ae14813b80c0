//! Requests of one pull to a registry and its mirrors: distribution protocol v2.
//!
//! Our own few requests: GET and HEAD under `/v2/<path>/{manifests,blobs}/`. Every answer is bounded
//! in size and time (threat K5). Redirects are followed by us, five at most; a hop to another place
//! carries nothing of ours, neither credentials nor configured headers (CVE-2020-15157, K1), never
//! leads from TLS to plain HTTP (K3), nor from a public place to this node (K2). A 401 counts only
//! from a place we were told to ask, never from one a redirect led to.
//!
//! Source: opencontainers/distribution-spec v1.1; distribution's "token authentication".

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use http::{Method, StatusCode};
use reqwest::{Response, Url};

use super::auth::{Credentials, RegistryAuth};
use super::challenge;
use super::client::{Clients, is_local, names_local_address};
use super::digest::Digest;
use super::gc::lock;
use super::hosts::{self, Endpoint, host_of, is_loopback_host};
use super::manifest::{self, Descriptor, MAX_MANIFEST};
use super::reference::Reference;
use super::token::{self, TokenRequest};
use super::types::ImageSettings;
use crate::failure::{Class, Failure};

/// Redirects followed for one request.
const MAX_HOPS: usize = 5;
/// Tries of a request that the registry was too busy or too broken to answer.
const TRIES: u32 = 3;
/// Longest pause a registry may ask for before another try.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Largest body of an error that is looked at.
const MAX_ERROR: u64 = 64 << 10;

/// One pull's view of a registry.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub clients: &'a Clients,
    pub settings: &'a ImageSettings,
    pub reference: &'a Reference,
    auth: Option<&'a RegistryAuth>,
    credentials: Credentials,
    pub endpoints: Vec<Place>,
    /// Proofs that worked, by endpoint.
    proofs: Mutex<HashMap<usize, HeaderValue>>,
}

/// An endpoint, and whether it failed to answer in this pull.
#[derive(Debug)]
pub(crate) struct Place {
    pub endpoint: Endpoint,
    down: AtomicBool,
}

/// What a request is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub method: &'a Method,
    /// Below `/v2/<path>/`.
    pub path: &'a str,
    pub accept: Option<&'static str>,
    /// First byte wanted, and the last there is.
    pub range: Option<(u64, u64)>,
}

/// A document, verified against its digest.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub digest: Digest,
    pub bytes: Vec<u8>,
    pub media_type: Option<String>,
}

impl<'a> Session<'a> {
    /// Prepares to ask for `reference`; nothing is sent yet.
    pub(crate) fn new(
        clients: &'a Clients,
        settings: &'a ImageSettings,
        reference: &'a Reference,
        auth: Option<&'a RegistryAuth>,
    ) -> Result<Self, Failure> {
        let credentials = match auth {
            Some(auth) => auth.credentials()?,
            None => Credentials::Anonymous,
        };
        let endpoints = hosts::endpoints(&settings.certs_d, reference.host())?;
        let places = endpoints.into_iter().map(|endpoint| Place {
            endpoint,
            down: AtomicBool::new(false),
        });
        Ok(Self {
            clients,
            settings,
            reference,
            auth,
            credentials,
            endpoints: places.collect(),
            proofs: Mutex::default(),
        })
    }

    /// Places to ask, in order; those that didn't answer before come last.
    pub(crate) fn order(&self, fits: impl Fn(&Endpoint) -> bool) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.endpoints.len())
            .filter(|i| self.endpoints.get(*i).is_some_and(|p| fits(&p.endpoint)))
            .collect();
        order.sort_by_key(|i| {
            self.endpoints
                .get(*i)
                .is_some_and(|p| p.down.load(Ordering::Relaxed))
        });
        order
    }

    /// Begins asking for `what` at each place that `fits`, until one gives it.
    pub(crate) fn attempts(&self, what: &str, fits: impl Fn(&Endpoint) -> bool) -> Attempts<'_> {
        let mut order = self.order(fits);
        order.reverse();
        Attempts {
            session: self,
            what: what.to_owned(),
            order,
            failed: None,
        }
    }

    /// Fetches a manifest or index by tag or digest. What is asked for by digest must have it.
    pub(crate) async fn manifest(
        &self,
        target: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, Failure> {
        let path = format!("manifests/{target}");
        let mut attempts = self.attempts(&path, |e| e.pull && (expected.is_some() || e.resolve));
        while let Some(index) = attempts.next() {
            match self.manifest_from(index, &path, expected).await {
                Ok(fetched) => return Ok(fetched),
                Err(failure) => attempts.failed(index, failure)?,
            }
        }
        Err(attempts.end())
    }

    async fn manifest_from(
        &self,
        index: usize,
        path: &str,
        expected: Option<&Digest>,
    ) -> Result<Fetched, Failure> {
        let ask = Ask {
            method: &Method::GET,
            path,
            accept: Some(manifest::ACCEPT),
            range: None,
        };
        let response = self.send(index, ask).await?;
        let media_type = header(response.headers(), &CONTENT_TYPE);
        let bytes = self.read(response, MAX_MANIFEST, path).await?;
        let digest = match expected {
            Some(digest) if digest.matches(&bytes) => digest.clone(),
            Some(digest) => {
                let other = Digest::of(&bytes);
                let why = format!("it answers {digest} with other bytes, of digest {other}");
                return Err(self.lied(index, &why));
            }
            None => Digest::of(&bytes),
        };
        Ok(Fetched {
            digest,
            bytes,
            media_type,
        })
    }

    /// Fetches a small blob whole.
    pub(crate) async fn blob(
        &self,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, Failure> {
        let path = format!("blobs/{}", descriptor.digest);
        if descriptor.size > limit {
            return Err(Failure::precondition(format!(
                "{path} has {} bytes, {limit} are allowed",
                descriptor.size
            )));
        }
        let mut attempts = self.attempts(&path, |e| e.pull);
        while let Some(index) = attempts.next() {
            match self.blob_from(index, &path, descriptor).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => attempts.failed(index, failure)?,
            }
        }
        Err(attempts.end())
    }

    async fn blob_from(
        &self,
        index: usize,
        path: &str,
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, Failure> {
        let ask = Ask {
            method: &Method::GET,
            path,
            accept: None,
            range: None,
        };
        let response = self.send(index, ask).await?;
        let bytes = self.read(response, descriptor.size, path).await?;
        if bytes.len() as u64 != descriptor.size {
            let why = format!(
                "{path} has {} bytes where the manifest says {}",
                bytes.len(),
                descriptor.size
            );
            return Err(self.lied(index, &why));
        }
        if !descriptor.digest.matches(&bytes) {
            let other = Digest::of(&bytes);
            let why = format!("it answers {path} with bytes of digest {other}");
            return Err(self.lied(index, &why));
        }
        Ok(bytes)
    }

    /// The digest a tag has now, by HEAD, if the registry tells (the header is optional: case G2).
    /// Only ever compared with what is here already.
    pub(crate) async fn head(&self, target: &str) -> Option<Digest> {
        let path = format!("manifests/{target}");
        // One place only: whatever goes wrong here is told by the GET that follows.
        let index = self.order(|e| e.pull && e.resolve).first().copied()?;
        let ask = Ask {
            method: &Method::HEAD,
            path: &path,
            accept: Some(manifest::ACCEPT),
            range: None,
        };
        let response = self.send(index, ask).await.ok()?;
        let digest = response.headers().get("docker-content-digest")?;
        digest.to_str().ok()?.parse().ok()
    }

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

    fn endpoint(&self, index: usize) -> Result<&Endpoint, Failure> {
        self.endpoints
            .get(index)
            .map(|place| &place.endpoint)
            .ok_or_else(|| Failure::internal(format!("no place {index}")))
    }

    fn url(&self, endpoint: &Endpoint, path: &str) -> Result<Url, Failure> {
        let text = format!("{}/{}/{path}", endpoint.url, self.reference.path());
        let mut url =
            Url::parse(&text).map_err(|e| Failure::internal(format!("make a URL: {e}")))?;
        if endpoint.mirror {
            url.query_pairs_mut()
                .append_pair("ns", self.reference.host());
        }
        Ok(url)
    }

    fn proof(&self, index: usize) -> Option<HeaderValue> {
        let known = lock(&self.proofs).get(&index).cloned();
        known.or_else(|| match self.credentials_for(index) {
            Credentials::RegistryToken(token) => token::bearer(token.expose()).ok(),
            _ => None,
        })
    }

    /// The caller's credentials go to the registry itself, or to the host they name (K1).
    fn credentials_for(&self, index: usize) -> &Credentials {
        const NONE: Credentials = Credentials::Anonymous;
        let (Some(auth), Some(place)) = (self.auth, self.endpoints.get(index)) else {
            return &NONE;
        };
        let endpoint = &place.endpoint;
        let meant = if endpoint.own {
            auth.is_for(self.reference.host())
        } else {
            !auth.server_address.is_empty() && auth.is_for(&endpoint.host())
        };
        if meant { &self.credentials } else { &NONE }
    }

    /// Answers a 401 of a place.
    async fn prove(
        &self,
        index: usize,
        endpoint: &Endpoint,
        response: &Response,
    ) -> Result<HeaderValue, Refusal> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges = challenge::parse(headers.filter_map(|value| value.to_str().ok()));
        let request = TokenRequest {
            session: self,
            endpoint,
            credentials: self.credentials_for(index),
            guarded: !response.remote_addr().is_some_and(|a| is_local(a.ip())),
        };
        token::answer(&challenges, request).await
    }

    /// A place that doesn't give what it was asked for.
    pub(crate) fn lied(&self, index: usize, why: &str) -> Failure {
        let host = self
            .endpoints
            .get(index)
            .map_or_else(String::new, |p| p.endpoint.host());
        Failure::precondition(format!("{host} is not to be trusted: {why}"))
    }
}

/// The places still to be asked for something; the last failure is the answer if none gives it.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    session: &'a Session<'a>,
    what: String,
    /// The next one last.
    order: Vec<usize>,
    failed: Option<Failure>,
}

impl Attempts<'_> {
    pub(crate) fn next(&mut self) -> Option<usize> {
        self.order.pop()
    }

    /// Notes that a place failed; an error if asking others is no use.
    pub(crate) fn failed(&mut self, index: usize, failure: Failure) -> Result<(), Failure> {
        if failure.class() == Class::Exhausted {
            return Err(failure);
        }
        if let Some(place) = self.session.endpoints.get(index) {
            if failure.class() == Class::Reasoned {
                place.down.store(true, Ordering::Relaxed);
            }
            tracing::debug!(
                host = place.endpoint.host(),
                what = self.what,
                %failure,
                "a place of a registry failed"
            );
        }
        self.failed = Some(failure);
        Ok(())
    }

    pub(crate) fn end(self) -> Failure {
        self.failed.unwrap_or_else(|| {
            Failure::precondition(format!(
                "{}: hosts.toml of {} leaves no place with that capability",
                self.what,
                self.session.reference.host()
            ))
        })
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
