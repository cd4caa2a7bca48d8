//! What is compiled ahead of time and kept: bundles of NEFFs on disk, each with a manifest.
//!
//! A store is a directory:
//!
//! ```text
//! ROOT/compiled/MODULE/graph.hlo  module.neff  compiled.json    one compiled module, for any bundle
//! ROOT/BUNDLE/NAME.hlo.pb  NAME.neff ..  manifest.json          one bundle, complete by itself
//! ```
//!
//! MODULE and BUNDLE are digests of all that the bytes in them follow from, so nothing is ever
//! changed in place: what is there was compiled from the same HLO by the same compiler with the
//! same arguments. In both, the JSON file is written last and atomically, and marks the rest as
//! whole: without it the directory is what a broken run left. A bundle's files are hard links to
//! those of its modules, so two bundles that share a module hold it once, and a bundle may be
//! copied elsewhere alone.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use graph::{Bucket, Form, Layout, Target};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::neff::{Header, HeaderError};

mod store;

pub use store::{Bring, Need, Store, StoreError};

/// The format of [`Manifest`]: raised whenever an older reader would misunderstand it.
pub const FORMAT: u32 = 1;

/// The file that marks a bundle as whole.
pub const MANIFEST: &str = "manifest.json";

/// What a bundle is and holds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The bundle's name: what [`bundle_key`] gives.
    pub key: String,
    /// The model that it was prepared for. Others may use it whose `decoder` is the same.
    pub model: Identity,
    /// What the modules know of the decoder: see [`facts`].
    pub decoder: Value,
    /// What compiled the modules, and for what.
    pub compiler: Compiler,
    /// What all modules share.
    pub form: Form,
    /// The modules.
    pub modules: Vec<Module>,
    /// The command that makes this bundle again.
    pub command: String,
}

/// Which model a bundle was prepared for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// Its source, as it was given.
    pub source: String,
    /// The commit of the hub it came from, if it came from one.
    pub revision: Option<String>,
    /// SHA-256 of its `config.json`.
    pub config: String,
    /// SHA-256 of what its weights' files are called and how long they are; the weights are inputs
    /// of the modules and not in them.
    pub weights: String,
}

/// What compiled a module, and for what.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Compiler {
    /// What `neuronx-cc --version` says.
    pub version: String,
    /// The Neuron SDK that has this compiler, where it is known.
    pub sdk: Option<String>,
    /// The devices it compiles for.
    pub target: Target,
    /// Physical cores that make a logical one.
    pub lnc: u32,
}

/// A compiled module of a bundle.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Module {
    /// What it runs.
    pub bucket: Bucket,
    /// How it was compiled.
    pub compiled: Compiled,
    /// What it takes and gives.
    pub layout: Layout,
}

/// How a module was compiled, and what came out.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Compiled {
    /// SHA-256 of the HLO's bytes.
    pub hlo: String,
    /// The compiler's arguments.
    pub arguments: Vec<String>,
    /// SHA-256 of the NEFF's bytes.
    pub neff: String,
    /// Bytes of the NEFF.
    pub neff_bytes: u64,
    /// How long the compiler took.
    pub seconds: f64,
    /// The most memory that the compiler and its children held at once, in bytes.
    pub peak_memory: u64,
}

/// What is wrong with a bundle. Each names the file and the command that mends it.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A file cannot be read.
    #[error("cannot read {}: {why}; to make it again: {command}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: io::Error,
        /// What mends it.
        command: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {why}; name a directory with room by --artifacts", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        why: io::Error,
    },
    /// The directory holds no manifest.
    #[error("{} is no bundle, or one that was not finished: it has no {MANIFEST}; to finish it: {command}", path.display())]
    Unfinished {
        /// The directory.
        path: PathBuf,
        /// What mends it.
        command: String,
    },
    /// The manifest is not what this version writes.
    #[error("{} cannot be used: {why}; to make it again: {command}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What mends it.
        command: String,
    },
    /// A file is not the one that was compiled.
    #[error(
        "{} is damaged: its SHA-256 is {found} and {MANIFEST} says {expected}; remove it, then \
         make it again: {command}",
        path.display()
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// What the manifest says.
        expected: String,
        /// What it is.
        found: String,
        /// What mends it.
        command: String,
    },
    /// A file is no NEFF, or not one for this bundle.
    #[error("{} cannot be loaded: {why}; to make it again: {command}", path.display())]
    Neff {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: HeaderError,
        /// What mends it.
        command: String,
    },
}

/// A bundle on disk whose every file is as its manifest says.
#[derive(Clone, Debug)]
pub struct Bundle {
    directory: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Opens the bundle in `directory` and verifies every file: digests, and the header of each
    /// NEFF. Reads all of them once.
    ///
    /// # Errors
    /// Whatever is missing, damaged or of another version, with the command that mends it.
    pub fn open(directory: &Path) -> Result<Self, ArtifactError> {
        let manifest = read_manifest(directory)?;
        let bundle = Self {
            directory: directory.to_owned(),
            manifest,
        };
        for module in &bundle.manifest.modules {
            bundle.verify(module)?;
        }
        Ok(bundle)
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What it is and holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The NEFF of a bucket.
    pub fn neff(&self, bucket: Bucket) -> PathBuf {
        self.directory.join(format!("{}.neff", bucket.name()))
    }

    /// The HLO that it was compiled from.
    pub fn hlo(&self, bucket: Bucket) -> PathBuf {
        self.directory.join(format!("{}.hlo.pb", bucket.name()))
    }

    fn verify(&self, module: &Module) -> Result<(), ArtifactError> {
        let (neff, hlo) = (self.neff(module.bucket), self.hlo(module.bucket));
        let compiled = &module.compiled;
        for (path, expected) in [(&neff, &compiled.neff), (&hlo, &compiled.hlo)] {
            let found = digest_of_file(path).map_err(|why| ArtifactError::Read {
                path: path.clone(),
                why,
                command: self.command(),
            })?;
            if found != *expected {
                return Err(ArtifactError::Digest {
                    path: path.clone(),
                    expected: expected.clone(),
                    found,
                    command: self.command(),
                });
            }
        }
        let header = Header::read(&neff).and_then(|header| {
            header.check_lnc(self.manifest.compiler.lnc)?;
            Ok(header)
        });
        header.map(|_| ()).map_err(|why| ArtifactError::Neff {
            path: neff,
            why,
            command: self.command(),
        })
    }

    fn command(&self) -> String {
        self.manifest.command.clone()
    }
}

/// The manifest in `directory`, whatever the state of the files that it names.
fn read_manifest(directory: &Path) -> Result<Manifest, ArtifactError> {
    // Which model, nobody can say without the manifest.
    const COMMAND: &str =
        "appliance prepare --backend neuron --model SOURCE --target TARGET --tp N";
    let path = directory.join(MANIFEST);
    let command = COMMAND.to_owned();
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let path = directory.to_owned();
            return Err(ArtifactError::Unfinished { path, command });
        }
        Err(why) => {
            return Err(ArtifactError::Read { path, why, command });
        }
    };
    let wrong = |why: String, command: String| ArtifactError::Manifest {
        path: path.clone(),
        why,
        command,
    };
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|error| wrong(format!("it is not JSON ({error})"), command.clone()))?;
    let command = value["command"].as_str().unwrap_or(COMMAND).to_owned();
    if value["format"] != FORMAT {
        let why = format!("its format is {}, not {FORMAT}", value["format"]);
        return Err(wrong(why, command));
    }
    let manifest: Manifest =
        serde_json::from_value(value).map_err(|error| wrong(error.to_string(), command.clone()))?;
    let key = bundle_key(&manifest.compiler, &manifest.modules);
    if manifest.key != key {
        let why = format!("its key is {}, but its modules make it {key}", manifest.key);
        return Err(wrong(why, command));
    }
    Ok(manifest)
}

/// The name of a compiled module: a digest of all that its NEFF follows from.
pub fn module_key(compiler: &Compiler, hlo: &str, arguments: &[String]) -> String {
    let Compiler {
        version,
        target,
        lnc,
        sdk: _,
    } = compiler;
    digest_of_json(&(version, target, lnc, hlo, arguments))
}

/// The name of a bundle: a digest of what its modules are and of what compiled them.
pub fn bundle_key(compiler: &Compiler, modules: &[Module]) -> String {
    let mut keys: Vec<_> = modules
        .iter()
        .map(|module| {
            let Compiled { hlo, arguments, .. } = &module.compiled;
            (module.bucket.name(), module_key(compiler, hlo, arguments))
        })
        .collect();
    keys.sort();
    digest_of_json(&keys)
}

/// What a module knows of a decoder: all of it but what comes in as data (rotary tables, and the
/// head even where it is the embedding) and how long a context the model was trained for.
pub fn facts(decoder: &model::Decoder) -> Value {
    let mut value = serde_json::to_value(decoder).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("context");
        fields.remove("tied_head");
    }
    if let Some(attention) = value.get_mut("attention").and_then(Value::as_object_mut) {
        attention.remove("rope");
    }
    value
}

/// SHA-256 in hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    hexadecimal(Sha256::digest(bytes).as_slice())
}

/// The same of a file.
pub fn digest_of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut bytes = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut bytes)?;
        if count == 0 {
            return Ok(hexadecimal(digest.finalize().as_slice()));
        }
        digest.update(&bytes[..count]);
    }
}

/// Of a value without maps of its own, so that the same value always has the same bytes.
fn digest_of_json(value: &impl Serialize) -> String {
    digest(&serde_json::to_vec(value).unwrap_or_default())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

impl Identity {
    /// Of the model in `directory`.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn of(source: String, directory: &Path) -> io::Result<Self> {
        let config = digest_of_file(&directory.join("config.json"))?;
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            if name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") {
                // A hub's cache holds links.
                files.push((name, fs::metadata(&path)?.len()));
            }
        }
        files.sort();
        Ok(Self {
            source,
            revision: revision(directory),
            config,
            weights: digest_of_json(&files),
        })
    }
}

/// The commit, where `directory` is one of a hub's cache: `.../snapshots/COMMIT`.
fn revision(directory: &Path) -> Option<String> {
    let directory = directory.canonicalize().ok()?;
    let parent = directory.parent()?.file_name()?;
    let commit = directory.file_name()?.to_str()?;
    let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    (parent == "snapshots" && is_commit).then(|| commit.to_owned())
}

/// Writes a file that is there whole or not at all, also after a loss of power.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = part_of(path);
    let mut file = File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    sync_directory(path)
}

/// Puts `from`, a file of the same file system, at `path`, whole or not at all, also after a loss
/// of power.
pub(crate) fn move_whole(from: &Path, path: &Path) -> io::Result<()> {
    File::open(from)?.sync_all()?;
    fs::rename(from, path)?;
    sync_directory(path)
}

/// Makes `path` the same file as `from`, or a copy where the file system has no such links.
fn link_whole(from: &Path, path: &Path) -> io::Result<()> {
    let part = part_of(path);
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if fs::hard_link(from, &part).is_err() {
        fs::copy(from, &part)?;
        File::open(&part)?.sync_all()?;
    }
    fs::rename(&part, path)?;
    // Renaming one link of a file over another leaves both.
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_directory(path),
    }
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

/// Reads JSON that this program wrote; `None` if it is not there or broken.
fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests;
