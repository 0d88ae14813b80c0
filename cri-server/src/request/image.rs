//! Images as requests name them, and the credentials that come with a pull.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bulkhead_proto::runtime::v1;
use serde::{Deserialize, Serialize};

use super::{invalid, text};
use crate::failure::Failure;

/// An image by whatever the caller knows it: id, tag or digest reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRequest {
    /// The reference or id.
    pub reference: String,
    /// What the user wrote in the pod; information.
    pub user_specified: String,
    /// The pod's annotations; information.
    pub annotations: BTreeMap<String, String>,
    /// The runtime handler the image is for, "" for the default. Whether it exists is the caller's
    /// to check.
    pub handler: String,
}

impl ImageRequest {
    /// `image` must not be empty; `image_ref` is an answer's field and ignored in a request.
    pub fn parse(field: &str, image: &v1::ImageSpec) -> Result<Self, Failure> {
        let at = |name: &str| format!("{field}.{name}");
        Ok(Self {
            reference: text::required(&at("image"), &image.image, text::NAME)?,
            user_specified: text::plain(
                &at("user_specified_image"),
                &image.user_specified_image,
                text::NAME,
            )?,
            annotations: text::map(&at("annotations"), &image.annotations)?,
            handler: text::plain(&at("runtime_handler"), &image.runtime_handler, text::NAME)?,
        })
    }

    /// As the wire has it, for statuses.
    pub fn to_cri(&self) -> v1::ImageSpec {
        v1::ImageSpec {
            image: self.reference.clone(),
            annotations: self.annotations.clone(),
            user_specified_image: self.user_specified.clone(),
            runtime_handler: self.handler.clone(),
            image_ref: String::new(),
        }
    }
}

/// The image of a request where none is an error.
pub fn required(field: &str, image: Option<&v1::ImageSpec>) -> Result<ImageRequest, Failure> {
    let image = image.ok_or_else(|| invalid(field, "is required"))?;
    ImageRequest::parse(field, image)
}

/// How to prove who pulls. Printing one shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User and password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// An OAuth2 refresh token, to be exchanged at the registry's realm.
    Identity(String),
    /// Sent as it is.
    Bearer(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(<redacted>)",
            Self::Identity(_) => "Identity(<redacted>)",
            Self::Bearer(_) => "Bearer(<redacted>)",
        })
    }
}

/// A credential and the only host it may be sent to, if the request names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The credential.
    pub credential: Credential,
    /// Host, perhaps with scheme and path as Docker's configuration has it; none is the image's.
    pub server: Option<String>,
}

/// Docker's `auth` field is base64 with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// `AuthConfig` mirrors an entry of Docker's configuration file (case G5). User and password come
/// before the identity token, that before `auth`; a registry token stands alone. All empty: none.
pub fn auth(config: Option<&v1::AuthConfig>) -> Result<Option<Auth>, Failure> {
    const SECRET: usize = 64 << 10;
    let Some(config) = config else {
        return Ok(None);
    };
    for (name, value) in [
        ("username", &config.username),
        ("password", &config.password),
        ("auth", &config.auth),
        ("identity_token", &config.identity_token),
        ("registry_token", &config.registry_token),
    ] {
        if value.len() > SECRET {
            return Err(invalid(&format!("auth.{name}"), "is longer than 64 KiB"));
        }
    }
    let credential = if !config.registry_token.is_empty() {
        Credential::Bearer(config.registry_token.clone())
    } else if !config.username.is_empty() {
        Credential::Basic {
            username: config.username.clone(),
            password: config.password.clone(),
        }
    } else if !config.identity_token.is_empty() {
        Credential::Identity(config.identity_token.clone())
    } else if !config.auth.is_empty() {
        basic(&config.auth)?
    } else {
        return Ok(None);
    };
    let server = text::plain("auth.server_address", &config.server_address, text::NAME)?;
    Ok(Some(Auth {
        credential,
        server: (!server.is_empty()).then_some(server),
    }))
}

/// base64 of `user:password`; the first colon splits, trailing NUL bytes are no part of it. A
/// broken one is an error, never an anonymous pull.
fn basic(auth: &str) -> Result<Credential, Failure> {
    let broken = |what: &str| invalid("auth.auth", what);
    let bytes = BASE64
        .decode(auth.trim())
        .map_err(|_| broken("is not base64"))?;
    let text = String::from_utf8(bytes).map_err(|_| broken("is not UTF-8 inside"))?;
    let (username, password) = text
        .trim_end_matches('\0')
        .split_once(':')
        .ok_or_else(|| broken("is not user:password inside"))?;
    Ok(Credential::Basic {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> v1::AuthConfig {
        v1::AuthConfig::default()
    }

    fn user(username: &str, password: &str) -> Credential {
        Credential::Basic {
            username: username.into(),
            password: password.into(),
        }
    }

    #[test]
    fn every_form_of_credentials_is_read_and_a_broken_one_refused() {
        let encode = |text: &str| BASE64.encode(text);
        for (given, expected) in [
            (config(), Ok(None)),
            (
                v1::AuthConfig {
                    username: "u".into(),
                    password: "p".into(),
                    ..config()
                },
                Ok(Some(user("u", "p"))),
            ),
            (
                v1::AuthConfig {
                    username: "u".into(),
                    password: "p".into(),
                    identity_token: "i".into(),
                    ..config()
                },
                Ok(Some(user("u", "p"))),
            ),
            (
                v1::AuthConfig {
                    identity_token: "i".into(),
                    auth: encode("u:p"),
                    ..config()
                },
                Ok(Some(Credential::Identity("i".into()))),
            ),
            (
                v1::AuthConfig {
                    auth: encode("u:p:q"),
                    ..config()
                },
                Ok(Some(user("u", "p:q"))),
            ),
            (
                v1::AuthConfig {
                    auth: encode("u:p\0\0"),
                    ..config()
                },
                Ok(Some(user("u", "p"))),
            ),
            (
                v1::AuthConfig {
                    auth: encode("u:pp").trim_end_matches('=').to_owned(),
                    ..config()
                },
                Ok(Some(user("u", "pp"))),
            ),
            (
                v1::AuthConfig {
                    registry_token: "t".into(),
                    ..config()
                },
                Ok(Some(Credential::Bearer("t".into()))),
            ),
            (
                v1::AuthConfig {
                    auth: "%%%".into(),
                    ..config()
                },
                Err(()),
            ),
            (
                v1::AuthConfig {
                    auth: encode("no colon"),
                    ..config()
                },
                Err(()),
            ),
            (
                v1::AuthConfig {
                    auth: "x".repeat(65_537),
                    ..config()
                },
                Err(()),
            ),
        ] {
            let found = auth(Some(&given)).map_err(|_| ());
            assert_eq!(found.map(|a| a.map(|a| a.credential)), expected);
        }
        assert_eq!(auth(None).unwrap(), None);
    }

    #[test]
    fn a_printed_credential_shows_nothing_of_itself() {
        let given = v1::AuthConfig {
            username: "hunter".into(),
            password: "hunter2".into(),
            server_address: "registry.example".into(),
            ..config()
        };
        let printed = format!("{:?}", auth(Some(&given)).unwrap());
        assert!(!printed.contains("hunter") && printed.contains("registry.example"));
    }
}
