#![expect(unsafe_code, reason = "mallopt and malloc_trim of the C library")]
//! The C library's heap, kept small: a monitor is resident once per pod, and what one launch
//! needed must not stay (mallopt(3), malloc_trim(3)).

/// Makes the heap give memory back early: freed memory above 32 KiB at its top is returned at
/// once, it grows by 16 KiB, and blocks from 64 KiB on are mappings of their own.
pub fn tune() {
    for (parameter, value) in [
        (libc::M_TRIM_THRESHOLD, 32 << 10),
        (libc::M_TOP_PAD, 16 << 10),
        (libc::M_MMAP_THRESHOLD, 64 << 10),
    ] {
        // SAFETY: mallopt takes two integers and touches only the allocator's own state; the
        // caller is single-threaded (the monitor's start).
        let accepted = unsafe { libc::mallopt(parameter, value) };
        debug_assert_eq!(accepted, 1);
    }
}

/// Gives free pages of the heap back to the kernel.
pub fn trim() {
    // SAFETY: malloc_trim takes a padding and touches only free memory of the allocator.
    let _returned_something = unsafe { libc::malloc_trim(0) };
}
