//! Exec, Attach and PortForward: the requests whose answer is a URL.

use bulkhead_proto::runtime::v1 as cri;
use tonic::Status;

use super::Node;

/// Which streams a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// A terminal; without one, stderr is a stream of its own.
    pub tty: bool,
}

impl Node {
    /// Exec with stdout, and stderr where there is no terminal; the URL.
    pub async fn exec_url(
        &self,
        id: &str,
        command: &[&str],
        streams: Streams,
    ) -> Result<String, Status> {
        let request = cri::ExecRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: true,
            stderr: !streams.tty,
        };
        Ok(self.runtime.clone().exec(request).await?.into_inner().url)
    }

    /// Attach with stdout, and stderr where there is no terminal; the URL.
    pub async fn attach_url(&self, id: &str, streams: Streams) -> Result<String, Status> {
        let request = cri::AttachRequest {
            container_id: id.to_owned(),
            stdin: streams.stdin,
            tty: streams.tty,
            stdout: true,
            stderr: !streams.tty,
        };
        Ok(self.runtime.clone().attach(request).await?.into_inner().url)
    }

    /// PortForward to these ports; the URL.
    pub async fn forward_url(&self, pod: &str, ports: &[i32]) -> Result<String, Status> {
        let request = cri::PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: ports.to_vec(),
        };
        let answer = self.runtime.clone().port_forward(request).await?;
        Ok(answer.into_inner().url)
    }
}
