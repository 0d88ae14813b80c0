//! `WWW-Authenticate`: which proof a registry wants, in every shape seen (case G1).
//!
//! Grammar: RFC 9110, 11.6.1; several challenges may share a header or come in several. Values are
//! taken unquoted as well, as some products send them.

use std::collections::BTreeMap;

/// More than any registry sends.
const MAX_CHALLENGES: usize = 16;

/// One challenge: scheme and parameter names in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub scheme: String,
    pub parameters: BTreeMap<String, String>,
}

/// All challenges of all headers.
pub(crate) fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    for header in headers {
        let mut rest = header;
        // A parameter belongs to the scheme before it in the same header.
        let mut begun = false;
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            let (name, after) = token(rest);
            if name.is_empty() || found.len() > MAX_CHALLENGES {
                break;
            }
            let name = name.to_ascii_lowercase();
            if let Some(value) = after.trim_start().strip_prefix('=') {
                let (value, after) = value_of(value.trim_start());
                rest = after;
                if let Some(challenge) = found.last_mut().filter(|_| begun) {
                    challenge.parameters.entry(name).or_insert(value);
                }
            } else {
                rest = after;
                begun = true;
                found.push(Challenge {
                    scheme: name,
                    parameters: BTreeMap::new(),
                });
            }
        }
    }
    found
}

/// What stands before a separator.
fn token(text: &str) -> (&str, &str) {
    let end = text.find([' ', '\t', ',', '=', '"']).unwrap_or(text.len());
    text.split_at(end)
}

/// A quoted or bare value and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, quoted.get(at + 1..).unwrap_or("")),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(challenges: &[Challenge]) -> String {
        let shown: Vec<String> = challenges
            .iter()
            .map(|c| {
                let parameters: Vec<String> = c
                    .parameters
                    .iter()
                    .map(|(k, v)| format!("{k}={v}"))
                    .collect();
                format!("{}[{}]", c.scheme, parameters.join(";"))
            })
            .collect();
        shown.join(" ")
    }

    #[test]
    fn g1_challenges_of_every_shape_are_read() {
        for (headers, expected) in [
            (
                &[r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#][..],
                "bearer[realm=https://a/t;scope=repository:a/b:pull,push;service=s]",
            ),
            (
                &["bearer realm=https://a/t,service=s"],
                "bearer[realm=https://a/t;service=s]",
            ),
            (
                &[r#"Basic realm="x""#, r#"Bearer realm="https://a/t?k=v""#],
                "basic[realm=x] bearer[realm=https://a/t?k=v]",
            ),
            (
                &[r#"Basic realm="x", Bearer realm="y", service = "z""#],
                "basic[realm=x] bearer[realm=y;service=z]",
            ),
            (&[r#"Bearer realm="a\"b""#], "bearer[realm=a\"b]"),
            (&["Negotiate"], "negotiate[]"),
            (&["Negotiate abc=="], "negotiate[abc==]"),
            (&[r#"Bearer realm="open"#], "bearer[realm=open]"),
            (&["realm=x"], ""),
            (&["", ",,", "=\""], ""),
        ] {
            assert_eq!(
                show(&parse(headers.iter().copied())),
                expected,
                "{headers:?}"
            );
        }
    }
}
