//! Tables over the session: what a client sends, and what comes of it.

use proptest::prelude::*;

use super::*;
use crate::streaming::spdy::error::Error;
use crate::streaming::spdy::frame::{FIN, UNIDIRECTIONAL};
use crate::streaming::spdy::testing::{Client, Said, data, encoded};

const WINDOW: u32 = 1000;

fn limits() -> Limits {
    Limits {
        streams: 3,
        window: WINDOW,
        session_window: 100_000,
        output: 4000,
        ..Limits::default()
    }
}

/// A session and its client, past the session's first words.
struct Pair {
    session: Session,
    client: Client,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            session: Session::new(limits()),
            client: Client::new(),
        };
        pair.said();
        pair
    }

    /// With streams 1, 3, … of that number open.
    fn with_streams(count: u32) -> Self {
        let mut pair = Self::new();
        for stream in (0..count).map(|index| 2 * index + 1) {
            let frame = pair.client.open(stream, &[("streamtype", "data")]);
            pair.receive(&frame).unwrap();
        }
        pair
    }

    /// The events that come of `bytes`, data as its length.
    fn receive(&mut self, mut bytes: &[u8]) -> Result<Vec<String>, Error> {
        let mut events = Vec::new();
        while let Some(event) = self.session.receive(&mut bytes)? {
            events.push(match event {
                Event::Opened { stream, fin, .. } => format!("opened {stream} {fin}"),
                Event::Data { stream, bytes, fin } => {
                    format!("data {stream} {} {fin}", bytes.len())
                }
                Event::Reset { stream } => format!("reset {stream}"),
                Event::Window => "window".to_owned(),
                Event::Left => "left".to_owned(),
            });
        }
        Ok(events)
    }

    fn said(&mut self) -> Vec<Said> {
        let output = std::mem::take(self.session.output());
        self.client.read(&output)
    }
}

fn rst(stream: u32, status: Status) -> Said {
    Said::Other(Control::RstStream {
        stream,
        status: status as u32,
    })
}

fn update(stream: u32, delta: u32) -> Vec<u8> {
    encoded(&Control::WindowUpdate { stream, delta })
}

fn updated(stream: u32, delta: u32) -> Said {
    Said::Other(Control::WindowUpdate { stream, delta })
}

#[test]
fn the_first_words_are_the_windows() {
    let mut session = Session::new(limits());
    let said = Client::new().read(session.output());
    let settings = Control::Settings(vec![(7, WINDOW)]);
    assert_eq!(said, [Said::Other(settings), updated(0, 100_000 - 65536)]);
}

#[test]
fn a_stream_is_opened_replied_to_used_and_closed() {
    let mut pair = Pair::with_streams(1);
    pair.session.reply(1).unwrap();
    assert_eq!(
        pair.receive(&data(1, b"hello", true)),
        Ok(vec!["data 1 5 true".to_owned()])
    );
    assert_eq!(pair.session.send(1, b"hi"), 2);
    pair.session.finish(1);
    assert_eq!(pair.session.room(1), Room::Closed);
    pair.session.finish(1);
    pair.session.reset(1, Status::Cancel);
    let headers = Headers::new();
    let bytes = |bytes: &[u8], fin| Said::Data {
        stream: 1,
        bytes: bytes.to_vec(),
        fin,
    };
    let said = [
        Said::Reply { stream: 1, headers },
        bytes(b"hi", false),
        bytes(b"", true),
    ];
    assert_eq!(
        pair.said(),
        said,
        "and nothing after both halves have ended"
    );
}

#[test]
fn flags_of_a_new_stream_close_its_halves() {
    let mut pair = Pair::new();
    let frames = [
        pair.client.open_with(1, &[("a", "b")], FIN),
        pair.client.open_with(3, &[("a", "b")], UNIDIRECTIONAL),
        pair.client
            .open_with(5, &[("a", "b")], FIN | UNIDIRECTIONAL),
    ];
    let events = pair.receive(&frames.concat()).unwrap();
    assert_eq!(events, ["opened 1 true", "opened 3 false", "opened 5 true"]);
    assert_eq!(pair.session.room(1), Room::Open(FRAME));
    assert_eq!(pair.session.room(3), Room::Closed);
    pair.session.reply(3).unwrap();
    pair.session.reply(5).unwrap();
    assert!(pair.said().is_empty(), "such streams have no reply");
}

#[test]
fn streams_that_cannot_be_taken_are_refused_and_the_session_goes_on() {
    let mut pair = Pair::with_streams(3);
    let frame = pair.client.open(7, &[("a", "b")]);
    assert_eq!(pair.receive(&frame), Ok(vec![]));
    assert_eq!(pair.said(), [rst(7, Status::RefusedStream)], "too many");
    pair.session.reset(1, Status::Cancel);
    pair.said();
    let frame = pair.client.open(9, &[("a", "b")]);
    assert_eq!(pair.receive(&frame), Ok(vec![]));
    assert_eq!(
        pair.said(),
        [rst(9, Status::RefusedStream)],
        "one is over, its owner isn't"
    );
    pair.session.release();
    let frame = pair.client.open(11, &[("Upper", "b")]);
    assert_eq!(pair.receive(&frame), Ok(vec![]));
    assert_eq!(pair.said(), [rst(11, Status::ProtocolError)], "headers");
    pair.session.stop_accepting();
    let frame = pair.client.open(13, &[("a", "b")]);
    assert_eq!(pair.receive(&frame), Ok(vec![]));
    assert_eq!(pair.said(), [rst(13, Status::RefusedStream)], "no more");
    // The blocks of refused streams were read, or this one could not be.
    let frame = pair.client.headers(3, &[("a", "b")], true);
    assert_eq!(pair.receive(&frame), Ok(vec!["data 3 0 true".to_owned()]));
}

#[test]
fn frames_for_other_than_open_streams() {
    type Frame = fn(&mut Client) -> Vec<u8>;
    let cases: [(&str, Frame, &[&str], &[Said]); 8] = [
        (
            "data of a stream that never was",
            |_| data(9, b"x", false),
            &[],
            &[rst(9, Status::InvalidStream)],
        ),
        (
            "data of a stream that would be ours",
            |_| data(2, b"x", false),
            &[],
            &[rst(2, Status::InvalidStream)],
        ),
        (
            "data of a stream that is over",
            |_| data(3, b"x", false),
            &[],
            &[],
        ),
        (
            "data after the last data",
            |_| data(5, b"x", false),
            &["reset 5"],
            &[rst(5, Status::StreamAlreadyClosed)],
        ),
        (
            "a reset of a stream that is over",
            |_| {
                encoded(&Control::RstStream {
                    stream: 3,
                    status: 5,
                })
            },
            &[],
            &[],
        ),
        (
            "a window of a stream that is over",
            |_| update(3, 5),
            &[],
            &[],
        ),
        (
            "headers that are none",
            |client| client.headers(1, &[("A", "b")], false),
            &["reset 1"],
            &[rst(1, Status::ProtocolError)],
        ),
        (
            "headers of a stream that is over",
            |client| client.headers(3, &[("a", "b")], true),
            &[],
            &[],
        ),
    ];
    for (name, frame, events, said) in cases {
        let mut pair = Pair::with_streams(3);
        pair.session.reset(3, Status::Cancel);
        pair.receive(&data(5, b"", true)).unwrap();
        pair.said();
        let frame = frame(&mut pair.client);
        assert_eq!(pair.receive(&frame).unwrap(), events, "{name}");
        assert_eq!(pair.said(), said, "{name}");
        assert!(!pair.session.paused());
    }
}

#[test]
fn what_ends_the_session_is_said_by_goaway_and_is_the_last_word() {
    // Each begins a zlib stream, and so does the session for it, below.
    let same = Client::new().open(1, &[("a", "b")]);
    let even = Client::new().open(2, &[("a", "b")]);
    let cases = [
        (
            "the same id again",
            same,
            Error::StreamId { stream: 1, last: 1 },
        ),
        ("an even id", even, Error::StreamId { stream: 2, last: 1 }),
        ("data of stream 0", data(0, b"", false), Error::StreamZero),
        (
            "a block that zlib can't read",
            encoded(&Control::SynReply {
                stream: 1,
                flags: 0,
                block: vec![7; 9],
            }),
            Error::Compression,
        ),
        ("a window too wide", update(0, 0x7fff_ffff), Error::Window),
        (
            "an initial window too wide",
            encoded(&Control::Settings(vec![(7, 0x8000_0000)])),
            Error::Window,
        ),
        (
            "another version",
            vec![0x80, 2, 0, 6, 0, 0, 0, 4],
            Error::Version(2),
        ),
    ];
    for (name, frame, error) in cases {
        let mut pair = Pair::with_streams(1);
        pair.session.inflater = Inflater::new();
        assert_eq!(pair.receive(&frame), Err(error), "{name}");
        pair.session.reset(1, Status::Cancel);
        pair.session.ping();
        let go_away = Control::GoAway { last: 1, status: 1 };
        assert_eq!(pair.said(), [Said::Other(go_away)], "{name}");
        assert_eq!(pair.session.room(1), Room::Closed, "{name}");
    }
}

#[test]
fn pings_are_answered_and_our_own_are_not() {
    let mut pair = Pair::new();
    let pings = [1, 2, 0x7fff_ffff].map(|id| encoded(&Control::Ping(id)));
    assert_eq!(pair.receive(&pings.concat()), Ok(vec![]));
    let answers = [1, 0x7fff_ffff].map(|id| Said::Other(Control::Ping(id)));
    assert_eq!(pair.said(), answers);
    pair.session.ping();
    pair.session.ping();
    let ours = [2, 4].map(|id| Said::Other(Control::Ping(id)));
    assert_eq!(pair.said(), ours);
}

#[test]
fn a_client_that_leaves_keeps_its_streams_and_gets_no_more() {
    let mut pair = Pair::with_streams(1);
    let leaving = encoded(&Control::GoAway { last: 0, status: 0 });
    let new = pair.client.open(3, &[("a", "b")]);
    let more = data(1, b"x", false);
    let events = pair.receive(&[leaving, new, more].concat()).unwrap();
    assert_eq!(events, ["left", "data 1 1 false"]);
    assert_eq!(pair.said(), [rst(3, Status::RefusedStream)]);
}

#[test]
fn a_client_that_keeps_no_windows_is_held_back_by_the_output_alone() {
    let mut pair = Pair::with_streams(1);
    let mut sent = 0;
    for _ in 0..100 {
        while let Room::Open(_) = pair.session.room(1) {
            sent += pair.session.send(1, &[0; FRAME]);
        }
        assert_eq!(pair.session.room(1), Room::Full);
        pair.said();
    }
    assert!(sent > 1 << 20, "{sent}");
}

#[test]
fn a_client_that_keeps_windows_is_sent_no_more_than_they_hold() {
    let mut pair = Pair::with_streams(2);
    let fill = |pair: &mut Pair, stream| {
        let mut sent = 0;
        loop {
            sent += pair.session.send(stream, &[0; FRAME]);
            match pair.session.room(stream) {
                Room::Open(_) => {}
                Room::Full => drop(pair.said()),
                Room::Window => return sent,
                Room::Closed => panic!("closed"),
            }
        }
    };
    let settings = encoded(&Control::Settings(vec![(7, 20_000)]));
    assert_eq!(pair.receive(&settings), Ok(vec!["window".to_owned()]));
    assert_eq!(fill(&mut pair, 1), 20_000);
    pair.receive(&update(1, 5_000)).unwrap();
    assert_eq!(fill(&mut pair, 1), 5_000);
    pair.receive(&encoded(&Control::Settings(vec![(7, 21_000)])))
        .unwrap();
    assert_eq!(fill(&mut pair, 1), 1_000, "a new initial window is for all");
    pair.receive(&encoded(&Control::Settings(vec![(7, 1_000)])))
        .unwrap();
    pair.receive(&update(1, 19_000)).unwrap();
    assert_eq!(pair.session.room(1), Room::Window, "back from below zero");
    pair.receive(&update(0, 36_000)).unwrap();
    pair.receive(&update(1, 100_000)).unwrap();
    let session = 65_536 + 36_000 - 26_000;
    assert_eq!(fill(&mut pair, 1), session, "the session's window");
    assert_eq!(pair.session.room(3), Room::Window, "is everyone's");
}

#[test]
fn a_stream_window_too_wide_is_the_streams_end_only() {
    let mut pair = Pair::with_streams(2);
    let events = pair.receive(&update(1, 0x7fff_ffff)).unwrap();
    assert_eq!(events, ["reset 1"]);
    assert_eq!(pair.said(), [rst(1, Status::FlowControlError)]);
}

#[test]
fn windows_are_renewed_as_readers_read() {
    let mut pair = Pair::with_streams(1);
    pair.receive(&data(1, &[0; 1000], false)).unwrap();
    assert!(!pair.session.consumed(1, 499));
    assert!(pair.said().is_empty(), "by halves");
    assert!(pair.session.consumed(1, 501));
    assert_eq!(pair.said(), [updated(1, 1000)]);
    pair.receive(&data(1, &[0; 600], true)).unwrap();
    pair.session.consumed(1, 600);
    assert!(pair.said().is_empty(), "nothing more will come");
}

#[test]
fn bytes_nobody_will_read_are_given_back_to_the_session() {
    let mut pair = Pair::with_streams(1);
    pair.session.reset(1, Status::Cancel);
    pair.said();
    for _ in 0..5 {
        pair.receive(&data(1, &[0; 10_000], false)).unwrap();
    }
    assert_eq!(pair.said(), [updated(0, 50_000)]);
    assert!(!pair.session.paused() && !pair.session.crowded());
}

#[test]
fn a_client_that_overruns_its_window_is_not_read_until_the_reader_has_read() {
    let mut pair = Pair::with_streams(2);
    pair.receive(&data(1, &[0; 1000], false)).unwrap();
    assert!(!pair.session.paused(), "a full window is in order");
    pair.receive(&data(1, &[0; 1], false)).unwrap();
    assert!(pair.session.paused() && pair.session.crowded());
    assert!(pair.session.consumed(1, 1), "a pause's end is news");
    assert!(!pair.session.paused());
    pair.receive(&data(1, &[0; 10], false)).unwrap();
    assert!(pair.session.paused());
    pair.session.reset(1, Status::FlowControlError);
    assert!(!pair.session.paused(), "over with its stream");
}

#[test]
fn many_small_unread_buffers_pause_it_too() {
    let mut pair = Pair::with_streams(0);
    for stream in (1..400).step_by(2) {
        let frame = pair.client.open_with(stream, &[("a", "b")], UNIDIRECTIONAL);
        pair.receive(&frame).unwrap();
        pair.session.release();
        pair.receive(&data(stream, &[0; 1000], true)).unwrap();
        assert_eq!(pair.session.paused(), stream > 200, "{stream}");
    }
    assert!(pair.session.crowded());
}

#[test]
fn answers_that_nobody_fetches_pause_it() {
    let mut pair = Pair::new();
    let pings = encoded(&Control::Ping(1)).repeat(100);
    let mut count = 0;
    while !pair.session.paused() {
        pair.receive(&pings).unwrap();
        count += 1;
        assert!(count < 100, "unbounded");
    }
    pair.session.output().clear();
    assert!(!pair.session.paused());
}

/// Threat J7; CVE-2023-44487 is the same in HTTP/2.
#[test]
fn streams_opened_and_reset_at_speed_make_no_more_owners_than_the_bound() {
    let mut pair = Pair::new();
    let mut opened = 0;
    for index in 0..20_000 {
        let stream = 2 * index + 1;
        let mut frames = pair.client.open(stream, &[("streamtype", "data")]);
        frames.extend(encoded(&Control::RstStream { stream, status: 5 }));
        opened += pair.receive(&frames).unwrap().len();
        pair.session.output().clear();
    }
    assert_eq!(opened, 2 * limits().streams, "opened and reset");
    assert!(pair.session.streams.is_empty());
}

proptest! {
    #[test]
    fn no_script_of_frames_and_commands_breaks_it(
        script in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        crate::streaming::spdy::fuzz::session(&script);
    }
}
