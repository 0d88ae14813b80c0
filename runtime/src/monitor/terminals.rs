//! Terminals the monitor holds: window sizes, and the masters of execs.
//!
//! The daemon gets an exec's master and copies its bytes; the monitor keeps a copy of the
//! descriptor, so that a daemon that dies hangs nothing up: the exec goes on. Nobody can reach it
//! any more, so it is told the end of its input (a shell at its prompt ends by it), and what it
//! writes is discarded, so that it isn't stopped by a full terminal. Where the client goes and the
//! daemon stays, the daemon asks for the hang-up.

use rustix::fd::{AsFd, OwnedFd};

use super::complain;
use super::event_loop::Monitor;
use super::sources::{Source, Sources};
use super::stdio::{Got, read_some, unblock};
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::sys::epoll::Interest;
use crate::sys::pty;

/// Pieces discarded a turn, of a terminal's buffer of 4 KiB at the most.
const PIECES: usize = 16;

/// The master of an exec's terminal.
#[derive(Debug)]
pub(super) struct ExecTerminal {
    master: OwnedFd,
    /// Set once nobody else reads it.
    key: Option<u64>,
}

impl ExecTerminal {
    /// Keeps a copy of the master.
    pub(super) fn keep(master: &OwnedFd) -> Result<Self> {
        let master = rustix::io::fcntl_dupfd_cloexec(master, 3)
            .doing(|| "duplicate the terminal's descriptor")?;
        Ok(Self { master, key: None })
    }

    /// The daemon that read it is gone.
    fn take_over(&mut self, id: &str, sources: &mut Sources) -> Result<()> {
        if self.key.is_none() {
            unblock(&self.master)?;
            let source = Source::Terminal(id.to_owned());
            self.key = Some(sources.add(&self.master, source, Interest::IN | Interest::ET)?);
            pty::end_input(self.master.as_fd()).doing(|| "end the terminal's input")?;
        }
        Ok(())
    }

    /// Closes the copy.
    pub(super) fn close(self, sources: &mut Sources) {
        if let Some(key) = self.key {
            sources.remove(&self.master, key);
        }
    }
}

impl Monitor {
    /// Sets a window size; the kernel tells the foreground processes (SIGWINCH).
    pub(super) fn resize(
        &self,
        container: &str,
        exec: Option<&str>,
        rows: u16,
        columns: u16,
    ) -> Result<()> {
        let master = match exec {
            Some(id) => match self.execs.get(id) {
                Some(exec) if exec.container == container => exec
                    .terminal
                    .as_ref()
                    .map(|terminal| terminal.master.as_fd()),
                _ => {
                    let text = format!("no exec {id} runs in container {container}");
                    return Err(Error::new(ErrorKind::NotFound, text));
                }
            },
            None => self
                .containers
                .get(container)
                .and_then(|container| container.outputs.values().find(|o| o.is_terminal()))
                .map(AsFd::as_fd),
        };
        let master = master.ok_or_else(|| {
            Error::invalid(format!(
                "{} has no terminal to resize",
                exec.map_or(format!("container {container}"), |id| format!("exec {id}"))
            ))
        })?;
        pty::set_size(master, columns, rows)
            .doing(|| format!("resize the terminal to {columns}x{rows}"))
    }

    /// The client of an exec is gone.
    pub(super) fn hang_up(&mut self, id: &str) {
        if let Some(exec) = self.execs.get_mut(id)
            && let Some(terminal) = exec.terminal.take()
        {
            terminal.close(&mut self.sources);
        }
    }

    /// The daemon is gone, and with it who read the execs' terminals.
    pub(super) fn take_over_terminals(&mut self) {
        for (id, exec) in &mut self.execs {
            if let Some(terminal) = &mut exec.terminal
                && let Err(error) = terminal.take_over(id, &mut self.sources)
            {
                complain(&error.context(format!("terminal of exec {id}")));
            }
        }
    }

    /// Discards what comes from a terminal nobody reads.
    pub(super) fn terminal_ready(&mut self, id: &str, key: u64) {
        let mut buffers = self.take_buffers();
        let exec = self.execs.get(id);
        if let Some(terminal) = exec.and_then(|exec| exec.terminal.as_ref()) {
            let mut came = Got::Nothing;
            for _ in 0..PIECES {
                came = read_some(&terminal.master, &mut buffers.piece);
                if !matches!(came, Got::Bytes(_)) {
                    break;
                }
            }
            if matches!(came, Got::Bytes(_)) {
                let again = Interest::IN | Interest::ET;
                if let Err(error) = self.sources.change(&terminal.master, key, again) {
                    complain(&error.context(format!("terminal of exec {id}")));
                }
            }
        }
        self.buffers = Some(buffers);
    }
}
