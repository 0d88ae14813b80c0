//! The known name nearest to a misspelt one, for "is … meant?". Pure.

/// The nearest of `known` to `given`, if few enough letters differ for it to be meant.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.replace('_', "-").to_lowercase();
    known
        .into_iter()
        .map(|name| (distance(&given, &name.to_lowercase()), name))
        .filter(|(edits, name)| *edits <= name.len().max(given.len()) / 3)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance. Names are short; longer input is cut before it costs anything.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut before = i;
        let mut left = i + 1;
        for (cb, above) in b.iter().zip(row.iter_mut().skip(1)) {
            let here = (before + usize::from(ca != cb))
                .min(left + 1)
                .min(*above + 1);
            before = std::mem::replace(above, here);
            left = here;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_edit_distances() {
        for (a, b, want) in [
            ("", "", 0),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
            ("ab", "", 2),
        ] {
            assert_eq!(distance(a, b), want, "{a} to {b}");
        }
    }

    #[test]
    fn a_name_far_from_all_has_no_nearest() {
        let known = ["image", "imagePullPolicy", "name"];
        assert_eq!(nearest("imagee", known), Some("image"));
        assert_eq!(nearest("zebra", known), None);
    }
}
