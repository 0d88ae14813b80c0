//! ExecSync, Exec, Attach and PortForward.

use std::time::Duration;

use bulkhead_proto::runtime::v1;

use super::container::arguments;
use super::{invalid, text};
use crate::failure::Failure;

/// A command to run to its end in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecSyncRequest {
    /// The container's id or an unambiguous prefix.
    pub container: String,
    /// The command, at least one word.
    pub command: Vec<String>,
    /// None waits for ever.
    pub timeout: Option<Duration>,
}

/// A command or an attachment whose streams a client will connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamsRequest {
    /// The container's id or an unambiguous prefix.
    pub container: String,
    /// The command of an exec; empty for attach.
    pub command: Vec<String>,
    /// A terminal.
    pub tty: bool,
    /// Connect stdin.
    pub stdin: bool,
    /// Connect stdout.
    pub stdout: bool,
    /// Connect stderr.
    pub stderr: bool,
}

/// ExecSync. The timeout is in seconds; 0 is none.
pub fn exec_sync(request: &v1::ExecSyncRequest) -> Result<ExecSyncRequest, Failure> {
    let seconds = u64::try_from(request.timeout)
        .map_err(|_| invalid("timeout", format_args!("{} is negative", request.timeout)))?;
    Ok(ExecSyncRequest {
        container: text::required("container_id", &request.container_id, text::NAME)?,
        command: command(&request.cmd)?,
        timeout: (seconds > 0).then(|| Duration::from_secs(seconds)),
    })
}

/// Exec.
pub fn exec(request: &v1::ExecRequest) -> Result<StreamsRequest, Failure> {
    let parsed = StreamsRequest {
        container: text::required("container_id", &request.container_id, text::NAME)?,
        command: command(&request.cmd)?,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    streams(&parsed)?;
    Ok(parsed)
}

/// Attach. Whether `tty` is the container's is the caller's to check.
pub fn attach(request: &v1::AttachRequest) -> Result<StreamsRequest, Failure> {
    let parsed = StreamsRequest {
        container: text::required("container_id", &request.container_id, text::NAME)?,
        command: Vec::new(),
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    streams(&parsed)?;
    Ok(parsed)
}

/// PortForward: the sandbox and the ports; an empty list leaves them to the client.
pub fn port_forward(request: &v1::PortForwardRequest) -> Result<(String, Vec<u16>), Failure> {
    text::bounded("port", &request.port)?;
    let ports = request
        .port
        .iter()
        .map(|port| {
            u16::try_from(*port)
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| invalid("port", format_args!("{port} is no port")))
        })
        .collect::<Result<_, _>>()?;
    let sandbox = text::required("pod_sandbox_id", &request.pod_sandbox_id, text::NAME)?;
    Ok((sandbox, ports))
}

fn command(words: &[String]) -> Result<Vec<String>, Failure> {
    if words.first().is_none_or(String::is_empty) {
        return Err(invalid("cmd", "no command specified"));
    }
    arguments("cmd", words)
}

fn streams(request: &StreamsRequest) -> Result<(), Failure> {
    if !(request.stdin || request.stdout || request.stderr) {
        return Err(invalid("stdin, stdout, stderr", "one of them must be set"));
    }
    if request.tty && request.stderr {
        return Err(invalid(
            "stderr",
            "a terminal has one output: leave it unset with tty",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_at_least_one_and_a_terminal_has_no_stderr() {
        for (tty, stdin, stdout, stderr, good) in [
            (false, false, false, false, false),
            (false, false, true, true, true),
            (true, true, true, false, true),
            (true, true, true, true, false),
        ] {
            let request = v1::ExecRequest {
                container_id: "c".into(),
                cmd: vec!["sh".into()],
                tty,
                stdin,
                stdout,
                stderr,
            };
            assert_eq!(exec(&request).is_ok(), good, "{request:?}");
            let request = v1::AttachRequest {
                container_id: "c".into(),
                tty,
                stdin,
                stdout,
                stderr,
            };
            assert_eq!(attach(&request).is_ok(), good, "{request:?}");
        }
    }

    #[test]
    fn an_exec_needs_a_command_and_a_time_out_that_is_one() {
        for (cmd, timeout, expected) in [
            (vec!["true"], 0, Some(None)),
            (vec!["true", ""], 5, Some(Some(Duration::from_secs(5)))),
            (vec![], 0, None),
            (vec![""], 0, None),
            (vec!["true"], -1, None),
            (vec!["a\0"], 0, None),
        ] {
            let request = v1::ExecSyncRequest {
                container_id: "c".into(),
                cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
                timeout,
            };
            assert_eq!(
                exec_sync(&request).ok().map(|r| r.timeout),
                expected,
                "{request:?}"
            );
        }
    }

    #[test]
    fn ports_to_forward_are_ports() {
        for (ports, good) in [
            (vec![], true),
            (vec![80, 65535], true),
            (vec![0], false),
            (vec![65536], false),
        ] {
            let request = v1::PortForwardRequest {
                pod_sandbox_id: "p".into(),
                port: ports,
            };
            assert_eq!(port_forward(&request).is_ok(), good, "{request:?}");
        }
    }
}
