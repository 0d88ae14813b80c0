//! The conventional paths of network namespaces, on a `/run` of the test's own.

use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;

use bulkhead_cri_server::network::netns;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::node::{Namespace, on_node};

/// A mount namespace in which `/run` is empty.
fn empty_run() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .unwrap();
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
}

#[test]
fn a_path_keeps_a_namespace_alive_until_it_is_taken_away() {
    on_node(|_| {
        empty_run();
        assert_eq!(netns::list().unwrap(), Vec::<String>::new());
        let namespace = Namespace::new();
        let path = netns::bind("aaaa", namespace.0.as_fd()).unwrap();
        assert_eq!(path, netns::path("aaaa"));
        let identity = |stat: nix::sys::stat::FileStat| (stat.st_dev, stat.st_ino);
        let held = identity(nix::sys::stat::fstat(&namespace.0).unwrap());
        assert_eq!(identity(nix::sys::stat::stat(&path).unwrap()), held);
        std::fs::write("/run/netns/someone-elses", "").unwrap();
        assert_eq!(netns::list().unwrap(), ["aaaa"]);
        assert!(netns::bind("aaaa", namespace.0.as_fd()).is_err(), "twice");
        netns::unbind("aaaa").unwrap();
        netns::unbind("aaaa").unwrap();
        assert!(!path.exists());
        assert_eq!(netns::list().unwrap(), Vec::<String>::new());
    });
}

/// Threat M4.
#[test]
fn a_planted_link_or_directory_is_refused() {
    on_node(|_| {
        empty_run();
        let namespace = Namespace::new();
        let canary = std::path::Path::new("/run/canary");
        std::fs::create_dir("/run/netns").unwrap();
        symlink(canary, netns::path("aaaa")).unwrap();
        assert!(netns::bind("aaaa", namespace.0.as_fd()).is_err());
        assert!(!canary.exists());
        assert!(netns::bind("../aaaa", namespace.0.as_fd()).is_err());
        netns::unbind("aaaa").unwrap();
        std::fs::remove_dir("/run/netns").unwrap();
        symlink("/tmp", "/run/netns").unwrap();
        assert!(netns::bind("aaaa", namespace.0.as_fd()).is_err());
    });
}
