//! An allocator for one process only.
#![expect(unsafe_code, reason = "implementing an allocator is unsafe")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI32, Ordering};

static OWNER: AtomicI32 = AtomicI32::new(0);

/// The system's allocator for the process that allocated first; any other one aborts.
#[derive(Debug)]
pub(crate) struct ParentOnly;

fn check() {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let owner = OWNER
        .compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed)
        .unwrap_or_else(|owner| owner);
    if owner != 0 && owner != own {
        // Nothing here may allocate or unwind; without standard error the abort has to tell.
        let _told = rustix::io::write(rustix::stdio::stderr(), b"a child allocated\n");
        std::process::abort();
    }
}

// SAFETY: every call goes to the system's allocator unchanged, or does not return.
unsafe impl GlobalAlloc for ParentOnly {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's promise is the one needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        check();
        // SAFETY: the caller's promise is the one needed.
        unsafe { System.dealloc(pointer, layout) }
    }
}
