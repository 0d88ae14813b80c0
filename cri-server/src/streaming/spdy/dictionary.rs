//! The dictionary that both ends of a session give zlib before the first header block.
//!
//! Source: SPDY/3 draft, 2.6.10.1. It has the shape of a header block, words with their lengths in
//! front, and ends in text that headers often hold. Frozen with the protocol; zlib names it by its
//! checksum, which is on the wire.

/// Adler-32 of the dictionary.
pub(super) const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

/// The dictionary's bytes.
pub(super) static DICTIONARY: [u8; LENGTH] = assemble();

const LENGTH: usize = length();

#[rustfmt::skip]
const WORDS: [&str; 65] = [
    "options", "head", "post", "put", "delete", "trace", "accept", "accept-charset",
    "accept-encoding", "accept-language", "accept-ranges", "age", "allow", "authorization",
    "cache-control", "connection", "content-base", "content-encoding", "content-language",
    "content-length", "content-location", "content-md5", "content-range", "content-type", "date",
    "etag", "expect", "expires", "from", "host", "if-match", "if-modified-since", "if-none-match",
    "if-range", "if-unmodified-since", "last-modified", "location", "max-forwards", "pragma",
    "proxy-authenticate", "proxy-authorization", "range", "referer", "retry-after", "server", "te",
    "trailer", "transfer-encoding", "upgrade", "user-agent", "vary", "via", "warning",
    "www-authenticate", "method", "get", "status", "200 OK", "version", "HTTP/1.1", "url",
    "public", "set-cookie", "keep-alive", "origin",
];

const TEXT: &str = "\
    100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorize\
    d403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, G\
    MTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/p\
    lain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf\
    -,*,enq=0.";

const fn length() -> usize {
    let mut length = TEXT.len();
    let mut word = 0;
    while word < WORDS.len() {
        length += 4 + WORDS[word].len();
        word += 1;
    }
    length
}

const fn assemble() -> [u8; LENGTH] {
    let mut out = [0; LENGTH];
    let mut at = 0;
    let mut word = 0;
    while word < WORDS.len() {
        let bytes = WORDS[word].as_bytes();
        // No word is longer than a byte can say.
        out[at + 3] = bytes.len().to_le_bytes()[0];
        at = copy(bytes, &mut out, at + 4);
        word += 1;
    }
    copy(TEXT.as_bytes(), &mut out, at);
    out
}

const fn copy(bytes: &[u8], out: &mut [u8; LENGTH], at: usize) -> usize {
    let mut index = 0;
    while index < bytes.len() {
        out[at + index] = bytes[index];
        index += 1;
    }
    at + index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_drafts() {
        assert_eq!(LENGTH, 1423);
        let (mut low, mut high) = (1_u32, 0_u32);
        for byte in DICTIONARY {
            low = (low + u32::from(byte)) % 65521;
            high = (high + low) % 65521;
        }
        assert_eq!(high << 16 | low, DICTIONARY_ID);
    }
}
