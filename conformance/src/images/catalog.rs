//! Which test image holds what, and under which names it is served.
//!
//! The names are those critest 1.37 pulls (`pkg/validate/consts.go` of cri-tools); the content is
//! equivalent, not equal, to the published images. Base of all but one is `busybox`: Debian's
//! dynamic busybox with its libraries, because the static one's shell runs applets without looking
//! at PATH. Applets are hard links: a test masks `/bin/ls`, and through symbolic links it would
//! mask `sh` as well.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::debian::{Packages, multiarch, run};
use super::{Compression, Image, ImageBuilder, PackedLayer, go_arch};
use crate::tar::{Entry, Layer};

/// An image and the references it is served under.
#[derive(Debug)]
pub struct Named {
    /// `host/repository:tag`, or without tag if only the digest is to resolve.
    pub references: Vec<String>,
    /// The content.
    pub image: Image,
}

/// The plain busybox image, for tests of our own.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// nginx on port 80.
pub const NGINX: &str = "registry.k8s.io/e2e-test-images/nginx:1.14-2";
/// The image that has only the probe program, under `/probe`.
pub const PROBE: &str = "bulkhead.test/probe:1";
/// The reference critest pulls by digest; the digest is ours and replaced in its source.
pub const BY_DIGEST: &str = "gcr.io/k8s-staging-cri-tools/test-image-digest";

const BASE_LIBRARIES: &[&str] = &["libc.so.6", "libresolv.so.2", "libm.so.6"];
const NGINX_LIBRARIES: &[&str] = &[
    "libcrypt.so.1",
    "libpcre2-8.so.0",
    "libssl.so.3",
    "libcrypto.so.3",
    "libz.so.1",
];

/// Builds all of them. `folder` is for the packages and the compiled probe.
pub fn build(packages: &Packages, probe: &[u8]) -> Result<Vec<Named>> {
    let base = PackedLayer::new(busybox_layer(packages, probe)?, Compression::Gzip)?;
    let busybox = || {
        ImageBuilder::new()
            .packed(base.clone())
            .config("Env", path_variable())
    };
    let staging = |name: &str| format!("gcr.io/k8s-staging-cri-tools/{name}");
    let e2e = |name: &str| format!("registry.k8s.io/e2e-test-images/{name}");
    let mut all = vec![
        Named {
            references: vec![BUSYBOX.to_owned()],
            image: busybox().config("Cmd", json!(["sh"])).build()?,
        },
        Named {
            references: vec![PROBE.to_owned()],
            image: ImageBuilder::new()
                .layer(Layer::new().entry(Entry::file("probe", probe).mode(0o755)))?
                .config("Entrypoint", json!(["/probe"]))
                .config("Cmd", json!(["sleep"]))
                .build()?,
        },
        Named {
            references: ["registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"]
                .map(str::to_owned)
                .to_vec(),
            image: ImageBuilder::new()
                .layer(Layer::new().entry(Entry::file("pause", probe).mode(0o755)))?
                .config("Entrypoint", json!(["/pause", "sleep"]))
                .build()?,
        },
        Named {
            references: vec![e2e("nonewprivs:1.3")],
            image: busybox()
                .layer(Layer::new().entry(Entry::file("nonewprivs", probe).mode(0o4755)))?
                .config("Entrypoint", json!(["/nonewprivs"]))
                .build()?,
        },
    ];
    let nginx = PackedLayer::new(nginx_layer(packages)?, Compression::Gzip)?;
    // The suite looks for the server's name in the log of the one that goes by `httpd`.
    let talking = [
        "sh",
        "-c",
        "echo httpd is starting; exec nginx -g 'daemon off;'",
    ];
    let plain = ["nginx", "-g", "daemon off;"];
    for (reference, command, port) in [
        (NGINX.to_owned(), &plain, 80),
        (e2e("httpd:2.4.39-4"), &talking, 80),
        (
            staging(&format!("hostnet-nginx-{}:latest", go_arch())),
            &plain,
            12003,
        ),
    ] {
        let image = busybox()
            .packed(nginx.clone())
            .layer(Layer::new().file("etc/nginx/nginx.conf", nginx_config(port)))?
            .config("Cmd", json!(command))
            .config("StopSignal", json!("SIGQUIT"))
            .build()?;
        all.push(Named {
            references: vec![reference],
            image,
        });
    }
    for (name, user) in [
        ("test-image-user-uid", "1002"),
        ("test-image-user-username", "www-data"),
        ("test-image-user-uid-group", "1003:1004"),
        ("test-image-user-username-group", "www-data:1004"),
        ("test-image-predefined-group", "1000"),
    ] {
        let image = busybox()
            .config("User", json!(user))
            .config("Cmd", json!(["sh"]))
            .build()?;
        all.push(Named {
            references: vec![staging(&format!("{name}:latest"))],
            image,
        });
    }
    for tags in [
        &["test-image-latest:latest"][..],
        &["test-image-tag:test"],
        &["test-image-tag:all"],
        &["test-image-1:latest"],
        &["test-image-2:latest"],
        &["test-image-3:latest"],
        &[
            "test-image-tags:1",
            "test-image-tags:2",
            "test-image-tags:3",
        ],
    ] {
        let mark = Layer::new().file(&format!("marks/{}", tags[0].replace(':', "-")), tags[0]);
        let image = busybox()
            .layer(mark)?
            .config("Cmd", json!(["sh"]))
            .build()?;
        all.push(Named {
            references: tags.iter().map(|tag| staging(tag)).collect(),
            image,
        });
    }
    all.push(Named {
        references: vec![BY_DIGEST.to_owned()],
        image: by_digest()?,
    });
    Ok(all)
}

/// The image whose digest is compiled into critest, so nothing of Debian's is in it.
pub fn by_digest() -> Result<Image> {
    ImageBuilder::new()
        .packed(PackedLayer::new(
            Layer::new().file("mark", "by digest\n"),
            Compression::None,
        )?)
        .platform("linux", go_arch())
        .build()
}

/// Compiles the probe program, static, with the `rustc` that built this crate.
pub fn compile_probe(folder: &std::path::Path) -> Result<Vec<u8>> {
    let source = folder.join("probe.rs");
    let output = folder.join("probe");
    std::fs::create_dir_all(folder)?;
    std::fs::write(&source, include_str!("../bin/probe.rs"))?;
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    run(Command::new("rustc")
        .args([
            "--edition=2024",
            "-Copt-level=s",
            "-Cpanic=abort",
            "-Cstrip=symbols",
        ])
        .args([
            "-Ctarget-feature=+crt-static",
            "-Awarnings",
            "--target",
            &target,
        ])
        .arg(&source)
        .arg("-o")
        .arg(&output))?;
    std::fs::read(&output).with_context(|| format!("read {}", output.display()))
}

fn path_variable() -> serde_json::Value {
    json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
}

fn busybox_layer(packages: &Packages, probe: &[u8]) -> Result<Layer> {
    let mut layer = Layer::new();
    for folder in [
        "bin", "dev", "etc", "home", "lib", "lib64", "mnt", "proc", "root", "run",
    ] {
        layer.push(&Entry::directory(folder));
    }
    for folder in [
        "sys", "usr", "usr/bin", "usr/sbin", "var", "var/run", "var/log", "var/www",
    ] {
        layer.push(&Entry::directory(folder));
    }
    layer.push(&Entry::directory("tmp").mode(0o1777));
    let program = packages.path(&["bin/busybox", "usr/bin/busybox"])?;
    let binary = std::fs::read(&program)?;
    layer.push(&Entry::file("bin/busybox", binary).mode(0o755));
    let listing = Command::new(&program)
        .arg("--list")
        .output()
        .context("ask busybox's applets")?;
    for applet in String::from_utf8_lossy(&listing.stdout).lines() {
        if applet != "busybox" {
            // Unpackers apply a link's mode to the file it shares.
            let link = Entry::hard_link(&format!("bin/{applet}"), "bin/busybox");
            layer.push(&link.mode(0o755));
        }
    }
    layer.push(&Entry::file("bin/probe", probe).mode(0o755));
    layer.push(&Entry::hard_link("bin/pgrep", "bin/probe").mode(0o755));
    let ipcs = packages.read(&["usr/bin/ipcs"])?;
    layer.push(&Entry::file("usr/bin/ipcs", ipcs).mode(0o755));
    push_libraries(&mut layer, packages, BASE_LIBRARIES)?;
    let (loader, at) = loader();
    let name = format!("lib/{}/{loader}", multiarch());
    let bytes = packages.read(&[&name, &format!("usr/{name}"), at])?;
    layer.push(&Entry::file(at, bytes).mode(0o755));
    layer.push(&Entry::file(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         www-data:x:33:33:www-data:/var/www:/bin/false\n\
         default-user:x:1000:1000::/home:/bin/sh\n\
         nobody:x:65534:65534:nobody:/home:/bin/false\n",
    ));
    layer.push(&Entry::file(
        "etc/group",
        "root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\n\
         group-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n",
    ));
    Ok(layer)
}

/// The dynamic loader's file and the path compiled into every program (ELF `PT_INTERP`).
fn loader() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "aarch64" => ("ld-linux-aarch64.so.1", "lib/ld-linux-aarch64.so.1"),
        _ => ("ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2"),
    }
}

fn push_libraries(layer: &mut Layer, packages: &Packages, names: &[&str]) -> Result<()> {
    let folder = format!("lib/{}", multiarch());
    layer.push(&Entry::directory(&folder));
    for (name, bytes) in packages.libraries(names)? {
        layer.push(&Entry::file(&format!("{folder}/{name}"), bytes).mode(0o755));
    }
    Ok(())
}

fn nginx_layer(packages: &Packages) -> Result<Layer> {
    let mut layer = Layer::new();
    let binary = packages.read(&["usr/sbin/nginx"])?;
    layer.push(&Entry::file("usr/sbin/nginx", binary).mode(0o755));
    push_libraries(&mut layer, packages, NGINX_LIBRARIES)?;
    for folder in [
        "etc/nginx",
        "var/log/nginx",
        "var/lib/nginx",
        "var/www/html",
    ] {
        layer.push(&Entry::directory(folder));
    }
    layer.push(&Entry::file(
        "var/www/html/index.html",
        "<h1>Welcome to nginx!</h1>\n",
    ));
    Ok(layer)
}

fn nginx_config(port: u16) -> String {
    format!(
        "user www-data;\n\
         worker_processes 1;\n\
         pid /var/run/nginx.pid;\n\
         error_log /dev/stderr warn;\n\
         events {{ worker_connections 64; }}\n\
         http {{\n\
         \x20 access_log /dev/stdout;\n\
         \x20 server {{ listen {port}; listen [::]:{port}; root /var/www/html; index index.html; }}\n\
         }}\n"
    )
}
