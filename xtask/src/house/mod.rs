//! `cargo xtask house`: the rules that the compiler does not keep.

mod imports;
mod links;
mod rooms;
mod tracked;

use std::process::Command;

use anyhow::{Result, bail};

use crate::run::output;
use crate::workspace::Workspace;

/// Prints every rule that does not hold; an error if there is one.
pub(crate) fn house(workspace: &Workspace) -> Result<()> {
    let files = tracked(workspace)?;
    let mut broken: Vec<String> = imports::broken(&workspace.metadata);
    for path in &files {
        let Ok(bytes) = std::fs::read(workspace.root().join(path)) else {
            continue;
        };
        broken.extend(tracked::broken(path, &bytes));
        if let (true, Ok(text)) = (path.ends_with(".md"), str::from_utf8(&bytes)) {
            broken.extend(links::broken(workspace.root(), path, text));
        }
    }
    for rule in &broken {
        eprintln!("{rule}");
    }
    if !broken.is_empty() {
        bail!("{} rules of the house do not hold", broken.len());
    }
    println!(
        "the house is in order: {} crates, {} files",
        workspace.metadata.packages.len(),
        files.len()
    );
    Ok(())
}

/// Paths of the files that git tracks or would add, relative to the root.
fn tracked(workspace: &Workspace) -> Result<Vec<String>> {
    let listing = output(
        Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(workspace.root()),
    )?;
    Ok(listing.split_terminator('\0').map(str::to_owned).collect())
}
