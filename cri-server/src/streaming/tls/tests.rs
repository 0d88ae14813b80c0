use std::process::Command;

use super::*;

/// A self-signed certificate and its key, by the openssl program.
fn make(folder: &Path, name: &str) -> Option<(PathBuf, PathBuf)> {
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args(["-days", "1", "-subj", &format!("/CN={name}"), "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    match made {
        Ok(made) if made.status.success() => Some((certificate, key)),
        _ => {
            eprintln!("SKIPPED: no openssl to make a certificate with");
            None
        }
    }
}

#[test]
fn a_renewed_certificate_is_used_and_a_broken_one_is_not() {
    // Another test may have installed it, which serves as well.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let folder = tempfile::tempdir().unwrap();
    let Some((certificate, key)) = make(folder.path(), "one") else {
        return;
    };
    let tls = Tls::open(certificate.clone(), key.clone()).unwrap();
    let config = |tls: &Tls| Arc::as_ptr(tls.acceptor().config());
    let first = config(&tls);
    assert_eq!(first, config(&tls), "kept while nothing changes");
    make(folder.path(), "two").unwrap();
    let second = config(&tls);
    assert_ne!(first, second);
    fs::write(&certificate, "garbage").unwrap();
    assert_eq!(second, config(&tls));
    fs::remove_file(&key).unwrap();
    assert_eq!(second, config(&tls));
}

#[test]
fn files_that_hold_no_identity_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("a.crt"), folder.path().join("a.key"));
    for content in ["", "garbage", "-----BEGIN CERTIFICATE-----\n"] {
        fs::write(&certificate, content).unwrap();
        fs::write(&key, content).unwrap();
        let failure = Tls::open(certificate.clone(), key.clone()).unwrap_err();
        assert!(failure.message().contains("a.crt"), "{failure}");
    }
    let missing = Tls::open(folder.path().join("none"), key).unwrap_err();
    assert!(missing.message().contains("none"), "{missing}");
}
