//! A blocking netlink socket: one datagram of requests out, their answers in.
//!
//! The kernel handles requests before `send` returns, so the answers are all there to be read
//! without waiting. A socket stays in the network namespace of the thread that opened it, whoever
//! uses it later; that is how a pod's interface is set up from outside the pod.
//! Sources: netlink(7), rtnetlink(7), `include/uapi/linux/netlink.h`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols};

use crate::failure::{Class, Doing as _, Failure};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// In an error's flags: extended attributes follow (kernel 4.12).
const NLM_F_ACK_TLVS: u16 = 0x200;
/// In an error's flags: the request is not repeated behind its header.
const NLM_F_CAPPED: u16 = 0x100;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Larger than any message the kernel sends unasked for in one datagram (32 KiB for dumps).
const RECEIVE: usize = 64 << 10;

/// One message of the kernel's answer.
pub(crate) struct Answer {
    /// The sequence number of the request it answers.
    pub(crate) sequence: u32,
    /// An acknowledgement (`Ok`), a refusal, or nothing: then `message` is what was asked for.
    pub(crate) outcome: Option<Result<(), Refusal>>,
    /// The whole message, header included.
    pub(crate) message: Vec<u8>,
}

/// What the kernel said no with.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The error number, positive.
    pub(crate) errno: i32,
    /// The kernel's own words, where it has any.
    text: Option<String>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let error = io::Error::from_raw_os_error(self.errno);
        match &self.text {
            Some(text) => write!(f, "{error}: {text}"),
            None => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Refusal {}

/// A netlink socket of one protocol.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        // Best effort: without it errors are bare numbers.
        drop(socket.set_ext_ack(true));
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Opens a socket that is told what is sent to a multicast group.
    pub(crate) fn subscribe(protocol: isize, group: u32) -> io::Result<Self> {
        let netlink = Self::open(protocol)?;
        netlink.socket.add_membership(group)?;
        Ok(netlink)
    }

    /// The number the kernel knows this socket by, which what it does is told to others with.
    pub(crate) fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// Sends one datagram and reads all that the kernel answers to it.
    pub(crate) fn exchange(&self, datagram: &[u8]) -> io::Result<Vec<Answer>> {
        let sent = self.socket.send(datagram, 0)?;
        if sent != datagram.len() {
            return Err(io::Error::other("netlink datagram sent in part"));
        }
        self.drain()
    }

    /// Reads all that is there, without waiting.
    pub(crate) fn drain(&self) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::new();
        let mut buffer: Vec<u8> = Vec::with_capacity(RECEIVE);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => split(&buffer, &mut answers),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(answers),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether this kernel has what the embedded network is made with.
pub(crate) fn probe() -> Result<(), Failure> {
    for (protocol, lacking) in [
        (protocols::NETLINK_ROUTE, "rtnetlink"),
        (protocols::NETLINK_NETFILTER, "nfnetlink (nf_tables)"),
    ] {
        if let Err(error) = Netlink::open(protocol) {
            return Err(Failure::new(
                Class::Unsupported,
                format!("this kernel has no {lacking}, which the pod network needs: {error}"),
            ));
        }
    }
    Ok(())
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Cuts a datagram into messages. What does not add up ends it: the kernel sends no such thing.
fn split(mut datagram: &[u8], answers: &mut Vec<Answer>) {
    while let Some(length) = u32_at(datagram, 0).and_then(|length| usize::try_from(length).ok()) {
        let Some(message) = datagram
            .get(..length)
            .filter(|message| message.len() >= HEADER)
        else {
            return;
        };
        let kind = u16_at(message, 4).unwrap_or(0);
        let sequence = u32_at(message, 8).unwrap_or(0);
        let outcome = match kind {
            NLMSG_ERROR => Some(parse_outcome(message)),
            // The end of a dump; its payload is the dump's error or 0.
            NLMSG_DONE => Some(parse_outcome(message)),
            _ => None,
        };
        answers.push(Answer {
            sequence,
            outcome,
            message: message.to_vec(),
        });
        let aligned = length.next_multiple_of(4).min(datagram.len());
        datagram = &datagram[aligned..];
    }
}

fn parse_outcome(message: &[u8]) -> Result<(), Refusal> {
    let code = u32_at(message, HEADER).map_or(0, u32::cast_signed);
    if code == 0 {
        return Ok(());
    }
    Err(Refusal {
        errno: code.saturating_neg(),
        text: extended_text(message),
    })
}

/// The text attribute behind an error (`struct nlmsgerr`, then attributes).
fn extended_text(message: &[u8]) -> Option<String> {
    let flags = u16_at(message, 6)?;
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let repeated = if flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        usize::try_from(u32_at(message, HEADER + 4)?).ok()?
    };
    let mut rest = message.get(HEADER + 4 + repeated.next_multiple_of(4)..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length);
        let value = rest.get(4..length)?;
        if kind == NLMSGERR_ATTR_MSG {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A request to rtnetlink, with the words an error about it begins with.
pub(crate) struct Request {
    doing: String,
    message: RouteNetlinkMessage,
    flags: u16,
    /// An error number that is as good as success.
    tolerated: Option<i32>,
}

impl Request {
    /// Changes what is there.
    pub(crate) fn change(doing: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self {
            doing: doing.into(),
            message,
            flags: 0,
            tolerated: None,
        }
    }

    /// Makes something that must not exist.
    pub(crate) fn create(doing: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self {
            flags: NLM_F_CREATE | NLM_F_EXCL,
            ..Self::change(doing, message)
        }
    }

    /// Makes something, or makes the one that exists like this.
    pub(crate) fn replace(doing: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self {
            flags: NLM_F_CREATE | NLM_F_REPLACE,
            ..Self::change(doing, message)
        }
    }

    /// Takes `errno` for success.
    #[must_use]
    pub(crate) fn tolerating(self, errno: i32) -> Self {
        Self {
            tolerated: Some(errno),
            ..self
        }
    }
}

/// A socket for links, addresses and routes.
#[derive(Debug)]
pub(crate) struct Route {
    netlink: Netlink,
}

impl Route {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, Failure> {
        let netlink =
            Netlink::open(protocols::NETLINK_ROUTE).doing("open a route netlink socket")?;
        Ok(Self { netlink })
    }

    /// Carries out `requests` in order with one system call each way. The kernel goes on after a
    /// request it refuses, so the caller undoes the rest.
    ///
    /// # Errors
    /// The first request that was refused.
    pub(crate) fn apply(&self, requests: Vec<Request>) -> Result<(), Failure> {
        let mut datagram = Vec::new();
        let mut asked = Vec::with_capacity(requests.len());
        for (sequence, request) in (1..).zip(requests) {
            append(
                &mut datagram,
                sequence,
                request.flags | NLM_F_ACK,
                request.message,
            );
            asked.push((sequence, request.doing, request.tolerated));
        }
        let mut answers = self
            .netlink
            .exchange(&datagram)
            .doing("talk to rtnetlink")?;
        for (sequence, doing, tolerated) in asked {
            let outcome = answers
                .iter_mut()
                .find(|answer| answer.sequence == sequence && answer.outcome.is_some())
                .and_then(|answer| answer.outcome.take());
            match outcome {
                Some(Ok(())) => {}
                Some(Err(refusal)) if Some(refusal.errno) == tolerated => {}
                Some(Err(refusal)) => return Err(refusal).doing(doing),
                None => {
                    return Err(Failure::internal(format!(
                        "{doing}: the kernel did not answer"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Asks for one object; `None` if there is none such.
    pub(crate) fn get(
        &self,
        doing: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Failure> {
        Ok(self.ask(doing, message, 0)?.pop())
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(
        &self,
        doing: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        self.ask(doing, message, NLM_F_DUMP)
    }

    fn ask(
        &self,
        doing: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        let mut datagram = Vec::new();
        append(&mut datagram, 1, flags, message);
        let mut found = Vec::new();
        for answer in self.netlink.exchange(&datagram).doing(doing)? {
            match answer.outcome {
                Some(Ok(())) => {}
                Some(Err(refusal)) if refusal.errno == libc::ENODEV => {}
                Some(Err(refusal)) => return Err(refusal).doing(doing),
                None => {
                    let parsed =
                        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer.message)
                            .doing(doing)?;
                    if let NetlinkPayload::InnerMessage(inner) = parsed.payload {
                        found.push(inner);
                    }
                }
            }
        }
        Ok(found)
    }
}

fn append(datagram: &mut Vec<u8>, sequence: u32, flags: u16, message: RouteNetlinkMessage) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let start = datagram.len();
    datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut datagram[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One message: length, kind, flags, sequence, port, then `body`.
    fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_refusal_carries_the_kernels_words() {
        let mut body = (-17i32).to_ne_bytes().to_vec();
        body.extend([0; HEADER]);
        body.extend(9u16.to_ne_bytes());
        body.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        body.extend(b"busy\0");
        let mut answers = Vec::new();
        split(
            &message(NLMSG_ERROR, NLM_F_ACK_TLVS | NLM_F_CAPPED, 7, &body),
            &mut answers,
        );
        assert_eq!(answers[0].sequence, 7);
        let refusal = answers[0].outcome.take().unwrap().unwrap_err();
        assert_eq!(refusal.errno, libc::EEXIST);
        assert!(refusal.to_string().ends_with("busy"), "{refusal}");
    }

    #[test]
    fn several_messages_in_a_datagram_are_told_apart_and_a_cut_one_is_dropped() {
        let mut datagram = message(NLMSG_ERROR, 0, 1, &0i32.to_ne_bytes());
        datagram.extend(message(16, 0, 2, b"abcde"));
        datagram.extend(message(NLMSG_DONE, 0, 3, &0i32.to_ne_bytes()));
        let whole = datagram.len();
        datagram.extend(message(16, 0, 4, b"abcdefgh"));
        for cut in whole..datagram.len() {
            let mut answers = Vec::new();
            split(&datagram[..cut], &mut answers);
            let sequences: Vec<u32> = answers.iter().map(|answer| answer.sequence).collect();
            assert_eq!(sequences, [1, 2, 3], "cut at {cut}");
        }
    }
}
