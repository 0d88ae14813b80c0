//! libFuzzer over one target, the one that `BULKHEAD_FUZZ` names.
#![no_main]

use std::sync::LazyLock;

use bulkhead_cri_server::streaming::fuzz::TARGETS;
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("BULKHEAD_FUZZ").expect("BULKHEAD_FUZZ names a target");
    let target = TARGETS.iter().find(|(target, _)| *target == name);
    target.expect("no such target").1
});

fuzz_target!(|data: &[u8]| TARGET(data));
