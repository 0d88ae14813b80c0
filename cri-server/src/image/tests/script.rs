//! A registry that answers exactly as told and remembers what it was asked. HTTP by hand, so that
//! bodies can be cut, stalled and lied about.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::image::Digest;
use crate::image::unpack::testing::{end, entry};

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

#[derive(Clone, Debug)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    chunked: bool,
    cut: Option<usize>,
    stall: Option<usize>,
}

impl Reply {
    pub(super) fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            chunked: false,
            cut: None,
            stall: None,
        }
    }

    pub(super) fn ok(body: Vec<u8>) -> Self {
        Self {
            body,
            ..Self::status(200)
        }
    }

    pub(super) fn json(body: &str) -> Self {
        Self::ok(body.as_bytes().to_vec())
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(super) fn redirect(to: &str) -> Self {
        Self::status(307).header("Location", to)
    }

    pub(super) fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// Closes the connection after so many bytes of the body.
    pub(super) fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// Sends nothing more after so many bytes.
    pub(super) fn stall_after(mut self, bytes: usize) -> Self {
        self.stall = Some(bytes);
        self
    }

    fn send(&self, stream: &mut TcpStream, head_only: bool) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Told\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.chunked {
            head.push_str("Transfer-Encoding: chunked\r\n");
        } else if !self.headers.iter().any(|(n, _)| n == "Content-Length") {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if head_only {
            return Ok(());
        }
        let end = self.cut.or(self.stall).unwrap_or(self.body.len());
        let body = &self.body[..end.min(self.body.len())];
        if self.chunked {
            for chunk in body.chunks(100) {
                write!(stream, "{:x}\r\n", chunk.len())?;
                stream.write_all(chunk)?;
                stream.write_all(b"\r\n")?;
            }
            stream.write_all(b"0\r\n\r\n")?;
        } else {
            stream.write_all(body)?;
        }
        if self.stall.is_some() {
            // Until the other side goes.
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            std::io::Read::read(stream, &mut [0])?;
        }
        Ok(())
    }
}

type Handler = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

type Gate = Arc<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
struct Script {
    paths: HashMap<String, Handler>,
    gate: Option<Gate>,
    log: Vec<Request>,
}

/// The registry; its thread ends with the test's process.
pub(super) struct Registry {
    port: u16,
    script: Arc<Mutex<Script>>,
}

impl Registry {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let script: Arc<Mutex<Script>> = Arc::default();
        let shared = Arc::clone(&script);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let script = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &script));
            }
        });
        Self { port, script }
    }

    pub(super) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host())
    }

    pub(super) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host())
    }

    /// Sets the answer for a path.
    pub(super) fn answer(
        &self,
        path: &str,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) {
        let handler: Handler = Arc::new(handler);
        self.script
            .lock()
            .unwrap()
            .paths
            .insert(path.into(), handler);
    }

    /// Something that may answer before the paths do.
    pub(super) fn gate(&self, gate: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) {
        self.script.lock().unwrap().gate = Some(Arc::new(gate));
    }

    /// Serves a document as a tag and by its digest.
    pub(super) fn document(&self, repository: &str, tag: &str, bytes: &[u8]) {
        let digest = Digest::of(bytes).to_string();
        for target in [tag, &digest] {
            let (bytes, digest) = (bytes.to_vec(), digest.clone());
            self.answer(&format!("/v2/{repository}/manifests/{target}"), move |_| {
                Reply::ok(bytes.clone()).header("Docker-Content-Digest", &digest)
            });
        }
    }

    /// Serves a whole image.
    pub(super) fn serve(&self, repository: &str, tag: &str, content: &Content) {
        self.document(repository, tag, &content.manifest);
        let config = (content.config_digest.clone(), content.config.clone());
        for (digest, bytes) in content.layers.iter().cloned().chain([config]) {
            self.answer(
                &format!("/v2/{repository}/blobs/{digest}"),
                move |request| ranged(&bytes, request),
            );
        }
    }

    pub(super) fn log(&self) -> Vec<Request> {
        self.script.lock().unwrap().log.clone()
    }

    /// Requests as "METHOD path?query".
    pub(super) fn asked(&self) -> Vec<String> {
        let line = |r: &Request| match r.query.as_str() {
            "" => format!("{} {}", r.method, r.path),
            query => format!("{} {}?{query}", r.method, r.path),
        };
        self.log().iter().map(line).collect()
    }

    /// Blobs asked for that aren't the config.
    pub(super) fn layer_requests(&self) -> Vec<String> {
        let mut blobs: Vec<String> = self.asked();
        blobs.retain(|a| a.contains("/blobs/"));
        // The config is asked for first, by every pull that lacks it.
        let config = blobs.first().cloned();
        blobs.retain(|b| Some(b) != config.as_ref());
        blobs
    }

    pub(super) fn forget(&self) {
        self.script.lock().unwrap().log.clear();
    }
}

/// The bytes, or the range asked for.
pub(super) fn ranged(bytes: &[u8], request: &Request) -> Reply {
    let Some(range) = request.headers.get("range") else {
        return Reply::ok(bytes.to_vec());
    };
    let (first, last) = range
        .strip_prefix("bytes=")
        .unwrap()
        .split_once('-')
        .unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let mut reply = Reply::ok(bytes[first..=last].to_vec());
    reply.status = 206;
    reply.header(
        "Content-Range",
        &format!("bytes {first}-{last}/{}", bytes.len()),
    )
}

fn serve(mut stream: TcpStream, script: &Mutex<Script>) {
    let Some(request) = read(&stream) else {
        return;
    };
    let (gate, handler) = {
        let mut script = script.lock().unwrap();
        script.log.push(request.clone());
        (
            script.gate.clone(),
            script.paths.get(&request.path).cloned(),
        )
    };
    let reply = gate
        .and_then(|gate| gate(&request))
        .or_else(|| handler.map(|handler| handler(&request)))
        .unwrap_or_else(|| Reply::status(404));
    // The other side may go at any time.
    reply.send(&mut stream, request.method == "HEAD").ok();
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    std::io::Read::read_exact(&mut reader, &mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: String::from_utf8(body).ok()?,
    })
}

/// An image as a registry has it.
#[derive(Clone)]
pub(super) struct Content {
    pub digest: String,
    pub manifest: Vec<u8>,
    pub config_digest: String,
    pub config: Vec<u8>,
    /// Digest and bytes.
    pub layers: Vec<(String, Vec<u8>)>,
}

impl Content {
    /// Layers of small files, compressed by gzip.
    pub(super) fn image(layers: &[&[(&str, &str)]]) -> Self {
        Self::of_layers(layers.iter().map(|files| tar_of(files)).collect())
    }

    pub(super) fn of_layers(tars: Vec<Vec<u8>>) -> Self {
        let blobs = tars.iter().map(|tar| gzip(tar)).collect();
        Self::of_blobs(&tars, blobs, str::to_owned)
    }

    /// `edit` changes the manifest's text, in which layers have the type LAYER.
    pub(super) fn of_blobs(
        tars: &[Vec<u8>],
        blobs: Vec<Vec<u8>>,
        edit: impl FnOnce(&str) -> String,
    ) -> Self {
        let diff_ids: Vec<String> = tars
            .iter()
            .map(|t| format!("\"{}\"", Digest::of(t)))
            .collect();
        let config = format!(
            r#"{{"architecture":"{}","os":"linux","config":{{"Cmd":["/a"],"User":"7:8"}},
                "rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            host_arch(),
            diff_ids.join(",")
        )
        .into_bytes();
        let layers: Vec<(String, Vec<u8>)> = blobs
            .into_iter()
            .map(|blob| (Digest::of(&blob).to_string(), blob))
            .collect();
        let described: Vec<String> = layers
            .iter()
            .map(|(digest, blob)| {
                format!(
                    r#"{{"mediaType":"LAYER","digest":"{digest}","size":{}}}"#,
                    blob.len()
                )
            })
            .collect();
        let config_digest = Digest::of(&config).to_string();
        let manifest = edit(&format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config_digest}","size":{}}},"layers":[{}]}}"#,
            config.len(),
            described.join(",")
        ))
        .into_bytes();
        Self {
            digest: Digest::of(&manifest).to_string(),
            manifest,
            config_digest,
            config,
            layers,
        }
    }
}

pub(super) fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, text) in files {
        tar.extend(entry(b'0', name).bytes(text.as_bytes()));
    }
    tar.extend(end());
    tar
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn host_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
