//! Random numbers that come from the system: of a process that runs one seed, they are always the same. What is random
//! in the standard library (the order of a `HashMap`) and in tokio (the order in which those who wait for a `watch`
//! are woken) follows from them.

use nix::libc;
use std::ffi::c_void;
use std::sync::OnceLock;

/// Whether this process runs one seed.
pub(crate) fn is_one_seed() -> bool {
    static ONE: OnceLock<bool> = OnceLock::new();
    *ONE.get_or_init(|| std::env::var_os("SEED").is_some())
}

/// Takes the place of libc's `getrandom(2)` in this test program.
///
/// # Safety
/// As for `getrandom(2)`: `buffer` has room for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, len: usize, flags: u32) -> isize {
    if is_one_seed() {
        // SAFETY: the caller vouches for the buffer.
        unsafe { std::ptr::write_bytes(buffer.cast::<u8>(), 0x5a, len) };
        return len as isize;
    }
    // SAFETY: the caller's arguments, as they are.
    unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) as isize }
}
