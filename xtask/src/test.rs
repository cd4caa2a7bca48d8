//! `cargo xtask test`: every test there is, with the real server and a real model.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::run::run;
use crate::workspace::{Profile, Workspace};
use crate::{model, moto, python, xla};

/// Builds everything once, the stand-ins for the Neuron device too, fetches the model and what
/// computes for the stand-ins, runs the Rust tests, then the Python clients.
pub(crate) fn test(workspace: &Workspace) -> Result<()> {
    let appliance = workspace.appliance(Profile::Dev)?;
    let model = model::fetched(workspace, || Ok(appliance.clone()))?;
    let plugin = xla::plugin()?;
    let moto = moto::packages()?;
    let rust = rust(workspace, &appliance, &model, plugin.as_deref(), &moto);
    let clients = clients(workspace, &appliance, &model);
    // Both have run, whatever the first found.
    ensure!(
        rust.is_ok() && clients.is_ok(),
        "{}",
        failures([rust, clients])
    );
    Ok(())
}

/// `plugin` computes in tests of the Neuron path, which are skipped without; `moto` answers for AWS.
fn rust(
    workspace: &Workspace,
    appliance: &Path,
    model: &Path,
    plugin: Option<&Path>,
    moto: &Path,
) -> Result<()> {
    let mut test = workspace.cargo("test");
    test.args(["--workspace", "--no-fail-fast"])
        .env("APPLIANCE_BIN", appliance)
        .env("APPLIANCE_TEST_MODEL", model)
        .env(moto::VARIABLE, moto);
    if let Some(plugin) = plugin {
        test.env(xla::VARIABLE, plugin);
    }
    run(&mut test)
}

/// Real clients in Python against the same server, with packages pinned by hash.
fn clients(workspace: &Workspace, appliance: &Path, model: &Path) -> Result<()> {
    let folder = workspace.root().join("tests/clients");
    let packages = python::installed(&fs::read_to_string(folder.join("requirements.txt"))?)?;
    run(python::python()
        .args(["-B", "-m", "pytest", "--quiet", "-p", "no:cacheprovider"])
        .arg(&folder)
        .current_dir(&folder)
        .env("PYTHONPATH", packages)
        .env("APPLIANCE_BIN", appliance)
        .env("APPLIANCE_TEST_MODEL", model))
}

fn failures<const N: usize>(results: [Result<()>; N]) -> String {
    let causes: Vec<_> = results
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect();
    causes.join("; ")
}
