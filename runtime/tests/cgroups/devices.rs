//! Device rules as the kernel enforces them: by eBPF where a v2 tree is mounted, by v1's devices
//! where it isn't.

use bulkhead_runtime::cgroup::{Cgroup, Mode};
use serde_json::json;

use crate::rig::{Group, Held, nodes, resources, unique};

/// Which of these devices a process of the group can open: each one's letters `r`, `w`.
fn access(group: &Cgroup) -> String {
    let script = "for d in null zero full; do \
                    (: < /dev/$d) 2>&- && printf $d:r, ; (: >> /dev/$d) 2>&- && printf $d:w, ; \
                  done; true";
    let held = Held::new(script);
    group.add(held.pid()).unwrap();
    let (output, code) = held.finish();
    assert_eq!(code, 0);
    output
}

const EVERYTHING: &str = "null:r,null:w,zero:r,zero:w,full:r,full:w,";

#[test]
fn devices_are_denied_unless_allowed() {
    for node in nodes() {
        assert_eq!(node.has_device_programs(), node.mode() != Mode::Legacy);
        let group = Group::new(&node, &unique("devices"));
        assert_eq!(access(&group), EVERYTHING, "without rules");

        let rules = json!({"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "access": "m"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "r"},
        ]});
        group.apply(&resources(&rules)).unwrap();
        assert_eq!(
            access(&group),
            "null:r,null:w,zero:r,",
            "null, and zero for reading"
        );

        // A second program takes the place of the first.
        let rules = json!({"devices": [
            {"allow": false},
            {"allow": true, "type": "c", "major": 1, "minor": 7, "access": "rw"},
        ]});
        group.apply(&resources(&rules)).unwrap();
        assert_eq!(access(&group), "full:r,full:w,", "only full");

        let all = json!({"devices": [{"allow": true, "access": "rwm"}]});
        group.apply(&resources(&all)).unwrap();
        assert_eq!(access(&group), EVERYTHING, "a privileged container");
    }
}

#[test]
fn a_group_below_gets_no_more_than_its_parent() {
    for node in nodes() {
        let parent = Group::new(&node, &unique("outer"));
        let deny = json!({"devices": [
            {"allow": false},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        ]});
        parent.apply(&resources(&deny)).unwrap();
        let group = Group::new(&node, &format!("{}/inner", parent.path()));
        let all = json!({"devices": [{"allow": true, "access": "rwm"}]});
        // v1 refuses, v2 runs both programs.
        drop(group.apply(&resources(&all)));
        assert_eq!(access(&group), "null:r,null:w,");
    }
}

#[test]
fn a_thousand_rules_pass_the_verifier() {
    for node in nodes() {
        let group = Group::new(&node, &unique("many"));
        let many: Vec<_> = (0..1000)
            .map(|n| json!({"allow": n % 2 == 0, "type": "c", "major": 200, "minor": n, "access": "rw"}))
            .chain([json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"})])
            .collect();
        group.apply(&resources(&json!({"devices": many}))).unwrap();
        assert_eq!(access(&group), "null:r,null:w,");
    }
}
