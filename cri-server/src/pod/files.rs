//! The files a pod's containers share: hostname, hosts, resolv.conf. Containers whose request
//! mounts something there get that instead.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::failure::{Doing, Failure};
use crate::request::sandbox::SandboxRequest;

/// The most of a file of the node that is copied for a pod.
const MAX_COPY: u64 = 1 << 20;

/// Paths of a pod's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFiles {
    /// `/etc/hostname`.
    pub hostname: PathBuf,
    /// `/etc/hosts`.
    pub hosts: PathBuf,
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

impl PodFiles {
    /// Where the files of the pod with this directory are.
    pub fn of(directory: &Path) -> Self {
        let files = directory.join("files");
        Self {
            hostname: files.join("hostname"),
            hosts: files.join("hosts"),
            resolv_conf: files.join("resolv.conf"),
        }
    }
}

/// Writes the files below the pod's directory.
///
/// # Errors
/// When one can't be written, or the node's own can't be read.
pub fn write(directory: &Path, request: &SandboxRequest) -> Result<(), Failure> {
    let files = PodFiles::of(directory);
    let folder = directory.join("files");
    std::fs::create_dir_all(&folder).doing(format!("make {}", folder.display()))?;
    write_file(
        &files.hostname,
        format!("{}\n", hostname(request)).as_bytes(),
    )?;
    write_file(&files.hosts, &copy_of(Path::new("/etc/hosts"))?)?;
    let resolv_conf = match &request.dns {
        Some(dns) => dns.render().into_bytes(),
        None => copy_of(Path::new("/etc/resolv.conf"))?,
    };
    write_file(&files.resolv_conf, &resolv_conf)
}

/// The pod's host name; with the node's network it is the node's.
pub fn hostname(request: &SandboxRequest) -> String {
    match &request.hostname {
        Some(name) => name.clone(),
        None => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
    }
}

/// A node without the file gives an empty one.
fn copy_of(path: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    match std::fs::File::open(path) {
        Ok(file) => {
            let mut content = Vec::new();
            file.take(MAX_COPY)
                .read_to_end(&mut content)
                .doing(format!("read {}", path.display()))?;
            Ok(content)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).doing(format!("read {}", path.display())),
    }
}

/// Mode 0644 whatever the umask: containers of any user read these (threat O1 is about the folder
/// above, which is ours alone).
fn write_file(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let doing = || format!("write {}", path.display());
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)
        .doing(doing())?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644)).doing(doing())?;
    file.write_all(content).doing(doing())
}
