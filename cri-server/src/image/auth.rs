//! Credentials of one pull, in every form the CRI's AuthConfig has (case G5).
//!
//! They live in memory only, wiped on drop, and print as `[redacted]` (threats G2, O3). Where they
//! go is decided in `registry.rs`: to the host they are meant for and nowhere else (K1).

use std::fmt;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::reference::DEFAULT_HOST;
use crate::failure::Failure;

/// A text that never shows itself.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for the request that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "[]" } else { "[redacted]" })
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

/// The fields of AuthConfig as the caller sent them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    pub username: String,
    pub password: Secret,
    /// Base64 of `user:password`, trailing NUL bytes allowed.
    pub auth: Secret,
    /// The host these are for; empty means the host of the image's name.
    pub server_address: String,
    /// An OAuth2 refresh token, exchanged at the realm.
    pub identity_token: Secret,
    /// A bearer token, sent as it is.
    pub registry_token: Secret,
}

/// What is sent in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    Anonymous,
    Basic { username: String, password: Secret },
    IdentityToken(Secret),
    RegistryToken(Secret),
}

impl RegistryAuth {
    /// Settles which form counts: registry token, else user and password, else identity token, else
    /// `auth` (cri-contract, PullImage). `auth` that cannot be read is an error, never anonymous.
    pub(crate) fn credentials(&self) -> Result<Credentials, Failure> {
        if !self.registry_token.is_empty() {
            return Ok(Credentials::RegistryToken(self.registry_token.clone()));
        }
        // Docker's configuration writes a placeholder user beside an identity token.
        let placeholder = self.password.is_empty() && !self.identity_token.is_empty();
        if !self.username.is_empty() && !placeholder {
            return Ok(Credentials::Basic {
                username: self.username.clone(),
                password: self.password.clone(),
            });
        }
        if !self.identity_token.is_empty() {
            return Ok(Credentials::IdentityToken(self.identity_token.clone()));
        }
        if self.auth.is_empty() {
            return Ok(Credentials::Anonymous);
        }
        decode_auth(self.auth.expose())
    }

    /// Whether these are meant for `host`, the host (and port) of an image's name.
    pub(crate) fn is_for(&self, host: &str) -> bool {
        if self.server_address.is_empty() {
            return true;
        }
        let mut named = self.server_address.as_str();
        for scheme in ["https://", "http://"] {
            named = named.strip_prefix(scheme).unwrap_or(named);
        }
        let named = named.split('/').next().unwrap_or("").to_ascii_lowercase();
        canonical_host(&named) == canonical_host(host)
    }

    /// Distinguishes credentials without keeping them: equal ones may share a download.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        for field in [
            self.username.as_str(),
            self.password.expose(),
            self.auth.expose(),
            &self.server_address,
            self.identity_token.expose(),
            self.registry_token.expose(),
        ] {
            // Lengths keep neighbouring fields apart.
            hasher.update(field.len().to_le_bytes());
            hasher.update(field.as_bytes());
        }
        hasher.finalize().into()
    }
}

/// The names under which Docker's registry is known.
fn canonical_host(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_HOST,
        other => other.strip_suffix(":443").unwrap_or(other),
    }
}

fn decode_auth(text: &str) -> Result<Credentials, Failure> {
    let engine = base64::engine::GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        base64::engine::GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    // The decoder's error would quote bytes of the secret, so it is left out.
    let bytes = Zeroizing::new(
        engine
            .decode(text.trim())
            .map_err(|_| Failure::invalid("auth.auth is not base64"))?,
    );
    let plain = std::str::from_utf8(&bytes)
        .map_err(|_| Failure::invalid("auth.auth holds bytes that are not UTF-8"))?
        .trim_end_matches('\0');
    let (username, password) = plain
        .split_once(':')
        .ok_or_else(|| Failure::invalid("auth.auth is not base64 of `user:password`"))?;
    Ok(Credentials::Basic {
        username: username.to_owned(),
        password: Secret::new(password),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic {
            username: username.into(),
            password: password.into(),
        }
    }

    fn encoded(plain: &[u8]) -> Secret {
        Secret::new(base64::engine::general_purpose::STANDARD.encode(plain))
    }

    #[test]
    fn g5_every_form_of_credentials_is_understood() {
        let form = |change: fn(&mut RegistryAuth)| {
            let mut auth = RegistryAuth::default();
            change(&mut auth);
            auth.credentials().unwrap()
        };
        assert_eq!(form(|_| ()), Credentials::Anonymous);
        assert_eq!(form(|a| a.auth = encoded(b"u:p:q")), basic("u", "p:q"));
        assert_eq!(form(|a| a.auth = encoded(b"u:p:q\0\0")), basic("u", "p:q"));
        assert_eq!(form(|a| a.auth = "dTpw\n".into()), basic("u", "p"));
        assert_eq!(form(|a| a.auth = "dTpxYQ".into()), basic("u", "qa"));
        let both = form(|a| {
            a.username = "u".into();
            a.password = "p".into();
            a.auth = encoded(b"x:y");
        });
        assert_eq!(both, basic("u", "p"));
        let refresh = form(|a| {
            a.username = "<token>".into();
            a.identity_token = "r".into();
        });
        assert_eq!(refresh, Credentials::IdentityToken("r".into()));
        let bearer = form(|a| {
            a.registry_token = "b".into();
            a.username = "u".into();
        });
        assert_eq!(bearer, Credentials::RegistryToken("b".into()));
    }

    #[test]
    fn g5_auth_that_cannot_be_read_is_an_error() {
        for (auth, why) in [
            (Secret::from("!!"), "not base64"),
            (encoded(b"no colon"), "user:password"),
            (encoded(b"\xff:\xfe"), "UTF-8"),
        ] {
            let auth = RegistryAuth {
                auth,
                ..Default::default()
            };
            let failure = auth.credentials().unwrap_err();
            assert!(failure.message().contains(why), "{failure}");
        }
    }

    #[test]
    fn a_server_address_limits_the_host() {
        for (address, host, fits) in [
            ("", "r.io", true),
            ("r.io", "r.io", true),
            ("https://R.io/v2/", "r.io", true),
            ("https://index.docker.io/v1/", "docker.io", true),
            ("registry-1.docker.io", "docker.io", true),
            ("r.io:443", "r.io", true),
            ("r.io:5000", "r.io", false),
            ("evil.io", "r.io", false),
            ("r.io.evil.io", "r.io", false),
        ] {
            let auth = RegistryAuth {
                server_address: address.into(),
                ..Default::default()
            };
            assert_eq!(auth.is_for(host), fits, "{address} for {host}");
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let auth = RegistryAuth {
            username: "u".into(),
            password: "hunter2".into(),
            auth: "aHVudGVyMg==".into(),
            identity_token: "hunter3".into(),
            registry_token: "hunter4".into(),
            ..Default::default()
        };
        let shown = format!("{auth:?} {:?}", auth.credentials().unwrap());
        assert!(
            !shown.contains("hunter") && !shown.contains("aHVud"),
            "{shown}"
        );
    }
}
