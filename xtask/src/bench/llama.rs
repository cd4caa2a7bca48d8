//! The peer llama.cpp: its server built from pinned source for this very processor, and our
//! weights in its format.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::cache::{self, hex};
use crate::run::run;
use crate::{model, python};

use super::Name;
use super::peer::{Effort, Peer};

/// Where the source package holds llama.cpp.
const SOURCE: &str = "llama_cpp_python-0.3.36/vendor/llama.cpp";

/// How it is built: optimised for the processor at hand, nothing but the server.
const OPTIONS: &[&str] = &[
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
];

/// Context of each slot, in tokens: the load needs 264.
const CONTEXT: u32 = 512;

/// The server built and the weights written, unless they are there already.
pub(super) fn prepared(sources: &Path, folder: &Path, effort: Effort) -> Result<Peer> {
    let read = |name| {
        let path = sources.join(name);
        fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))
    };
    let tools = python::installed(&read("llama-tools.txt")?)?;
    let server = server(&read("llama.txt")?, &tools, folder)?;
    let weights = weights(&sources.join("bf16.py"), &tools, folder)?;
    let command = move |address: SocketAddr| command(&server, &weights, address, effort);
    Ok(Peer {
        name: Name::Llama,
        command: Box::new(command),
        effort,
    })
}

/// As many slots as clients, a thread for each core, and one more for each connection.
fn command(server: &Path, weights: &Path, address: SocketAddr, effort: Effort) -> Command {
    let mut command = Command::new(server);
    command.arg("--model").arg(weights);
    let settings = [
        ("--alias", model::NAME.to_owned()),
        ("--host", address.ip().to_string()),
        ("--port", address.port().to_string()),
        ("--parallel", effort.clients.to_string()),
        ("--ctx-size", (effort.clients * CONTEXT).to_string()),
        ("--threads", cores().to_string()),
        ("--threads-http", "64".to_owned()),
    ];
    for (flag, value) in settings {
        command.arg(flag).arg(value);
    }
    command.arg("--cont-batching");
    command
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The path of `llama-server`, built from what `pin` names.
fn server(pin: &str, tools: &Path, folder: &Path) -> Result<PathBuf> {
    let key = fingerprint(&[pin, &OPTIONS.join(" "), &processor()]);
    let server = folder.join(format!("llama-server-{key}"));
    if server.is_file() {
        return Ok(server);
    }
    eprintln!("building llama.cpp's server, once: some minutes");
    // Kept if interrupted: the next run goes on where this one stopped.
    let workshop = folder.join(format!("building-{key}"));
    let source = unpacked(pin, tools, &workshop)?;
    let build = workshop.join("build");
    let path = with_tools_first(tools)?;
    let cmake = || {
        let mut cmake = Command::new(tools.join("bin/cmake"));
        cmake.env("PYTHONPATH", tools).env("PATH", &path);
        cmake
    };
    run(cmake()
        .args(["-G", "Ninja", "-S"])
        .arg(&source)
        .arg("-B")
        .arg(&build)
        .args(OPTIONS))?;
    run(cmake()
        .arg("--build")
        .arg(&build)
        .args(["--target", "llama-server"])
        .args(["--parallel", &cores().to_string()]))?;
    fs::rename(build.join("bin/llama-server"), &server)?;
    cache::remove(&workshop)?;
    Ok(server)
}

/// The source of llama.cpp below `workshop`, fetched and unpacked unless it is there.
fn unpacked(pin: &str, tools: &Path, workshop: &Path) -> Result<PathBuf> {
    let source = workshop.join("source");
    if !source.is_dir() {
        let scratch = cache::fresh(workshop.join("fetching"))?;
        python::download_source(pin, tools, &scratch)?;
        python::unpack_source(&python::only(&scratch, "gz")?, &scratch)?;
        fs::rename(scratch, &source)?;
    }
    Ok(source.join(SOURCE))
}

/// The default model as llama.cpp takes it: the weights that our import makes, in BF16.
fn weights(script: &Path, tools: &Path, folder: &Path) -> Result<PathBuf> {
    let key = fingerprint(&[&fs::read_to_string(script)?]);
    let weights = folder.join(format!("{}-bf16-{key}.gguf", model::NAME));
    if !weights.is_file() {
        let partial = folder.join("writing.gguf");
        run(python::python()
            .arg("-B")
            .arg(script)
            .arg(model::gguf()?)
            .arg(&partial)
            .env("PYTHONPATH", tools))?;
        fs::rename(partial, &weights)?;
    }
    Ok(weights)
}

/// `PATH` with the pinned tools before those of the system.
fn with_tools_first(tools: &Path) -> Result<OsString> {
    let system = env::var_os("PATH").unwrap_or_default();
    let all = [tools.join("bin")]
        .into_iter()
        .chain(env::split_paths(&system));
    Ok(env::join_paths(all)?)
}

/// What the kernel says the processor can do: a native build must not move to another one.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of_first = text.lines().take_while(|line| !line.is_empty());
    of_first
        .filter(|line| {
            ["flags", "Features"]
                .iter()
                .any(|key| line.starts_with(key))
        })
        .collect()
}

fn fingerprint(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    hex(&hash.finalize())[..16].to_owned()
}
