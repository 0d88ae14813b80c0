//! How a remote command ended: the Status object of its last channel, as an exit code. Pure.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// The most that is kept of it.
pub(super) const MAX: usize = 64 << 10;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    status: String,
    reason: String,
    message: String,
    details: Details,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

/// The command's exit code.
pub(super) fn read(bytes: &[u8]) -> anyhow::Result<ExitCode> {
    code(bytes).map(ExitCode::from)
}

fn code(bytes: &[u8]) -> anyhow::Result<u8> {
    if bytes.is_empty() {
        bail!("the connection ended before the command did");
    }
    let status: Status = serde_json::from_slice(bytes).context("read how the command ended")?;
    if status.status == "Success" {
        return Ok(0);
    }
    let mut causes = status.details.causes.iter();
    match causes.find(|cause| cause.reason == "ExitCode") {
        Some(cause) if status.reason == "NonZeroExitCode" => cause
            .message
            .parse()
            .with_context(|| format!("{:?} is no exit code", cause.message)),
        _ => bail!("{}", status.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_an_exit_code_or_a_reason() {
        for (text, expected) in [
            (r#"{"metadata":{},"status":"Success"}"#, Ok(0)),
            (
                r#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#,
                Ok(7),
            ),
            (
                r#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"x"}]}}"#,
                Err("\"x\" is no exit code"),
            ),
            (
                r#"{"status":"Failure","reason":"InternalError","message":"no such program"}"#,
                Err("no such program"),
            ),
            ("", Err("the connection ended before the command did")),
            ("{", Err("read how the command ended")),
        ] {
            let seen = code(text.as_bytes()).map_err(|error| error.to_string());
            assert_eq!(seen, expected.map_err(str::to_owned), "{text}");
        }
    }
}
