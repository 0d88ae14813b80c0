//! Writes tar archives byte for byte as told, also those that no archiver would write.
//!
//! Format: POSIX ustar with pax extended headers (pax(1), IEEE 1003.1-2017) for what does not fit
//! a ustar header: long names and extended attributes (`SCHILY.xattr.`, as star and GNU tar write
//! them). Nothing is sorted, checked or completed: a test that needs a missing parent, an escaping
//! name or a link to nowhere gets it. Times are zero, so equal input gives equal bytes.

const BLOCK: usize = 512;
const NAME_FIELD: usize = 100;

/// What an entry is, by its ustar type flag.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    File(Vec<u8>),
    Directory,
    Symlink(String),
    HardLink(String),
}

/// One member of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    path: String,
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Entry {
    fn new(path: &str, kind: Kind, mode: u32) -> Self {
        Self {
            path: path.to_owned(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            xattrs: Vec::new(),
        }
    }

    /// A regular file, mode 0644.
    pub fn file(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::File(content.into()), 0o644)
    }

    /// A directory, mode 0755.
    pub fn directory(path: &str) -> Self {
        Self::new(path, Kind::Directory, 0o755)
    }

    /// A symbolic link that says `target`.
    pub fn symlink(path: &str, target: &str) -> Self {
        Self::new(path, Kind::Symlink(target.to_owned()), 0o777)
    }

    /// A hard link to the archive's name `target`.
    pub fn hard_link(path: &str, target: &str) -> Self {
        Self::new(path, Kind::HardLink(target.to_owned()), 0o644)
    }

    /// The permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// The owner.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// One more extended attribute.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A layer as it grows; `finish` gives the archive.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    bytes: Vec<u8>,
}

impl Layer {
    /// A layer without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one member.
    #[must_use]
    pub fn entry(mut self, entry: Entry) -> Self {
        self.push(&entry);
        self
    }

    /// Appends a file of mode 0644.
    #[must_use]
    pub fn file(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.entry(Entry::file(path, content))
    }

    /// Appends a directory of mode 0755.
    #[must_use]
    pub fn directory(self, path: &str) -> Self {
        self.entry(Entry::directory(path))
    }

    /// Appends a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(Entry::symlink(path, target))
    }

    /// Appends one member in place.
    pub fn push(&mut self, entry: &Entry) {
        let (flag, link, content): (u8, &str, &[u8]) = match &entry.kind {
            Kind::File(content) => (b'0', "", content),
            Kind::HardLink(target) => (b'1', target, &[]),
            Kind::Symlink(target) => (b'2', target, &[]),
            Kind::Directory => (b'5', "", &[]),
        };
        let mut extended = Vec::new();
        for (key, value) in [("path", entry.path.as_str()), ("linkpath", link)] {
            if value.len() > NAME_FIELD {
                pax_record(&mut extended, key, value.as_bytes());
            }
        }
        for (name, value) in &entry.xattrs {
            pax_record(&mut extended, &format!("SCHILY.xattr.{name}"), value);
        }
        if !extended.is_empty() {
            self.member(
                &header("pax", b'x', "", 0o644, 0, 0, extended.len()),
                &extended,
            );
        }
        let head = header(
            &entry.path,
            flag,
            link,
            entry.mode,
            entry.uid,
            entry.gid,
            content.len(),
        );
        self.member(&head, content);
    }

    fn member(&mut self, head: &[u8; BLOCK], content: &[u8]) {
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(content);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    /// The archive, with its end mark of two empty blocks.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits (pax Extended Header).
fn pax_record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn header(
    path: &str,
    flag: u8,
    link: &str,
    mode: u32,
    uid: u32,
    gid: u32,
    size: usize,
) -> [u8; BLOCK] {
    let mut head = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    let cut = |text: &str| text.as_bytes()[..text.len().min(NAME_FIELD)].to_vec();
    put(0, &cut(path));
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, format!("{uid:07o}\0").as_bytes());
    put(116, format!("{gid:07o}\0").as_bytes());
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[flag]);
    put(157, &cut(link));
    put(257, b"ustar\x0000");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pax_record_counts_its_own_digits() {
        for (key, value, want) in [
            ("a", "b", "6 a=b\n"),
            ("path", "12", "11 path=12\n"),
            (
                "path",
                &"x".repeat(91),
                &format!("101 path={}\n", "x".repeat(91)),
            ),
        ] {
            let mut out = Vec::new();
            pax_record(&mut out, key, value.as_bytes());
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
    }

    #[test]
    fn gnu_tar_lists_what_was_written() {
        let long = "d/".repeat(60) + "end";
        let archive = Layer::new()
            .directory("etc")
            .entry(Entry::file("etc/motd", "hi").mode(0o4711).owner(7, 9))
            .symlink("etc/link", "motd")
            .entry(Entry::hard_link("hard", "etc/motd").xattr("user.x", b"1\n2"))
            .file(&long, "")
            .finish();
        let scratch = std::env::temp_dir().join(format!("bulkhead-tar-{}", std::process::id()));
        std::fs::write(&scratch, &archive).unwrap();
        let listing = std::process::Command::new("tar")
            .args(["--numeric-owner", "-tvf"])
            .arg(&scratch)
            .output()
            .unwrap();
        std::fs::remove_file(&scratch).unwrap();
        let text = String::from_utf8(listing.stdout).unwrap();
        for want in [
            "-rws--x--x 7/9",
            "etc/link -> motd",
            "hard link to etc/motd",
            &long,
        ] {
            assert!(text.contains(want), "no {want:?} in:\n{text}");
        }
    }
}
