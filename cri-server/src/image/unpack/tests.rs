//! Layers written byte by byte, unpacked for real, compared with what must be on the disk. Needs root.

use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::testing::*;
use super::*;

/// A folder with what a store has, and the layers unpacked in it.
struct Bench {
    folder: tempfile::TempDir,
    trash: Arc<Trash>,
    lowers: Vec<PathBuf>,
    limits: Limits,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("trash")).unwrap();
        std::fs::write(folder.path().join("canary"), "canary").unwrap();
        let trash = Arc::new(Trash::open(folder.path().join("trash")).unwrap());
        Self {
            folder,
            trash,
            lowers: Vec::new(),
            limits: Limits::default(),
        }
    }

    /// Unpacks one more layer on top; its directory.
    fn layer(&mut self, archive: &[u8]) -> Result<PathBuf, Failure> {
        let number = self.lowers.len();
        let path = self.folder.path().join(format!("layer{number}"));
        let staging = Staging::create(path.clone(), Arc::clone(&self.trash))?;
        let expected = Expected {
            digest: Digest::of(archive),
            size: archive.len() as u64,
            diff_id: Digest::of(archive),
        };
        let (sender, pieces) = tokio::sync::mpsc::channel(2);
        let data = Piece::Data(Bytes::copy_from_slice(archive));
        sender.try_send(data).unwrap();
        sender.try_send(Piece::End).unwrap();
        let below = Chain::open(&self.lowers)?;
        let ready = unpack(
            pieces,
            &expected,
            staging,
            self.lowers.is_empty(),
            &self.limits,
        )?;
        let (staging, _) = ready.finish(&below, &self.limits)?;
        // As if published.
        std::mem::forget(staging);
        self.lowers.insert(0, path.join("fs"));
        Ok(path.join("fs"))
    }

    fn refused(&mut self, archive: &[u8]) -> String {
        let number = self.lowers.len();
        let text = match self.layer(archive) {
            Ok(_) => panic!("accepted"),
            Err(failure) => failure.message().to_owned(),
        };
        let left = self.folder.path().join(format!("layer{number}"));
        assert!(!left.exists(), "a refused layer stays");
        let canary = std::fs::read(self.folder.path().join("canary")).unwrap();
        assert_eq!(canary, b"canary");
        text
    }
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn is_whiteout(path: impl AsRef<Path>) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn attribute(path: impl AsRef<Path>, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path.as_ref(), name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn files_have_owner_mode_time_and_content_of_the_archive() {
    let mut bench = Bench::new();
    let root = bench
        .layer(
            &[
                entry(b'5', "./")
                    .mode(0o750)
                    .owner(7, 8)
                    .time(77)
                    .bytes(b""),
                entry(b'5', "d").mode(0o1777).time(5).bytes(b""),
                entry(b'0', "d/suid")
                    .mode(0o4755)
                    .owner(1, 2)
                    .time(6)
                    .bytes(b"hello"),
                entry(b'2', "d/l").link("../nowhere").owner(3, 4).bytes(b""),
                entry(b'6', "d/p").mode(0o600).bytes(b""),
                entry(b'3', "d/null").mode(0o666).device(1, 3).bytes(b""),
                entry(b'4', "d/sda")
                    .mode(0o660)
                    .owner(0, 6)
                    .device(8, 0)
                    .bytes(b""),
                entry(b'1', "d/hard").link("d/suid").bytes(b""),
                entry(b'0', "/abs").bytes(b"absolute"),
                end(),
            ]
            .concat(),
        )
        .unwrap();
    let meta = std::fs::metadata(&root).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o750, 7, 8)
    );
    assert_eq!(meta.mtime(), 77);
    let meta = std::fs::metadata(root.join("d")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o1777, 5));
    let meta = std::fs::metadata(root.join("d/suid")).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o4755, 1, 2)
    );
    assert_eq!((meta.mtime(), meta.nlink()), (6, 2));
    assert_eq!(text(root.join("d/hard")), "hello");
    let meta = std::fs::symlink_metadata(root.join("d/l")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (3, 4));
    assert!(
        std::fs::metadata(root.join("d/p"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    let meta = std::fs::metadata(root.join("d/null")).unwrap();
    assert!(meta.file_type().is_char_device());
    assert_eq!((meta.rdev(), meta.mode() & 0o7777), (0x103, 0o666));
    assert_eq!(std::fs::metadata(root.join("d/sda")).unwrap().rdev(), 0x800);
    assert_eq!(text(root.join("abs")), "absolute");
}

#[test]
fn whiteouts_hide_lower_layers_only_whatever_the_order() {
    let mut bench = Bench::new();
    let base = [
        entry(b'0', "a").bytes(b"1"),
        entry(b'0', "d/f").bytes(b"1"),
        entry(b'0', "e/f").bytes(b"1"),
        entry(b'0', ".wh.nothing").bytes(b""),
        end(),
    ]
    .concat();
    let root = bench.layer(&base).unwrap();
    assert!(!root.join("nothing").exists() && !is_whiteout(root.join("nothing")));
    let root = bench
        .layer(
            &[
                entry(b'0', ".wh.a").bytes(b""),
                // Own content of an opaque directory, before and after the mark.
                entry(b'0', "d/before").bytes(b"2"),
                entry(b'0', "d/.wh..wh..opq").bytes(b""),
                entry(b'0', "d/after").bytes(b"2"),
                // A directory removed and made anew, in both orders.
                entry(b'0', ".wh.e").bytes(b""),
                entry(b'5', "e").bytes(b""),
                entry(b'5', "g").bytes(b""),
                entry(b'0', ".wh.g").bytes(b""),
                // Removed and made anew by implication.
                entry(b'0', ".wh.h").bytes(b""),
                entry(b'0', "h/f").bytes(b"2"),
                // A file of its own stays.
                entry(b'0', "own").bytes(b"2"),
                entry(b'0', ".wh.own").bytes(b""),
                entry(b'0', ".wh..wh.aufs").bytes(b""),
                end(),
            ]
            .concat(),
        )
        .unwrap();
    assert!(is_whiteout(root.join("a")));
    assert_eq!(
        text(root.join("d/before")) + &text(root.join("d/after")),
        "22"
    );
    for opaque in ["d", "e", "g", "h"] {
        let mark = attribute(root.join(opaque), xattr::OPAQUE);
        assert_eq!(mark.as_deref(), Some(&b"y"[..]), "{opaque}");
    }
    assert_eq!(text(root.join("own")), "2");
    assert!(!root.join(".wh..wh.aufs").exists());
    let chain = Chain::open(&bench.lowers).unwrap();
    for (path, there) in [
        ("a", false),
        ("d/f", false),
        ("d/after", true),
        ("e/f", false),
    ] {
        assert_eq!(
            chain.find(path.as_bytes()).unwrap().is_some(),
            there,
            "{path}"
        );
    }
}

#[test]
fn d7_odd_whiteouts_are_refused() {
    for (archive, why) in [
        (entry(b'0', ".wh.").bytes(b""), "no plain name"),
        (entry(b'0', ".wh..").bytes(b""), "no plain name"),
        (entry(b'0', ".wh...").bytes(b""), "no plain name"),
        (entry(b'0', ".wh..wh.x").bytes(b""), "no plain name"),
        (entry(b'0', ".wh./x").bytes(b""), "named like a whiteout"),
        (entry(b'0', ".wh.a/x").bytes(b""), "named like a whiteout"),
        (entry(b'5', ".wh.d").bytes(b""), "is no file"),
        (entry(b'2', ".wh.l").link("/etc").bytes(b""), "is no file"),
        (entry(b'3', "w").device(0, 0).bytes(b""), "0:0"),
        (
            [
                entry(b'5', "d").bytes(b""),
                entry(b'2', "l").link("d").bytes(b""),
                entry(b'0', "l/.wh..wh..opq").bytes(b""),
            ]
            .concat(),
            "behind a link",
        ),
        (
            [
                entry(b'2', "l").link("/").bytes(b""),
                entry(b'0', "l/.wh.x").bytes(b""),
            ]
            .concat(),
            "behind a link",
        ),
        (entry(b'1', "h").link(".wh.x").bytes(b""), "to a whiteout"),
    ] {
        let mut bench = Bench::new();
        bench.layer(&end()).unwrap();
        let text = bench.refused(&[archive, end()].concat());
        assert!(text.contains(why), "{why}: {text}");
    }
}

#[test]
fn d1_no_entry_leaves_its_layer() {
    for (archive, why) in [
        (entry(b'0', "../x").bytes(b"x"), "`..`"),
        (entry(b'0', "a/../../x").bytes(b"x"), "`..`"),
        (entry(b'2', ".").link("/etc").bytes(b""), "no directory"),
        (entry(b'0', "./").bytes(b""), "slash"),
        (entry(b'1', "h").link("../canary").bytes(b""), "`..`"),
        (
            entry(b'1', "h").link("/etc/passwd").bytes(b""),
            "neither this layer",
        ),
        (entry(b'1', "h").link("/").bytes(b""), "to the root"),
        (entry(b'1', "h").link("h").bytes(b""), "to itself"),
        (
            [
                entry(b'5', "d").bytes(b""),
                entry(b'1', "h").link("d").bytes(b""),
            ]
            .concat(),
            "to a directory",
        ),
        (
            [
                entry(b'2', "l").link("/nowhere").bytes(b""),
                entry(b'0', "l/x").bytes(b"x"),
            ]
            .concat(),
            "link to none",
        ),
        (
            [entry(b'0', "f").bytes(b"x"), entry(b'0', "f/x").bytes(b"x")].concat(),
            "is no directory",
        ),
        (
            [
                entry(b'2', "a").link("b").bytes(b""),
                entry(b'2', "b").link("a").bytes(b""),
                entry(b'0', "a/x").bytes(b"x"),
            ]
            .concat(),
            "circle",
        ),
    ] {
        let text = Bench::new().refused(&[archive, end()].concat());
        assert!(text.contains(why), "{why}: {text}");
    }
}

#[test]
fn d1_d2_links_lead_to_places_inside_and_are_never_written_through() {
    let mut bench = Bench::new();
    let folder = bench.folder.path().to_owned();
    let outside = folder.join("canary");
    let before = std::fs::metadata(&outside).unwrap();
    let target = outside.to_str().unwrap().to_owned();
    assert!(target.len() < 100);
    let up = format!("../../{target}");
    let root = bench
        .layer(
            &[
                entry(b'5', "real").bytes(b""),
                entry(b'2', "abs").link("/real").bytes(b""),
                entry(b'2', "up").link("../../../real").bytes(b""),
                entry(b'0', "abs/one").bytes(b"1"),
                entry(b'0', "up/two").bytes(b"2"),
                // A link replaced by a file of its name, and the reverse.
                entry(b'2', "x").link(&target).bytes(b""),
                entry(b'0', "x").mode(0o4777).owner(9, 9).bytes(b"own"),
                entry(b'2', "y")
                    .link(&up)
                    .mode(0o777)
                    .owner(9, 9)
                    .time(1)
                    .bytes(b""),
                // A directory, a link of that name, the directory again.
                entry(b'5', "z").mode(0o777).bytes(b""),
                entry(b'2', "z").link(folder.to_str().unwrap()).bytes(b""),
                entry(b'5', "z").mode(0o777).owner(9, 9).time(1).bytes(b""),
                entry(b'0', "z/canary").bytes(b"inner"),
                end(),
            ]
            .concat(),
        )
        .unwrap();
    assert_eq!(
        text(root.join("real/one")) + &text(root.join("real/two")),
        "12"
    );
    assert_eq!(text(root.join("x")), "own");
    assert!(std::fs::symlink_metadata(root.join("z")).unwrap().is_dir());
    assert_eq!(text(root.join("z/canary")), "inner");
    let after = std::fs::metadata(&outside).unwrap();
    assert_eq!(text(&outside), "canary");
    let facts = |m: &std::fs::Metadata| (m.mode(), m.uid(), m.mtime(), m.ctime(), m.ctime_nsec());
    assert_eq!(facts(&before), facts(&after));
}

#[test]
fn d1_a_link_of_a_lower_layer_is_no_way_out_either() {
    let mut bench = Bench::new();
    bench
        .layer(&[entry(b'2', "l").link("/etc").bytes(b""), end()].concat())
        .unwrap();
    let root = bench
        .layer(&[entry(b'0', "l/canary-bulkhead").bytes(b"x"), end()].concat())
        .unwrap();
    assert_eq!(text(root.join("l/canary-bulkhead")), "x");
    assert!(!Path::new("/etc/canary-bulkhead").exists());
}

#[test]
fn l2_hard_links_to_a_symlink_to_a_name_that_goes_and_one_layer_down() {
    let mut bench = Bench::new();
    let first = bench
        .layer(
            &[
                entry(b'2', "s").link("/nowhere").bytes(b""),
                entry(b'1', "h").link("s").bytes(b""),
                entry(b'0', "a")
                    .mode(0o4711)
                    .owner(5, 6)
                    .time(9)
                    .bytes(b"bytes"),
                entry(b'1', "b").link("a").bytes(b""),
                end(),
            ]
            .concat(),
        )
        .unwrap();
    assert_eq!(
        std::fs::read_link(first.join("h")).unwrap(),
        Path::new("/nowhere")
    );
    bench
        .layer(&[entry(b'0', ".wh.a").bytes(b""), end()].concat())
        .unwrap();
    let third = bench
        .layer(
            &[
                entry(b'1', "dir/c").link("b").bytes(b""),
                entry(b'1', "c2").link("b").bytes(b""),
                entry(b'1', "c3").link("dir/c").bytes(b""),
                entry(b'1', "t").link("/h").bytes(b""),
                end(),
            ]
            .concat(),
        )
        .unwrap();
    assert_eq!(text(third.join("dir/c")), "bytes");
    let meta = std::fs::metadata(third.join("dir/c")).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.mtime()),
        (0o4711, 5, 9)
    );
    assert_eq!(meta.nlink(), 3, "one copy for all links to it");
    assert_eq!(
        std::fs::read_link(third.join("t")).unwrap(),
        Path::new("/nowhere")
    );
    let why = bench.refused(&[entry(b'1', "d").link("a").bytes(b""), end()].concat());
    assert!(why.contains("neither this layer nor those below"), "{why}");
}

#[test]
fn directories_a_layer_implies_look_like_those_below() {
    let mut bench = Bench::new();
    bench
        .layer(
            &[
                entry(b'5', "./")
                    .mode(0o711)
                    .owner(1, 1)
                    .time(11)
                    .bytes(b""),
                pax(&[("SCHILY.xattr.user.k", b"v")]),
                entry(b'5', "d")
                    .mode(0o2750)
                    .owner(2, 3)
                    .time(22)
                    .bytes(b""),
                entry(b'5', "d/e")
                    .mode(0o700)
                    .owner(4, 4)
                    .time(33)
                    .bytes(b""),
                entry(b'5', "gone").mode(0o700).bytes(b""),
                end(),
            ]
            .concat(),
        )
        .unwrap();
    let root = bench
        .layer(
            &[
                entry(b'0', "d/e/f").bytes(b"x"),
                entry(b'0', ".wh.gone").bytes(b""),
                entry(b'0', "gone/f").bytes(b"x"),
                entry(b'0', "new/f").bytes(b"x"),
                end(),
            ]
            .concat(),
        )
        .unwrap();
    for (path, mode, owner, time) in [
        ("", 0o711, 1, 11),
        ("d", 0o2750, 2, 22),
        ("d/e", 0o700, 4, 33),
        ("gone", 0o755, 0, 0),
        ("new", 0o755, 0, 0),
    ] {
        let meta = std::fs::metadata(root.join(path)).unwrap();
        let facts = (meta.mode() & 0o7777, meta.uid(), meta.mtime());
        assert_eq!(facts, (mode, owner, time), "{path:?}");
    }
    assert_eq!(
        attribute(root.join("d"), "user.k").as_deref(),
        Some(&b"v"[..])
    );
}

#[test]
fn l6_d8_labels_and_overlay_s_own_attributes_are_left_out() {
    let mut bench = Bench::new();
    let labels = || {
        pax(&[
            ("SCHILY.xattr.security.selinux", b"system_u:object_r:x:s0\0"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.metacopy", b""),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.foo", b"bar\n=\0x"),
        ])
    };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let root = bench
        .layer(
            &[
                labels(),
                entry(b'0', "f").bytes(b"x"),
                labels(),
                entry(b'5', "d").bytes(b""),
                labels(),
                entry(b'2', "l").link("f").bytes(b""),
                labels(),
                entry(b'2', "dangling").link("/nowhere").bytes(b""),
                labels(),
                entry(b'1', "h").link("f").bytes(b""),
                pax(&[("SCHILY.xattr.security.capability", &capability)]),
                entry(b'0', "cap").mode(0o755).owner(1, 1).bytes(b"x"),
                end(),
            ]
            .concat(),
        )
        .unwrap();
    for path in ["f", "d", "l", "dangling"] {
        for name in [
            "security.selinux",
            "trusted.overlay.redirect",
            "trusted.overlay.metacopy",
            "user.overlay.opaque",
        ] {
            assert_eq!(attribute(root.join(path), name), None, "{path} {name}");
        }
    }
    for path in ["f", "d"] {
        let value = attribute(root.join(path), "user.foo");
        assert_eq!(value.as_deref(), Some(&b"bar\n=\0x"[..]), "{path}");
    }
    let value = attribute(root.join("cap"), "security.capability");
    assert_eq!(value.as_deref(), Some(&capability[..]));
    let bad = [
        pax(&[("SCHILY.xattr.security.capability", b"xx")]),
        entry(b'0', "cap").bytes(b"x"),
        end(),
    ]
    .concat();
    assert!(Bench::new().refused(&bad).contains("capability"));
}

#[test]
fn sparse_files_have_their_holes() {
    let mut bench = Bench::new();
    let root = bench
        .layer(
            &[
                pax(&[
                    ("GNU.sparse.map", b"4096,3,1048576,2"),
                    ("GNU.sparse.realsize", b"2097152"),
                ]),
                entry(b'0', "s").bytes(b"abcde"),
                end(),
            ]
            .concat(),
        )
        .unwrap();
    let bytes = std::fs::read(root.join("s")).unwrap();
    assert_eq!(bytes.len(), 2 << 20);
    assert_eq!(
        (&bytes[4096..4099], &bytes[1 << 20..(1 << 20) + 2]),
        (&b"abc"[..], &b"de"[..])
    );
    assert!(std::fs::metadata(root.join("s")).unwrap().blocks() < 100);
}

#[test]
fn d6_too_many_entries_and_too_many_bytes_are_refused() {
    let mut bench = Bench::new();
    bench.limits.entries = 3;
    let four: Vec<u8> = (0..4)
        .flat_map(|i| entry(b'0', &i.to_string()).bytes(b""))
        .collect();
    assert!(bench.refused(&four).contains("more than 3 entries"));
    bench.limits = Limits {
        bytes: 4096,
        ..Limits::default()
    };
    let large = entry(b'0', "f").bytes(&[7; 8192]);
    assert!(bench.refused(&large).contains("more than 4096 bytes"));
    bench.limits = Limits {
        remembered: 500,
        ..Limits::default()
    };
    let deep = entry(
        b'0',
        &"d/".repeat(40).trim_end_matches('/').replace("d/d", "d/e"),
    )
    .bytes(b"");
    assert!(bench.refused(&deep).contains("too many directories"));
    bench.limits = Limits {
        reserve: u64::MAX / 2,
        ..Limits::default()
    };
    assert!(
        bench
            .refused(&entry(b'0', "f").bytes(b"x"))
            .contains("no space left")
    );
}

#[test]
fn k4_bytes_that_are_not_what_was_promised_are_refused() {
    let bench = Bench::new();
    let good = [entry(b'0', "f").bytes(b"x"), end()].concat();
    let mut flipped = good.clone();
    flipped[512] ^= 1;
    let short = good[..good.len() - 1].to_vec();
    let promise = Expected {
        digest: Digest::of(&good),
        size: good.len() as u64,
        diff_id: Digest::of(&good),
    };
    let other = Expected {
        diff_id: Digest::of(b"other"),
        ..promise.clone()
    };
    for (bytes, end, promise, why) in [
        (&flipped, true, &promise, "have digest"),
        (&short, true, &promise, "where the manifest says"),
        (&good, true, &other, "the config says"),
        (&good, false, &promise, "given up"),
    ] {
        let path = bench.folder.path().join("staging");
        let staging = Staging::create(path.clone(), Arc::clone(&bench.trash)).unwrap();
        let (sender, pieces) = tokio::sync::mpsc::channel(2);
        let data = Piece::Data(Bytes::copy_from_slice(bytes));
        sender.try_send(data).unwrap();
        if end {
            sender.try_send(Piece::End).unwrap();
        }
        drop(sender);
        let failure = unpack(pieces, promise, staging, true, &bench.limits).unwrap_err();
        assert!(failure.message().contains(why), "{why}: {failure}");
        assert!(!path.exists());
    }
}

#[test]
fn layers_of_many_files_come_out_equal() {
    let mut bench = Bench::new();
    let mut archive = Vec::new();
    for i in 0..300_usize {
        archive.extend(entry(b'0', &format!("d{}/f{i}", i % 7)).bytes(&vec![b'x'; i * 37]));
    }
    archive.extend(end());
    let root = bench.layer(&archive).unwrap();
    for i in 0..300_u64 {
        let length = std::fs::metadata(root.join(format!("d{}/f{i}", i % 7)))
            .unwrap()
            .len();
        assert_eq!(length, i * 37);
    }
    let fd = open_folder(&root).unwrap();
    let (_, inodes) = crate::image::tree::measure(fd.as_fd()).unwrap();
    assert_eq!(inodes, 308);
    assert_eq!(
        std::fs::metadata(root.join("d1"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o755
    );
}
