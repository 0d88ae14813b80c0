//! Archives that tools read differently, and those everybody reads the same.

use super::super::testing::*;
use super::*;

fn read(bytes: &[u8]) -> Result<Vec<Entry>, Failure> {
    let mut archive = Archive::new(bytes, &Limits::default());
    let mut entries = Vec::new();
    while let Some(entry) = archive.next()? {
        entries.push(entry);
    }
    archive.drain().doing("drain")?;
    Ok(entries)
}

#[test]
fn entries_follow_each_other_with_names_of_every_kind() {
    let long = format!("d/{}", "n".repeat(200));
    let archive = [
        entry(b'5', "d/").mode(0o1755).bytes(b""),
        entry(b'0', "d/f").owner(1, 2).bytes(b"hello"),
        pax(&[("path", long.as_bytes()), ("mtime", b"12.25")]),
        entry(b'0', "cut").bytes(b"long"),
        gnu_long(b'L', b"d/gnu\0"),
        entry(b'2', "cut").link("t").bytes(b""),
        entry(b'3', "null").device(1, 3).bytes(b""),
        end(),
    ]
    .concat();
    let entries = read(&archive).unwrap();
    let names: Vec<_> = entries
        .iter()
        .map(|e| String::from_utf8_lossy(&e.path).into_owned())
        .collect();
    assert_eq!(names, ["d/", "d/f", &long, "d/gnu", "null"]);
    assert_eq!(entries[0].mode, 0o1755);
    assert_eq!((entries[1].uid, entries[1].gid), (1, 2));
    let time = Time {
        seconds: 12,
        nanoseconds: 250_000_000,
    };
    assert_eq!(entries[2].mtime, time);
    assert!(matches!(&entries[3].kind, Kind::Symlink(t) if t == b"t"));
    assert!(matches!(entries[4].kind, Kind::Character(1, 3)));
}

#[test]
fn an_archive_may_end_with_its_last_entry() {
    let one = entry(b'0', "f").bytes(b"x");
    assert_eq!(read(&one).unwrap().len(), 1);
    assert_eq!(
        read(&[one.clone(), vec![0; 512]].concat()).unwrap().len(),
        1
    );
    assert_eq!(read(b"").unwrap().len(), 0);
    let hidden = [one.clone(), end(), one.clone()].concat();
    assert_eq!(
        read(&hidden).unwrap().len(),
        1,
        "nothing after the end mark"
    );
}

#[test]
fn d4_what_tools_read_differently_is_refused() {
    let file = entry(b'0', "f").bytes(b"x");
    let sized = |kind, size| {
        let mut header = entry(kind, "e").link("t").device(1, 3).bytes(b"");
        set_size(&mut header, size);
        header
    };
    let mut negative = entry(b'0', "f").bytes(b"");
    negative[124..136].copy_from_slice(&[0xff; 12]);
    set_checksum(&mut negative);
    let mut wide = entry(b'0', "f").bytes(b"");
    wide[124..136].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
    set_checksum(&mut wide);
    let mut sum = file.clone();
    sum[0] = b'g';
    for (archive, why) in [
        ([vec![0; 512], file.clone()].concat(), "zero block"),
        (
            [pax(&[("path", b"p")]), vec![0; 512], file.clone()].concat(),
            "zero block",
        ),
        (raw_pax(b"12 path=abc\nzzz", &file), "record's length"),
        (raw_pax(b"012 path=ab\n", &file), "record's length"),
        (raw_pax(b"99 path=ab\n", &file), "alformed"),
        (raw_pax(b"10 pathab\n", &file), "alformed"),
        ([pax(&[("size", b"x")]), file.clone()].concat(), "size"),
        ([pax(&[("uid", b"-1")]), file.clone()].concat(), "uid"),
        (
            [pax(&[("uid", b"4294967295")]), file.clone()].concat(),
            "owner 4294967295",
        ),
        (
            [pax(&[("gid", b"4294967296")]), file.clone()].concat(),
            "group 4294967296",
        ),
        ([pax(&[("path", b"a\0b")]), file.clone()].concat(), "NUL"),
        ([pax(&[("path", b"a")]), end()].concat(), "metadata"),
        (global(&[("path", b"x")]), "global record"),
        (global(&[("SCHILY.xattr.user.x", b"y")]), "global record"),
        (sized(b'1', 5), "no content"),
        (sized(b'2', 5), "no content"),
        (sized(b'3', 5), "no content"),
        (sized(b'5', 5), "no content"),
        (sized(b'6', 5), "no content"),
        (entry(b'0', "f/").bytes(b""), "ends with a slash"),
        (entry(b'V', "label").bytes(b""), "type 'V'"),
        (entry(b'2', "l").bytes(b""), "without a target"),
        (negative, "invalid entry size"),
        (wide, "negative or out of range"),
        (sum, "checksum"),
        (file[..600].to_vec(), "ends within a file"),
        (file[..300].to_vec(), "ends within a header"),
        (vec![b'x'; 1024], "header error"),
    ] {
        let failure = read(&archive).expect_err(why);
        assert!(failure.message().contains(why), "{why}: {failure}");
    }
}

#[test]
fn global_comments_are_let_through() {
    let archive = [
        global(&[("comment", b"0123")]),
        entry(b'0', "f").bytes(b"x"),
        end(),
    ]
    .concat();
    assert_eq!(read(&archive).unwrap().len(), 1);
}

#[test]
fn d5_sizes_out_of_all_bounds_are_refused() {
    let file = entry(b'0', "f").bytes(b"x");
    let mut huge = entry(b'x', "x").bytes(b"");
    set_size(&mut huge, (8 << 30) - 1);
    let many: String = (0..20_000).map(|i| format!("{},1,", i * 2)).collect();
    let sparse = pax(&[
        ("GNU.sparse.map", many.trim_end_matches(',').as_bytes()),
        ("GNU.sparse.realsize", b"40000"),
    ]);
    let name = "n".repeat(4097);
    let value = vec![b'v'; (64 << 10) + 1];
    for (archive, why) in [
        (huge, "exceeds limit"),
        ([sparse, file.clone()].concat(), "sparse"),
        (
            [pax(&[("path", name.as_bytes())]), file.clone()].concat(),
            "path exceeds",
        ),
        (
            [pax(&[("SCHILY.xattr.user.x", &value)]), file.clone()].concat(),
            "longer than",
        ),
    ] {
        let failure = read(&archive).expect_err(why);
        assert!(failure.message().contains(why), "{why}: {failure}");
    }
}

#[test]
fn sparse_files_come_as_regions_and_their_maps_must_fit() {
    let sparse = |map: &[u8], size: &[u8], data: &[u8]| {
        [
            pax(&[("GNU.sparse.map", map), ("GNU.sparse.realsize", size)]),
            entry(b'0', "f").bytes(data),
            end(),
        ]
        .concat()
    };
    let entries = read(&sparse(b"0,2,10,3,20,0", b"20", b"abcde")).unwrap();
    let Kind::Regular(content) = &entries[0].kind else {
        panic!("{entries:?}")
    };
    let expected = Content {
        size: 20,
        regions: vec![(0, 2), (10, 3)],
    };
    assert_eq!(content, &expected);
    for (map, size, why) in [
        (&b"0,2,1,3"[..], &b"20"[..], "overlap"),
        (b"10,2,0,3", b"20", "overlap"),
        (b"0,2,18,3", b"20", "leave the file"),
        (b"0,2,18446744073709551615,3", b"20", "leave the file"),
        (b"0,2", b"20", "disagree"),
    ] {
        let failure = read(&sparse(map, size, b"abcde")).expect_err(why);
        assert!(failure.message().contains(why), "{why}: {failure}");
    }
}
