//! clone3, the calls around it, and execve.
//!
//! clone3 is in Linux since 5.3, CLONE_INTO_CGROUP since 5.7 (clone3(2)); below 5.12 the features'
//! probe refuses the kernel. Neither rustix nor libc wraps clone3, so it is made by number.
//!
//! Everything a child calls between clone and exec is one raw system call: glibc's wrappers for
//! credentials signal other threads and take locks, `fork` runs atfork handlers.
#![expect(
    unsafe_code,
    reason = "clone3, execve and signal dispositions have no safe wrapper"
)]

use std::ffi::{CStr, CString, c_char};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use linux_raw_sys::general as raw;
use rustix::io::Errno;

/// What clone3 made, seen from each side.
#[derive(Debug)]
pub(crate) enum Cloned {
    /// In the caller: the child's process id and a descriptor for it.
    Parent {
        /// As seen from the caller's PID namespace.
        pid: i32,
        /// Close-on-exec.
        pidfd: OwnedFd,
    },
    /// In the child.
    Child,
}

/// How the child is made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CloneOptions<'a> {
    /// `CLONE_NEW*` bits.
    pub(crate) namespaces: u32,
    /// Start in this cgroup v2 directory.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Become a child of the caller's parent (CLONE_PARENT) instead of the caller's.
    pub(crate) sibling: bool,
}

/// Copies the calling process, which must have one thread: the child goes on alone in a copy of its memory.
pub(crate) fn clone3(options: CloneOptions<'_>) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    let mut flags = u64::from(options.namespaces) | u64::from(raw::CLONE_PIDFD);
    // CLONE_PARENT takes the exit signal of the caller and refuses one of its own (clone3(2)).
    let mut exit_signal = u64::from(raw::SIGCHLD);
    if options.sibling {
        flags |= u64::from(raw::CLONE_PARENT);
        exit_signal = 0;
    }
    let mut cgroup = 0;
    if let Some(directory) = options.cgroup {
        flags |= raw::CLONE_INTO_CGROUP;
        cgroup = u64::try_from(directory.as_raw_fd()).map_err(|_| Errno::BADF)?;
    }
    let args = raw::clone_args {
        flags,
        pidfd: ptr::from_mut(&mut pidfd).expose_provenance() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup,
    };
    // SAFETY: `args` is a whole `clone_args` of the size given and its pointer field is writable.
    // Without CLONE_VM the child has its own copy of memory and returns on a copy of this stack.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, ptr::from_ref(&args), size_of_val(&args)) };
    match check(result)? {
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: i32::try_from(pid).map_err(|_| Errno::OVERFLOW)?,
            // SAFETY: the kernel filled in a new descriptor that nothing else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Leaves the namespaces of `flags` (`CLONE_NEW*` bits) for new ones.
pub(crate) fn unshare(flags: u32) -> Result<(), Errno> {
    let flags = rustix::thread::UnshareFlags::from_bits_retain(flags);
    // SAFETY: only namespace bits are passed, never CLONE_FILES.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Enters a namespace by descriptor (of nsfs, or a pidfd for several at once). `flags` 0 takes any kind.
pub(crate) fn setns(namespace: BorrowedFd<'_>, flags: u32) -> Result<(), Errno> {
    // SAFETY: takes no pointers; the descriptor is borrowed for the call.
    check(unsafe { libc::syscall(libc::SYS_setns, namespace.as_raw_fd(), flags) }).map(|_| ())
}

/// Ends the calling process at once, running nothing of this program's.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// Default dispositions and an empty mask for all signals. A disposition of "ignore" and the mask
/// are what execve(2) keeps; Rust's runtime ignores SIGPIPE, so without this every container would.
pub(crate) fn reset_signals() -> Result<(), Errno> {
    let default = [0_u64; 4]; // struct kernel_sigaction: SIG_DFL, no flags, no restorer, empty mask
    for signal in 1..=raw::_NSIG {
        if signal == raw::SIGKILL || signal == raw::SIGSTOP {
            continue;
        }
        // SAFETY: `default` is as large as the kernel's struct with a mask of 8 bytes; no old one is asked for.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null::<u64>(),
                8_usize,
            )
        };
        check(result)?;
    }
    let empty = 0_u64;
    // SAFETY: the mask is 8 bytes, as the size says; no old mask is asked for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            ptr::from_ref(&empty),
            ptr::null::<u64>(),
            8_usize,
        )
    };
    check(result).map(|_| ())
}

/// Children that end are reaped by the kernel from now on (SIGCHLD ignored, sigaction(2)).
pub(crate) fn ignore_children() -> Result<(), Errno> {
    let ignore = [1_u64, 0, 0, 0]; // SIG_IGN
    // SAFETY: as in `reset_signals`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            raw::SIGCHLD,
            ignore.as_ptr(),
            ptr::null::<u64>(),
            8_usize,
        )
    };
    check(result).map(|_| ())
}

/// Sleeps until a signal ends the process.
pub(crate) fn pause_forever() -> ! {
    loop {
        // SAFETY: no descriptors are passed and the time-out is absent.
        unsafe {
            libc::syscall(
                libc::SYS_ppoll,
                ptr::null::<u8>(),
                0,
                ptr::null::<u8>(),
                0,
                0,
            )
        };
    }
}

/// A new, anonymous session keyring in place of the caller's (keyctl(2)).
pub(crate) fn new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a null name asks for an anonymous keyring; no pointer is read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            ptr::null::<u8>(),
        )
    };
    check(result).map(|_| ())
}

/// The working directory as the kernel names it, written into `buffer` with its NUL.
pub(crate) fn getcwd(buffer: &mut [u8]) -> Result<&CStr, Errno> {
    // SAFETY: the pointer and length are those of `buffer`, which the kernel may write.
    let length =
        check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    let length = usize::try_from(length).map_err(|_| Errno::OVERFLOW)?;
    let path = buffer.get(..length).ok_or(Errno::RANGE)?;
    CStr::from_bytes_with_nul(path).map_err(|_| Errno::INVAL)
}

/// Strings as execve wants them: a list of pointers ended by null, and the memory they point to.
#[derive(Debug)]
pub(crate) struct CStringArray {
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CStringArray {
    /// Allocates everything; a child only reads.
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect();
        Self { strings, pointers }
    }

    /// The strings themselves.
    pub(crate) fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// Becomes another program. Returns only if that failed.
pub(crate) fn execve(path: &CStr, arguments: &CStringArray, environment: &CStringArray) -> Errno {
    // SAFETY: both lists end with null and point to strings their owners keep alive, and `path` ends with NUL.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execve,
            path.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    };
    check(result).err().unwrap_or(Errno::INVAL)
}

/// The result of a raw call: −1 becomes the errno.
pub(super) fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result == -1 {
        // Reads this thread's errno; allocates nothing.
        let error = std::io::Error::last_os_error();
        Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    } else {
        Ok(result)
    }
}
