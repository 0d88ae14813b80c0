//! The client's side of the wire, as far as tests need it.

use super::frame::{self, Control, Decoder, FIN, Item};
use super::headers::{self, Deflater, Headers, Inflater};

/// Makes a client's frames and reads the server's.
#[derive(Debug)]
pub(super) struct Client {
    deflater: Deflater,
    inflater: Inflater,
    decoder: Decoder,
}

/// A frame of the server, header blocks read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Reply {
        stream: u32,
        headers: Headers,
    },
    Data {
        stream: u32,
        bytes: Vec<u8>,
        fin: bool,
    },
    Other(Control),
}

impl Client {
    pub(super) fn new() -> Self {
        Self {
            deflater: Deflater::default(),
            inflater: Inflater::new(),
            decoder: Decoder::new(),
        }
    }

    /// SYN_STREAM as the usual client sends it.
    #[cfg(test)]
    pub(super) fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        self.open_with(stream, headers, 0)
    }

    pub(super) fn open_with(
        &mut self,
        stream: u32,
        headers: &[(&str, &str)],
        flags: u8,
    ) -> Vec<u8> {
        let block = self.deflater.deflate(headers).expect("a block");
        encoded(&Control::SynStream {
            stream,
            flags,
            block,
        })
    }

    /// HEADERS.
    pub(super) fn headers(&mut self, stream: u32, headers: &[(&str, &str)], fin: bool) -> Vec<u8> {
        let block = self.deflater.deflate(headers).expect("a block");
        let flags = if fin { FIN } else { 0 };
        encoded(&Control::Headers {
            stream,
            flags,
            block,
        })
    }

    /// Reads what the server said; pieces of data as they come.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Vec<Said> {
        let mut said = Vec::new();
        while let Some(item) = self.decoder.next(&mut bytes).expect("frames") {
            said.push(match item {
                Item::Data { stream, bytes, fin } => Said::Data {
                    stream,
                    bytes: bytes.to_vec(),
                    fin,
                },
                Item::Control(Control::SynReply { stream, block, .. }) => {
                    let block = self.inflater.inflate(&block).expect("zlib");
                    let headers = headers::parse(&block).expect("headers");
                    Said::Reply { stream, headers }
                }
                Item::Control(control) => Said::Other(control),
            });
        }
        said
    }
}

/// A control frame's bytes.
pub(super) fn encoded(control: &Control) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode(control, &mut out);
    out
}

/// A data frame's bytes.
pub(super) fn data(stream: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    let mut out = Vec::new();
    frame::encode_data(stream, fin, bytes, &mut out);
    out
}
