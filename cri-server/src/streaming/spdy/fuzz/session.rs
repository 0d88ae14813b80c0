//! A session under a client that does anything, and under owners that do anything, against a model
//! that counts bytes.

use std::collections::HashMap;

use crate::streaming::spdy::frame::{Control, Decoder, FIN, GoAway, Item, Status, UNIDIRECTIONAL};
use crate::streaming::spdy::limits::Limits;
use crate::streaming::spdy::session::{Event, FRAME, Session};
use crate::streaming::spdy::testing::{Client, Said, data, encoded};

const WINDOW: u32 = 4 << 10;
const SESSION_WINDOW: u32 = 70 << 10;
const OUTPUT: usize = 8 << 10;
const INITIAL: i64 = 64 << 10;
const ZEROS: &[u8] = &[0; 8 << 10];

/// Reads `bytes` as a script of frames and commands.
pub fn session(bytes: &[u8]) {
    let mut world = World::new();
    let mut script = Script(bytes);
    while !script.0.is_empty() && !world.broken {
        world.step(&mut script);
        world.check();
    }
    world.drain();
}

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u32 {
        u32::from_be_bytes([0; 4].map(|_: u8| self.byte()))
    }

    fn some(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte()).min(self.0.len());
        let (first, rest) = self.0.split_at(length);
        self.0 = rest;
        first.to_vec()
    }

    /// One of the first streams.
    fn stream(&mut self) -> u32 {
        u32::from(self.byte() % 12)
    }
}

struct World {
    session: Session,
    client: Client,
    /// Follows what the client sends.
    reader: Decoder,
    next: u32,
    unread: HashMap<u32, usize>,
    /// Data the client has sent, and room it has been given for more, of the session.
    received: i64,
    announced: i64,
    /// Data the session has sent, and what the client has given it room for.
    sent: i64,
    granted: i64,
    /// Whether the client has ever given the session room.
    keeps: bool,
    said_go_away: bool,
    broken: bool,
}

impl World {
    fn new() -> Self {
        let limits = Limits {
            streams: 6,
            window: WINDOW,
            session_window: SESSION_WINDOW,
            output: OUTPUT,
            ..Limits::default()
        };
        Self {
            session: Session::new(limits),
            client: Client::new(),
            reader: Decoder::new(),
            next: 1,
            unread: HashMap::new(),
            received: 0,
            announced: 0,
            sent: 0,
            granted: 0,
            keeps: false,
            said_go_away: false,
            broken: false,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 16 {
            0 => self.feed(&script.some()),
            1 | 2 => {
                let flags = script.byte() & (FIN | UNIDIRECTIONAL);
                let stream = match script.byte() {
                    0 => script.stream(),
                    _ => self.next,
                };
                self.next = self.next.max(stream.saturating_add(2) | 1);
                let frame =
                    self.client
                        .open_with(stream, &[("streamtype", "data"), ("port", "80")], flags);
                self.feed(&frame);
            }
            3 | 4 => {
                let length = usize::try_from(script.number()).unwrap_or(0) % ZEROS.len();
                let fin = script.byte().is_multiple_of(8);
                self.feed(&data(script.stream(), &ZEROS[..length], fin));
            }
            5 => {
                let (stream, delta) = (script.stream(), script.number());
                self.feed(&encoded(&Control::WindowUpdate { stream, delta }));
            }
            6 => self.feed(&encoded(&Control::Settings(vec![(7, script.number())]))),
            7 => {
                let (stream, status) = (script.stream(), script.number());
                self.feed(&encoded(&Control::RstStream { stream, status }));
            }
            8 => self.feed(&encoded(&Control::Ping(script.number()))),
            9 => {
                let fin = script.byte().is_multiple_of(2);
                let frame = self.client.headers(script.stream(), &[("a", "b")], fin);
                self.feed(&frame);
            }
            10 => drop(self.session.reply(script.stream())),
            11 => {
                let length = usize::try_from(script.number()).unwrap_or(0) % ZEROS.len();
                let sent = self.session.send(script.stream(), &ZEROS[..length]);
                assert!(sent <= FRAME);
                self.sent += size(sent);
                let allowed = INITIAL + self.granted;
                assert!(
                    sent == 0 || !self.keeps || self.sent <= allowed,
                    "more than the window"
                );
            }
            12 => self.session.finish(script.stream()),
            13 => {
                self.session.reset(script.stream(), Status::Cancel);
                self.session.release();
            }
            14 => {
                let stream = script.stream();
                self.consume(stream, usize::from(script.byte()) << 6);
            }
            _ => match script.byte() {
                0 => self.session.go_away(GoAway::Ok),
                1 => self.session.stop_accepting(),
                2 => self.feed(&encoded(&Control::GoAway { last: 0, status: 0 })),
                3 => self.session.ping(),
                _ => self.read_output(),
            },
        }
    }

    /// Gives the session the client's bytes, as a driver would: not while it is paused.
    fn feed(&mut self, bytes: &[u8]) {
        if self.session.paused() {
            return;
        }
        self.follow(bytes);
        let output = self.session.output().len();
        let mut rest = bytes;
        loop {
            match self.session.receive(&mut rest) {
                Ok(Some(Event::Data { stream, bytes, .. })) => {
                    *self.unread.entry(stream).or_default() += bytes.len();
                }
                Ok(Some(Event::Opened { stream, .. })) => assert!(!stream.is_multiple_of(2)),
                Ok(Some(Event::Reset { .. } | Event::Window | Event::Left)) => {}
                Ok(None) => break,
                Err(_) => {
                    self.broken = true;
                    break;
                }
            }
        }
        // A frame of 8 bytes is answered by 16 at most, and an error by one GOAWAY.
        let answers = self.session.output().len().saturating_sub(output);
        assert!(answers <= 2 * bytes.len() + 32, "{answers} bytes of answer");
        let unread: usize = self.unread.values().sum();
        let most = bytes.len() + usize::try_from(SESSION_WINDOW).unwrap_or(0);
        assert!(unread <= most, "{unread} bytes unread");
    }

    /// What the model must know of the client's frames.
    fn follow(&mut self, mut bytes: &[u8]) {
        while let Ok(Some(item)) = self.reader.next(&mut bytes) {
            match item {
                Item::Data { bytes, .. } => self.received += size(bytes.len()),
                Item::Control(Control::WindowUpdate { stream: 0, delta }) => {
                    self.granted += i64::from(delta);
                    self.keeps = true;
                }
                Item::Control(_) => {}
            }
        }
    }

    fn consume(&mut self, stream: u32, count: usize) {
        let unread = self.unread.entry(stream).or_default();
        let count = count.min(*unread);
        *unread -= count;
        self.session.consumed(stream, count);
    }

    fn read_output(&mut self) {
        let output = std::mem::take(self.session.output());
        for said in self.client.read(&output) {
            assert!(!self.said_go_away, "{said:?} after GOAWAY");
            match said {
                Said::Other(Control::WindowUpdate { stream: 0, delta }) => {
                    self.announced += i64::from(delta);
                }
                Said::Other(Control::RstStream { status, .. }) => assert_ne!(status, 0),
                Said::Other(Control::GoAway { .. }) => self.said_go_away = true,
                Said::Reply { .. } | Said::Data { .. } | Said::Other(_) => {}
            }
        }
    }

    fn check(&mut self) {
        let unread: i64 = self.unread.values().map(|count| size(*count)).sum();
        assert!(
            self.announced <= i64::from(SESSION_WINDOW) - INITIAL + self.received - unread,
            "room announced that isn't there"
        );
    }

    /// When everything is read, nothing holds the client back.
    fn drain(&mut self) {
        for (stream, unread) in std::mem::take(&mut self.unread) {
            self.session.consumed(stream, unread);
        }
        self.read_output();
        assert!(!self.session.paused(), "paused for ever");
        assert!(!self.session.crowded(), "crowded for ever");
    }
}

fn size(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}
