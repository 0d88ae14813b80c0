//! Answers to challenges: Basic, and Bearer tokens from the realm a registry names.
//!
//! Credentials go to a realm only over TLS (or where the registry itself is plain HTTP) and only to
//! a host related to the registry: the same name, one of the same parent domain, or one an operator
//! lists (threat K1). Answers are bounded; redirects of a realm aren't followed.
//!
//! Source: distribution's "token" and "oauth" specifications; RFC 7617 for Basic. Case G1, G5.

use base64::Engine as _;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use reqwest::Url;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::auth::{Credentials, Secret};
use super::challenge::Challenge;
use super::client::names_local_address;
use super::exchange::{Refusal, cause, unavailable, unreachable};
use super::hosts::{Endpoint, Tls, host_of};
use super::registry::Session;
use crate::failure::{Class, Failure};

/// Largest answer of a token service.
const MAX_TOKEN: u64 = 1 << 20;

/// Who asks for a proof, for which place, with what.
pub(crate) struct TokenRequest<'a> {
    pub session: &'a Session<'a>,
    pub endpoint: &'a Endpoint,
    pub credentials: &'a Credentials,
    /// The place is public, so what it names may not be local.
    pub guarded: bool,
}

/// The value of `Authorization` for the first challenge that can be met; Bearer before Basic, since
/// it needs no credentials.
pub(crate) async fn answer(
    challenges: &[Challenge],
    request: TokenRequest<'_>,
) -> Result<HeaderValue, Refusal> {
    let host = request.endpoint.host();
    let denied = |why: &str| Failure::new(Class::Denied, format!("{host}: unauthorized: {why}"));
    if matches!(request.credentials, Credentials::RegistryToken(_)) {
        return Err(denied("it refuses the registry token given").into());
    }
    let of = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
    if let Some(bearer) = of("bearer") {
        return request.token(bearer).await;
    }
    if of("basic").is_none() {
        return Err(denied("it asks for neither Basic nor Bearer credentials").into());
    }
    match request.credentials {
        Credentials::Basic { username, password } => Ok(basic(username, password)?),
        Credentials::Anonymous => Err(denied("it wants user and password, none are given").into()),
        _ => Err(denied("it wants user and password, a token is given").into()),
    }
}

/// A bearer header that never prints.
pub(crate) fn bearer(token: &str) -> Result<HeaderValue, Failure> {
    secret_header(&Zeroizing::new(format!("Bearer {token}")))
}

fn basic(username: &str, password: &Secret) -> Result<HeaderValue, Failure> {
    let plain = Zeroizing::new(format!("{username}:{}", password.expose()));
    let encoded =
        Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(plain.as_bytes()));
    secret_header(&Zeroizing::new(format!("Basic {}", *encoded)))
}

fn secret_header(text: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Failure::invalid("the credentials hold characters no header can"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[derive(Deserialize)]
struct Answer {
    token: Option<Secret>,
    access_token: Option<Secret>,
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}

impl TokenRequest<'_> {
    /// Gets a token from the realm of `challenge`.
    async fn token(&self, challenge: &Challenge) -> Result<HeaderValue, Refusal> {
        let realm = self.realm(challenge)?;
        let parameter = |name: &str| challenge.parameters.get(name).filter(|v| !v.is_empty());
        let scope = parameter("scope")
            .cloned()
            .unwrap_or_else(|| format!("repository:{}:pull", self.session.reference.path()));
        let service = parameter("service").cloned();
        let same = realm.host_str() == self.endpoint.url.host_str();
        let tls = if same {
            &self.endpoint.tls
        } else {
            &Tls::default()
        };
        let client = self.session.clients.get(
            &realm,
            tls,
            self.guarded && !same,
            None,
            self.session.settings.stall,
        )?;
        let request = match self.credentials {
            Credentials::IdentityToken(refresh) => {
                let mut form = form_url();
                form.query_pairs_mut()
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("client_id", "bulkhead")
                    .append_pair("scope", &scope)
                    .append_pair("service", service.as_deref().unwrap_or(""))
                    .append_pair("refresh_token", refresh.expose());
                client
                    .request(Method::POST, realm.clone())
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form.query().unwrap_or("").to_owned())
            }
            other => {
                let mut url = realm.clone();
                // Appended: the realm's own query stays.
                if let Some(service) = &service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                url.query_pairs_mut().append_pair("scope", &scope);
                let request = client.request(Method::GET, url);
                match other {
                    Credentials::Basic { username, password } => {
                        request.header(http::header::AUTHORIZATION, basic(username, password)?)
                    }
                    _ => request,
                }
            }
        };
        let stall = self.session.settings.stall;
        let response = match tokio::time::timeout(stall, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Refusal::again(unreachable(&realm, &cause(error)))),
            Err(_) => return Err(Refusal::again(unreachable(&realm, "no answer"))),
        };
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            let text = format!("token service {} answers {status}", host_of(&realm));
            return Err(Refusal::again(unavailable(&text)));
        }
        if !status.is_success() {
            return Err(self
                .denied(&format!(
                    "token service {} answers {status}",
                    host_of(&realm)
                ))
                .into());
        }
        let bytes = Zeroizing::new(self.session.read(response, MAX_TOKEN, "a token").await?);
        let wrong =
            || Failure::precondition(format!("token service {} sends no token", host_of(&realm)));
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| wrong())?;
        let token = [answer.token, answer.access_token]
            .into_iter()
            .flatten()
            .find(|token| !token.is_empty())
            .ok_or_else(wrong)?;
        Ok(bearer(token.expose()).map_err(|_| wrong())?)
    }

    /// The realm, if it may be asked with these credentials.
    fn realm(&self, challenge: &Challenge) -> Result<Url, Failure> {
        let text = challenge.parameters.get("realm").map_or("", String::as_str);
        let realm =
            Url::parse(text).map_err(|_| self.denied(&format!("its realm {text:?} is no URL")))?;
        let named = host_of(&realm);
        let plain = realm.scheme() == "http" && self.endpoint.url.scheme() == "http";
        let (ours, theirs) = (
            self.endpoint.url.host_str().unwrap_or(""),
            realm.host_str().unwrap_or(""),
        );
        if realm.scheme() != "https" && !(plain && ours == theirs) {
            return Err(self.denied(&format!("its realm at {named} is no https URL")));
        }
        if self.guarded && ours != theirs && names_local_address(&realm) {
            return Err(self.denied(&format!("its realm {named} is an address of this node")));
        }
        let listed = |host: &String| *host == named || host == theirs;
        if !matches!(self.credentials, Credentials::Anonymous)
            && !related(ours, theirs)
            && !self.session.settings.token_hosts.iter().any(listed)
        {
            return Err(self.denied(&format!(
                "credentials for {ours} are not sent to its realm at {named}, an unrelated host; \
                 list it under token_hosts if it is right"
            )));
        }
        Ok(realm)
    }

    fn denied(&self, why: &str) -> Failure {
        Failure::new(
            Class::Denied,
            format!("{}: unauthorized: {why}", self.endpoint.host()),
        )
    }
}

/// A URL whose query is a form being filled.
fn form_url() -> Url {
    Url::parse("http://form/").unwrap_or_else(|_| unreachable!("a constant URL"))
}

/// Whether two hosts belong together: equal, or of one parent domain of at least two labels.
fn related(registry: &str, realm: &str) -> bool {
    if registry == realm {
        return true;
    }
    if [registry, realm]
        .iter()
        .any(|h| h.starts_with('[') || h.parse::<std::net::IpAddr>().is_ok())
    {
        return false;
    }
    let parent = |host: &str| {
        let parent = host.split_once('.')?.1;
        parent.contains('.').then(|| parent.to_owned())
    };
    let (above_registry, above_realm) = (parent(registry), parent(realm));
    (above_registry.is_some() && above_registry == above_realm)
        || above_registry.as_deref() == Some(realm)
        || above_realm.as_deref() == Some(registry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k1_a_realm_must_be_related_to_its_registry() {
        for (registry, realm, good) in [
            ("registry-1.docker.io", "auth.docker.io", true),
            ("ghcr.io", "ghcr.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("gitlab.com", "registry.gitlab.com", true),
            ("nvcr.io", "authn.nvcr.io", true),
            ("registry.a.example.org", "auth.a.example.org", true),
            ("r.io", "evil.io", false),
            ("registry.example.org", "auth.evil.org", false),
            ("registry.example.org", "example.org.evil.org", false),
            ("10.0.0.1", "10.0.0.2", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "0.0.1", false),
            ("localhost", "evil.localhost", false),
        ] {
            assert_eq!(related(registry, realm), good, "{registry} {realm}");
        }
    }
}
