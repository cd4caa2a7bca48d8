//! moto, a Python package that answers for AWS: what tests of the account talk to.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::python;

/// The variable by which tests find it: the folder that Python is to look for it in.
pub(crate) const VARIABLE: &str = "APPLIANCE_TEST_MOTO";

/// The folder that holds it: fetched by hash into the user's cache folder unless it is there already.
pub(crate) fn packages() -> Result<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE) {
        let named = PathBuf::from(named);
        ensure!(
            fs::exists(named.join("moto"))?,
            "{VARIABLE} names {}, which holds no moto: unset it, and moto is fetched",
            named.display()
        );
        return Ok(named);
    }
    python::installed(include_str!("../moto.txt"))
        .context("could not fetch moto, which answers for AWS in tests (30 MB)")
}

/// `cargo xtask moto`: fetches it, and says how single tests find it.
pub(crate) fn moto() -> Result<()> {
    println!("export {VARIABLE}={}", packages()?.display());
    Ok(())
}
