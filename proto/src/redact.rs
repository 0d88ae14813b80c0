//! `Debug` of the messages that carry secrets: registry credentials and environment values, which
//! would otherwise reach logs and traces with any request that is printed (threat G2).

use std::fmt;

use crate::runtime::v1::{AuthConfig, KeyValue};

/// Says whether something is there and never what.
struct Redacted(bool);

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "<redacted>" } else { "<empty>" })
    }
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("server_address", &self.server_address)
            .field("username", &Redacted(!self.username.is_empty()))
            .field("password", &Redacted(!self.password.is_empty()))
            .field("auth", &Redacted(!self.auth.is_empty()))
            .field("identity_token", &Redacted(!self.identity_token.is_empty()))
            .field("registry_token", &Redacted(!self.registry_token.is_empty()))
            .finish()
    }
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue")
            .field("key", &self.key)
            .field("value", &Redacted(!self.value.is_empty()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_credential_or_environment_value_shows_nothing_of_itself() {
        let auth = AuthConfig {
            username: "hunter".to_owned(),
            password: "hunter2".to_owned(),
            auth: "aHVudGVy".to_owned(),
            server_address: "registry.example".to_owned(),
            identity_token: "hunter3".to_owned(),
            registry_token: "hunter4".to_owned(),
        };
        let env = KeyValue {
            key: "TOKEN".to_owned(),
            value: b"hunter5".to_vec(),
        };
        let printed = format!("{auth:?} {env:?}");
        assert!(!printed.contains("hunter") && !printed.contains("aHVudGVy"));
        assert!(printed.contains("registry.example") && printed.contains("TOKEN"));
    }
}
