//! Archives written byte by byte for tests, so that no tar tool's habits come in.

/// A ustar entry being made up.
pub(crate) struct TestEntry(Vec<u8>);

pub(crate) fn entry(kind: u8, name: &str) -> TestEntry {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let mode = if kind == b'5' { 0o755 } else { 0o644 };
    TestEntry(header).mode(mode).owner(0, 0).time(1_000_000)
}

impl TestEntry {
    fn octal(mut self, at: usize, width: usize, value: u64) -> Self {
        let text = format!("{value:0width$o}\0", width = width - 1);
        self.0[at..at + width].copy_from_slice(text.as_bytes());
        self
    }

    pub(crate) fn mode(self, mode: u64) -> Self {
        self.octal(100, 8, mode)
    }

    pub(crate) fn owner(self, uid: u64, gid: u64) -> Self {
        self.octal(108, 8, uid).octal(116, 8, gid)
    }

    pub(crate) fn time(self, seconds: u64) -> Self {
        self.octal(136, 12, seconds)
    }

    pub(crate) fn link(mut self, target: &str) -> Self {
        self.0[157..157 + target.len()].copy_from_slice(target.as_bytes());
        self
    }

    pub(crate) fn device(self, major: u64, minor: u64) -> Self {
        self.octal(329, 8, major).octal(337, 8, minor)
    }

    /// The finished entry with its content.
    pub(crate) fn bytes(mut self, content: &[u8]) -> Vec<u8> {
        set_size(&mut self.0, content.len() as u64);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self.0
    }
}

pub(crate) fn set_size(header: &mut [u8], size: u64) {
    let text = format!("{size:011o}\0");
    header[124..136].copy_from_slice(text.as_bytes());
    set_checksum(header);
}

pub(crate) fn set_checksum(header: &mut [u8]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header[..512].iter().map(|b| u32::from(*b)).sum();
    let text = format!("{sum:06o}\0 ");
    header[148..156].copy_from_slice(text.as_bytes());
}

fn pax_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let mut length = body;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    data
}

pub(crate) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    entry(b'x', "PaxHeaders/x").bytes(&pax_records(records))
}

pub(crate) fn global(records: &[(&str, &[u8])]) -> Vec<u8> {
    entry(b'g', "pax_global_header").bytes(&pax_records(records))
}

pub(crate) fn raw_pax(data: &[u8], then: &[u8]) -> Vec<u8> {
    [&entry(b'x', "x").bytes(data), then].concat()
}

pub(crate) fn gnu_long(kind: u8, name: &[u8]) -> Vec<u8> {
    let mut bytes = entry(kind, "././@LongLink").bytes(name);
    bytes[257..265].copy_from_slice(b"ustar  \0");
    set_checksum(&mut bytes);
    bytes
}

/// The end mark.
pub(crate) fn end() -> Vec<u8> {
    vec![0; 1024]
}
