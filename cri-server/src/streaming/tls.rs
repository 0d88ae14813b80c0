//! TLS for a streaming server that is reached over a network: the certificate and key are read
//! anew whenever their files change, so that they can be renewed under a running daemon.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::failure::{Doing as _, Failure};

/// The largest file of certificates or keys read.
const MAX_FILE: u64 = 1 << 20;

/// The server's identity.
#[derive(Debug)]
pub(super) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: Mutex<Current>,
}

struct Current {
    of: [Stamp; 2],
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current")
            .field("of", &self.of)
            .finish_non_exhaustive()
    }
}

/// Tells one content of a file from another: device, inode, size, and when it was changed.
type Stamp = (u64, u64, u64, i64, i64);

impl Tls {
    /// # Errors
    /// When the files can't be read, or hold no certificate and its key.
    pub(super) fn open(certificate: PathBuf, key: PathBuf) -> Result<Self, Failure> {
        let current = Mutex::new(load(&certificate, &key)?);
        Ok(Self {
            certificate,
            key,
            current,
        })
    }

    /// What greets the next client. Files that can't be used leave the former identity in force.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let of = [stamp(&self.certificate), stamp(&self.key)];
        if let [Ok(certificate), Ok(key)] = of
            && current.of != [certificate, key]
        {
            match load(&self.certificate, &self.key) {
                Ok(renewed) => {
                    tracing::info!("the streaming server has a new certificate");
                    *current = renewed;
                }
                Err(failure) => {
                    tracing::error!(%failure, "the streaming server keeps its former certificate");
                    // Said once for each change.
                    current.of = [certificate, key];
                }
            }
        }
        current.acceptor.clone()
    }
}

fn stamp(path: &Path) -> Result<Stamp, Failure> {
    let found = fs::metadata(path).doing(format!("read {}", path.display()))?;
    Ok((
        found.dev(),
        found.ino(),
        found.len(),
        found.mtime(),
        found.mtime_nsec(),
    ))
}

fn load(certificate: &Path, key: &Path) -> Result<Current, Failure> {
    // Before the content, so that a change in between is seen the next time.
    let of = [stamp(certificate)?, stamp(key)?];
    let reading = || format!("read the certificates in {}", certificate.display());
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .doing(reading())?;
    if chain.is_empty() {
        return Err(Failure::invalid(format!("{}: there are none", reading())));
    }
    let reading = || format!("read the key in {}", key.display());
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).doing(reading())?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .doing(format!("use {} with its key", certificate.display()))?;
    Ok(Current {
        of,
        acceptor: TlsAcceptor::from(Arc::new(config)),
    })
}

fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, Failure> {
    let doing = || format!("read {}", path.display());
    let found = fs::metadata(path).doing(doing())?;
    if !found.is_file() || found.len() > MAX_FILE {
        return Err(Failure::invalid(format!(
            "{}: a file of at most {MAX_FILE} bytes is needed",
            doing()
        )));
    }
    fs::read(path).map(zeroize::Zeroizing::new).doing(doing())
}

#[cfg(test)]
mod tests;
