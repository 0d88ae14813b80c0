//! Rows over several parameters in which every two values of every two parameters meet at least once.
//!
//! Faults of combinations are mostly of two fields; all combinations of a security context would be
//! millions. Rows are chosen greedily and the same every time; beyond what pairs need they are any.

use std::collections::BTreeSet;

/// Two parameters and a value of each, by number.
type Pair = (usize, usize, usize, usize);

/// How many candidates each row is the best of.
const CANDIDATES: usize = 50;

/// At least `least` rows of value numbers for parameters with so many values each.
pub fn rows(sizes: &[usize], least: usize) -> Vec<Vec<usize>> {
    let mut open: BTreeSet<Pair> = all_pairs(sizes);
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut rows = Vec::new();
    while !open.is_empty() || rows.len() < least {
        let mut best = random.row(sizes);
        if let Some(&(a, va, b, vb)) = open.first() {
            // The first pair still open is in every candidate, so that each row brings the end nearer.
            let candidates = (0..CANDIDATES).map(|_| {
                let mut row = random.row(sizes);
                row[a] = va;
                row[b] = vb;
                row
            });
            best = candidates
                .max_by_key(|row| pairs(row).filter(|pair| open.contains(pair)).count())
                .unwrap_or(best);
        }
        for pair in pairs(&best) {
            open.remove(&pair);
        }
        rows.push(best);
    }
    rows
}

fn all_pairs(sizes: &[usize]) -> BTreeSet<Pair> {
    let mut all = BTreeSet::new();
    for (b, size_b) in sizes.iter().enumerate() {
        for (a, size_a) in sizes.iter().enumerate().take(b) {
            for va in 0..*size_a {
                all.extend((0..*size_b).map(|vb| (a, va, b, vb)));
            }
        }
    }
    all
}

fn pairs(row: &[usize]) -> impl Iterator<Item = Pair> {
    row.iter().enumerate().flat_map(move |(b, vb)| {
        let before = row.iter().enumerate().take(b);
        before.map(move |(a, va)| (a, *va, b, *vb))
    })
}

/// xorshift64: the same rows on every machine.
struct Random(u64);

impl Random {
    fn row(&mut self, sizes: &[usize]) -> Vec<usize> {
        sizes.iter().map(|size| self.below(*size)).collect()
    }

    fn below(&mut self, size: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % size.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_two_values_meet() {
        let sizes = [6, 4, 4, 3, 3, 2, 2, 2, 2];
        let rows = rows(&sizes, 0);
        let met: BTreeSet<Pair> = rows.iter().flat_map(|row| pairs(row)).collect();
        assert_eq!(met, all_pairs(&sizes));
        assert!(rows.len() < 60, "{} rows", rows.len());
        assert_eq!(super::rows(&sizes, 100).len(), 100);
    }
}
