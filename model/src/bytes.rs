//! The bytes of a checkpoint, wherever it lies: the file of a disk here, the object of a store in the
//! appliance.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One file of a checkpoint. Many threads may read it at once.
pub trait Bytes: fmt::Debug + Send + Sync {
    /// How many bytes it has. Those of an open file do not change.
    fn len(&self) -> u64;

    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` with the bytes from `at` on, all of which the file has.
    ///
    /// # Errors
    /// Why they cannot be had, or are not those that were stored.
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()>;
}

/// The place where the files of a checkpoint are.
pub trait Files {
    /// The file called `name`, a plain name.
    ///
    /// # Errors
    /// Why it cannot be opened; [`io::ErrorKind::NotFound`] where there is none.
    fn open(&self, name: &str) -> io::Result<Arc<dyn Bytes>>;

    /// What to call that file in a message.
    fn path(&self, name: &str) -> PathBuf;

    /// How it is best read from.
    fn flow(&self) -> Flow;
}

/// How a checkpoint is streamed: in blocks that begin at multiples of their size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Bytes of a block.
    pub block: usize,
    /// Blocks that are read at once, each by a thread of its own.
    pub readers: usize,
    /// Blocks that are in memory at once, those that are being read among them.
    pub held: usize,
}

impl Flow {
    /// For a disk: a few reads in flight fill its queue, and more only take memory.
    pub const DISK: Self = Self {
        block: 8 << 20,
        readers: 4,
        held: 16,
    };
}

/// Why bytes of a checkpoint could not be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot read {}: {why}", path.display())]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// What happened.
    pub why: Arc<io::Error>,
}

/// A directory of this host.
#[derive(Clone, Copy, Debug)]
pub struct Directory<'a>(pub &'a Path);

impl Files for Directory<'_> {
    fn open(&self, name: &str) -> io::Result<Arc<dyn Bytes>> {
        Ok(Arc::new(OnDisk::open(&self.0.join(name))?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn flow(&self) -> Flow {
        Flow::DISK
    }
}

/// Files of at least so many bytes are read past the system's cache. Smaller ones do not crowd out much,
/// and are there at once when a server is started again.
const DIRECT: u64 = 1 << 30;

/// What the system wants the place, the length and the memory of a direct read to be multiples of.
pub(crate) const ALIGNMENT: usize = 4096;

/// `O_DIRECT`, where it is known.
const O_DIRECT: Option<i32> = match () {
    () if cfg!(all(target_os = "linux", target_arch = "x86_64")) => Some(0o40_000),
    () if cfg!(all(target_os = "linux", target_arch = "aarch64")) => Some(0o200_000),
    () => None,
};

/// A file of a disk.
#[derive(Debug)]
struct OnDisk {
    file: File,
    /// The same file without the system's cache, if it is large and the file system can do so.
    direct: Option<File>,
    len: u64,
}

impl OnDisk {
    /// Opens the file at `path`, which must be a regular one: a pipe or device would block or lie about
    /// its length.
    fn open(path: &Path) -> io::Result<Self> {
        Self::with_direct_from(path, DIRECT)
    }

    fn with_direct_from(path: &Path, least: u64) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        let direct = O_DIRECT
            .filter(|_| metadata.len() >= least)
            .and_then(|flag| {
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(flag).open(path).ok()
            });
        Ok(Self {
            file: File::open(path)?,
            direct,
            len: metadata.len(),
        })
    }
}

impl Bytes for OnDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let is_aligned =
            at.is_multiple_of(ALIGNMENT as u64) && out.as_ptr().addr().is_multiple_of(ALIGNMENT);
        let Some(direct) = self.direct.as_ref().filter(|_| is_aligned) else {
            return self.file.read_exact_at(out, at);
        };
        let whole = out.len() / ALIGNMENT * ALIGNMENT;
        let (whole, rest) = out.split_at_mut(whole);
        match direct.read_exact_at(whole, at) {
            // Some file systems only say so now.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.file.read_exact_at(whole, at)
            }
            result => result,
        }?;
        self.file.read_exact_at(rest, at + whole.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_the_same_past_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers");
        let numbers: Vec<u8> = (0..30_001_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&path, &numbers).unwrap();
        let file = OnDisk::with_direct_from(&path, 0).unwrap();
        assert_eq!(file.len(), numbers.len() as u64);
        let mut memory = vec![0_u8; numbers.len() + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        for (at, len, shift) in [
            (0, numbers.len(), 0),
            (4096, 50_000, 0),
            (1, 9000, 0),
            (8192, 8192, 1),
        ] {
            let out = &mut memory[start + shift..][..len];
            out.fill(0);
            file.read(at as u64, out).unwrap();
            assert_eq!(out, &numbers[at..at + len], "{len} bytes from {at} on");
        }
        let beyond = file.read(numbers.len() as u64 - 1, &mut [0; 2]);
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
