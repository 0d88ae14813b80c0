//! Exec and Attach: a process's ends, for a client that streams.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::unix::pipe;

use super::attach::{self, Attached};
use super::process::{self, End, Wanted, running};
use super::terminal::Terminal;
use crate::failure::{Doing as _, Failure};
use crate::node::NodeHandle;
use crate::request::exec::StreamsRequest;

/// What an output pipe holds before the process waits for its client: sixteen reads' worth, so that
/// both work at once (pipe(7): the default is 64 KiB, a privileged process may have more).
pub const PIPE: usize = 256 << 10;

/// A process's ends.
#[derive(Debug)]
pub struct Streams {
    /// Its input. Dropping it is the end of the file; see [`Input::finish`] for terminals.
    pub stdin: Option<Input>,
    /// Its output, or all that is shown on its terminal.
    pub stdout: Option<Output>,
    /// Its error output.
    pub stderr: Option<Output>,
    /// Its terminal's size, if it has a terminal.
    pub size: Option<Size>,
    /// Its end.
    pub end: Ending,
}

/// What a process reads.
#[derive(Debug)]
pub enum Input {
    /// A pipe.
    Pipe(pipe::Sender),
    /// The terminal, and what was last written to it.
    Terminal(Terminal, Option<u8>),
}

/// What a process writes.
#[derive(Debug)]
pub enum Output {
    /// A pipe.
    Pipe(pipe::Receiver),
    /// The terminal.
    Terminal(Terminal),
}

/// Where a terminal's size is set.
#[derive(Debug)]
pub enum Size {
    /// The terminal of an exec.
    Exec(Terminal),
    /// A container's own, which its monitor holds.
    Container(attach::Terminal),
}

/// How the streams end.
#[derive(Debug)]
pub enum Ending {
    /// With the process.
    Exec(End),
    /// With the container.
    Attach(Attached),
}

/// Checks what can be checked before there is a client; returns the container's full id.
///
/// # Errors
/// When there is no such container, or it doesn't run.
pub fn check_exec(node: &NodeHandle, request: &StreamsRequest) -> Result<String, Failure> {
    running(node, &request.container, "exec in").map(|container| container.id.clone())
}

/// Checks what can be checked before there is a client; returns the container's full id.
///
/// # Errors
/// When there is no such container, or it doesn't run, or a terminal is asked for where there is
/// none or the other way round.
pub fn check_attach(node: &NodeHandle, request: &StreamsRequest) -> Result<String, Failure> {
    let container = running(node, &request.container, "attach to")?;
    if container.config.tty != request.tty {
        let has = if request.tty { "no" } else { "a" };
        return Err(Failure::invalid(format!(
            "tty: container {} has {has} terminal",
            container.id
        )));
    }
    Ok(container.id.clone())
}

/// Runs the command; returns after execve succeeded. The process outlives what is returned.
///
/// # Errors
/// When it can't be started.
pub async fn exec(node: &NodeHandle, request: StreamsRequest) -> Result<Streams, Failure> {
    let container = running(node, &request.container, "exec in")?;
    let piped = |wanted: bool| wanted && !request.tty;
    let (stdin, stdin_kept) = split(piped(request.stdin).then(pipe_pair).transpose()?);
    let (stdout_kept, stdout) = split(piped(request.stdout).then(pipe_pair).transpose()?);
    let (stderr_kept, stderr) = split(piped(request.stderr).then(pipe_pair).transpose()?);
    let wanted = Wanted {
        command: request.command,
        tty: request.tty,
        timeout: None,
        stdin,
        stdout,
        stderr,
    };
    let started = process::start(node, &container, wanted, false).await?;
    let end = Ending::Exec(started.end);
    if !request.tty {
        return Ok(Streams {
            stdin: stdin_kept.map(Input::pipe).transpose()?,
            stdout: stdout_kept.map(Output::pipe).transpose()?,
            stderr: stderr_kept.map(Output::pipe).transpose()?,
            size: None,
            end,
        });
    }
    let master = started
        .terminal
        .ok_or_else(|| Failure::internal("the pod's monitor returned no terminal"))?;
    let terminal = Terminal::new(master)?;
    Ok(Streams {
        stdin: request
            .stdin
            .then(|| Input::Terminal(terminal.clone(), None)),
        // Read even if nobody wants it, so that the process is not held up.
        stdout: Some(Output::Terminal(terminal.clone())),
        stderr: None,
        size: Some(Size::Exec(terminal)),
        end,
    })
}

/// Attaches to the container's own process.
///
/// # Errors
/// When the monitor refuses.
pub async fn attach(node: &NodeHandle, request: StreamsRequest) -> Result<Streams, Failure> {
    let container = running(node, &request.container, "attach to")?;
    let (stdin, stdin_kept) = split(request.stdin.then(pipe_pair).transpose()?);
    let (stdout_kept, stdout) = split(request.stdout.then(attach::pipe_pair).transpose()?);
    let (stderr_kept, stderr) = split(request.stderr.then(attach::pipe_pair).transpose()?);
    let attached = attach::attach(node, &container, [stdin, stdout, stderr]).await?;
    Ok(Streams {
        stdin: stdin_kept.map(Input::pipe).transpose()?,
        stdout: stdout_kept.map(Output::pipe).transpose()?,
        stderr: stderr_kept.map(Output::pipe).transpose()?,
        size: request
            .tty
            .then(|| Size::Container(attach::Terminal::of(node, &container))),
        end: Ending::Attach(attached),
    })
}

/// A pipe's read and write end.
fn pipe_pair() -> Result<(OwnedFd, OwnedFd), Failure> {
    pipe_of(PIPE)
}

/// A pipe that holds `size` bytes, or as many as the node allows.
pub(super) fn pipe_of(size: usize) -> Result<(OwnedFd, OwnedFd), Failure> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).doing("make a pipe")?;
    // Refused once the node's limit on pipe memory is reached; the default size serves too.
    if let Err(error) = fcntl_setpipe_size(write.as_fd(), size) {
        tracing::debug!(%error, "a pipe keeps its default size");
    }
    Ok((read, write))
}

fn split<A, B>(pair: Option<(A, B)>) -> (Option<A>, Option<B>) {
    pair.map_or((None, None), |(a, b)| (Some(a), Some(b)))
}

impl Input {
    fn pipe(end: OwnedFd) -> Result<Self, Failure> {
        let end = pipe::Sender::from_owned_fd(end).doing("write to the process")?;
        Ok(Self::Pipe(end))
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// When the process reads no more.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::Terminal(terminal, last) => {
                terminal.write_all(bytes).await?;
                *last = bytes.last().copied().or(*last);
                Ok(())
            }
        }
    }

    /// Tells the process that its input has ended. A terminal stays open for its output, so it is
    /// told as a person would.
    ///
    /// # Errors
    /// When the terminal can't be written to.
    pub async fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Pipe(_) => Ok(()),
            Self::Terminal(mut terminal, last) => {
                let mark = terminal.end_of_file(last)?;
                terminal.write_all(&mark).await.doing("end the input")
            }
        }
    }
}

impl Output {
    fn pipe(end: OwnedFd) -> Result<Self, Failure> {
        let end = pipe::Receiver::from_owned_fd(end).doing("read from the process")?;
        Ok(Self::Pipe(end))
    }

    /// Whether whoever writes is held up or ended by nobody reading.
    pub fn is_pipe(&self) -> bool {
        matches!(self, Self::Pipe(_))
    }

    /// Reads to the end and throws away, so that a process whose client left is not held up.
    pub async fn discard(mut self) {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(1..) = self.read(&mut buffer).await {}
    }
}

impl AsyncRead for Output {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Pipe(pipe) => Pin::new(pipe).poll_read(context, buffer),
            Self::Terminal(terminal) => Pin::new(terminal).poll_read(context, buffer),
        }
    }
}

impl Size {
    /// Sets it.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub async fn set(&self, columns: u16, rows: u16) -> Result<(), Failure> {
        match self {
            Self::Exec(terminal) => terminal.resize(columns, rows),
            Self::Container(terminal) => terminal.resize(columns, rows).await,
        }
    }
}

impl Ending {
    /// Waits for the end; may be asked again if the wait was given up. Returns the exit code.
    ///
    /// # Errors
    /// When the pod's monitor goes first, or gave the client up.
    pub async fn wait(&mut self) -> Result<i32, Failure> {
        match self {
            Self::Exec(end) => end.wait().await.map(|end| end.exit_code),
            Self::Attach(attached) => attached.wait().await.map(|()| 0),
        }
    }

    /// The client is gone for good: the terminal of an exec hangs up.
    pub fn hang_up(&self) {
        if let Self::Exec(end) = self {
            end.hang_up();
        }
    }
}
