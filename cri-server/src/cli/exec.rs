//! `bulkhead exec` and `bulkhead attach`: a command in a container, or the container's own streams.

use std::path::Path;
use std::process::ExitCode;

use bulkhead_proto::runtime::v1;
use clap::Args;

use super::client::{Asking as _, Client, block_on};
use super::session::{self, Streams};
use super::target;

#[derive(Args, Debug)]
pub(super) struct ExecArgs {
    /// A played pod, by name or namespace/name, or a container's id
    #[arg(value_name = "POD|CONTAINER")]
    target: String,
    /// This container of the pod, instead of its first
    #[arg(long, short)]
    container: Option<String>,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Run on a terminal; ctrl-p ctrl-q leaves it
    #[arg(long, short)]
    tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Args, Debug)]
pub(super) struct AttachArgs {
    /// A played pod, by name or namespace/name, or a container's id
    #[arg(value_name = "POD|CONTAINER")]
    target: String,
    /// This container of the pod, instead of its first
    #[arg(long, short)]
    container: Option<String>,
    /// Pass standard input on; on a terminal, ctrl-p ctrl-q detaches
    #[arg(long, short = 'i')]
    stdin: bool,
}

pub(super) fn exec(args: ExecArgs, socket: &Path) -> anyhow::Result<ExitCode> {
    let streams = Streams {
        stdin: args.stdin,
        tty: args.tty,
    };
    session::check(streams)?;
    block_on(async {
        let mut client = Client::connect(socket).await?;
        let container = target::container(&mut client, &args.target, args.container).await?;
        let request = v1::ExecRequest {
            container_id: container.id,
            cmd: args.command,
            tty: args.tty,
            stdin: args.stdin,
            stdout: true,
            stderr: !args.tty,
        };
        let answer = client.runtime.exec(request).await;
        let url = answer.asking(|| format!("exec in {}", args.target))?.url;
        session::run(&url, streams).await
    })
}

pub(super) fn attach(args: AttachArgs, socket: &Path) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut client = Client::connect(socket).await?;
        let container = target::container(&mut client, &args.target, args.container).await?;
        let tty = target::has_terminal(&mut client, &container.id).await?;
        let streams = Streams {
            stdin: args.stdin,
            // Watched without input, a terminal of ours stays as it is.
            tty: tty && args.stdin,
        };
        session::check(streams)?;
        let request = v1::AttachRequest {
            container_id: container.id,
            stdin: args.stdin,
            tty,
            stdout: true,
            stderr: !tty,
        };
        let answer = client.runtime.attach(request).await;
        let url = answer.asking(|| format!("attach to {}", args.target))?.url;
        session::run(&url, streams).await
    })
}
