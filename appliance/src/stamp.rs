//! Whether a file has changed, for those who read it again when it has.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often files are looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// What changes when a file does; `None` of one that is not there.
type Stamp = Option<(SystemTime, u64, u64)>;

/// Files that are looked at again and again.
#[derive(Default, Debug)]
pub(crate) struct Watched {
    seen: Option<Vec<(PathBuf, Stamp)>>,
}

impl Watched {
    /// Looks at `files`. Returns whether they are others than the last time, or have changed since; not
    /// the first time.
    pub(crate) async fn changed(&mut self, files: Vec<PathBuf>) -> bool {
        let look = move || {
            let look = |file: PathBuf| {
                let stamp = stamp(&file);
                (file, stamp)
            };
            files.into_iter().map(look).collect()
        };
        // A file system can be slow. Nothing in there panics.
        let Ok(now) = tokio::task::spawn_blocking(look).await else {
            return false;
        };
        let before = self.seen.replace(now);
        before.is_some() && before != self.seen
    }
}

fn stamp(file: &Path) -> Stamp {
    let read = std::fs::metadata(file).ok()?;
    Some((read.modified().ok()?, read.len(), read.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let mut watched = Watched::default();
        let look = || vec![file.clone()];
        assert!(!watched.changed(look()).await, "the first look");
        std::fs::write(&file, "a").unwrap();
        assert!(watched.changed(look()).await);
        assert!(!watched.changed(look()).await);
        std::fs::write(&file, "ab").unwrap();
        assert!(watched.changed(look()).await);
        assert!(watched.changed(Vec::new()).await, "others");
    }
}
