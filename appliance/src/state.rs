//! What must outlive a restart: small files in a directory of the server's own.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The directory. Cloning names the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct StateDir(PathBuf);

impl StateDir {
    /// The directory that the setting names; else systemd's, else the user's. `None` if there is no place.
    pub(crate) fn new(setting: Option<&Path>) -> Option<Self> {
        let variable = |name: &str| {
            let value = std::env::var_os(name).filter(|value| !value.is_empty());
            value.map(PathBuf::from)
        };
        let home = || {
            let state = variable("XDG_STATE_HOME");
            let state = state.or_else(|| Some(variable("HOME")?.join(".local/state")));
            state.map(|state| state.join("appliance"))
        };
        let named = setting.map(Path::to_owned);
        named
            .or_else(|| variable("STATE_DIRECTORY"))
            .or_else(home)
            .map(Self)
    }

    /// The path of the file `name`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What the file `name` holds; `None` if there is none.
    pub(crate) fn read<T: for<'de> Deserialize<'de>>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.file(name)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the file `name` hold `value`, whole or not at all, for this user's eyes only.
    pub(crate) fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let path = self.file(name);
        let beside = path.with_extension("new");
        let parent = path.parent().unwrap_or(&self.0);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        file.sync_all()?;
        fs::rename(&beside, &path)
    }
}

/// The parameters with which a model last served: what to go on with where the parameter store does not
/// answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(crate) struct LastGood {
    /// The path they stood under.
    pub(crate) prefix: String,
    /// What followed it, and the values.
    pub(crate) parameters: BTreeMap<String, String>,
}

impl LastGood {
    /// The file.
    pub(crate) const FILE: &str = "last-good-parameters.json";
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(Some(&dir.path().join("a"))).unwrap();
        assert_eq!(state.read::<LastGood>(LastGood::FILE).unwrap(), None);
        let good = LastGood {
            prefix: "/appliance/a".to_owned(),
            parameters: [("model".to_owned(), "m".to_owned())].into(),
        };
        state.write(LastGood::FILE, &good).unwrap();
        assert_eq!(state.read(LastGood::FILE).unwrap(), Some(good));
        let mode = fs::metadata(state.file(LastGood::FILE)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        fs::write(state.file(LastGood::FILE), "{").unwrap();
        assert!(state.read::<LastGood>(LastGood::FILE).is_err());
    }
}
