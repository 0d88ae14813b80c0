//! The socket the daemon serves: its own, or one inherited from the service manager.
//!
//! A socket of the service manager (`LISTEN_FDS`, sd_listen_fds(3)) outlives a restart of the
//! daemon: connections wait in its backlog meanwhile. After five refused attempts without a pause
//! the kubelet gives up its event stream for good, so this is how a node should run.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};

use crate::failure::{Doing, Failure};

/// What the socket file should look like.
#[derive(Clone, Debug)]
pub struct SocketFile {
    /// Absolute path.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Opens the listening socket: the inherited one, else `file`, replacing a stale one.
///
/// # Errors
/// When another process answers on the path, or it is not a socket, or the file can't be made.
pub fn open(file: &SocketFile) -> Result<UnixListener, Failure> {
    let listen_pid = std::env::var("LISTEN_PID").ok();
    let listen_fds = std::env::var("LISTEN_FDS").ok();
    let listener = if inherits(
        std::process::id(),
        listen_pid.as_deref(),
        listen_fds.as_deref(),
    )? {
        tracing::info!("serving the socket inherited from the service manager");
        adopt()?
    } else {
        create(file)?
    };
    listener
        .set_nonblocking(true)
        .doing("make the socket non-blocking")?;
    Ok(listener)
}

/// Whether the service manager passed exactly one socket to this process.
fn inherits(pid: u32, listen_pid: Option<&str>, listen_fds: Option<&str>) -> Result<bool, Failure> {
    let (Some(for_pid), Some(count)) = (listen_pid, listen_fds) else {
        return Ok(false);
    };
    if for_pid.parse() != Ok(pid) {
        return Ok(false);
    }
    match count.parse::<u32>() {
        Ok(0) => Ok(false),
        Ok(1) => Ok(true),
        _ => Err(Failure::invalid(format!(
            "LISTEN_FDS={count}: exactly one socket can be served; give the unit one ListenStream"
        ))),
    }
}

/// The first passed descriptor is number 3 (SD_LISTEN_FDS_START).
fn adopt() -> Result<UnixListener, Failure> {
    let descriptor = bulkhead_runtime::sys::inherit::adopt(3)
        .map_err(|error| Failure::internal(format!("take over the inherited socket: {error}")))?;
    Ok(UnixListener::from(descriptor))
}

fn create(file: &SocketFile) -> Result<UnixListener, Failure> {
    let doing = format!("listen on {}", file.path.display());
    remove_stale(&file.path).map_err(|failure| failure.context(&doing))?;
    let listener = UnixListener::bind(&file.path).doing(&doing)?;
    fs::set_permissions(&file.path, fs::Permissions::from_mode(file.mode)).doing(&doing)?;
    let (uid, gid) = (Uid::from_raw(file.uid), Gid::from_raw(file.gid));
    rustix::fs::chown(&file.path, Some(uid), Some(gid)).doing(&doing)?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::internal(error.to_string())),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Failure::precondition(
                "the path exists and is not a socket; remove it",
            ));
        }
        Ok(_) => {}
    }
    if UnixStream::connect(path).is_ok() {
        return Err(Failure::precondition(
            "another process is serving this socket; stop it or set another path",
        ));
    }
    fs::remove_file(path).doing("remove the stale socket")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_inherited_only_by_the_process_it_was_meant_for() {
        for (case, pid, count, expected) in [
            ("none passed", None, None, Ok(false)),
            ("for another process", Some("8"), Some("1"), Ok(false)),
            ("garbage for a pid", Some("x"), Some("1"), Ok(false)),
            ("one for us", Some("7"), Some("1"), Ok(true)),
            ("zero for us", Some("7"), Some("0"), Ok(false)),
            ("two for us", Some("7"), Some("2"), Err(())),
        ] {
            assert_eq!(inherits(7, pid, count).map_err(|_| ()), expected, "{case}");
        }
    }
}
