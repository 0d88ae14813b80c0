//! One attached client: the ends of its streams that the monitor has. Nothing here ever waits.

use std::collections::VecDeque;
use std::rc::Rc;

use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::record::Stream;
use super::sources::{Source, Sources};
use super::stdio::{Got, read_some, unblocked};
use crate::error::Result;
use crate::sys::epoll::Interest;

/// The most that waits for one client to take it: what a dead container's pipe can still hold.
const MAX_HELD: usize = 1 << 20;

/// How an end of a client's stands after some bytes were to go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// All went through.
    Free,
    /// The rest waits until the other side takes more.
    Full,
    /// Nobody reads any more.
    Gone,
}

/// Writes as much as is taken now; returns how many bytes that was.
pub(super) fn write_some(to: &OwnedFd, mut bytes: &[u8]) -> (usize, Flow) {
    let all = bytes.len();
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return (all - bytes.len(), Flow::Full),
            Err(_) => return (all - bytes.len(), Flow::Gone),
        }
    }
    (all, Flow::Free)
}

/// Why a client goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// It closed an end: its input may still be on its way, up to its own end.
    Vanished,
    /// It was detached or dropped: what it has sent by now counts.
    Dismissed,
}

/// A client of a container.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) container: String,
    pub(super) stdin: Option<Input>,
    pub(super) outputs: Vec<Sink>,
    /// Set once its outputs are to be closed; what it sent before still goes to the container.
    pub(super) leaving: Option<Leaving>,
    /// Why it was given up.
    pub(super) dropped: Option<String>,
}

/// The read end of what a client sends.
#[derive(Debug)]
pub(super) struct Input {
    descriptor: OwnedFd,
    key: u64,
    /// Read, and not yet taken by the container; nothing more is read meanwhile.
    pub(super) pending: Vec<u8>,
}

/// The write end of what a client receives.
#[derive(Debug)]
pub(super) struct Sink {
    descriptor: OwnedFd,
    key: u64,
    stream: Stream,
    /// Output that the client hasn't taken yet; clients share the pieces.
    held: VecDeque<Rc<[u8]>>,
    /// Bytes of the first piece that are through.
    sent: usize,
    /// Nothing more comes.
    last: bool,
}

impl Client {
    pub(super) fn new(container: &str) -> Self {
        Self {
            container: container.to_owned(),
            stdin: None,
            outputs: Vec::new(),
            leaving: None,
            dropped: None,
        }
    }

    /// Nothing connects it any more.
    pub(super) fn is_finished(&self) -> bool {
        self.stdin.is_none() && self.outputs.is_empty()
    }

    /// Whether output of this stream waits for it.
    pub(super) fn holds(&self, stream: Stream) -> bool {
        self.outputs
            .iter()
            .any(|sink| sink.stream == stream && !sink.held.is_empty())
    }

    /// Whether any output waits for it.
    pub(super) fn is_behind(&self) -> bool {
        self.outputs.iter().any(|sink| !sink.held.is_empty())
    }

    /// Hands it a piece of output. `shared` is the piece for those that can't take all of it now.
    pub(super) fn deliver(
        &mut self,
        stream: Stream,
        piece: &[u8],
        shared: &mut Option<Rc<[u8]>>,
        sources: &Sources,
    ) {
        for sink in &mut self.outputs {
            if sink.stream == stream {
                match sink.offer(piece, shared, sources) {
                    Ok(Flow::Free | Flow::Full) => {}
                    Ok(Flow::Gone) => self.leaving = Some(Leaving::Vanished),
                    Err(why) => {
                        self.leaving = Some(Leaving::Dismissed);
                        self.dropped = Some(why);
                    }
                }
            }
        }
    }

    /// The output under a key can take more, or nobody reads it any more.
    pub(super) fn sink_ready(&mut self, key: u64, interest: Interest, sources: &mut Sources) {
        let Some(at) = self.outputs.iter().position(|sink| sink.key == key) else {
            return;
        };
        let Some(sink) = self.outputs.get_mut(at) else {
            return;
        };
        if interest.intersects(Interest::ERR | Interest::HUP) || sink.flush() == Flow::Gone {
            self.leaving = Some(Leaving::Vanished);
        } else if sink.held.is_empty() {
            if sink.last {
                let sink = self.outputs.swap_remove(at);
                sources.remove(&sink.descriptor, sink.key);
            } else if sources
                .change(&sink.descriptor, key, Interest::empty())
                .is_err()
            {
                self.leaving = Some(Leaving::Dismissed);
            }
        }
    }

    /// No more output of this stream comes (all of it with none): what is delivered is closed.
    pub(super) fn end_output(&mut self, stream: Option<Stream>, sources: &mut Sources) {
        self.outputs.retain_mut(|sink| {
            if stream.is_some_and(|stream| stream != sink.stream) {
                return true;
            }
            sink.last = true;
            if sink.held.is_empty() {
                sources.remove(&sink.descriptor, sink.key);
            }
            !sink.held.is_empty()
        });
    }

    /// Closes its outputs, with whatever waits for it.
    pub(super) fn close_outputs(&mut self, sources: &mut Sources) {
        for sink in self.outputs.drain(..) {
            sources.remove(&sink.descriptor, sink.key);
        }
    }

    /// Closes its input.
    pub(super) fn close_input(&mut self, sources: &mut Sources) {
        if let Some(input) = self.stdin.take() {
            sources.remove(&input.descriptor, input.key);
        }
    }
}

impl Input {
    pub(super) fn new(descriptor: OwnedFd, id: &str, sources: &mut Sources) -> Result<Self> {
        let descriptor = unblocked(descriptor)?;
        let source = Source::Client(id.to_owned());
        Ok(Self {
            key: sources.add(&descriptor, source, Interest::IN)?,
            descriptor,
            pending: Vec::new(),
        })
    }

    pub(super) fn key(&self) -> u64 {
        self.key
    }

    pub(super) fn read(&self, buffer: &mut [u8]) -> Got {
        read_some(&self.descriptor, buffer)
    }

    /// Keeps what the container doesn't take now, and reads no more until it has.
    pub(super) fn hold(&mut self, rest: &[u8], sources: &Sources) {
        self.pending.extend_from_slice(rest);
        sources.pause(&self.descriptor);
    }

    /// The container took all that was kept.
    pub(super) fn go_on(&mut self, sources: &Sources) -> Result<()> {
        self.pending = Vec::new();
        sources.resume(&self.descriptor, self.key, Interest::IN)
    }
}

impl Sink {
    /// Watched from the beginning: that nobody reads any more is reported without being asked for.
    pub(super) fn new(
        descriptor: OwnedFd,
        stream: Stream,
        id: &str,
        sources: &mut Sources,
    ) -> Result<Self> {
        let descriptor = unblocked(descriptor)?;
        let source = Source::Client(id.to_owned());
        Ok(Self {
            key: sources.add(&descriptor, source, Interest::empty())?,
            descriptor,
            stream,
            held: VecDeque::new(),
            sent: 0,
            last: false,
        })
    }

    /// Writes a piece, and keeps what isn't taken. An error says why no more can be kept.
    fn offer(
        &mut self,
        piece: &[u8],
        shared: &mut Option<Rc<[u8]>>,
        sources: &Sources,
    ) -> std::result::Result<Flow, String> {
        if !self.held.is_empty() {
            if self.waiting().saturating_add(piece.len()) > MAX_HELD {
                return Err(format!("it left {MAX_HELD} bytes unread"));
            }
            let piece = shared.get_or_insert_with(|| Rc::from(piece));
            self.held.push_back(Rc::clone(piece));
            return Ok(Flow::Full);
        }
        let (count, flow) = write_some(&self.descriptor, piece);
        if flow == Flow::Full {
            let piece = shared.get_or_insert_with(|| Rc::from(piece));
            self.held.push_back(Rc::clone(piece));
            self.sent = count;
            sources
                .change(&self.descriptor, self.key, Interest::OUT)
                .map_err(|error| error.to_string())?;
        }
        Ok(flow)
    }

    /// Writes of what is held as much as is taken now.
    fn flush(&mut self) -> Flow {
        while let Some(first) = self.held.front() {
            let rest = first.get(self.sent..).unwrap_or_default();
            let (count, flow) = write_some(&self.descriptor, rest);
            if flow != Flow::Free {
                self.sent = self.sent.saturating_add(count);
                return flow;
            }
            self.held.pop_front();
            self.sent = 0;
        }
        Flow::Free
    }

    fn waiting(&self) -> usize {
        let all: usize = self.held.iter().map(|piece| piece.len()).sum();
        all.saturating_sub(self.sent)
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::error::Result;

    /// A client with one pipe for stdout, and the pipe's read end.
    fn client(sources: &mut Sources) -> Result<(Client, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let mut client = Client::new("c");
        let sink = Sink::new(write, Stream::Stdout, "a", sources)?;
        client.outputs.push(sink);
        Ok((client, read))
    }

    fn ready(sources: &mut Sources) -> Vec<(u64, Interest)> {
        let mut ready = Vec::new();
        sources
            .wait(Some(std::time::Duration::ZERO), &mut ready)
            .unwrap();
        ready
    }

    #[test]
    fn what_a_full_client_has_not_taken_is_kept_in_order_and_shared() {
        let mut sources = Sources::new().unwrap();
        let (mut one, one_end) = client(&mut sources).unwrap();
        let (mut other, _other_end) = client(&mut sources).unwrap();
        let pieces: Vec<Vec<u8>> = (0..3).map(|n| vec![n; 50_000]).collect();
        for piece in &pieces {
            let mut shared = None;
            for client in [&mut one, &mut other] {
                client.deliver(Stream::Stdout, piece, &mut shared, &sources);
                client.deliver(Stream::Stderr, b"not asked for", &mut None, &sources);
            }
            if let Some(shared) = shared {
                assert_eq!(Rc::strong_count(&shared), 3);
            }
        }
        assert!(one.holds(Stream::Stdout) && !one.holds(Stream::Stderr) && one.is_behind());
        one.end_output(None, &mut sources);
        assert!(!one.is_finished(), "the rest is still to be delivered");
        let mut got = Vec::new();
        while !one.is_finished() {
            let mut buffer = [0; 30_000];
            let count = rustix::io::read(&one_end, &mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
            for (key, interest) in ready(&mut sources) {
                one.sink_ready(key, interest, &mut sources);
            }
        }
        let mut buffer = [0; 100_000];
        while let Ok(count @ 1..) = rustix::io::read(&one_end, &mut buffer) {
            got.extend_from_slice(&buffer[..count]);
        }
        assert!(got == pieces.concat());
    }

    #[test]
    fn a_client_that_takes_nothing_is_given_up_when_too_much_waits() {
        let mut sources = Sources::new().unwrap();
        let (mut client, _end) = client(&mut sources).unwrap();
        let piece = vec![0; 64 << 10];
        for _ in 0..=MAX_HELD / piece.len() {
            client.deliver(Stream::Stdout, &piece, &mut None, &sources);
            assert!(client.leaving.is_none());
        }
        client.deliver(Stream::Stdout, &piece, &mut None, &sources);
        assert_eq!(client.leaving, Some(Leaving::Dismissed));
        assert!(client.dropped.is_some());
    }

    #[test]
    fn that_nobody_reads_any_more_is_reported_without_a_write() {
        let mut sources = Sources::new().unwrap();
        let (mut client, end) = client(&mut sources).unwrap();
        assert!(ready(&mut sources).is_empty());
        drop(end);
        let [(key, interest)] = ready(&mut sources)[..] else {
            panic!("no report");
        };
        client.sink_ready(key, interest, &mut sources);
        assert_eq!(client.leaving, Some(Leaving::Vanished));
        assert!(client.dropped.is_none());
        client.close_outputs(&mut sources);
        assert!(client.is_finished() && ready(&mut sources).is_empty());
    }
}
