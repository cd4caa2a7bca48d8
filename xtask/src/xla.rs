//! XLA's plugin for the CPU, a shared library that executes HLO: what computes in tests of the
//! Neuron path, where there is no device.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::python;

/// The variable by which tests and the stand-ins find it, and by which another one can be named.
pub(crate) const VARIABLE: &str = "APPLIANCE_XLA_CPU";

/// Where the wheel holds it.
const LIBRARY: &str = "xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so";

/// The path of the plugin: fetched by hash into the user's cache folder unless it is there already.
/// `None` on processors that it is not built for.
pub(crate) fn plugin() -> Result<Option<PathBuf>> {
    if let Some(named) = env::var_os(VARIABLE) {
        let named = PathBuf::from(named);
        ensure!(
            named.is_file(),
            "{VARIABLE} names {}, which is no file: unset it, and the plugin is fetched",
            named.display()
        );
        return Ok(Some(named));
    }
    if !cfg!(target_arch = "x86_64") {
        return Ok(None);
    }
    let packages = python::installed(include_str!("../xla-cpu.txt"))
        .context("could not fetch XLA's plugin for the CPU (63 MB)")?;
    let library = packages.join(LIBRARY);
    ensure!(
        library.is_file(),
        "the package holds no {LIBRARY}: remove {} and try again",
        packages.display()
    );
    Ok(Some(library))
}
