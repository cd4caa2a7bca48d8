//! Where things are: the checkout and cargo's output folder.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::run::run;

/// The checkout that the verbs work on.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// What cargo says of our own crates; dependencies as declared, not resolved.
    pub(crate) metadata: Metadata,
}

/// How our programs are built.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Profile {
    /// For tests: quick to build, checks overflow, kernels optimised all the same.
    Dev,
    /// What users run.
    Release,
}

impl Workspace {
    /// The checkout that this program was built from.
    pub(crate) fn here() -> Result<Workspace> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let metadata = MetadataCommand::new()
            .manifest_path(manifest)
            .no_deps()
            .exec()
            .context("could not read the workspace")?;
        Ok(Workspace { metadata })
    }

    /// The folder that holds the root `Cargo.toml`.
    pub(crate) fn root(&self) -> &Path {
        self.metadata.workspace_root.as_std_path()
    }

    /// `cargo VERB`, to be run at the root by the cargo that runs us.
    pub(crate) fn cargo(&self, verb: &str) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.arg(verb).current_dir(self.root());
        command
    }

    /// Builds the server, for tests together with them, and returns the path of its binary.
    pub(crate) fn appliance(&self, profile: Profile) -> Result<PathBuf> {
        let mut build = self.cargo("build");
        match profile {
            // Together with the tests, so that all are built once, with one set of features. cargo
            // puts a shared library (the stand-in for libnrt) where tests find it only if libraries
            // are asked for; all of them are built anyway.
            Profile::Dev => build.args(["--workspace", "--lib", "--bins", "--tests"]),
            Profile::Release => {
                build.args(["--package", "appliance", "--bin", "appliance", "--release"])
            }
        };
        run(&mut build)?;
        let binary = self.output(profile).join("appliance");
        ensure!(binary.is_file(), "cargo built no {}", binary.display());
        Ok(binary)
    }

    /// Where cargo puts what it builds.
    pub(crate) fn output(&self, profile: Profile) -> PathBuf {
        let folder = match profile {
            Profile::Dev => "debug",
            Profile::Release => "release",
        };
        self.metadata.target_directory.as_std_path().join(folder)
    }
}
