//! From the bytes of a blob to the bytes of a tar archive, measured on the way.
//!
//! The first bytes say how a blob is compressed, not its media type (case M2). gzip may have several
//! members (pigz, estargz), zstd several frames; zstd's window is bounded.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use tokio::sync::mpsc::Receiver;

use super::limits::Limits;
use crate::image::digest::{Algorithm, Digest, Hasher};
use crate::image::gc::lock;

/// A part of a blob on its way from the network.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    /// The body is complete. A channel that closes without this one was given up.
    End,
}

/// The blob as it arrives: hashed and counted.
pub(crate) struct Incoming {
    pieces: Receiver<Piece>,
    current: Bytes,
    ended: bool,
    seen: Seen,
}

/// Count and digest of what has been read, shared with whoever asks afterwards.
#[derive(Clone)]
pub(crate) struct Seen {
    bytes: Arc<AtomicU64>,
    hasher: Arc<Mutex<Hasher>>,
}

impl Seen {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        Self {
            bytes: Arc::default(),
            hasher: Arc::new(Mutex::new(Hasher::new(algorithm))),
        }
    }

    fn update(&self, bytes: &[u8]) {
        lock(&self.hasher).update(bytes);
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The digest of everything so far; once, at the end.
    pub(crate) fn digest(&self, algorithm: Algorithm) -> Digest {
        std::mem::replace(&mut *lock(&self.hasher), Hasher::new(algorithm)).finish()
    }
}

impl Incoming {
    pub(crate) fn new(pieces: Receiver<Piece>, seen: Seen) -> Self {
        Self {
            pieces,
            current: Bytes::new(),
            ended: false,
            seen,
        }
    }

    /// Whether the body came to its end.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }
}

impl Read for Incoming {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the download was given up",
                    ));
                }
            }
        }
        let count = out.len().min(self.current.len());
        let piece = self.current.split_to(count);
        if let Some(out) = out.get_mut(..count) {
            out.copy_from_slice(&piece);
        }
        self.seen.update(&piece);
        Ok(count)
    }
}

type Source<'a> = Chain<Cursor<Vec<u8>>, BufReader<&'a mut Incoming>>;

/// The decompressed stream: hashed, counted, and ended when it grows out of bounds.
pub(crate) struct Unpacked<'a> {
    stream: Stream<'a>,
    compressed: Seen,
    seen: Seen,
    limits: Limits,
}

enum Stream<'a> {
    Plain(Source<'a>),
    Gzip(Box<MultiGzDecoder<Source<'a>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Source<'a>>>),
}

impl<'a> Unpacked<'a> {
    /// Looks at the first bytes and begins. `seen` receives the digest of what comes out.
    pub(crate) fn open(
        incoming: &'a mut Incoming,
        seen: Seen,
        limits: &Limits,
    ) -> io::Result<Self> {
        let compressed = incoming.seen.clone();
        let mut source = BufReader::with_capacity(64 << 10, incoming);
        let mut first = Vec::with_capacity(4);
        while first.len() < 4 {
            let Some(byte) = source.fill_buf()?.first().copied() else {
                break;
            };
            first.push(byte);
            source.consume(1);
        }
        let magic = first.clone();
        let source = Cursor::new(first).chain(source);
        let stream = match magic.as_slice() {
            [0x1f, 0x8b, ..] => Stream::Gzip(Box::new(MultiGzDecoder::new(source))),
            // A frame, or one of the sixteen kinds of skippable ones.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(limits.zstd_window_log)?;
                Stream::Zstd(Box::new(decoder))
            }
            _ => Stream::Plain(source),
        };
        Ok(Self {
            stream,
            compressed,
            seen,
            limits: limits.clone(),
        })
    }
}

impl Read for Unpacked<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.stream {
            Stream::Plain(stream) => stream.read(out)?,
            Stream::Gzip(stream) => stream.read(out)?,
            Stream::Zstd(stream) => stream.read(out)?,
        };
        self.seen.update(out.get(..count).unwrap_or(&[]));
        self.limits
            .judge(self.compressed.bytes(), self.seen.bytes())
            .map_err(io::Error::other)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(blob: &[u8], limits: &Limits) -> io::Result<Vec<u8>> {
        let (sender, pieces) = tokio::sync::mpsc::channel(1 << 20);
        for chunk in blob.chunks(7) {
            let piece = Piece::Data(Bytes::copy_from_slice(chunk));
            sender.try_send(piece).unwrap();
        }
        sender.try_send(Piece::End).unwrap();
        let seen = Seen::new(Algorithm::Sha256);
        let mut incoming = Incoming::new(pieces, seen.clone());
        let mut out = Vec::new();
        let inner = Seen::new(Algorithm::Sha256);
        Unpacked::open(&mut incoming, inner.clone(), limits)?.read_to_end(&mut out)?;
        assert_eq!(seen.digest(Algorithm::Sha256), Digest::of(blob));
        assert_eq!(inner.digest(Algorithm::Sha256), Digest::of(&out));
        Ok(out)
    }

    #[test]
    fn m2_the_first_bytes_say_how_a_blob_is_compressed() {
        let limits = Limits::default();
        let text = b"some text, some text, some text".repeat(100);
        let zstd = zstd::encode_all(text.as_slice(), 3).unwrap();
        let members = [gzip(&text[..50]), gzip(&text[50..])].concat();
        let frames = [
            zstd::encode_all(&text[..50], 3).unwrap(),
            vec![0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9],
            zstd::encode_all(&text[50..], 3).unwrap(),
        ]
        .concat();
        for blob in [&text, &gzip(&text), &zstd, &members, &frames] {
            assert_eq!(unpack(blob, &limits).unwrap(), text);
        }
        for tiny in [&b""[..], b"a", b"abc"] {
            assert_eq!(unpack(tiny, &limits).unwrap(), tiny);
        }
    }

    #[test]
    fn d6_bombs_and_cut_streams_end_in_errors() {
        let zeros = vec![0; 1 << 20];
        let limits = Limits {
            ratio_free: 1000,
            ratio: 100,
            ..Limits::default()
        };
        for blob in [gzip(&zeros), zstd::encode_all(zeros.as_slice(), 3).unwrap()] {
            let text = unpack(&blob, &limits).unwrap_err().to_string();
            assert!(text.contains("ratio"), "{text}");
            unpack(&blob[..blob.len() - 3], &Limits::default()).unwrap_err();
        }
        let mut window = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        window.window_log(28).unwrap();
        window.include_contentsize(false).unwrap();
        window.write_all(&zeros).unwrap();
        let blob = window.finish().unwrap();
        unpack(&blob, &Limits::default()).unwrap_err();
    }
}
