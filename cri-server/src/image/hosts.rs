//! Where a registry's content is asked for: `certs.d/<host>/hosts.toml`.
//!
//! The format is containerd's (its `docs/hosts.md`), so that operators keep their files:
//! `server`, ordered `[host."url"]` tables with `capabilities`, `ca`, `client`, `skip_verify`,
//! `header`, `override_path`, `dial_timeout`. The folder is named `<name>_<port>_`, `<host>` or
//! `_default`; the first that exists counts, in the order of the configured folders. Without a
//! `hosts.toml` in it, `*.crt` are authorities and `*.cert` with `*.key` client certificates, as
//! Docker has it. Unknown keys are let pass: the file is shared with other tools.
//!
//! Plain HTTP is used for a host only if an `http://` URL here says so, or if the host is loopback
//! (`localhost`, 127.0.0.0/8, `[::1]`) and its port isn't 443: containerd's rule too (threat K3).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::reference::DEFAULT_HOST;
use crate::failure::{Doing as _, Failure};

/// Largest hosts.toml.
const MAX_FILE: u64 = 1 << 20;

/// One place to ask.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Up to and including `/v2`, without a slash at the end.
    pub url: Url,
    /// May answer what a tag means.
    pub resolve: bool,
    /// May give content by digest.
    pub pull: bool,
    pub tls: Tls,
    pub headers: HeaderMap,
    pub dial_timeout: Option<Duration>,
    /// Told which registry is meant, by `?ns=`: it isn't that registry itself.
    pub mirror: bool,
    /// The registry's own place (`server`), whose credentials the caller's are.
    pub own: bool,
}

/// How its identity is checked and ours proved; equal ones share connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    /// Beside the system's authorities.
    pub ca: Vec<PathBuf>,
    /// Certificate and key; one file may hold both.
    pub client: Option<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: bool,
}

impl Endpoint {
    /// Host and port, as errors show it.
    pub(crate) fn host(&self) -> String {
        host_of(&self.url)
    }
}

/// Host with its port if that isn't the scheme's.
pub(crate) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or("");
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    own: Settings,
    #[serde(default)]
    host: toml::Table,
}

#[derive(Default, Deserialize)]
struct Settings {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: std::collections::BTreeMap<String, OneOrMany>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn list(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// `"both.pem"`, `["cert", …]`, or `[["cert", "key"], …]`; the first pair is used.
#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<OneOrMany>),
}

/// The places to ask for `host`'s content, in order; the registry itself comes last.
pub(crate) fn endpoints(certs_d: &[PathBuf], host: &str) -> Result<Vec<Endpoint>, Failure> {
    let Some(folder) = folder(certs_d, host) else {
        return Ok(vec![default_endpoint(host)?]);
    };
    let path = folder.join("hosts.toml");
    let what = || format!("read {}", path.display());
    let length = match std::fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let mut endpoint = default_endpoint(host)?;
            endpoint.tls = docker_style(&folder)?;
            return Ok(vec![endpoint]);
        }
        Err(e) => return Err(e).doing(what()),
    };
    if length > MAX_FILE {
        return Err(Failure::precondition("it is larger than 1 MiB").context(what()));
    }
    let text = std::fs::read_to_string(&path).doing(what())?;
    parse(&text, host, &folder).map_err(|e| e.context(what()))
}

fn folder(certs_d: &[PathBuf], host: &str) -> Option<PathBuf> {
    let underscored = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map(|(name, port)| format!("{name}_{port}_"));
    certs_d.iter().find_map(|root| {
        underscored
            .as_deref()
            .into_iter()
            .chain([host, "_default"])
            .map(|name| root.join(name))
            .find(|path| path.is_dir())
    })
}

fn parse(text: &str, host: &str, folder: &Path) -> Result<Vec<Endpoint>, Failure> {
    let file: File = toml::from_str(text)
        .map_err(|e| Failure::precondition(e.to_string().replace('\n', " ")))?;
    let mut endpoints = Vec::new();
    for (url, table) in file.host {
        let settings: Settings = table
            .try_into()
            .map_err(|e| Failure::precondition(format!("[host.{url:?}]: {}", e.message())))?;
        let endpoint = endpoint(&url, &settings, host, folder)
            .map_err(|e| e.context(format!("[host.{url:?}]")))?;
        endpoints.push(endpoint);
    }
    let mut own = match &file.server {
        Some(server) => endpoint(server, &file.own, host, folder)
            .map_err(|e| e.context(format!("server {server:?}")))?,
        None => {
            let url = default_endpoint(host)?.url;
            endpoint(url.as_str(), &file.own, host, folder)?
        }
    };
    own.own = true;
    endpoints.push(own);
    Ok(endpoints)
}

fn endpoint(
    text: &str,
    settings: &Settings,
    host: &str,
    folder: &Path,
) -> Result<Endpoint, Failure> {
    let bad = |why: &str| Failure::precondition(why.to_owned());
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let mut url = Url::parse(&whole).map_err(|e| bad(&e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(bad("it is no http or https URL"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("credentials don't belong into a URL; use `header`"));
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/').to_owned();
    if settings.override_path || path.ends_with("/v2") {
        url.set_path(&path);
    } else {
        url.set_path(&format!("{path}/v2"));
    }
    let able = |what: &str| {
        settings
            .capabilities
            .as_ref()
            .is_none_or(|list| list.iter().any(|c| c == what))
    };
    let mut headers = HeaderMap::new();
    for (name, values) in &settings.header {
        let name: HeaderName = name
            .parse()
            .map_err(|_| bad(&format!("header name {name:?}")))?;
        for value in values.list() {
            let mut value = HeaderValue::from_str(value).map_err(|_| {
                bad(&format!(
                    "the value of header {name} holds a control character"
                ))
            })?;
            value.set_sensitive(true);
            headers.append(&name, value);
        }
    }
    let place = host_of(&url);
    let mirror = place != host && !(host == DEFAULT_HOST && place == "registry-1.docker.io");
    let at = |path: &String| folder.join(path);
    Ok(Endpoint {
        resolve: able("resolve"),
        pull: able("pull"),
        tls: Tls {
            ca: settings
                .ca
                .iter()
                .flat_map(|list| list.list())
                .map(at)
                .collect(),
            client: client_pair(settings.client.as_ref(), folder),
            skip_verify: settings.skip_verify,
        },
        headers,
        dial_timeout: settings.dial_timeout.as_deref().map(duration).transpose()?,
        mirror,
        own: false,
        url,
    })
}

fn client_pair(client: Option<&Client>, folder: &Path) -> Option<(PathBuf, Option<PathBuf>)> {
    let names: Vec<&String> = match client? {
        Client::One(one) => vec![one],
        Client::Many(many) => match many.first()? {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(pair) => pair.iter().collect(),
        },
    };
    let certificate = folder.join(names.first()?);
    let key = names.get(1).filter(|k| !k.is_empty());
    Some((certificate, key.map(|k| folder.join(k))))
}

/// Go's durations, as far as a time-out needs them.
fn duration(text: &str) -> Result<Duration, Failure> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    units
        .iter()
        .find_map(|(unit, factor)| {
            let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
            number.checked_mul(*factor).map(Duration::from_millis)
        })
        .ok_or_else(|| {
            Failure::precondition(format!("dial_timeout {text:?} is no time like \"5s\""))
        })
}

/// What an unconfigured host means.
fn default_endpoint(host: &str) -> Result<Endpoint, Failure> {
    let (scheme, place) = match host {
        DEFAULT_HOST => ("https", "registry-1.docker.io"),
        _ if is_loopback_host(host) && !host.ends_with(":443") => ("http", host),
        _ => ("https", host),
    };
    let url = Url::parse(&format!("{scheme}://{place}/v2"))
        .map_err(|e| Failure::invalid(format!("registry {host:?}: {e}")))?;
    Ok(Endpoint {
        url,
        resolve: true,
        pull: true,
        tls: Tls::default(),
        headers: HeaderMap::new(),
        dial_timeout: None,
        mirror: false,
        own: true,
    })
}

/// `localhost` or a loopback address, with or without a port.
pub(crate) fn is_loopback_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn docker_style(folder: &Path) -> Result<Tls, Failure> {
    let what = format!("read {}", folder.display());
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).doing(&what)? {
        names.push(entry.doing(&what)?.path());
    }
    names.sort();
    let with = |extension: &str| {
        let extension = extension.to_owned();
        move |path: &&PathBuf| path.extension().is_some_and(|e| *e == *extension)
    };
    Ok(Tls {
        ca: names.iter().filter(with("crt")).cloned().collect(),
        client: names
            .iter()
            .find(with("cert"))
            .map(|cert| (cert.clone(), Some(cert.with_extension("key")))),
        skip_verify: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(endpoints: &[Endpoint]) -> Vec<String> {
        endpoints
            .iter()
            .map(|e| {
                let flags = [
                    (e.resolve, "resolve"),
                    (e.pull, "pull"),
                    (e.mirror, "ns"),
                    (e.own, "own"),
                ];
                let flags: Vec<_> = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
                format!("{} {}", e.url, flags.join(","))
            })
            .collect()
    }

    #[test]
    fn an_unconfigured_host_is_asked_by_https_unless_it_is_loopback() {
        for (host, url) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("r.io:5000", "https://r.io:5000/v2"),
            ("localhost", "http://localhost/v2"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
            ("127.9.9.9:5000", "http://127.9.9.9:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("localhost:443", "https://localhost/v2"),
            ("localhost.evil.io", "https://localhost.evil.io/v2"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
        ] {
            assert_eq!(default_endpoint(host).unwrap().url.as_str(), url);
        }
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_registry_last() {
        let text = r#"
            server = "https://registry-1.docker.io"
            [host."https://z.mirror/some/path"]
              capabilities = ["pull"]
              ca = ["a.crt", "/abs/b.crt"]
              client = [["c.cert", "c.key"]]
              dial_timeout = "5s"
              [host."https://z.mirror/some/path".header]
                x-token = ["a", "b"]
            [host."http://a.mirror:5000/v2"]
              skip_verify = true
            [host."b.mirror/own"]
              override_path = true
              some_future_key = 1
        "#;
        let endpoints = parse(text, "docker.io", Path::new("/c/docker.io")).unwrap();
        assert_eq!(
            show(&endpoints),
            [
                "https://z.mirror/some/path/v2 pull,ns",
                "http://a.mirror:5000/v2 resolve,pull,ns",
                "https://b.mirror/own resolve,pull,ns",
                "https://registry-1.docker.io/v2 resolve,pull,own",
            ]
        );
        let first = &endpoints[0];
        let ca = [
            PathBuf::from("/c/docker.io/a.crt"),
            PathBuf::from("/abs/b.crt"),
        ];
        assert_eq!(first.tls.ca, ca);
        let pair = (
            "/c/docker.io/c.cert".into(),
            Some("/c/docker.io/c.key".into()),
        );
        assert_eq!(first.tls.client, Some(pair));
        assert_eq!(first.headers.get_all("x-token").iter().count(), 2);
        assert_eq!(first.dial_timeout, Some(Duration::from_secs(5)));
        assert!(endpoints[1].tls.skip_verify);
        assert!(
            !format!("{:?}", first.headers).contains("\"a\""),
            "headers are secrets"
        );
    }

    #[test]
    fn the_folder_may_have_the_port_in_two_spellings_or_be_the_default() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let certs_d = [root.path().join("absent"), root.path().to_owned()];
        assert_eq!(folder(&certs_d, "r.io:5000"), None);
        for name in ["_default", "r.io:5000", "r.io_5000_"] {
            std::fs::create_dir(at(name)).unwrap();
            assert_eq!(folder(&certs_d, "r.io:5000"), Some(at(name)));
        }
        std::fs::write(at("_default").join("x.crt"), "").unwrap();
        std::fs::write(at("_default").join("y.cert"), "").unwrap();
        let endpoints = endpoints(&certs_d, "other.io").unwrap();
        assert_eq!(endpoints[0].tls.ca, [at("_default").join("x.crt")]);
        let pair = (at("_default/y.cert"), Some(at("_default/y.key")));
        assert_eq!(endpoints[0].tls.client, Some(pair));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_that_names_it() {
        for (text, why) in [
            ("server = 1", "expected"),
            ("server = ", "TOML"),
            ("server = \"ftp://x\"", "no http"),
            ("server = \"https://u:p@x\"", "credentials"),
            ("[host.\"https://\"]", "host"),
            ("[host.\"https://x\"]\ncapabilities = 1", "a sequence"),
            ("[host.\"https://x\"]\ndial_timeout = \"x\"", "dial_timeout"),
            (
                "[host.\"https://x\".header]\n\"a b\" = \"x\"",
                "header name",
            ),
            ("[host.\"https://x\".header]\na = \"x\\ny\"", "control"),
        ] {
            let failure = parse(text, "r.io", Path::new("/c")).expect_err(text);
            assert!(failure.message().contains(why), "{why}: {failure}");
        }
    }
}
