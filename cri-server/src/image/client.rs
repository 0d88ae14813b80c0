//! HTTP clients: one per way of proving identity, each in a guarded and an unguarded form.
//!
//! A guarded client refuses to connect to loopback and link-local addresses, judged on the address
//! a name resolved to at the moment of connecting, so that no public registry can send us to the
//! node's own services or its metadata address (threat K2). It is used for wherever a registry
//! points us; the places an operator or a pod's author named use the other.
//!
//! Proxies from the environment (`HTTPS_PROXY`, `NO_PROXY`) are honoured, except for loopback hosts.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::tls::{Certificate, Identity};
use reqwest::{Client, Url};

use super::gc::lock;
use super::hosts::{Tls, host_of, is_loopback_host};
use crate::failure::{Doing as _, Failure};

/// How a connection is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    tls: Tls,
    secure: bool,
    guarded: bool,
    loopback: bool,
    dial_timeout: Option<Duration>,
}

/// The clients made so far. Those of configured certificates aren't kept, so that renewed files count.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    made: Mutex<HashMap<Key, Client>>,
    roots: OnceLock<Vec<Certificate>>,
}

impl Clients {
    /// The client for `url`.
    pub(crate) fn get(
        &self,
        url: &Url,
        tls: &Tls,
        guarded: bool,
        dial_timeout: Option<Duration>,
        stall: Duration,
    ) -> Result<Client, Failure> {
        let key = Key {
            tls: tls.clone(),
            secure: url.scheme() == "https",
            guarded,
            loopback: is_loopback_host(&host_of(url)),
            dial_timeout,
        };
        let lasting = key.tls == Tls::default();
        if lasting && let Some(client) = lock(&self.made).get(&key) {
            return Ok(client.clone());
        }
        let client = self
            .build(&key, stall)
            .map_err(|e| e.context(format!("prepare to ask {}", host_of(url))))?;
        if lasting {
            lock(&self.made).insert(key, client.clone());
        }
        Ok(client)
    }

    fn build(&self, key: &Key, stall: Duration) -> Result<Client, Failure> {
        // An error means that the process has chosen one already, as main does.
        rustls::crypto::aws_lc_rs::default_provider()
            .install_default()
            .ok();
        let mut builder = Client::builder()
            .user_agent(concat!("bulkhead/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(
                key.dial_timeout
                    .unwrap_or(stall.min(Duration::from_secs(30))),
            )
            .read_timeout(stall)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(4)
            .http1_max_headers(128);
        let mut roots = Vec::new();
        if key.secure {
            roots.extend_from_slice(self.roots());
            for path in &key.tls.ca {
                let certificates = Certificate::from_pem_bundle(&read(path)?)
                    .doing(format!("read the authorities {}", path.display()))?;
                roots.extend(certificates);
            }
            if let Some((certificate, private)) = &key.tls.client {
                let mut pem = read(certificate)?;
                if let Some(private) = private {
                    pem.push(b'\n');
                    pem.extend_from_slice(&read(private)?);
                }
                let identity = Identity::from_pem(&pem).doing(format!(
                    "read the client certificate {}",
                    certificate.display()
                ))?;
                builder = builder.identity(identity);
            }
            if key.tls.skip_verify {
                builder = builder.tls_danger_accept_invalid_certs(true);
            }
        }
        // Only these: an empty list is no fall-back to built-in ones.
        builder = builder.tls_certs_only(roots);
        if key.guarded {
            builder = builder.dns_resolver(PublicOnly);
        }
        if key.loopback {
            builder = builder.no_proxy();
        }
        builder.build().doing("make an HTTP client")
    }

    /// The system's authorities, read once.
    fn roots(&self) -> &[Certificate] {
        self.roots.get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "an authority of the system cannot be read");
            }
            if found.certs.is_empty() {
                tracing::warn!("the system has no certificate authorities (Debian: ca-certificates): registries over TLS need `ca` in hosts.toml");
            }
            found
                .certs
                .iter()
                .filter_map(|der| Certificate::from_der(der).ok())
                .collect()
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).doing(format!("read {}", path.display()))
}

/// Whether an address is the node itself or reaches only its own link.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.octets()[0] == 0
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_local(IpAddr::V4(v4)),
            None => v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local(),
        },
    }
}

/// Whether a URL names a local address outright; names are judged by [`PublicOnly`] later.
pub(crate) fn names_local_address(url: &Url) -> bool {
    let host = url.host_str().unwrap_or("");
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(is_local)
}

/// Resolves as the system does, and leaves out local addresses.
#[derive(Debug)]
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let public: Vec<SocketAddr> = found
                .iter()
                .copied()
                .filter(|a| !is_local(a.ip()))
                .collect();
            if public.is_empty() && !found.is_empty() {
                return Err("it resolves to an address of this node or its link, where no registry may send us".into());
            }
            let addresses: Addrs = Box::new(public.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k2_local_addresses_are_known_in_every_spelling() {
        for (url, local) in [
            ("http://127.0.0.1/", true),
            ("http://127.1/", true),
            ("http://2130706433/", true),
            ("http://0x7f000001/", true),
            ("http://0177.0.0.1/", true),
            ("http://0.0.0.0/", true),
            ("http://169.254.169.254/", true),
            ("http://2852039166/", true),
            ("http://[::1]/", true),
            ("http://[::]/", true),
            ("http://[fe80::1]/", true),
            ("http://[::ffff:169.254.169.254]/", true),
            ("http://localhost:5000/", true),
            ("http://10.0.0.1/", false),
            ("http://[2001:db8::1]/", false),
            ("http://registry.example/", false),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(names_local_address(&url), local, "{url}");
        }
    }

    #[tokio::test]
    async fn k2_a_name_is_judged_by_what_it_resolves_to() {
        use std::str::FromStr as _;
        let name = Name::from_str("localhost").unwrap();
        let text = match PublicOnly.resolve(name).await {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        };
        assert!(text.contains("this node"), "{text}");
    }
}
