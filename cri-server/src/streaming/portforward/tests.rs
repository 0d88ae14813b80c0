use super::*;

#[test]
fn a_port_is_a_number_from_1_to_65535() {
    for (text, expected) in [
        ("80", Some(80)),
        ("65535", Some(65_535)),
        ("0", None),
        ("65536", None),
        ("-1", None),
        ("http", None),
        ("", None),
    ] {
        assert_eq!(parse_port(text), expected, "{text:?}");
    }
}
