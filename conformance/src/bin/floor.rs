//! The floor: the bare system calls of one container, timed from clone to reaped.
//!
//! Overlay, proc, sysfs, a small dev, masked paths, five new namespaces (six with `--network`),
//! a cgroup in three v1 hierarchies or one in v2, exec of a static program that ends at once.
//! Nothing of the product is in it; what Bulkhead needs beyond this is Bulkhead's own.
//!
//! Usage: floor PROGRAM SAMPLES [--network]; prints the samples in milliseconds as a JSON array.

#![expect(unsafe_code, reason = "clone3 with namespaces has no safe wrapper")]
#![expect(clippy::print_stdout, reason = "a command-line program")]
#![expect(
    clippy::exit,
    reason = "a child that could not exec must not unwind into its parent"
)]

use std::ffi::CString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, WaitOptions, chdir, pivot_root, waitpid};

/// Warm-up, not counted: the first run loads what the kernel loads once.
const WARM_UP: usize = 3;
const MASKED_FILES: [&str; 4] = [
    "proc/kcore",
    "proc/keys",
    "proc/timer_list",
    "proc/interrupts",
];
const MASKED_FOLDERS: [&str; 2] = ["proc/acpi", "sys/firmware"];
const READ_ONLY: [&str; 4] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys"];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match measure(&words) {
        Ok(samples) => {
            println!("{}", serde_json::json!(samples));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("floor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(words: &[String]) -> Result<Vec<f64>> {
    let [program, samples, more @ ..] = words else {
        bail!("usage: floor PROGRAM SAMPLES [--network]");
    };
    let samples: usize = samples.parse().context("SAMPLES is a number")?;
    let network = more.iter().any(|word| word == "--network");
    let scratch = PathBuf::from(format!("/var/tmp/bh-floor-{}", std::process::id()));
    let lower = scratch.join("lower");
    for folder in ["proc", "sys", "dev"] {
        fs::create_dir_all(lower.join(folder))?;
    }
    fs::copy(program, lower.join("true")).with_context(|| format!("copy {program}"))?;
    let mut times = Vec::new();
    let mut done = Ok(());
    for round in 0..samples + WARM_UP {
        let begin = Instant::now();
        done = one(&scratch, round, network);
        if done.is_err() {
            break;
        }
        if round >= WARM_UP {
            times.push(begin.elapsed().as_secs_f64() * 1000.0);
        }
    }
    fs::remove_dir_all(&scratch)?;
    done.map(|()| times)
}

/// One container's life.
fn one(scratch: &Path, round: usize, network: bool) -> Result<()> {
    let base = scratch.join(round.to_string());
    for folder in ["upper", "work", "root"] {
        fs::create_dir_all(base.join(folder))?;
    }
    let cgroups = cgroups(&round.to_string());
    for folder in &cgroups {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let ended = match clone(network)? {
        None => {
            let error = child(scratch, &base, &cgroups);
            eprintln!("floor: in the child: {error:#}");
            std::process::exit(99);
        }
        Some(pid) => waitpid(Some(pid), WaitOptions::empty())?,
    };
    let code = ended.and_then(|(_, status)| status.exit_status());
    for folder in &cgroups {
        fs::remove_dir(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    ensure!(code == Some(0), "the child ended with {ended:?}");
    Ok(())
}

/// A new process in new namespaces; nothing in the child itself.
fn clone(network: bool) -> Result<Option<Pid>> {
    let mut flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWCGROUP;
    if network {
        flags |= libc::CLONE_NEWNET;
    }
    let arguments: [u64; 11] = [
        u64::try_from(flags)?,
        0,
        0,
        0,
        u64::try_from(libc::SIGCHLD)?,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    // SAFETY: clone3(2) reads `arguments`, laid out as struct clone_args of 88 bytes, and without
    // CLONE_VM gives the child a copy of this single-threaded process.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            arguments.as_ptr(),
            std::mem::size_of_val(&arguments),
        )
    };
    ensure!(pid >= 0, "clone3: {}", std::io::Error::last_os_error());
    Ok(Pid::from_raw(i32::try_from(pid)?))
}

/// Comes back only with an error.
fn child(scratch: &Path, base: &Path, cgroups: &[PathBuf]) -> anyhow::Error {
    match prepare(scratch, base, cgroups) {
        Ok(()) => Command::new("/true").arg0("true").exec().into(),
        Err(error) => error,
    }
}

fn prepare(scratch: &Path, base: &Path, cgroups: &[PathBuf]) -> Result<()> {
    for folder in cgroups {
        fs::write(folder.join("cgroup.procs"), "0")?;
    }
    let none = None::<&std::ffi::CStr>;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let root = base.join("root");
    let options = CString::new(format!(
        "lowerdir={0}/lower,upperdir={1}/upper,workdir={1}/work",
        scratch.display(),
        base.display()
    ))?;
    mount(
        "overlay",
        &root,
        "overlay",
        MountFlags::empty(),
        Some(options.as_c_str()),
    )?;
    chdir(&root)?;
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount("proc", "proc", "proc", quiet, none)?;
    mount("sysfs", "sys", "sysfs", quiet | MountFlags::RDONLY, none)?;
    mount(
        "tmpfs",
        "dev",
        "tmpfs",
        MountFlags::NOSUID,
        Some(c"mode=755,size=64m"),
    )?;
    for folder in ["dev/pts", "dev/shm", "dev/mqueue"] {
        fs::create_dir(folder)?;
    }
    mount(
        "devpts",
        "dev/pts",
        "devpts",
        quiet & !MountFlags::NODEV,
        Some(c"newinstance"),
    )?;
    mount("tmpfs", "dev/shm", "tmpfs", quiet, Some(c"size=64m"))?;
    mount("mqueue", "dev/mqueue", "mqueue", quiet, none)?;
    for (name, minor) in [
        ("null", 3),
        ("zero", 5),
        ("full", 7),
        ("random", 8),
        ("urandom", 9),
    ] {
        let path = Path::new("dev").join(name);
        mknodat(
            CWD,
            &path,
            FileType::CharacterDevice,
            Mode::from(0o666),
            makedev(1, minor),
        )?;
    }
    for path in MASKED_FILES.iter().filter(|path| Path::new(path).exists()) {
        mount("dev/null", *path, "", MountFlags::BIND, none)?;
    }
    for path in MASKED_FOLDERS
        .iter()
        .filter(|path| Path::new(path).exists())
    {
        mount("tmpfs", *path, "tmpfs", MountFlags::RDONLY, none)?;
    }
    for path in READ_ONLY.iter().filter(|path| Path::new(path).exists()) {
        mount(*path, *path, "", MountFlags::BIND | MountFlags::REC, none)?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | quiet;
        rustix::mount::mount_remount(*path, flags, "")?;
    }
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    Ok(())
}

/// Where this machine's groups go: cpu, memory and pids of v1, or one folder of v2.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let name = format!("bulkhead-floor-{}-{name}", std::process::id());
    if root.join("cgroup.controllers").exists() {
        return vec![root.join(name)];
    }
    ["cpu", "memory", "pids"]
        .iter()
        .map(|controller| root.join(controller).join(&name))
        .collect()
}
