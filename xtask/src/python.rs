//! Python, for what only Python has: packages pinned by hash, and the clients that tests drive.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, process};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use crate::cache::{self, fresh, hex};
use crate::run::{output, run};

/// `python3`, or what the environment variable `PYTHON` names.
pub(crate) fn python() -> Command {
    Command::new(env::var_os("PYTHON").unwrap_or_else(|| "python3".into()))
}

/// Downloads what `requirements` pins into `folder`, as it is, without what it depends on.
pub(crate) fn download(requirements: &str, folder: &Path) -> Result<()> {
    let pins = folder.join("requirements.txt");
    fs::write(&pins, requirements)?;
    // Allowed where the system's Python is "externally managed" (PEP 668): nothing is installed.
    run(pip("download")?
        .args([
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "--no-cache-dir",
        ])
        .arg("--dest")
        .arg(folder)
        .arg("--requirement")
        .arg(pins))
}

/// Downloads the source package that `requirements` pins into `folder`. pip asks a source for its
/// name and version, which takes what `tools`, a folder for `PYTHONPATH`, holds to build it.
pub(crate) fn download_source(requirements: &str, tools: &Path, folder: &Path) -> Result<()> {
    let pins = folder.join("requirements.txt");
    fs::write(&pins, requirements)?;
    run(pip("download")?
        .args([
            "--no-deps",
            "--no-binary=:all:",
            "--no-build-isolation",
            "--require-hashes",
            "--no-cache-dir",
        ])
        .arg("--dest")
        .arg(folder)
        .arg("--requirement")
        .arg(pins)
        .env("PYTHONPATH", tools))
}

/// A folder for `PYTHONPATH` that holds what `requirements` pins, installed unless it is there.
/// Not a virtual environment: Debian's Python makes none without one more package.
pub(crate) fn installed(requirements: &str) -> Result<PathBuf> {
    let version = output(python().args(["-c", "import sys; print(sys.version, sys.prefix)"]))?;
    let key = hex(&Sha256::new()
        .chain_update(requirements)
        .chain_update(version)
        .finalize());
    let store = cache::folder()?.join("python");
    let packages = store.join(&key[..16]);
    if !packages.is_dir() {
        let scratch = fresh(store.join(format!("installing-{}", process::id())))?;
        let pins = scratch.join("requirements.txt");
        fs::write(&pins, requirements)?;
        run(pip("install")?
            .args(["--require-hashes", "--only-binary=:all:", "--no-cache-dir"])
            .arg("--target")
            .arg(&scratch)
            .arg("--requirement")
            .arg(pins))?;
        fs::rename(scratch, &packages)?;
    }
    Ok(packages)
}

/// Unpacks a wheel, which is a zip file, into `folder`.
pub(crate) fn unpack(wheel: &Path, folder: &Path) -> Result<()> {
    run(python()
        .args(["-m", "zipfile", "--extract"])
        .arg(wheel)
        .arg(folder))
}

/// Unpacks a source package, which is a compressed tar file, into `folder`.
pub(crate) fn unpack_source(package: &Path, folder: &Path) -> Result<()> {
    run(python()
        .args(["-m", "tarfile", "--extract"])
        .arg(package)
        .arg(folder))
}

/// `python3 -m pip VERB`; an error that says what to install where there is no pip.
fn pip(verb: &str) -> Result<Command> {
    let present = python()
        .args(["-m", "pip", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    ensure!(
        present,
        "`python3 -m pip` is needed to fetch pinned packages and did not run; on Debian and \
         Ubuntu `apt install python3-pip` brings it, on Fedora and Amazon Linux \
         `dnf install python3-pip`"
    );
    let mut command = python();
    command.args([
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        verb,
    ]);
    Ok(command)
}

/// The one file in `folder` whose name ends in `.ending`.
pub(crate) fn only(folder: &Path, ending: &str) -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .filter(|path: &Result<PathBuf>| {
            path.as_ref()
                .is_ok_and(|path| path.extension().is_some_and(|is| is == ending))
        })
        .collect::<Result<_>>()?;
    ensure!(
        found.len() == 1,
        "{} .{ending} files in {}, not one",
        found.len(),
        folder.display()
    );
    Ok(found.remove(0))
}
