//! A file's bytes, memory-mapped: the one place of this crate that is unsafe.

#![expect(unsafe_code, reason = "a memory map is unsafe to make")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A whole file, mapped read-only. The map outlives the file's name: it may be renamed or removed.
///
/// **A mapped file must not be truncated or overwritten while it is in use.** Reading past a new
/// end kills the process with SIGBUS, and no check of ours can prevent that. Replace it
/// by renaming another over it, never in place.
#[derive(Debug)]
pub(crate) struct Map(memmap2::Mmap);

impl Map {
    /// Maps the file at `path`, which must be a regular one (a pipe or device would block or lie
    /// about its length).
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        let file = File::open(path)?;
        // SAFETY: the map is private and read-only, so nothing of ours writes to it. That nobody
        // else changes the file meanwhile cannot be enforced: it is asked of the operator above.
        // Bytes that change under us are still bytes: they are read as numbers of which every
        // pattern is valid, and headers are copied out and checked before they are believed.
        let bytes = unsafe { memmap2::Mmap::map(&file) }?;
        Ok(Self(bytes))
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
