//! Requests of one pull to a registry and its mirrors: distribution protocol v2.
//!
//! Which places are asked for what, in which order, with whose credentials, and whether what they
//! give is what was asked for. Our own few requests: GET and HEAD under
//! `/v2/<path>/{manifests,blobs}/`; `exchange.rs` sends them.
//!
//! Source: opencontainers/distribution-spec v1.1.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Method;
use http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, Url};

use super::auth::{Credentials, RegistryAuth};
use super::challenge;
use super::client::{Clients, is_local};
use super::digest::Digest;
use super::exchange::{Refusal, header};
use super::gc::lock;
use super::hosts::{self, Endpoint};
use super::manifest::{self, Descriptor, MAX_MANIFEST};
use super::reference::Reference;
use super::token::{self, TokenRequest};
use super::types::ImageSettings;
use crate::failure::{Class, Failure};

/// One pull's view of a registry.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    pub clients: &'a Clients,
    pub settings: &'a ImageSettings,
    pub reference: &'a Reference,
    auth: Option<&'a RegistryAuth>,
    pub(super) credentials: Credentials,
    pub endpoints: Vec<Place>,
    /// Proofs that worked, by endpoint.
    pub(super) proofs: Mutex<HashMap<usize, HeaderValue>>,
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

    pub(super) fn endpoint(&self, index: usize) -> Result<&Endpoint, Failure> {
        self.endpoints
            .get(index)
            .map(|place| &place.endpoint)
            .ok_or_else(|| Failure::internal(format!("no place {index}")))
    }

    pub(super) fn url(&self, endpoint: &Endpoint, path: &str) -> Result<Url, Failure> {
        let text = format!("{}/{}/{path}", endpoint.url, self.reference.path());
        let mut url =
            Url::parse(&text).map_err(|e| Failure::internal(format!("make a URL: {e}")))?;
        if endpoint.mirror {
            url.query_pairs_mut()
                .append_pair("ns", self.reference.host());
        }
        Ok(url)
    }

    pub(super) fn proof(&self, index: usize) -> Option<HeaderValue> {
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
    pub(super) async fn prove(
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
