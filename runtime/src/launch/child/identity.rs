//! Who the process becomes, in the child: streams, label, limits, credentials, capabilities, filter.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::{At, Running, Step, Terminal, failure};
use crate::launch::relay::send;
use crate::launch::report::{self, Note, Stage};
use crate::plan::ProcessPlan;
use crate::plan::identity::{Limit, SeccompOrder};
use crate::sys::{caps, clone, fd, procfs, pty, seccomp};

pub(super) fn streams(work: &Running<'_>, terminal: Option<&Terminal>) -> Step<()> {
    rustix::process::setsid().at(Stage::Streams, 0)?;
    let identity = &work.process.identity;
    match (terminal, work.streams) {
        (Some(terminal), _) => {
            let slave = terminal.slave.as_fd();
            if let Some(Some((columns, rows))) = identity.terminal {
                pty::set_size(slave, columns, rows).at(Stage::Terminal, 0)?;
            }
            rustix::process::ioctl_tiocsctty(slave).at(Stage::Terminal, 0)?;
            give_away(slave, identity.uid)?;
            send(
                work.channel,
                &report::encode_terminal(),
                Some(terminal.master.as_fd()),
            )
            .at(Stage::Terminal, 0)?;
            fd::set_standard_streams([slave, slave, slave]).at(Stage::Streams, 0)
        }
        (None, Some(streams)) => {
            for stream in streams {
                give_away(stream, identity.uid)?;
            }
            fd::set_standard_streams(streams).at(Stage::Streams, 0)
        }
        (None, None) => Err(failure(Stage::Streams, 0, Errno::BADF, Note::None)),
    }
}

/// Lets the user open its streams again by `/dev/stdout` and the like: pipes and terminals belong to
/// their maker. What can't be changed stays, as in the peers.
fn give_away(stream: BorrowedFd<'_>, uid: u32) -> Step<()> {
    let stat = rustix::fs::fstat(stream).at(Stage::Streams, 0)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let null = kind.is_char_device() && stat.st_rdev == rustix::fs::makedev(1, 3);
    if stat.st_uid == uid || null || !(kind.is_char_device() || kind.is_fifo()) {
        return Ok(());
    }
    match rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None) {
        Ok(()) | Err(Errno::PERM | Errno::ROFS | Errno::INVAL | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(failure(Stage::Streams, 0, errno, Note::None)),
    }
}

/// Writes the label for the next execve, into a procfs that is known to be one (CVE-2019-19921).
pub(super) fn label(work: &Running<'_>, proc: Option<BorrowedFd<'_>>) -> Step<()> {
    let Some((path, label)) = &work.process.identity.label else {
        return Ok(());
    };
    match proc {
        Some(proc) => procfs::write(proc, path, label).at(Stage::Label, 0),
        None => procfs::write(super::tree::new_procfs()?.as_fd(), path, label).at(Stage::Label, 0),
    }
}

/// Limits, privileges and ids, in the only order in which each step still may (capabilities(7)).
pub(super) fn become_user(work: &Running<'_>) -> Step<()> {
    let identity = &work.process.identity;
    match clone::new_session_keyring() {
        // ENOSYS: a kernel without keys has none to leak.
        Ok(()) | Err(Errno::NOSYS) => {}
        Err(errno) => return Err(failure(Stage::Keyring, 0, errno, Note::None)),
    }
    for (index, limit) in identity.limits.iter().enumerate() {
        set_limit(limit).at(Stage::Limit, index)?;
    }
    if identity.no_new_privileges {
        rustix::thread::set_no_new_privs(true).at(Stage::NoNewPrivileges, 0)?;
    }
    let wanted = &identity.capabilities;
    caps::limit_bounding(wanted.bounding, work.last_capability).at(Stage::Bounding, 0)?;
    caps::set_ambient(0).at(Stage::Ambient, 0)?;
    if identity.uid != 0 {
        // Else setuid would drop what the last steps need; execve clears it again.
        rustix::thread::set_keep_capabilities(true).at(Stage::Capabilities, 0)?;
    }
    rustix::thread::set_thread_groups(&identity.groups).at(Stage::Groups, 0)?;
    let gid = rustix::process::Gid::from_raw(identity.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).at(Stage::Ids, 0)?;
    let uid = rustix::process::Uid::from_raw(identity.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).at(Stage::Ids, 0)?;
    rustix::process::umask(Mode::from_raw_mode(identity.umask));
    if work.seccomp.is_some() && identity.seccomp == SeccompOrder::BeforeCapabilities {
        let held = caps::permitted().at(Stage::Capabilities, 0)?;
        let for_now = wanted.permitted | held & caps::SYS_ADMIN;
        caps::set(for_now, for_now, wanted.inheritable).at(Stage::Capabilities, 0)?;
        load_filter(work)?;
    }
    caps::set(wanted.effective, wanted.permitted, wanted.inheritable).at(Stage::Capabilities, 0)?;
    if wanted.ambient != 0 {
        caps::set_ambient(wanted.ambient).at(Stage::Ambient, 0)?;
    }
    Ok(())
}

pub(super) fn load_filter(work: &Running<'_>) -> Step<()> {
    let Some(program) = work.seccomp else {
        return Ok(());
    };
    match seccomp::load(program, work.filter_flags).at(Stage::Seccomp, 0)? {
        // Before any other call: each may wait for who has this descriptor.
        Some(listener) => send(
            work.channel,
            &report::encode_listener(),
            Some(listener.as_fd()),
        )
        .at(Stage::Seccomp, 0),
        None => Ok(()),
    }
}

/// Raises hard limits to what is asked for, as long as that is still permitted: in a user namespace it isn't.
/// What can't be raised is clamped later.
pub(super) fn raise_limits(process: &ProcessPlan) {
    for limit in &process.identity.limits {
        let present = rustix::process::getrlimit(limit.resource);
        let higher = match (limit.limit.maximum, present.maximum) {
            (Some(wanted), Some(most)) => wanted > most,
            (None, most) => most.is_some(),
            (Some(_), None) => false,
        };
        if higher {
            let raised = rustix::process::Rlimit {
                current: present.current,
                maximum: limit.limit.maximum,
            };
            let _refused = rustix::process::setrlimit(limit.resource, raised);
        }
    }
}

/// Sets a limit; where its hard part can't be raised, as near as allowed.
fn set_limit(limit: &Limit) -> Result<(), Errno> {
    match rustix::process::setrlimit(limit.resource, limit.limit) {
        Err(Errno::PERM) => {
            let present = rustix::process::getrlimit(limit.resource).maximum;
            let lower = |wanted: Option<u64>| match (wanted, present) {
                (Some(wanted), Some(present)) => Some(wanted.min(present)),
                (None, present) => present,
                (wanted, None) => wanted,
            };
            let clamped = rustix::process::Rlimit {
                current: lower(limit.limit.current),
                maximum: lower(limit.limit.maximum),
            };
            rustix::process::setrlimit(limit.resource, clamped)
        }
        other => other,
    }
}
