//! Blocks of weights that were fetched before, in a directory of a fast disk: each under its digest, so
//! that a model which shares blocks with another shares them here too, and what a crash has torn shows.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use super::digest;

/// How much is kept beyond what is asked for before the oldest goes, in parts of the limit: so that not
/// each block that comes in looks through the directory.
const SLACK: u64 = 20;

/// A directory of blocks, bounded in size. Whatever goes wrong with it costs time and nothing else.
#[derive(Debug)]
pub struct BlockCache {
    directory: PathBuf,
    limit: u64,
    /// About how many bytes are in it.
    held: AtomicU64,
    evicting: Mutex<()>,
    /// Whether the disk is full or broken: said once, and then it is only read.
    closed: AtomicBool,
}

impl BlockCache {
    /// The cache in `directory`, which need not be there yet, of at most `limit` bytes.
    pub fn open(directory: PathBuf, limit: u64) -> Self {
        let cache = Self {
            directory,
            limit,
            held: AtomicU64::new(0),
            evicting: Mutex::new(()),
            closed: AtomicBool::new(false),
        };
        if let Err(error) = fs::create_dir_all(&cache.directory) {
            cache.close(&error);
        }
        let held = cache.files().iter().map(|(_, _, size)| size).sum();
        cache.held.store(held, Ordering::Relaxed);
        cache
    }

    /// Fills `out` with the block of that digest, if it is here and is that block.
    pub(super) fn get(&self, expected: &str, out: &mut [u8]) -> bool {
        let path = self.path(expected);
        let mut read = || -> io::Result<bool> {
            let mut file = File::open(&path)?;
            if file.metadata()?.len() != out.len() as u64 {
                return Ok(false);
            }
            file.read_exact(out)?;
            Ok(digest(out) == expected)
        };
        match read() {
            Ok(true) => {
                // What is used stays: the time of the last change is that of the last use.
                let touched =
                    File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                touched.ok();
                true
            }
            Ok(false) => {
                tracing::debug!(path = %path.display(), "a cached block is damaged");
                fs::remove_file(&path).ok();
                false
            }
            Err(_) => false,
        }
    }

    /// Keeps a block.
    pub(super) fn put(&self, digest: &str, bytes: &[u8]) {
        let size = bytes.len() as u64;
        if self.closed.load(Ordering::Relaxed) || size > self.limit {
            return;
        }
        let path = self.path(digest);
        // Two that write the same block at once write the same bytes.
        let part = path.with_extension("part");
        let kept = fs::write(&part, bytes).and_then(|()| fs::rename(&part, &path));
        if let Err(error) = kept {
            fs::remove_file(&part).ok();
            self.close(&error);
            return;
        }
        let held = self.held.fetch_add(size, Ordering::Relaxed) + size;
        if held > self.limit {
            self.evict();
        }
    }

    /// Removes what was not used for longest, until there is some room.
    fn evict(&self) {
        let Ok(_alone) = self.evicting.try_lock() else {
            return;
        };
        let mut files = self.files();
        files.sort();
        let mut held: u64 = files.iter().map(|(_, _, size)| size).sum();
        for (_, path, size) in files {
            if held <= self.limit - self.limit / SLACK {
                break;
            }
            if fs::remove_file(&path).is_ok() {
                held -= size;
            }
        }
        self.held.store(held, Ordering::Relaxed);
    }

    /// All blocks: when each was used last, where it is, and how large.
    fn files(&self) -> Vec<(SystemTime, PathBuf, u64)> {
        let entries = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let files = entries.filter_map(|entry| {
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            Some((used, entry.path(), metadata.len()))
        });
        files.collect()
    }

    fn close(&self, error: &io::Error) {
        if !self.closed.swap(true, Ordering::Relaxed) {
            let directory = self.directory.display();
            tracing::warn!(%directory, %error, "the cache of weights cannot be written: going on without");
        }
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.directory.join(Path::new(digest))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn blocks_come_back_until_they_are_damaged_or_old() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        let cache = BlockCache::open(folder.clone(), 100);
        let block = |fill: u8| vec![fill; 40];
        let names: Vec<_> = (0..3).map(|fill| digest(&block(fill))).collect();
        let get = |cache: &BlockCache, at: usize| {
            let mut out = vec![9; 40];
            let found = cache.get(&names[at], &mut out);
            assert!(!found || out == block(u8::try_from(at).unwrap()));
            found
        };
        assert!(!get(&cache, 0));
        cache.put(&names[0], &block(0));
        cache.put(&names[1], &block(1));
        assert!(get(&cache, 0) && get(&cache, 1));
        // The one that was used longest ago makes room.
        let past = SystemTime::now() - Duration::from_secs(60);
        let first = File::open(folder.join(&names[0])).unwrap();
        first.set_modified(past).unwrap();
        cache.put(&names[2], &block(2));
        assert!(!get(&cache, 0) && get(&cache, 1) && get(&cache, 2));
        // What is torn is not given out, and is gone.
        fs::write(folder.join(&names[1]), [1; 39]).unwrap();
        fs::write(folder.join(&names[2]), [3; 40]).unwrap();
        assert!(!get(&cache, 1) && !get(&cache, 2));
        assert!(!folder.join(&names[2]).exists());
        let again = BlockCache::open(folder, 100);
        assert_eq!(again.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_directory_that_cannot_be_written_costs_nothing_but_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let cache = BlockCache::open(file.join("cache"), 100);
        let name = digest(&[1; 10]);
        cache.put(&name, &[1; 10]);
        assert!(!cache.get(&name, &mut [0; 10]));
    }
}
