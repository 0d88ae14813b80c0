//! A person at a terminal, scripted: a program on a pseudo-terminal, what is typed, what shows.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::wait;

/// How long something may take to show.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program on a terminal of its own.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts a program as the leader of a session whose terminal this is (setsid(1)).
    pub fn start(program: &Path, arguments: &[&str], rows: u16, columns: u16) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("open a terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = File::from(rustix::fs::open(&name, flags, Mode::empty())?);
        let master = File::from(master);
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(program)
            .args(arguments)
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, into) = (master.try_clone()?, Arc::clone(&shown));
        thread::spawn(move || {
            let mut piece = [0; 4096];
            // EIO once nobody has the terminal open any more (pty(7)).
            while let Ok(count @ 1..) = screen.read(&mut piece) {
                let mut shown = into.lock().unwrap_or_else(PoisonError::into_inner);
                shown.extend_from_slice(&piece[..count]);
            }
        });
        let terminal = Self {
            master,
            child,
            shown,
        };
        terminal.resize(rows, columns)?;
        Ok(terminal)
    }

    /// Gives the window another size.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.master, size)?)
    }

    /// Types.
    pub fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Waits until a text shows that did not before the last call.
    pub async fn expect(&self, text: &str) -> Result<()> {
        let found = wait::until(text, PATIENCE, async || {
            let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            let all = String::from_utf8_lossy(&shown).into_owned();
            let after = all
                .find(text)
                .map(|at| all.as_bytes()[at + text.len()..].to_vec());
            Ok(after.map(|after| *shown = after))
        });
        found.await.with_context(|| {
            let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            format!("what shows: {:?}", String::from_utf8_lossy(&shown))
        })
    }

    /// Waits for the program's end.
    pub async fn end(mut self) -> Result<ExitStatus> {
        wait::until("its end", PATIENCE, async || Ok(self.child.try_wait()?)).await
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself; closing the terminal ends what is below it.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
