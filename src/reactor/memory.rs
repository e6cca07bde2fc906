//! Memory that closed connections leave behind in the allocator.
//!
//! Invariant: the only unsafe code of the reactor is in this file.

/// Connections that are closed before their memory is worth handing back: at 112 kB each some 7 MB.
pub const WORTH_IT: usize = 64;

/// Hands free memory back to the system. glibc keeps what was freed below the top of an arena, which after a start
/// over many sessions is most of what the daemon holds (malloc_trim(3)). Other allocators do so by themselves.
pub fn hand_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own locks and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
