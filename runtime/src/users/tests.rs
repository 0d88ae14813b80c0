use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    broken line\n\
    app:x:1000:1000::/home/app:/bin/sh\n\
    big:x:4294967296:1::/:/bin/sh\n\
    -1:x:0:0::/:/bin/sh\n\
    +0:x:0:0::/:/bin/sh\n\
    0x0:x:0:0::/:/bin/sh\n\
    4294967296:x:0:0::/:/bin/sh\n\
    \u{660}:x:0:0::/:/bin/sh\n\
    rel:x:7:8::home:/bin/sh\n";
const GROUP: &str = "root:x:0:\nstaff:x:50:app\nextra:x:2000:other,app\nbad:x:zz:app\nnope:x:-1:\n";

struct Root {
    directory: PathBuf,
}

impl Root {
    fn new(name: &str) -> Self {
        let directory =
            std::env::temp_dir().join(format!("bulkhead-users-{}-{name}", std::process::id()));
        std::fs::create_dir_all(directory.join("etc")).unwrap();
        Self { directory }
    }

    fn with(name: &str, passwd: &str, group: &str) -> Self {
        let root = Self::new(name);
        std::fs::write(root.directory.join("etc/passwd"), passwd).unwrap();
        std::fs::write(root.directory.join("etc/group"), group).unwrap();
        root
    }

    fn open(&self) -> OwnedFd {
        std::fs::File::open(&self.directory).unwrap().into()
    }

    fn etc(&self, name: &str) -> PathBuf {
        self.directory.join("etc").join(name)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

fn ask(user: UserChoice) -> UserSpec {
    UserSpec {
        user,
        group: None,
        supplemental: Vec::new(),
        policy: GroupsPolicy::Merge,
    }
}

fn image(text: &str) -> UserSpec {
    ask(UserChoice::Image(text.to_owned()))
}

#[test]
fn an_image_text_gives_these_ids() {
    let root = Root::with("ids", PASSWD, GROUP);
    for (text, uid, gid, groups) in [
        ("", 0, 0, vec![0]),
        ("0", 0, 0, vec![0]),
        ("root", 0, 0, vec![0]),
        ("app", 1000, 1000, vec![1000, 50, 2000]),
        ("1000", 1000, 1000, vec![1000, 50, 2000]),
        ("app:7", 1000, 7, vec![7, 50, 2000]),
        ("app:extra", 1000, 2000, vec![2000, 50]),
        ("1234", 1234, 0, vec![0]),
        ("1234:1235", 1234, 1235, vec![1235]),
        ("00001000", 1000, 1000, vec![1000, 50, 2000]),
        ("4294967294", 4294967294, 0, vec![0]),
    ] {
        let found = resolve(root.open().as_fd(), &image(text)).unwrap();
        assert_eq!(
            (found.uid, found.gid, found.groups),
            (uid, gid, groups),
            "{text:?}"
        );
    }
}

#[test]
fn an_odd_text_is_refused_and_never_root() {
    let root = Root::with("odd", PASSWD, GROUP);
    for text in [
        "4294967296",
        "4294967295",
        "2147483648x",
        "-1",
        "+0",
        "0x0",
        "\u{660}",
        "1:",
        ":1",
        ":",
        "1:2:3",
        "big",
        "nobody",
        "1:nope",
        "app:bad",
        "app:missing",
        "a b",
        "a\nb",
        "a\0",
        "../etc",
        " 0",
        "99999999999999999999999999",
    ] {
        assert!(
            resolve(root.open().as_fd(), &image(text)).is_err(),
            "{text:?}"
        );
    }
    for text in ["0", "4294967296", "", "-1", "missing"] {
        let spec = ask(UserChoice::Name(text.to_owned()));
        assert!(
            resolve(root.open().as_fd(), &spec).is_err(),
            "name {text:?}"
        );
    }
    assert!(resolve(root.open().as_fd(), &ask(UserChoice::Uid(u32::MAX))).is_err());
}

#[test]
fn groups_follow_the_policy_and_the_primary_is_always_among_them() {
    let root = Root::with("groups", PASSWD, GROUP);
    for (policy, wanted) in [
        (GroupsPolicy::Merge, vec![1000, 3000, 50, 2000]),
        (GroupsPolicy::Strict, vec![1000, 3000]),
    ] {
        let mut spec = image("app");
        spec.supplemental = vec![3000, 1000];
        spec.policy = policy;
        assert_eq!(resolve(root.open().as_fd(), &spec).unwrap().groups, wanted);
    }
    let mut spec = image("app");
    spec.supplemental = vec![u32::MAX];
    assert!(resolve(root.open().as_fd(), &spec).is_err());
}

#[test]
fn a_group_by_number_wins_over_the_images() {
    let root = Root::with("override", PASSWD, GROUP);
    let mut spec = image("app:extra");
    spec.group = Some(9);
    assert_eq!(resolve(root.open().as_fd(), &spec).unwrap().gid, 9);
}

#[test]
fn name_and_home_come_from_the_passwd_file() {
    let root = Root::with("home", PASSWD, GROUP);
    let app = resolve(root.open().as_fd(), &image("1000")).unwrap();
    assert_eq!(app.home.as_deref(), Some(Path::new("/home/app")));
    assert_eq!(app.username.as_deref(), Some("app"));
    let unknown = resolve(root.open().as_fd(), &image("4711")).unwrap();
    assert_eq!((unknown.home, unknown.username), (None, None));
    let relative = resolve(root.open().as_fd(), &image("rel")).unwrap();
    assert_eq!(relative.home, None, "a home that is no absolute path");
}

#[test]
fn an_image_without_a_passwd_file_takes_numbers_only() {
    let root = Root::new("scratch");
    assert_eq!(resolve(root.open().as_fd(), &image("1000")).unwrap().gid, 0);
    let error = resolve(root.open().as_fd(), &image("app")).unwrap_err();
    assert!(error.to_string().contains("\"app\""), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_link_is_resolved_inside_the_root() {
    let root = Root::new("link");
    let up = "../../../../../../../../etc/passwd";
    std::os::unix::fs::symlink(up, root.etc("passwd")).unwrap();
    // It leads to itself inside the root, and the node's file is never read.
    assert!(resolve(root.open().as_fd(), &image("root")).is_err());
    std::fs::remove_file(root.etc("passwd")).unwrap();
    std::fs::write(root.directory.join("real"), "me:x:5:6::/:\n").unwrap();
    std::os::unix::fs::symlink("/real", root.etc("passwd")).unwrap();
    assert_eq!(resolve(root.open().as_fd(), &image("me")).unwrap().uid, 5);
}

#[test]
fn a_file_that_is_huge_endless_or_no_file_is_refused_at_once() {
    let started = std::time::Instant::now();
    let root = Root::new("hostile");
    let passwd = root.etc("passwd");
    let sparse = std::fs::File::create(&passwd).unwrap();
    sparse.set_len(4 << 30).unwrap();
    assert!(
        resolve(root.open().as_fd(), &image("app")).is_err(),
        "sparse"
    );
    let many = "x:x:1:1::/:\n".repeat(900_000);
    std::fs::write(&passwd, many).unwrap();
    assert!(
        resolve(root.open().as_fd(), &image("app")).is_err(),
        "many lines"
    );
    std::fs::write(&passwd, "a".repeat(1 << 20)).unwrap();
    assert!(
        resolve(root.open().as_fd(), &image("app")).is_err(),
        "long line"
    );
    std::fs::remove_file(&passwd).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &passwd, FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert!(resolve(root.open().as_fd(), &image("app")).is_err(), "fifo");
    std::fs::remove_file(&passwd).unwrap();
    std::fs::create_dir(&passwd).unwrap();
    assert!(
        resolve(root.open().as_fd(), &image("app")).is_err(),
        "directory"
    );
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}
