//! The terminal in raw mode: every key goes to the command (termios(3)).

use std::io;

use anyhow::Context as _;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Raw until dropped.
#[derive(Debug)]
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    pub(super) fn enter() -> anyhow::Result<Self> {
        let before = tcgetattr(io::stdin()).context("ask for the terminal's modes")?;
        let mut modes = before.clone();
        modes.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &modes).context("make the terminal raw")?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before) {
            eprintln!("bulkhead: the terminal could not be restored (try `reset`): {error}");
        }
    }
}
