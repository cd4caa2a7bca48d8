//! `cargo xtask bindings`: what neuron-sys says of libnrt's C interface, held against its own
//! declarations in C (`neuron-backend/sys/abi`) or against the headers of an installed runtime.

mod compare;
mod declarations;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::cache;
use crate::run::output;
use crate::workspace::Workspace;
use compare::differences;
use declarations::Declarations;

/// The version of bindgen whose text is committed.
const BINDGEN: &str = "0.72.1";

/// The crate's folder.
const SYS: &str = "neuron-backend/sys";

/// What every bindings file starts with.
const NOTE: &str = "// Made from abi/ by `cargo xtask bindings --write`. Do not edit.";

/// A file of bindings, and what of which header is in it.
struct Part {
    header: &'static str,
    file: &'static str,
    /// The struct of functions.
    library: &'static str,
    functions: &'static str,
    types: &'static str,
    constants: &'static str,
    /// Whether types that these need come along, or are those of the first part.
    whole: bool,
}

/// The synchronous interface, and the asynchronous one that is behind a gate.
const PARTS: [Part; 2] = [
    Part {
        header: "abi/nrt.h",
        file: "src/bindings.rs",
        library: "Nrt",
        functions: "nrt_.*",
        types: "nrt_.*|NRT_STATUS",
        constants: "NRT_.*",
        whole: true,
    },
    Part {
        header: "abi/nrta.h",
        file: "src/nrta.rs",
        library: "Nrta",
        functions: "nrta_.*",
        types: "nrta_.*",
        constants: "NRTA_.*",
        whole: false,
    },
];

/// Headers of an installed runtime that declare what we call, in an order in which they can be
/// read: some use names of others that they do not include.
const INSTALLED: [&str; 5] = [
    "nrt/nrt_status.h",
    "nrt/nrt.h",
    "nrt/nrt_version.h",
    "nrt/nrt_experimental.h",
    "nrt/nrt_async.h",
];

/// What to hold the bindings against.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The folder of an installed runtime that holds nrt/nrt.h, such as /opt/aws/neuron/include,
    /// in place of our own declarations
    #[arg(long, value_name = "DIR", conflicts_with = "write")]
    headers: Option<PathBuf>,
    /// Write the bindings of our own declarations anew
    #[arg(long)]
    write: bool,
}

/// Compares, or writes; an error if something that we use is not as the bindings say.
pub(crate) fn bindings(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let sys = workspace.root().join(SYS);
    let version = bindgen_version()?;
    match &arguments.headers {
        Some(folder) => against_headers(&sys, folder),
        None => {
            ensure!(
                version == BINDGEN,
                "the bindings are made by bindgen {BINDGEN}, and this is {version}: cargo install \
                 bindgen-cli --version {BINDGEN} --locked"
            );
            against_ours(&sys, arguments.write)
        }
    }
}

/// Makes the bindings anew, and writes them or compares.
fn against_ours(sys: &Path, write: bool) -> Result<()> {
    let mut stale = Vec::new();
    let (mut committed, mut made) = (Declarations::default(), Declarations::default());
    for part in &PARTS {
        let text = generated(sys, part)?;
        let file = sys.join(part.file);
        let before = fs::read_to_string(&file).unwrap_or_default();
        if text == before {
            continue;
        }
        if write {
            fs::write(&file, &text).with_context(|| format!("no {}", file.display()))?;
            println!("wrote {}", file.display());
            continue;
        }
        committed.read(&before)?;
        made.read(&text)?;
        stale.push(part.file);
    }
    if stale.is_empty() {
        println!("{SYS}: the bindings are those of abi/");
        return Ok(());
    }
    for difference in differences(&committed, &made).all() {
        println!("{difference}");
    }
    bail!(
        "{} is not what abi/ declares: cargo xtask bindings --write",
        stale.join(" and ")
    )
}

/// Compares the committed bindings with an installed runtime's headers, declaration by declaration.
fn against_headers(sys: &Path, folder: &Path) -> Result<()> {
    let mut ours = Declarations::default();
    for part in &PARTS {
        let file = sys.join(part.file);
        let text = fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?;
        ours.read(&text)?;
    }
    let mut theirs = Declarations::default();
    theirs.read(&of_headers(folder)?)?;
    let differences = differences(&ours, &theirs);
    for difference in differences.all() {
        println!("{difference}");
    }
    println!(
        "{} declarations of ours compared with {}; there are {} more that we do not use",
        ours.count(),
        folder.display(),
        differences.unused
    );
    ensure!(
        differences.used.is_empty(),
        "{} declarations that we use are not as in {}: change abi/ and what is built on it, or \
         install another runtime",
        differences.used.len(),
        folder.display()
    );
    Ok(())
}

/// The text of one of our files, made anew.
fn generated(sys: &Path, part: &Part) -> Result<String> {
    let mut command = bindgen(&sys.join(part.header));
    command.args(["--dynamic-loading", part.library]);
    command.args(["--allowlist-function", part.functions]);
    command.args(["--allowlist-type", part.types]);
    command.args(["--allowlist-var", part.constants]);
    command.args(["--raw-line", NOTE]);
    if !part.whole {
        command.arg("--no-recursive-allowlist");
        command.args(["--raw-line", "use super::bindings::*;"]);
    }
    let text = output(command.args(["--", "-x", "c"]))?;
    // bindgen writes for libloading 0.8, whose constructor took another trait.
    Ok(text.replace(
        "P: AsRef<::std::ffi::OsStr>,",
        "P: ::libloading::AsFilename,",
    ))
}

/// Bindings of all that an installed runtime's headers declare.
fn of_headers(folder: &Path) -> Result<String> {
    ensure!(
        folder.join("nrt/nrt.h").is_file(),
        "{} has no nrt/nrt.h: name the folder that the package aws-neuronx-runtime-lib installs, \
         /opt/aws/neuron/include",
        folder.display()
    );
    let mut all = String::new();
    for header in INSTALLED {
        if folder.join(header).is_file() {
            writeln!(all, "#include <{header}>")?;
        }
    }
    let scratch = cache::fresh(cache::folder()?.join("bindings"))?;
    let header = scratch.join("all.h");
    let text = fs::write(&header, all).map_err(Into::into).and_then(|()| {
        let mut command = bindgen(&header);
        command.args(["--dynamic-loading", "Installed"]);
        command.args(["--allowlist-function", "nrta?_.*"]);
        command.args(["--allowlist-type", "nrta?_.*|NRT_STATUS"]);
        command.args(["--allowlist-var", "NRTA?_.*"]);
        // The headers use `static_assert`, of which C has to be told.
        command.args(["--", "-x", "c", "-include", "assert.h", "-I"]);
        output(command.arg(folder))
    });
    cache::remove(&scratch)?;
    text
}

/// bindgen on a header, with what all its uses share.
fn bindgen(header: &Path) -> Command {
    let mut command = Command::new("bindgen");
    command.arg(header);
    command.args(["--default-enum-style", "consts", "--no-prepend-enum-name"]);
    command.args(["--no-doc-comments", "--disable-header-comment"]);
    command.args(["--wrap-unsafe-ops", "--sort-semantically"]);
    command.args(["--formatter", "prettyplease"]);
    command.args(["--rust-target", "1.85", "--rust-edition", "2024"]);
    command
}

/// Which bindgen is on PATH.
fn bindgen_version() -> Result<String> {
    let output = Command::new("bindgen")
        .arg("--version")
        .stderr(Stdio::inherit())
        .output();
    let output = output.with_context(|| {
        format!(
            "bindgen does not start. Install it and the libclang that it uses: cargo install \
             bindgen-cli --version {BINDGEN} --locked, and the package libclang-dev (Debian, \
             Ubuntu) or clang-devel (Amazon Linux)"
        )
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.trim().strip_prefix("bindgen ");
    version
        .map(str::to_owned)
        .with_context(|| format!("bindgen tells no version: {text:?}"))
}
