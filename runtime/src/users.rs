//! From a user's name or number to ids, by the passwd and group files of the image.
//!
//! The files are an image's, so: resolved below the root and nowhere else, regular files only, at most
//! [`MAX_FILE`] bytes with lines of at most [`MAX_LINE`] (CVE-2025-4437, CVE-2024-9676). A text of
//! digits is a number below 2³²−1 or refused, anything else a name that must exist: an odd text never
//! becomes root (CVE-2024-40635, CVE-2016-3697). Formats: passwd(5), group(5). Which text to resolve
//! and Kubernetes' defaults are the caller's.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, ErrorKind, Result};
use crate::sys::procfs;

/// The largest passwd or group file read, in bytes.
const MAX_FILE: u64 = 10 << 20;
/// The longest line of them, in bytes.
const MAX_LINE: usize = 64 << 10;
/// The most groups a process may have (NGROUPS_MAX of linux/limits.h).
const MAX_GROUPS: usize = 65536;

/// Whom to run as, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserChoice {
    /// An image's `user[:group]`, each a name or a number; empty is root.
    Image(String),
    /// A number; it need not be in the passwd file.
    Uid(u32),
    /// A name; it must be in the passwd file.
    Name(String),
}

/// What becomes of the groups the image lists the user in (CRI `SupplementalGroupsPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupsPolicy {
    /// They are added to those asked for.
    Merge,
    /// Only those asked for.
    Strict,
}

/// All that is asked about a process's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSpec {
    /// The user.
    pub user: UserChoice,
    /// The primary group, where given by number; it wins over the image's.
    pub group: Option<u32>,
    /// Further groups.
    pub supplemental: Vec<u32>,
    /// What becomes of the image's.
    pub policy: GroupsPolicy,
}

/// Whom to run as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups: the primary one first, each once.
    pub groups: Vec<u32>,
    /// The home directory, if the passwd file knows the user.
    pub home: Option<PathBuf>,
    /// The name, if the passwd file knows the user.
    pub username: Option<String>,
}

/// Resolves `spec` by `/etc/passwd` and `/etc/group` below `root`.
pub fn resolve(root: BorrowedFd<'_>, spec: &UserSpec) -> Result<Identity> {
    let (user, group) = choose(spec)?;
    let entry = match &user {
        Id::Number(uid) => find_user(root, |entry| entry.uid() == Some(*uid))?,
        Id::Name(name) => {
            let found = find_user(root, |entry| entry.name == *name)?;
            Some(found.ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("user {name:?} is not in the image's /etc/passwd"),
                )
            })?)
        }
    };
    let uid = match (&user, &entry) {
        (Id::Number(uid), _) => *uid,
        (Id::Name(name), Some(entry)) => entry.uid().ok_or_else(|| {
            Error::invalid(format!(
                "user {name:?} has no valid uid in the image's /etc/passwd"
            ))
        })?,
        (Id::Name(name), None) => return Err(Error::invalid(format!("user {name:?} not found"))),
    };
    let gid = match group {
        Some(Id::Number(gid)) => gid,
        Some(Id::Name(name)) => group_by_name(root, &name)?,
        None => match &entry {
            Some(entry) => entry.gid().ok_or_else(|| {
                Error::invalid(format!(
                    "user {:?} has no valid gid in the image's /etc/passwd",
                    entry.name
                ))
            })?,
            None => 0,
        },
    };
    let mut groups = vec![gid];
    groups.extend(&spec.supplemental);
    if let (GroupsPolicy::Merge, Some(entry)) = (spec.policy, &entry) {
        groups.extend(memberships(root, &entry.name)?);
    }
    let mut seen = std::collections::HashSet::new();
    groups.retain(|group| seen.insert(*group));
    if groups.len() > MAX_GROUPS {
        return Err(Error::new(
            ErrorKind::Exhausted,
            format!("{} groups; at most {MAX_GROUPS} are possible", groups.len()),
        ));
    }
    if let Some(group) = groups.iter().find(|group| **group == u32::MAX) {
        return Err(Error::invalid(format!("group {group} is not a valid gid")));
    }
    let (home, username) = match entry {
        Some(entry) => (
            Some(PathBuf::from(entry.home)).filter(|home| home.is_absolute()),
            Some(entry.name),
        ),
        None => (None, None),
    };
    Ok(Identity {
        uid,
        gid,
        groups,
        home,
        username,
    })
}

/// A name or a number.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Id {
    Number(u32),
    Name(String),
}

fn choose(spec: &UserSpec) -> Result<(Id, Option<Id>)> {
    let explicit = spec.group.map(Id::Number);
    match &spec.user {
        UserChoice::Uid(uid) if *uid == u32::MAX => {
            Err(Error::invalid(format!("user {uid} is not a valid uid")))
        }
        UserChoice::Uid(uid) => Ok((Id::Number(*uid), explicit)),
        UserChoice::Name(name) => match parse_id("user", name)? {
            Id::Number(_) => Err(Error::invalid(format!(
                "user name {name:?} is a number; ask for it by uid"
            ))),
            id => Ok((id, explicit)),
        },
        UserChoice::Image(text) if text.is_empty() => Ok((Id::Number(0), explicit)),
        UserChoice::Image(text) => {
            let (user, group) = match text.split_once(':') {
                Some((user, group)) => (user, Some(parse_id("group", group)?)),
                None => (text.as_str(), None),
            };
            Ok((parse_id("user", user)?, explicit.or(group)))
        }
    }
}

/// Digits are a number; a name begins with a letter or `_` and holds `[A-Za-z0-9_.-]`, `$` at its end.
fn parse_id(what: &str, text: &str) -> Result<Id> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return parse_number(text.as_bytes())
            .map(Id::Number)
            .ok_or_else(|| {
                Error::invalid(format!("{what} {text} is out of range: at most 4294967294"))
            });
    }
    let body = text.strip_suffix('$').unwrap_or(text);
    let starts = body.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let holds = body
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if starts && holds && text.len() <= 256 {
        Ok(Id::Name(text.to_owned()))
    } else {
        Err(Error::invalid(format!(
            "{what} {text:?} is neither a number nor a name"
        )))
    }
}

/// A decimal number below 2³²−1, digits only.
fn parse_number(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None; // from_str would take a leading plus
    }
    text.parse().ok().filter(|number| *number != u32::MAX)
}

/// A line of passwd(5). Numbers are checked when they matter.
#[derive(Debug)]
struct Entry {
    name: String,
    uid: Vec<u8>,
    gid: Vec<u8>,
    home: String,
}

impl Entry {
    fn uid(&self) -> Option<u32> {
        parse_number(&self.uid)
    }

    fn gid(&self) -> Option<u32> {
        parse_number(&self.gid)
    }

    /// None for lines that are no entry: too few fields, an empty name, not UTF-8.
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<_> = line.split(|byte| *byte == b':').collect();
        let [name, _, uid, gid, _, home, ..] = fields.as_slice() else {
            return None;
        };
        let name = String::from_utf8(name.to_vec()).ok()?;
        (!name.is_empty()).then_some(Self {
            name,
            uid: uid.to_vec(),
            gid: gid.to_vec(),
            home: String::from_utf8(home.to_vec()).unwrap_or_default(),
        })
    }
}

fn find_user(root: BorrowedFd<'_>, wanted: impl Fn(&Entry) -> bool) -> Result<Option<Entry>> {
    let mut found = None;
    for_each_line(root, "etc/passwd", |line| {
        found = Entry::parse(line).filter(|entry| wanted(entry));
        found.is_some()
    })?;
    Ok(found)
}

fn group_by_name(root: BorrowedFd<'_>, name: &str) -> Result<u32> {
    let mut found = None;
    for_each_line(root, "etc/group", |line| {
        let mut fields = line.split(|byte| *byte == b':');
        if fields.next() == Some(name.as_bytes()) {
            found = Some(fields.nth(1).and_then(parse_number));
        }
        found.is_some()
    })?;
    match found {
        Some(Some(gid)) => Ok(gid),
        Some(None) => Err(Error::invalid(format!(
            "group {name:?} has no valid gid in the image's /etc/group"
        ))),
        None => Err(Error::new(
            ErrorKind::NotFound,
            format!("group {name:?} is not in the image's /etc/group"),
        )),
    }
}

/// The groups that list `name` as a member; lines without a valid gid are passed over.
fn memberships(root: BorrowedFd<'_>, name: &str) -> Result<Vec<u32>> {
    let mut groups = Vec::new();
    for_each_line(root, "etc/group", |line| {
        let mut fields = line.split(|byte| *byte == b':').skip(2);
        if let (Some(gid), Some(members)) = (fields.next(), fields.next())
            && let Some(gid) = parse_number(gid)
            && members
                .split(|byte| *byte == b',')
                .any(|member| member == name.as_bytes())
        {
            groups.push(gid);
        }
        groups.len() > MAX_GROUPS
    })?;
    Ok(groups)
}

/// Calls `found` with each line until it says true. A missing file has no lines.
fn for_each_line(
    root: BorrowedFd<'_>,
    path: &str,
    mut found: impl FnMut(&[u8]) -> bool,
) -> Result<()> {
    let Some(file) = open_regular(root, path)? else {
        return Ok(());
    };
    let mut reader = BufReader::new(file.take(MAX_FILE + 1));
    let mut line = Vec::new();
    let mut total = 0;
    loop {
        line.clear();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX) + 1;
        let read = (&mut reader)
            .take(limit)
            .read_until(b'\n', &mut line)
            .doing(|| format!("read the image's /{path}"))?;
        total += u64::try_from(read).unwrap_or(u64::MAX);
        if read == 0 {
            return Ok(());
        }
        if line.len() > MAX_LINE || total > MAX_FILE {
            return Err(Error::new(
                ErrorKind::Exhausted,
                format!(
                    "the image's /{path} is too large: at most {MAX_FILE} bytes in lines of {MAX_LINE}"
                ),
            ));
        }
        if found(line.trim_ascii_end()) {
            return Ok(());
        }
    }
}

/// Opens a regular file below `root`. What is no regular file is looked at but never opened, as
/// opening a FIFO may block and opening a device may do anything.
fn open_regular(root: BorrowedFd<'_>, path: &str) -> Result<Option<std::fs::File>> {
    let handle = match rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    ) {
        Ok(handle) => handle,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(Error::system(format!("open the image's /{path}"), errno)),
    };
    let stat = rustix::fs::fstat(&handle).doing(|| format!("examine the image's /{path}"))?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(Error::invalid(format!(
            "the image's /{path} is not a regular file"
        )));
    }
    let proc = procfs::open_host()?;
    let file = rustix::fs::openat(
        proc.as_fd(),
        format!("self/fd/{}", handle.as_raw_fd()),
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(|| format!("read the image's /{path}"))?;
    Ok(Some(file.into()))
}

#[cfg(test)]
mod tests;
