//! A Neuron device that is none: the stand-ins for libnrt and neuronx-cc, and models prepared for
//! them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::sha256;
use crate::run::run;
use crate::workspace::{Profile, Workspace};
use crate::xla;

/// What `BACKEND` calls the device.
pub(crate) const NAME: &str = "neuron-fake";

/// How a model is prepared: few sizes, because XLA takes seconds to compile each of them anew
/// whenever it is loaded, and numbers in F32, so that the tokens are those of the CPU backend.
const FORM: &[&str] = &[
    "--target",
    "trn2",
    "--tp",
    "1",
    "--activations",
    "f32",
    "--kv-dtype",
    "f32",
    "--candidates",
    "256",
    "--max-context",
    "2048",
    "--max-running",
    "8",
    "--step-tokens",
    "256",
    "--page-tokens",
    "16",
    "--kv-pages",
    "1024",
    "--decode-rows",
    "1,8",
    "--prefill-tokens",
    "32,256",
    "--context-pages",
    "128",
];

/// The stand-ins, built.
#[derive(Debug)]
pub(crate) struct StandIns {
    pub(crate) libnrt: PathBuf,
    compiler: PathBuf,
    /// What computes for them; without it they only let time pass.
    plugin: Option<PathBuf>,
    /// What belongs to the device: bundles, and the machine that it is on.
    folder: PathBuf,
}

impl StandIns {
    /// Builds them, and fetches what computes for them.
    pub(crate) fn built(workspace: &Workspace) -> Result<StandIns> {
        let plugin = xla::plugin()?.with_context(|| {
            format!("XLA's plugin for the CPU is built for x86-64 only: {NAME} does not run here")
        })?;
        Ok(StandIns {
            plugin: Some(plugin),
            ..StandIns::hollow(workspace)?
        })
    }

    /// Builds them without what computes: they let the time pass that they are told to.
    pub(crate) fn hollow(workspace: &Workspace) -> Result<StandIns> {
        run(workspace
            .cargo("build")
            .args(["--package", "fake-nrt", "--release"]))?;
        let built = |name| {
            let path = workspace.output(Profile::Release).join(name);
            ensure!(path.is_file(), "cargo built no {}", path.display());
            Ok(path)
        };
        Ok(StandIns {
            libnrt: built("libnrt.so")?,
            compiler: built("fake-neuronx-cc")?,
            plugin: None,
            folder: workspace.output(Profile::Release).join(NAME),
        })
    }

    /// Lets `command` find them.
    pub(crate) fn lend(&self, command: &mut Command) {
        command
            .env("APPLIANCE_LIBNRT", &self.libnrt)
            .envs(self.plugin.iter().map(|plugin| (xla::VARIABLE, plugin)))
            .env("FAKE_NRT_DIR", self.folder.join("machine"));
    }

    /// The bundles of `model`, prepared by `appliance` unless they are there already.
    pub(crate) fn prepared(&self, appliance: &Path, model: &Path) -> Result<PathBuf> {
        self.prepared_as(FORM, appliance, model)
    }

    /// The same with other flags of `appliance prepare`.
    pub(crate) fn prepared_as(
        &self,
        form: &[&str],
        appliance: &Path,
        model: &Path,
    ) -> Result<PathBuf> {
        // What another build of the compiler wrote may not be what this build's runtime reads.
        let compiler = sha256(&self.compiler)?;
        let bundles = self.folder.join(&compiler[..16]);
        let mut command = Command::new(appliance);
        self.lend(&mut command);
        run(command
            .args(["prepare", "--backend", "neuron", "--model"])
            .arg(model)
            .args(form)
            .arg("--compiler")
            .arg(&self.compiler)
            .arg("--artifacts")
            .arg(&bundles))?;
        Ok(bundles)
    }
}
