//! Where bundles are kept, and which of them runs a model on a device.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::Demand;
use graph::{Form, KvFormat, Target, WeightFormat};
use model::Decoder;
use serde_json::Value;

use crate::compile::kill_all_in;

use super::{
    ArtifactError, Bundle, Compiled, Compiler, MANIFEST, Manifest, digest_of_file, facts,
    link_whole, module_key, move_whole, read_json, read_manifest, write_whole,
};

/// Directory of compiled modules.
const COMPILED: &str = "compiled";

/// Directory of what compilers are at work on.
const WORK: &str = "work";

/// The file that marks a compiled module as whole.
const MARK: &str = "compiled.json";

const NEFF: &str = "module.neff";

const HLO: &str = "graph.hlo";

/// A directory of bundles. Many processes may read it; one at a time prepares in it.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    elsewhere: Option<Elsewhere>,
}

/// Where the bundles really are, of which the root holds what was needed of them.
#[derive(Clone)]
struct Elsewhere {
    called: String,
    bring: Arc<Bring>,
}

/// Puts the file `BUNDLE/NAME` of a store that is elsewhere at a path of this host.
pub type Bring = dyn Fn(&Path, &Path) -> io::Result<()> + Send + Sync;

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.called)
    }
}

/// Why there is no store or no bundle.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No bundle runs the model on the device.
    #[error("{store} holds no bundle for this model and device: {why}; to make one: {command}")]
    Absent {
        /// The store.
        store: String,
        /// Why each that is there is none.
        why: String,
        /// What makes one.
        command: String,
        /// The arguments of that command.
        arguments: Vec<String>,
    },
    /// The bundle cannot be used.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

/// What a bundle is looked for that it runs, and where.
#[derive(Clone, Copy, Debug)]
pub struct Need<'a> {
    /// The model's source, for the words of a refusal.
    pub source: &'a str,
    /// The model.
    pub decoder: &'a Decoder,
    /// The device.
    pub target: Target,
    /// Physical cores that make a logical one, as the device is set up.
    pub lnc: u32,
    /// Logical cores that may be used: the most ranks.
    pub cores: u32,
    /// How weights are to be held; `None` takes what was prepared.
    pub weights: Option<WeightFormat>,
    /// How keys and values are to be held; `None` takes what was prepared.
    pub kv: Option<KvFormat>,
    /// What is wanted of it: the bundle that comes nearest is taken, as one that holds shorter
    /// sequences or fewer rows also serves.
    pub demand: &'a Demand,
}

impl Store {
    /// The store in this directory, which need not be there yet.
    pub fn new(root: PathBuf) -> Self {
        let elsewhere = None;
        Self { root, elsewhere }
    }

    /// A store that is elsewhere and called so. `root` is a directory for copies, which has the manifests
    /// of all its bundles already; `bring` brings their other files once one is chosen.
    pub fn copy_of(called: String, root: PathBuf, bring: Arc<Bring>) -> Self {
        let elsewhere = Some(Elsewhere { called, bring });
        Self { root, elsewhere }
    }

    /// What it is called: its directory, unless it is elsewhere.
    pub fn name(&self) -> String {
        match &self.elsewhere {
            Some(elsewhere) => elsewhere.called.clone(),
            None => self.root.display().to_string(),
        }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The bundle that suits `need` best, verified. The store may be a bundle itself.
    ///
    /// # Errors
    /// There is none, with why and the command that makes one; or it is damaged.
    pub fn find(&self, need: &Need<'_>) -> Result<Bundle, StoreError> {
        let mut why = Vec::new();
        let mut fit: Vec<(Rank, PathBuf)> = Vec::new();
        for directory in self.bundles() {
            let name = directory.file_name().unwrap_or_default().to_string_lossy();
            let name = name.get(..12).unwrap_or(&name);
            match read_manifest(&directory) {
                Err(error) => why.push(error.to_string()),
                Ok(manifest) => match need.unmet(&manifest) {
                    Some(unmet) => why.push(format!("{name} {unmet}")),
                    None => fit.push((need.rank(&manifest), directory)),
                },
            }
        }
        // Ties go to the first by name, so that the choice is the same each time.
        fit.sort_by(|(a, left), (b, right)| b.cmp(a).then_with(|| left.cmp(right)));
        let Some((_, directory)) = fit.first() else {
            if why.is_empty() {
                why.push("it holds none at all".to_owned());
            }
            return Err(StoreError::Absent {
                store: self.name(),
                why: why.join("; "),
                command: need.command(&self.name()),
                arguments: need.arguments(&self.name()),
            });
        };
        self.complete(directory)?;
        Ok(Bundle::open(directory)?)
    }

    /// Brings the files of a bundle that are not here, or are not what its manifest says.
    fn complete(&self, directory: &Path) -> Result<(), ArtifactError> {
        let Some(elsewhere) = &self.elsewhere else {
            return Ok(());
        };
        let bundle = Bundle {
            directory: directory.to_owned(),
            manifest: read_manifest(directory)?,
        };
        for module in &bundle.manifest.modules {
            let Compiled { neff, hlo, .. } = &module.compiled;
            for (path, expected) in [
                (bundle.neff(module.bucket), neff),
                (bundle.hlo(module.bucket), hlo),
            ] {
                if digest_of_file(&path).is_ok_and(|found| found == *expected) {
                    continue;
                }
                let name = path.strip_prefix(&self.root).unwrap_or(&path);
                (elsewhere.bring)(name, &path).map_err(|why| ArtifactError::Read {
                    path: Path::new(&elsewhere.called).join(name),
                    why,
                    command: bundle.command(),
                })?;
            }
        }
        Ok(())
    }

    /// Directories that hold a manifest, by name.
    fn bundles(&self) -> Vec<PathBuf> {
        if self.root.join(MANIFEST).is_file() {
            return vec![self.root.clone()];
        }
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut bundles: Vec<_> = entries
            .map(|entry| entry.path())
            .filter(|path| path.join(MANIFEST).is_file())
            .collect();
        bundles.sort();
        bundles
    }

    /// Takes the store for preparing in it, and clears away what a killed run left half done. If
    /// another process has it, says so by `wait` and waits.
    pub(crate) fn lock(&self, wait: impl FnOnce()) -> Result<Lock, ArtifactError> {
        let path = self.root.join("lock");
        let written = |why| ArtifactError::Write {
            path: path.clone(),
            why,
        };
        fs::create_dir_all(&self.root).map_err(written)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(written)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                wait();
                file.lock().map_err(written)?;
            }
            Err(TryLockError::Error(error)) => return Err(written(error)),
        }
        let work = self.work();
        kill_all_in(&work);
        match fs::remove_dir_all(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(written(error)),
            _ => fs::create_dir_all(&work).map_err(written),
        }?;
        Ok(Lock { _file: file })
    }

    /// Where compilers work, each in a directory of its own.
    pub(crate) fn work(&self) -> PathBuf {
        self.root.join(WORK)
    }

    /// A module that was compiled before and is whole.
    pub(crate) fn compiled(
        &self,
        compiler: &Compiler,
        hlo: &str,
        arguments: &[String],
    ) -> Option<Compiled> {
        let directory = self.module(compiler, hlo, arguments);
        let compiled: Compiled = read_json(&directory.join(MARK))?;
        let is_same = |name, digest: &str| {
            digest_of_file(&directory.join(name)).is_ok_and(|found| found == digest)
        };
        let whole = is_same(NEFF, &compiled.neff) && is_same(HLO, hlo);
        (whole && compiled.hlo == hlo && compiled.arguments == arguments).then_some(compiled)
    }

    /// Keeps a compiled module: moves its NEFF here and marks it as whole.
    pub(crate) fn keep(
        &self,
        compiler: &Compiler,
        compiled: &Compiled,
        hlo: &[u8],
        neff: &Path,
    ) -> Result<(), ArtifactError> {
        let directory = self.module(compiler, &compiled.hlo, &compiled.arguments);
        let keep = || -> io::Result<()> {
            fs::create_dir_all(&directory)?;
            write_whole(&directory.join(HLO), hlo)?;
            move_whole(neff, &directory.join(NEFF))?;
            write_whole(&directory.join(MARK), &serde_json::to_vec(compiled)?)
        };
        keep().map_err(|why| ArtifactError::Write {
            path: directory.clone(),
            why,
        })
    }

    /// Makes a bundle of modules that are all kept here. The manifest comes last.
    pub(crate) fn publish(&self, manifest: &Manifest) -> Result<Bundle, ArtifactError> {
        let directory = self.root.join(&manifest.key);
        let bundle = Bundle {
            directory: directory.clone(),
            manifest: manifest.clone(),
        };
        let publish = || -> io::Result<()> {
            fs::create_dir_all(&directory)?;
            for module in &manifest.modules {
                let Compiled { hlo, arguments, .. } = &module.compiled;
                let kept = self.module(&manifest.compiler, hlo, arguments);
                link_whole(&kept.join(NEFF), &bundle.neff(module.bucket))?;
                link_whole(&kept.join(HLO), &bundle.hlo(module.bucket))?;
            }
            write_whole(&directory.join(MANIFEST), &serde_json::to_vec(manifest)?)
        };
        publish().map_err(|why| ArtifactError::Write {
            path: directory.clone(),
            why,
        })?;
        Ok(bundle)
    }

    fn module(&self, compiler: &Compiler, hlo: &str, arguments: &[String]) -> PathBuf {
        let key = module_key(compiler, hlo, arguments);
        self.root.join(COMPILED).join(key)
    }
}

/// A store that is prepared in.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// What makes one bundle better than another, what counts most first.
type Rank = (u32, u32, u32);

impl Need<'_> {
    /// Why a bundle cannot be used.
    fn unmet(&self, manifest: &Manifest) -> Option<String> {
        let (compiler, form) = (&manifest.compiler, &manifest.form);
        if let Some(difference) = difference(&manifest.decoder, &facts(self.decoder), "") {
            return Some(format!(
                "is for {}, another decoder ({difference})",
                manifest.model.source
            ));
        }
        if !runs_on(compiler.target, self.target) {
            return Some(format!("is for {}, not {}", compiler.target, self.target));
        }
        if compiler.lnc != self.lnc {
            return Some(format!(
                "is for logical cores of {} physical cores, and here they have {}",
                compiler.lnc, self.lnc
            ));
        }
        if form.ranks > self.cores {
            return Some(format!(
                "needs {} cores, and {} are free",
                form.ranks, self.cores
            ));
        }
        if let Some(format) = self.weights.filter(|format| *format != form.weights) {
            let (held, wanted) = (word(form.weights), word(format));
            return Some(format!("holds weights as {held}, not {wanted}"));
        }
        let kv = self.kv.filter(|format| *format != form.kv)?;
        let (held, wanted) = (form.kv.name(), kv.name());
        Some(format!("holds keys and values as {held}, not {wanted}"))
    }

    /// Among those that can be used, the greatest is the best: as long a context as wanted, as
    /// many rows, and then as many ranks as there may be.
    fn rank(&self, manifest: &Manifest) -> Rank {
        let Form { context, ranks, .. } = manifest.form;
        let rows = decode_rows(manifest);
        (
            context.min(self.demand.context),
            rows.min(self.demand.rows),
            ranks,
        )
    }

    /// What makes a bundle that would do.
    fn command(&self, store: &str) -> String {
        format!("appliance {}", self.arguments(store).join(" "))
    }

    /// The arguments of that command.
    fn arguments(&self, store: &str) -> Vec<String> {
        let working = (1..=self.cores).rev();
        let ranks = working
            .filter(|ranks| ranks.is_power_of_two())
            .find(|ranks| graph::Cut::of(self.decoder, *ranks).is_ok());
        let mut arguments = vec!["prepare".to_owned()];
        let mut flag = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
        flag("backend", "neuron".to_owned());
        flag("model", self.source.to_owned());
        flag("target", self.target.to_string());
        flag("lnc", self.lnc.to_string());
        flag("tp", ranks.unwrap_or(1).to_string());
        if let Some(format) = self.weights {
            flag("dtype", word(format).to_owned());
        }
        if let Some(format) = self.kv {
            flag("kv-dtype", format.name().to_owned());
        }
        flag("max-context", self.demand.context.to_string());
        flag("max-running", self.demand.rows.to_string());
        flag("step-tokens", self.demand.step_tokens.to_string());
        flag("artifacts", store.to_owned());
        arguments
    }
}

/// Inferentia2 and Trainium1 have the same cores and run each other's NEFFs (neuron.md 2.1).
fn runs_on(compiled: Target, device: Target) -> bool {
    let same = |target| match target {
        Target::Inf2 => Target::Trn1,
        other => other,
    };
    same(compiled) == same(device)
}

/// The most rows of a decode step.
fn decode_rows(manifest: &Manifest) -> u32 {
    let rows = manifest.modules.iter().map(|module| match module.bucket {
        graph::Bucket::Step {
            rows, tokens: 1, ..
        } => rows,
        _ => 0,
    });
    rows.max().unwrap_or(0)
}

/// How the command line writes a format.
pub(crate) fn word(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::Bf16 => "bf16",
        WeightFormat::Fp8 => "fp8",
        WeightFormat::Int8 => "int8",
    }
}

/// The first place where two values differ, in words.
fn difference(there: &Value, here: &Value, at: &str) -> Option<String> {
    if let (Value::Object(left), Value::Object(right)) = (there, here) {
        let keys = left.keys().chain(right.keys());
        return keys
            .map(|key| {
                let at = if at.is_empty() {
                    key.clone()
                } else {
                    format!("{at}.{key}")
                };
                difference(&there[key], &here[key], &at)
            })
            .find_map(|found| found);
    }
    (there != here).then(|| format!("its {at} is {there}, this model's {here}"))
}
