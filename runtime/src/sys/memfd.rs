//! Sealed memory files (memfd_create(2), Linux 3.17): an executable nobody can change, not even
//! through `/proc/<pid>/exe` of a process that runs it (CVE-2019-5736).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// Copies `source` into a new memory file that is executable, close-on-exec, and sealed against
/// writing, growing, shrinking and further sealing.
pub fn sealed_executable(name: &str, source: &mut impl io::Read) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // MFD_EXEC is Linux 6.3; older kernels make every memfd executable and refuse the flag.
    let memory = match memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    let mut file = File::from(memory);
    io::copy(source, &mut file)?;
    // What doesn't change needs no write bit: 0500, before F_SEAL_EXEC (6.3) fixes the mode's x bits.
    rustix::fs::fchmod(
        file.as_fd(),
        rustix::fs::Mode::RUSR | rustix::fs::Mode::XUSR,
    )?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(file.as_fd(), seals)?;
    Ok(OwnedFd::from(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_sealed_executable_runs_and_cannot_be_changed() {
        let mut source = File::open("/bin/true").unwrap();
        let memory = sealed_executable("test", &mut source).unwrap();
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        assert!(
            std::process::Command::new(&path)
                .status()
                .unwrap()
                .success()
        );
        for result in [
            rustix::io::pwrite(&memory, b"x", 0).map(|_| ()),
            rustix::fs::ftruncate(&memory, 0),
            rustix::fs::ftruncate(&memory, 1 << 30),
        ] {
            assert_eq!(result, Err(Errno::PERM));
        }
        // Opened anew for writing, as a container reaching /proc/<pid>/exe would.
        if let Ok(file) = std::fs::OpenOptions::new().write(true).open(&path) {
            assert_eq!(rustix::io::pwrite(&file, b"x", 0), Err(Errno::PERM));
        }
    }
}
