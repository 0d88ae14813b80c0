//! The fuzz targets of what streaming clients send, by name. `make fuzz` runs them under libFuzzer;
//! the test here replays the corpus in the tree.

use super::spdy;

/// A target's name, which is its corpus' folder, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("spdy-frames", spdy::fuzz::frames),
    ("spdy-headers", spdy::fuzz::headers),
    ("spdy-session", spdy::fuzz::session),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::TARGETS;

    #[test]
    fn what_must_hold_for_any_bytes_holds_for_the_corpus() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let mut count = 0;
            for file in corpus.join(name).read_dir().expect(name) {
                let path = file.expect(name).path();
                println!("{}", path.display());
                target(&std::fs::read(&path).expect(name));
                count += 1;
            }
            assert!(count > 0, "{name} has no corpus");
        }
    }
}
