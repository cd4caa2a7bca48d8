//! Descriptors that this process was started with: the one file of the library with `unsafe` in it.
#![expect(
    unsafe_code,
    reason = "what the service manager passes comes as numbers, which only unsafe code can own"
)]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The descriptors that the service manager passed (`LISTEN_FDS`), each with its name, closed on exec.
/// None the second time: they are owned by whoever asked first.
pub(super) fn passed() -> io::Result<Vec<(OwnedFd, String)>> {
    static ASKED: AtomicBool = AtomicBool::new(false);
    if ASKED.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?.map(|(number, name)| {
        // SAFETY: the service manager opened it for this very process (`LISTEN_PID`), `listen_fds` has
        // found it open, and nobody else takes it: numbers from 3 on are not the standard library's,
        // and `ASKED` lets nobody here ask twice.
        (unsafe { OwnedFd::from_raw_fd(number) }, name)
    });
    Ok(passed.collect())
}
