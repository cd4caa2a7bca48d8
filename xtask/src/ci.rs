//! `cargo xtask ci`: everything that must hold before a change is taken, each phase timed.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::run::run;
use crate::workspace::{Profile, Workspace};
use crate::{binary, deny, house, test};

/// A phase: its name and what it does.
type Phase = (&'static str, fn(&Workspace) -> Result<()>);

/// The quick ones first.
const PHASES: &[Phase] = &[
    ("format", format),
    ("house", house::house),
    ("dependencies", deny::deny),
    ("test", test::test),
    ("lints", lints),
    ("documents", documents),
    ("release binary", release),
];

/// Runs every phase, also after one has failed; an error unless all held.
pub(crate) fn ci(workspace: &Workspace) -> Result<()> {
    let mut report = String::new();
    let mut failed = Vec::new();
    for (name, phase) in PHASES {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = phase(workspace);
        let seconds = start.elapsed().as_secs_f64();
        let verdict = if result.is_ok() { "held" } else { "FAILED" };
        report += &format!("{name:<16}{seconds:>8.1} s  {verdict}\n");
        if let Err(error) = result {
            eprintln!("{name}: {error:#}");
            failed.push(*name);
        }
    }
    eprintln!("\n{report}");
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn format(workspace: &Workspace) -> Result<()> {
    run(workspace.cargo("fmt").args(["--all", "--check"]))
}

fn lints(workspace: &Workspace) -> Result<()> {
    run(workspace
        .cargo("clippy")
        .args(["--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn documents(workspace: &Workspace) -> Result<()> {
    run(workspace
        .cargo("doc")
        .args(["--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings"))
}

fn release(workspace: &Workspace) -> Result<()> {
    binary::check(&workspace.appliance(Profile::Release)?)
}
