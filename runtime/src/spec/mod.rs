//! The OCI runtime specification: types by `oci-spec`, reading bounded and forgiving where the
//! specification says so, and every refusal that needs no kernel.

pub mod sysctl;
mod validate;

use oci_spec::runtime::{Process, Spec};
use serde_json::Value;

use crate::error::{Error, Result};

pub use validate::{exec_process, spec};

/// The largest spec read, in bytes.
const MAX_SPEC: usize = 4 << 20;

/// Reads a spec and checks it. Capabilities unknown to us come back by name: the specification wants
/// a warning for them, while `oci-spec` fails on one (youki#3723).
pub fn parse(json: &str) -> Result<(Spec, Vec<String>)> {
    let (value, unknown) = read(json, "/process/capabilities")?;
    let parsed: Spec = serde_json::from_value(value)
        .map_err(|error| Error::invalid(format!("OCI spec: {error}")))?;
    validate::spec(&parsed)?;
    Ok((parsed, unknown))
}

/// Reads a spec's `process` (an exec's) and checks it.
pub fn parse_process(json: &str) -> Result<(Process, Vec<String>)> {
    let (value, unknown) = read(json, "/capabilities")?;
    let parsed: Process = serde_json::from_value(value)
        .map_err(|error| Error::invalid(format!("OCI process: {error}")))?;
    validate::exec_process(&parsed)?;
    Ok((parsed, unknown))
}

fn read(json: &str, capabilities: &str) -> Result<(Value, Vec<String>)> {
    if json.len() > MAX_SPEC {
        return Err(Error::invalid(format!(
            "OCI spec: {} bytes, at most {MAX_SPEC}",
            json.len()
        )));
    }
    let mut value: Value =
        serde_json::from_str(json).map_err(|error| Error::invalid(format!("OCI spec: {error}")))?;
    let mut unknown = Vec::new();
    if let Some(Value::Object(sets)) = value.pointer_mut(capabilities) {
        for list in sets.values_mut().filter_map(Value::as_array_mut) {
            list.retain(|name| match name.as_str() {
                Some(text) if text.parse::<caps::Capability>().is_err() => {
                    unknown.push(text.to_owned());
                    false
                }
                _ => true,
            });
        }
    }
    unknown.sort();
    unknown.dedup();
    Ok((value, unknown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_capability_is_left_out_and_named() {
        let json = r#"{"user":{"uid":0,"gid":0},"cwd":"/","args":["x"],
            "capabilities":{"bounding":["CAP_CHOWN","CAP_FUTURE"],"effective":["CAP_FUTURE"]}}"#;
        let (process, unknown) = parse_process(json).unwrap();
        assert_eq!(unknown, ["CAP_FUTURE"]);
        let sets = process.capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_spec_is_refused() {
        for json in ["", "{", "[]", "null", r#"{"ociVersion":1}"#] {
            assert!(parse(json).is_err(), "{json}");
        }
    }
}
