//! The master of an exec's pseudo-terminal, read and written without blocking (pty(7), tty(4)).

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::termios::{SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::failure::{Doing as _, Failure};

/// A terminal. Clones share it; the last one to go hangs it up.
#[derive(Clone, Debug)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    pub(super) fn new(master: OwnedFd) -> Result<Self, Failure> {
        rustix::io::ioctl_fionbio(&master, true).doing("use the exec's terminal")?;
        #[expect(
            deprecated,
            reason = "what replaces it is an unsafe function, for types that may change their \
                      descriptor; this one can't"
        )]
        let master = AsyncFd::new(master).doing("use the exec's terminal")?;
        Ok(Self(Arc::new(master)))
    }

    pub(super) fn resize(&self, columns: u16, rows: u16) -> Result<(), Failure> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(self.0.as_fd(), size).doing("resize the exec's terminal")
    }

    /// What is written to tell the end of a file, `after` what was written last: the terminal's own
    /// character, twice if a line is open, since the first then only sends off the line (termios(3)).
    pub(super) fn end_of_file(&self, after: Option<u8>) -> Result<Vec<u8>, Failure> {
        let modes = tcgetattr(self.0.as_fd()).doing("ask for the terminal's modes")?;
        let mark = modes.special_codes[SpecialCodeIndex::VEOF];
        let line_is_open = after.is_some_and(|last| last != b'\n' && last != b'\r' && last != mark);
        Ok(vec![mark; if line_is_open { 2 } else { 1 }])
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            let read = guard.try_io(|master| {
                rustix::io::read(master.get_ref(), &mut *space).map_err(io::Error::from)
            });
            match read {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // All that had the terminal open have ended.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            let written = guard.try_io(|master| {
                rustix::io::write(master.get_ref(), bytes).map_err(io::Error::from)
            });
            match written {
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A terminal has no half to close.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use rustix::pty::OpenptFlags;
    use rustix::termios::OptionalActions;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair() -> (Terminal, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        (Terminal::new(master).unwrap(), slave)
    }

    #[tokio::test]
    async fn all_output_comes_before_the_end() {
        let (mut terminal, slave) = pair();
        rustix::io::write(&slave, b"last words").unwrap();
        drop(slave);
        let mut text = String::new();
        terminal.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "last words");
    }

    #[tokio::test]
    async fn input_that_ends_is_an_end_of_file_to_the_reader() {
        for (input, expected) in [
            (&b"line\n"[..], &b"line\n"[..]),
            (b"open", b"open"),
            (b"", b""),
        ] {
            let (mut terminal, slave) = pair();
            terminal.write_all(input).await.unwrap();
            let mark = terminal.end_of_file(input.last().copied()).unwrap();
            terminal.write_all(&mark).await.unwrap();
            let mut buffer = [0; 64];
            let mut read = Vec::new();
            loop {
                let count = rustix::io::read(&slave, &mut buffer).unwrap();
                if count == 0 {
                    break;
                }
                read.extend_from_slice(&buffer[..count]);
            }
            assert_eq!(read, expected);
        }
    }

    #[tokio::test]
    async fn a_size_arrives() {
        let (terminal, slave) = pair();
        terminal.resize(132, 43).unwrap();
        let size = rustix::termios::tcgetwinsize(&slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (132, 43));
    }

    #[tokio::test]
    async fn bytes_pass_unchanged_in_raw_mode() {
        let (mut terminal, slave) = pair();
        let mut modes = tcgetattr(&slave).unwrap();
        modes.make_raw();
        rustix::termios::tcsetattr(&slave, OptionalActions::Now, &modes).unwrap();
        let all: Vec<u8> = (0..=255).collect();
        terminal.write_all(&all).await.unwrap();
        let mut seen = vec![0; 512];
        let count = rustix::io::read(&slave, &mut seen).unwrap();
        assert_eq!(&seen[..count], all);
    }
}
