use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::*;

struct Tree(PathBuf);

impl Tree {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("bulkhead-target-{}-{name}", std::process::id()));
        std::fs::create_dir_all(path.join("root")).unwrap();
        Self(path)
    }

    fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    fn ensure(&self, path: &str, leaf: Leaf) -> Result<OwnedFd, Errno> {
        let root = std::fs::File::open(self.root()).unwrap();
        let path = std::ffi::CString::new(path).unwrap();
        ensure(root.as_fd(), &path, leaf)
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// What a tree holds, as sorted relative paths; directories end with a slash.
fn list(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![directory.to_path_buf()];
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            let name = entry
                .path()
                .strip_prefix(directory)
                .unwrap()
                .display()
                .to_string();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                todo.push(entry.path());
                found.push(format!("{name}/"));
            } else if kind.is_symlink() {
                found.push(format!("{name}@"));
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn missing_parts_are_made_inside_wherever_links_lead() {
    for (name, link, target, path, wanted) in [
        ("plain", "", "", "a/b/c", &["a/", "a/b/", "a/b/c/"][..]),
        (
            "absolute",
            "run",
            "/other",
            "run/x",
            &["other/", "other/x/", "run@"],
        ),
        (
            "relative",
            "run",
            "other",
            "run/x",
            &["other/", "other/x/", "run@"],
        ),
        (
            "upwards",
            "run",
            "../../../../other",
            "run/x",
            &["other/", "other/x/", "run@"],
        ),
        ("dangling last", "run", "other", "run", &["other/", "run@"]),
    ] {
        let tree = Tree::new(name);
        if !link.is_empty() {
            symlink(target, tree.root().join(link)).unwrap();
        }
        tree.ensure(path, Leaf::Directory).unwrap();
        assert_eq!(list(&tree.root()), wanted, "{name}");
        assert_eq!(
            list(&tree.0).len(),
            wanted.len() + 1,
            "{name}: nothing beside the root"
        );
    }
}

#[test]
fn a_file_is_made_where_a_file_is_to_be_mounted() {
    let tree = Tree::new("file");
    tree.ensure("etc/hosts", Leaf::File).unwrap();
    assert_eq!(list(&tree.root()), ["etc/", "etc/hosts"]);
    tree.ensure("etc/hosts", Leaf::File).unwrap();
}

#[test]
fn loops_and_files_in_the_way_are_refused() {
    let tree = Tree::new("loop");
    symlink("two", tree.root().join("one")).unwrap();
    symlink("one", tree.root().join("two")).unwrap();
    symlink("grow/x", tree.root().join("grow")).unwrap();
    std::fs::write(tree.root().join("file"), "").unwrap();
    for path in ["one/a", "one", "grow", "grow/a", "file/a"] {
        assert!(tree.ensure(path, Leaf::Directory).is_err(), "{path}");
    }
    let long = format!("{}/x", "a/".repeat(2048));
    assert!(tree.ensure(&long, Leaf::Directory).is_err());
    assert_eq!(list(&tree.root()), ["file", "grow@", "one@", "two@"]);
}

#[test]
fn a_magic_link_is_not_followed() {
    let tree = Tree::new("magic");
    symlink("/proc/self/root", tree.root().join("out")).unwrap();
    std::fs::create_dir(tree.root().join("proc")).unwrap();
    // Inside this root /proc is an ordinary directory, so the link is made good inside.
    tree.ensure("out/x", Leaf::Directory).unwrap();
    assert!(tree.root().join("proc/self/root/x").is_dir());
    let host = std::fs::File::open("/").unwrap();
    assert!(
        find(
            host.as_fd(),
            c"proc/self/root/etc",
            OFlags::empty(),
            ResolveFlags::empty()
        )
        .is_err()
    );
}
