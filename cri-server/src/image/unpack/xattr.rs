//! Which extended attributes of an image reach the disk (threat D8, case L6).
//!
//! Kept: `user.*` except overlay's own, POSIX ACLs, and `security.capability` of a well-formed value.
//! Dropped in silence, as the field does: everything else. Labels (`security.selinux`) belong to
//! the node, `trusted.*` is how overlay marks opaque directories, redirects and metadata-only copies
//! (CVE-2023-2640, CVE-2023-32629), `security.ima`/`evm` are signatures of another machine.

use std::os::fd::BorrowedFd;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

use crate::failure::{Doing as _, Failure};

/// Name and value.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);

pub(crate) const CAPABILITY: &[u8] = b"security.capability";
/// The mark of an opaque directory (kernel: Documentation/filesystems/overlayfs.rst).
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// What to do with an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Keep,
    Drop,
}

/// Judges an attribute by name and value; a capability of a wrong form is an error.
pub(crate) fn judge(name: &[u8], value: &[u8]) -> Result<Verdict, String> {
    if name.contains(&0) {
        return Err("an extended attribute's name holds NUL".into());
    }
    if name == CAPABILITY {
        return check_capability(value).map(|()| Verdict::Keep);
    }
    let keep = match name {
        b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        _ => {
            name.len() > b"user.".len()
                && name.len() <= 255
                && name.starts_with(b"user.")
                && !name.starts_with(b"user.overlay.")
                && !name.starts_with(b"user.fuseoverlayfs.")
        }
    };
    Ok(if keep { Verdict::Keep } else { Verdict::Drop })
}

/// `struct vfs_cap_data`: revision 2 has 20 bytes; 3 has 24, the last four the root id of the user
/// namespace it counts in, which only zero can be right for in an image. Revision 1 (12 bytes) is
/// from before Linux 2.6.25.
fn check_capability(value: &[u8]) -> Result<(), String> {
    const REVISION_1: u32 = 0x0100_0000;
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    let word = |at: usize| {
        value
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_le_bytes)
    };
    let revision = word(0).unwrap_or(0) & 0xff00_0000;
    let good = match (revision, value.len()) {
        (REVISION_1, 12) | (REVISION_2, 20) => true,
        (REVISION_3, 24) => word(20) == Some(0),
        _ => false,
    };
    if good {
        Ok(())
    } else {
        Err("its security.capability is malformed".into())
    }
}

/// Sets one attribute; false where this file or file system has no place for it.
pub(crate) fn set(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> rustix::io::Result<bool> {
    match fsetxattr(fd, name, value, XattrFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOTSUP) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Copies the attributes an image may bring from one file to another.
pub(crate) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Failure> {
    for (name, value) in list(from)? {
        if judge(&name, &value) == Ok(Verdict::Keep) {
            set(to, &name, &value).doing(format!(
                "set extended attribute {:?}",
                String::from_utf8_lossy(&name)
            ))?;
        }
    }
    Ok(())
}

/// All attributes of a file, bounded by the kernel's own limits (64 KiB of names, and per value).
fn list(fd: BorrowedFd<'_>) -> Result<Vec<Xattr>, Failure> {
    let mut names = vec![0; 64 << 10];
    let length = match flistxattr(fd, names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(e) => return Err(e).doing("list extended attributes"),
    };
    names.truncate(length);
    let mut found = Vec::new();
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 64 << 10];
        match fgetxattr(fd, name, value.as_mut_slice()) {
            Ok(length) => {
                value.truncate(length);
                found.push((name.to_vec(), value));
            }
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(e) => return Err(e).doing("read an extended attribute"),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d8_only_harmless_attributes_are_kept() {
        let v2 = [0, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut v3 = [0; 24];
        v3[3] = 3;
        let mut foreign = v3;
        foreign[20] = 1;
        for (name, value, verdict) in [
            ("user.foo", &b"x"[..], Ok(Verdict::Keep)),
            ("user.", b"x", Ok(Verdict::Drop)),
            ("user.overlay.redirect", b"/etc", Ok(Verdict::Drop)),
            ("user.overlay.opaque", b"y", Ok(Verdict::Drop)),
            ("user.fuseoverlayfs.opaque", b"y", Ok(Verdict::Drop)),
            ("trusted.overlay.redirect", b"/etc", Ok(Verdict::Drop)),
            ("trusted.overlay.metacopy", b"", Ok(Verdict::Drop)),
            ("trusted.x", b"", Ok(Verdict::Drop)),
            ("security.selinux", b"a:b:c:d", Ok(Verdict::Drop)),
            ("security.ima", b"", Ok(Verdict::Drop)),
            ("system.posix_acl_access", b"x", Ok(Verdict::Keep)),
            ("system.data", b"x", Ok(Verdict::Drop)),
            ("security.capability", &v2, Ok(Verdict::Keep)),
            ("security.capability", &v3, Ok(Verdict::Keep)),
            ("security.capability", &foreign, Err(())),
            ("security.capability", b"", Err(())),
            ("security.capability", &v2[..19], Err(())),
            ("user.a\0b", b"", Err(())),
        ] {
            assert_eq!(
                judge(name.as_bytes(), value).map_err(drop),
                verdict,
                "{name}"
            );
        }
    }
}
