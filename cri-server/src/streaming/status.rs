//! How a remote command ended, as the client libraries read it from the error stream. Pure.
//!
//! Up to version 3 of the protocol it is text, and nothing after success. From version 4 it is one
//! `meta/v1` Status object as JSON (Kubernetes, `k8s.io/apimachinery` `pkg/apis/meta/v1`; client-go
//! reads the exit code from the cause `ExitCode`).

use serde::Serialize;

use crate::failure::Failure;

/// How much of the outcome the client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Versions 1 to 3: text on failure, nothing on success.
    Text,
    /// Version 4 and later: a Status object.
    Json,
}

/// What there is to tell at the end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The command ended with this status, or an attachment with its container: 0.
    Exited(i32),
    /// It could not be run, or the session was ended by us.
    Failed(Failure),
}

#[derive(Serialize)]
struct Status {
    metadata: Metadata,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

/// Always there and empty, as Go writes it.
#[derive(Serialize)]
struct Metadata {}

#[derive(Serialize)]
struct Details {
    causes: [Cause; 1],
}

#[derive(Serialize)]
struct Cause {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    message: String,
}

impl Outcome {
    /// The bytes for the error stream; may be none.
    pub(super) fn render(&self, format: Format) -> Vec<u8> {
        match format {
            Format::Text => self.text().unwrap_or_default().into_bytes(),
            // A structure of ours with string keys can't fail to serialize.
            Format::Json => serde_json::to_vec(&self.status()).unwrap_or_default(),
        }
    }

    fn text(&self) -> Option<String> {
        match self {
            Self::Exited(0) => None,
            Self::Exited(code) => Some(terminated(*code)),
            Self::Failed(failure) => Some(failure.message().to_owned()),
        }
    }

    fn status(&self) -> Status {
        let failure = |message: String, reason, cause, code| Status {
            metadata: Metadata {},
            status: "Failure",
            message: Some(message),
            reason: Some(reason),
            details: Some(Details { causes: [cause] }),
            code,
        };
        match self {
            Self::Exited(0) => Status {
                metadata: Metadata {},
                status: "Success",
                message: None,
                reason: None,
                details: None,
                code: None,
            },
            Self::Exited(code) => {
                let cause = Cause {
                    reason: Some("ExitCode"),
                    message: code.to_string(),
                };
                failure(terminated(*code), "NonZeroExitCode", cause, None)
            }
            Self::Failed(problem) => {
                let cause = Cause {
                    reason: None,
                    message: problem.message().to_owned(),
                };
                let message = format!("Internal error occurred: {problem}");
                failure(message, "InternalError", cause, Some(500))
            }
        }
    }
}

fn terminated(code: i32) -> String {
    format!("command terminated with exit code {code}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_what_client_libraries_expect_of_its_version() {
        let failed = || Outcome::Failed(Failure::internal("no \"such\" thing"));
        for (outcome, format, expected) in [
            (Outcome::Exited(0), Format::Text, ""),
            (
                Outcome::Exited(0),
                Format::Json,
                r#"{"metadata":{},"status":"Success"}"#,
            ),
            (
                Outcome::Exited(3),
                Format::Text,
                "command terminated with exit code 3",
            ),
            (
                Outcome::Exited(3),
                Format::Json,
                r#"{"metadata":{},"status":"Failure","message":"command terminated with exit code 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#,
            ),
            (failed(), Format::Text, "no \"such\" thing"),
            (
                failed(),
                Format::Json,
                r#"{"metadata":{},"status":"Failure","message":"Internal error occurred: no \"such\" thing","reason":"InternalError","details":{"causes":[{"message":"no \"such\" thing"}]},"code":500}"#,
            ),
        ] {
            let rendered = String::from_utf8(outcome.render(format)).unwrap();
            assert_eq!(rendered, expected, "{outcome:?} {format:?}");
        }
    }
}
