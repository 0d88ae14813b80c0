//! A container's standard streams: the ends it gets and the ends the monitor keeps.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::record::Stream;
use super::sources::{Source, Sources};
use crate::error::{Doing, Result};
use crate::sys::epoll::Interest;

/// The ends a process gets as its descriptors 0, 1 and 2.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// The ends the monitor keeps.
#[derive(Debug)]
pub(super) struct Kept {
    /// The write end of stdin, held so that the process doesn't read an end of file; attached
    /// clients write to it.
    pub(super) stdin: Option<OwnedFd>,
    pub(super) outputs: Vec<Output>,
}

/// Something a container writes to, read without blocking.
#[derive(Debug)]
pub(super) struct Output {
    descriptor: OwnedFd,
    stream: Stream,
    terminal: bool,
    /// Not read for now, as a client can't take more.
    paused: bool,
}

/// What one read brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Got {
    /// This many bytes.
    Bytes(usize),
    /// Nothing now; somebody may still write.
    Nothing,
    /// Nobody has it open for writing any more. A terminal may be opened again.
    End,
}

/// Pipes for a container without a terminal.
pub(super) fn pipes(stdin: bool) -> Result<(Given, Kept)> {
    let (stdout, stdout_kept) = output(Stream::Stdout)?;
    let (stderr, stderr_kept) = output(Stream::Stderr)?;
    let (stdin, stdin_kept) = if stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe for stdin")?;
        (read, Some(unblocked(write)?))
    } else {
        (null()?, None)
    };
    let given = Given {
        stdin,
        stdout,
        stderr,
    };
    let kept = Kept {
        stdin: stdin_kept,
        outputs: vec![stdout_kept, stderr_kept],
    };
    Ok((given, kept))
}

fn output(stream: Stream) -> Result<(OwnedFd, Output)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe for output")?;
    let output = Output {
        descriptor: unblocked(read)?,
        stream,
        terminal: false,
        paused: false,
    };
    Ok((write, output))
}

/// The master of a container's terminal: everything is stdout, and a copy of it takes input.
pub(super) fn terminal(master: OwnedFd, stdin: bool) -> Result<Kept> {
    let copy = || {
        rustix::io::fcntl_dupfd_cloexec(&master, 3).doing(|| "duplicate the terminal's descriptor")
    };
    Ok(Kept {
        stdin: stdin.then(copy).transpose()?,
        outputs: vec![Output {
            descriptor: unblocked(master)?,
            stream: Stream::Stdout,
            terminal: true,
            paused: false,
        }],
    })
}

/// `/dev/null`, for reading and writing.
pub(super) fn null() -> Result<OwnedFd> {
    rustix::fs::open(
        c"/dev/null",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(|| "open /dev/null")
}

/// Only our end: the flag belongs to the open file, and each end is one of its own.
pub(super) fn unblocked(descriptor: OwnedFd) -> Result<OwnedFd> {
    unblock(&descriptor)?;
    Ok(descriptor)
}

/// As [`unblocked`], for all copies of the descriptor.
pub(super) fn unblock(descriptor: &OwnedFd) -> Result<()> {
    let doing = || "make a standard stream non-blocking";
    let flags = fcntl_getfl(descriptor).doing(doing)?;
    fcntl_setfl(descriptor, flags | OFlags::NONBLOCK).doing(doing)
}

impl Output {
    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    /// A terminal can't be watched level-triggered: while nobody has it open it reports a hang-up
    /// all the time, but it may be opened again.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    pub(super) fn read(&self, buffer: &mut [u8]) -> Got {
        read_some(&self.descriptor, buffer)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Watches it under a key of its own, which is returned.
    pub(super) fn watch(&self, container: &str, sources: &mut Sources) -> Result<u64> {
        let source = Source::Output(container.to_owned());
        sources.add(&self.descriptor, source, self.interest())
    }

    /// Reports a terminal again if more can be read from it.
    pub(super) fn watch_again(&self, key: u64, sources: &Sources) -> Result<()> {
        sources.change(&self.descriptor, key, self.interest())
    }

    /// Stops or goes on watching it.
    pub(super) fn set_paused(&mut self, paused: bool, key: u64, sources: &Sources) -> Result<()> {
        if paused == self.paused {
            return Ok(());
        }
        self.paused = paused;
        match paused {
            true => {
                sources.pause(&self.descriptor);
                Ok(())
            }
            false => sources.resume(&self.descriptor, key, self.interest()),
        }
    }

    fn interest(&self) -> Interest {
        match self.terminal {
            true => Interest::IN | Interest::ET,
            false => Interest::IN,
        }
    }
}

/// Reads what is there.
pub(super) fn read_some(from: &OwnedFd, buffer: &mut [u8]) -> Got {
    loop {
        return match rustix::io::read(from, &mut *buffer) {
            Ok(0) => Got::End,
            Ok(count) => Got::Bytes(count),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Got::Nothing,
            // EIO is how a terminal says that its last slave was closed (pty_read), ECONNRESET a
            // socket; anything else won't get better either.
            Err(_) => Got::End,
        };
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_read_until_the_last_writer_is_gone() {
        let (given, kept) = pipes(true).unwrap();
        let [stdout, stderr] = <[Output; 2]>::try_from(kept.outputs).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(stdout.read(&mut buffer), Got::Nothing);
        rustix::io::write(&given.stdout, b"out").unwrap();
        let second = rustix::io::dup(&given.stdout).unwrap();
        drop(given.stdout);
        assert_eq!(stdout.read(&mut buffer), Got::Bytes(3));
        assert_eq!(stdout.read(&mut buffer), Got::Nothing);
        drop(second);
        assert_eq!(stdout.read(&mut buffer), Got::End);
        assert_eq!(
            (stdout.stream(), stderr.stream()),
            (Stream::Stdout, Stream::Stderr)
        );
    }

    #[test]
    fn the_ends_a_process_gets_block_and_its_stdin_stays_open() {
        let (given, kept) = pipes(true).unwrap();
        for end in [&given.stdin, &given.stdout, &given.stderr] {
            assert!(!fcntl_getfl(end).unwrap().contains(OFlags::NONBLOCK));
        }
        rustix::io::write(kept.stdin.as_ref().unwrap(), b"x").unwrap();
        assert_eq!(rustix::io::read(&given.stdin, &mut [0; 4][..]), Ok(1));
        let (given, kept) = pipes(false).unwrap();
        assert!(kept.stdin.is_none());
        assert_eq!(rustix::io::read(&given.stdin, &mut [0; 4][..]), Ok(0));
    }
}
