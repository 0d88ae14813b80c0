//! Making, joining, freezing, killing and removing groups.

use std::process::Command;
use std::time::Duration;

use bulkhead_runtime::cgroup::Mode;
use bulkhead_runtime::error::ErrorKind;

use crate::rig::{Group, Held, LIMIT, content, directories, has_ended, nodes, unique, until};

#[test]
fn a_group_and_its_parents_come_and_go() {
    for node in nodes() {
        let top = unique("life");
        let path = format!("{top}/pod/container");
        let (cgroup, made) = node.create(&path).unwrap();
        assert!(
            made.iter()
                .any(|parent| parent.ends_with(&format!(":{top}"))),
            "{made:?}"
        );
        assert!(
            made.iter().any(|parent| parent.ends_with("/pod")),
            "{made:?}"
        );
        assert!(node.open(&path).unwrap().is_some());
        // A sibling keeps the parents alive, and takes them along when it goes.
        let (sibling, made) = node.create(&format!("{top}/pod/sibling")).unwrap();
        assert_eq!(made, Vec::<String>::new());
        cgroup.remove().unwrap();
        assert!(node.open(&path).unwrap().is_none());
        assert!(!directories(&format!("{top}/pod")).is_empty());
        sibling.remove().unwrap();
        assert_eq!(directories(&top), Vec::<std::path::PathBuf>::new());
        // Twice is fine.
        sibling.remove().unwrap();
    }
}

#[test]
fn parents_of_others_stay() {
    for node in nodes() {
        let parent = Group::new(&node, &unique("kubelet"));
        let (cgroup, made) = node
            .create(&format!("{}/container", parent.path()))
            .unwrap();
        assert_eq!(made, Vec::<String>::new());
        cgroup.remove().unwrap();
        assert!(node.open(parent.path()).unwrap().is_some());
    }
}

#[test]
fn bad_paths_make_nothing() {
    for node in nodes() {
        for path in ["relative", "/a/../../b", "/", "/x:y"] {
            let error = node.create(path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{path}");
        }
    }
}

#[test]
fn a_group_is_joined_by_moving_and_by_threads() {
    for node in nodes() {
        let group = Group::new(&node, &unique("join"));
        let held = Held::new("sleep 1000");
        group.add(held.pid()).unwrap();
        // Once more changes nothing.
        group.add(held.pid()).unwrap();
        assert_eq!(group.pids().unwrap(), [held.pid()]);
        assert!(group.is_populated().unwrap());
        let lines = std::fs::read_to_string(format!("/proc/{}/cgroup", held.pid())).unwrap();
        let count = lines
            .lines()
            .filter(|line| line.ends_with(group.path()))
            .count();
        assert!(count >= directories(group.path()).len(), "{lines}");

        if node.mode() == Mode::Unified {
            assert!(group.join_files().unwrap().is_empty());
            continue;
        }
        let output = std::thread::scope(|scope| {
            let work = || {
                group.enter_thread().unwrap();
                Command::new("cat")
                    .arg("/proc/self/cgroup")
                    .output()
                    .unwrap()
            };
            scope.spawn(work).join().unwrap()
        });
        let lines = String::from_utf8(output.stdout).unwrap();
        let joined = lines
            .lines()
            .filter(|line| line.ends_with(group.path()))
            .count();
        assert_eq!(joined, group.join_files().unwrap().len(), "{lines}");
        // The other threads stayed where they were.
        let ours = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        assert!(!ours.contains(group.path()), "{ours}");
    }
}

#[test]
fn frozen_and_forking_processes_are_killed() {
    for node in nodes() {
        let group = Group::new(&node, &unique("kill"));
        // Each forks two more for ever, sixty at most alive at a time by a limit on the group.
        let limits = crate::rig::resources(&serde_json::json!({"pids": {"limit": 60}}));
        group.apply(&limits).unwrap();
        let mut bomb = Held::new("f() { f & f & wait; }; f 2>/dev/null");
        group.add(bomb.pid()).unwrap();
        bomb.go();
        until("many processes", || group.pids().unwrap().len() > 20);
        group.kill().unwrap();
        assert!(group.wait_empty(LIMIT).unwrap());
        assert_eq!(group.pids().unwrap(), Vec::<i32>::new());

        let sleeper = Held::new("sleep 1000");
        group.add(sleeper.pid()).unwrap();
        group.freeze().unwrap();
        assert!(!group.wait_empty(Duration::from_millis(20)).unwrap());
        group.kill().unwrap();
        assert!(group.wait_empty(LIMIT).unwrap());
        // Killing nobody is fine. A group that was killed takes new processes.
        group.kill().unwrap();
        group.thaw().unwrap();
        let (_, code) = {
            let held = Held::new("exit 7");
            group.add(held.pid()).unwrap();
            held.finish()
        };
        assert_eq!(code, 7);
    }
}

#[test]
fn freezing_stops_and_thawing_goes_on() {
    for node in nodes() {
        let group = Group::new(&node, &unique("freeze"));
        let held = Held::new("echo went on");
        group.add(held.pid()).unwrap();
        group.freeze().unwrap();
        let group = &group;
        std::thread::scope(|scope| {
            let finish = scope.spawn(move || held.finish());
            std::thread::sleep(Duration::from_millis(50));
            assert!(!finish.is_finished());
            group.thaw().unwrap();
            assert_eq!(finish.join().unwrap(), ("went on".to_owned(), 0));
        });
    }
}

#[test]
fn an_exec_is_killed_alone_and_counts_in_its_container() {
    for node in nodes() {
        let group = Group::new(&node, &unique("exec"));
        let init = Held::new("sleep 1000");
        group.add(init.pid()).unwrap();
        let exec = group.child("exec-1").unwrap();
        let mut shell = Held::new("sleep 1000 & sleep 1000 & wait");
        exec.add(shell.pid()).unwrap();
        shell.go();
        until("descendants", || exec.pids().unwrap().len() == 3);
        assert_eq!(group.pids().unwrap().len(), 1 + exec.pids().unwrap().len());
        if node.mode() != Mode::Unified {
            let memory = content(group.path(), "memory.limit_in_bytes");
            assert!(memory.is_some());
            let lines = std::fs::read_to_string(format!("/proc/{}/cgroup", shell.pid())).unwrap();
            let memory = lines.lines().find(|line| line.contains("memory")).unwrap();
            assert!(memory.ends_with(group.path()), "{memory}");
        }
        exec.kill().unwrap();
        assert!(exec.wait_empty(LIMIT).unwrap());
        assert!(!has_ended(init.pid()));
        exec.remove().unwrap();
        assert!(node.open(exec.path()).unwrap().is_none());
        assert!(node.open(group.path()).unwrap().is_some());
    }
}

#[test]
fn removal_takes_groups_below_along_and_says_who_is_in_the_way() {
    for node in nodes() {
        let top = unique("deep");
        let (group, _) = node.create(&top).unwrap();
        let (below, _) = node.create(&format!("{top}/a/b/c")).unwrap();
        let held = Held::new("sleep 1000");
        below.add(held.pid()).unwrap();
        let error = group.remove().unwrap_err();
        assert!(error.to_string().contains("remove cgroup"), "{error}");
        let error = below.remove().unwrap_err();
        assert!(
            error.to_string().contains(&held.pid().to_string()),
            "{error}"
        );
        group.kill().unwrap();
        assert!(group.wait_empty(LIMIT).unwrap());
        group.remove().unwrap();
        assert_eq!(directories(&top), Vec::<std::path::PathBuf>::new());
        drop(below);
    }
}

#[test]
fn a_v2_parent_with_processes_is_named() {
    for node in nodes() {
        let parent = Group::new(&node, &unique("inner"));
        let held = Held::new("sleep 1000");
        parent.add(held.pid()).unwrap();
        let path = format!("{}/container", parent.path());
        match node.create(&path) {
            Ok((cgroup, _)) => {
                assert_ne!(node.mode(), Mode::Unified);
                cgroup.remove().unwrap();
            }
            Err(error) => {
                assert_eq!(node.mode(), Mode::Unified);
                assert!(
                    error.to_string().contains("has processes of its own"),
                    "{error}"
                );
                assert!(node.open(&path).unwrap().is_none());
            }
        }
    }
}
