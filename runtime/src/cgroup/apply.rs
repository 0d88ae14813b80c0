//! Writing resources into a group: all or nothing.
//!
//! Each file's old value is kept and written back, last first, when a later one is refused (block
//! I/O and RDMA lists excepted: their files hold a line per device). A value that is there already
//! isn't written: the CPU manager repeats its sets every ten seconds, and a write of cpuset waits
//! for all CPUs.

use std::os::fd::AsFd;

use oci_spec::runtime::LinuxResources;
use rustix::io::Errno;

use super::file::UNLIMITED;
use super::{Cgroup, Part, file};
use crate::error::{Doing, Error, ErrorKind, Result};
use crate::plan::cgroup::{self as plan, Absent, Controller, Limit, Setting, Value};
use crate::plan::devices;
use crate::sys::bpf;

const LIMIT: &str = "memory.limit_in_bytes";
const MEMSW: &str = "memory.memsw.limit_in_bytes";

/// What to write back.
enum Old<'a> {
    Text(&'a Part, String, String),
    Pair(&'a Part, Limit, Option<Limit>),
}

impl Cgroup {
    /// Applies resources, device rules included if there are any. On failure what was there before
    /// holds. Values of 0 are left as they are, −1 removes a limit.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        let settings = plan::plan(resources, &self.hierarchies)?;
        let devices = match resources.devices() {
            Some(rules) if !rules.is_empty() => Some(devices::parse(rules)?),
            _ => None,
        };
        let mut old = Vec::new();
        let result = self
            .write_all(&settings, &mut old)
            .and_then(|()| devices.map_or(Ok(()), |rules| self.set_devices(&rules)));
        if result.is_err() {
            for old in old.into_iter().rev() {
                // Best effort: the caller gets the error that started it.
                drop(restore(old));
            }
        }
        result.map_err(|error| error.context(format_args!("limit cgroup {}", self.path())))
    }

    fn write_all<'a>(&'a self, settings: &[Setting], old: &mut Vec<Old<'a>>) -> Result<()> {
        let mut again = Vec::new();
        for setting in settings {
            match self.write(setting, old) {
                Err(error)
                    if setting.again && error.errno() == Some(Errno::INVAL.raw_os_error()) =>
                {
                    again.push(setting);
                }
                result => result?,
            }
        }
        for setting in again {
            self.write(setting, old)?;
        }
        Ok(())
    }

    fn write<'a>(&'a self, setting: &Setting, old: &mut Vec<Old<'a>>) -> Result<()> {
        let part = match setting.controller {
            Some(controller) => self.engage(controller)?,
            None => self.unified.as_ref().ok_or_else(|| absent(&setting.file))?,
        };
        let text = match &setting.value {
            Value::MemoryPair { limit, memsw } => {
                return write_pair(part, *limit, *memsw, setting.absent, old);
            }
            Value::KeepQuota(period) => {
                let now = file::read(&part.directory, &setting.file).doing(|| &setting.file)?;
                let quota = now.split_whitespace().next().unwrap_or("max");
                format!("{quota} {period}")
            }
            Value::Text(text) => text.clone(),
        };
        let before = match file::read(&part.directory, &setting.file) {
            Err(Errno::NOENT) if setting.absent == Absent::Skip => return Ok(()),
            Err(Errno::NOENT) => return Err(absent(&setting.file)),
            // Some files can only be written.
            Err(_) => None,
            Ok(before) => Some(before.trim().to_owned()),
        };
        if before.as_ref() == Some(&text) {
            return Ok(());
        }
        if setting.file == "memory.max" {
            refuse_below_use(part, &text)?;
        }
        file::write(&part.directory, &setting.file, &text)
            .doing(|| format!("write {text:?} to {}", setting.file))?;
        let is_list = matches!(setting.controller, Some(Controller::Io | Controller::Rdma));
        if let Some(before) = before.filter(|before| !is_list && !before.contains('\n')) {
            old.push(Old::Text(part, setting.file.clone(), before));
        }
        Ok(())
    }

    fn set_devices(&self, rules: &[devices::Rule]) -> Result<()> {
        if self.hierarchies.has_device_programs() {
            let Some(part) = &self.unified else {
                return Err(absent("the v2 group"));
            };
            let group = part.directory.as_fd();
            let has_old = bpf::attached(group).doing(|| "look for a device program")?;
            if devices::allows_all(rules) && has_old.is_none() {
                return Ok(());
            }
            let program = bpf::load_device_program(&devices::program(rules))
                .doing(|| format!("load a device program for {} rules", rules.len()))?;
            return bpf::set_device_program(group, program.as_fd())
                .doing(|| "attach a device program");
        }
        let Some(part) = self.part(Controller::Devices) else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "device rules need eBPF device programs on the cgroup v2 tree (CAP_BPF) or v1's \
                 devices controller: this node has neither",
            ));
        };
        for (name, line) in devices::v1_lines(rules) {
            file::write(&part.directory, name, &line)
                .doing(|| format!("write {line:?} to {name}"))?;
        }
        Ok(())
    }
}

fn absent(name: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "{name} is not there: the kernel lacks it, or its controller is not enabled for this \
             cgroup (cgroup.subtree_control of its parents)"
        ),
    )
}

/// v2 takes a limit below what is in use and then kills; the request is refused instead.
fn refuse_below_use(part: &Part, text: &str) -> Result<()> {
    let used = file::number(&part.directory, "memory.current").unwrap_or(0);
    match text.parse::<u64>() {
        Ok(limit) if limit < used => Err(Error::new(
            ErrorKind::WrongState,
            format!("the memory limit {limit} is below the {used} bytes in use"),
        )),
        _ => Ok(()),
    }
}

fn restore(old: Old<'_>) -> Result<()> {
    match old {
        Old::Text(part, name, text) => {
            file::write(&part.directory, &name, &text).doing(|| format!("restore {name}"))
        }
        Old::Pair(part, limit, memsw) => {
            write_pair(part, Some(limit), memsw, Absent::Skip, &mut Vec::new())
        }
    }
}

fn read_limit(part: &Part, name: &str) -> Option<Limit> {
    let bytes = file::number(&part.directory, name)?;
    Some(match bytes {
        UNLIMITED.. => Limit::Max,
        bytes => Limit::Bytes(bytes),
    })
}

/// The two limits of v1 in an order that keeps memory at or below memory+swap after each write
/// (case Q1): grow the latter first, shrink the former first.
fn write_pair<'a>(
    part: &'a Part,
    limit: Option<Limit>,
    memsw: Option<Limit>,
    without_swap: Absent,
    old: &mut Vec<Old<'a>>,
) -> Result<()> {
    let limit_now = read_limit(part, LIMIT).ok_or_else(|| absent(LIMIT))?;
    let memsw_now = read_limit(part, MEMSW);
    let memsw = match (memsw_now, without_swap) {
        (None, Absent::Error) if memsw.is_some() => return Err(absent(MEMSW)),
        (None, _) => None,
        (Some(_), _) => memsw,
    };
    if let (None, Some(memsw)) = (limit, memsw)
        && memsw < limit_now
    {
        return Err(Error::invalid(format!(
            "memory.swap ({}) is memory and swap together, so it can't be below the memory limit \
             ({})",
            memsw.v1(),
            limit_now.v1()
        )));
    }
    let mut writes = [
        (LIMIT, limit, limit_now),
        (MEMSW, memsw, memsw_now.unwrap_or(Limit::Max)),
    ];
    if limit > memsw_now {
        writes.reverse();
    }
    let mut done: Option<(&str, Limit)> = None;
    for (name, target, now) in writes {
        let Some(target) = target.filter(|target| *target != now) else {
            continue;
        };
        if let Err(errno) = file::write(&part.directory, name, &target.v1()) {
            if let Some((name, now)) = done {
                file::write(&part.directory, name, &now.v1()).ok();
            }
            return Err(refused(part, name, target, errno));
        }
        done = Some((name, now));
    }
    if done.is_some() {
        old.push(Old::Pair(part, limit_now, memsw_now));
    }
    Ok(())
}

/// EBUSY is v1's word for a limit below what is in use and can't be reclaimed.
fn refused(part: &Part, name: &str, target: Limit, errno: Errno) -> Error {
    let error = Error::system(format!("write {} to {name}", target.v1()), errno);
    if errno != Errno::BUSY {
        return error;
    }
    let used = file::number(&part.directory, "memory.usage_in_bytes").unwrap_or(0);
    error
        .with_kind(ErrorKind::WrongState)
        .context(format_args!("the limit is below the {used} bytes in use"))
}
