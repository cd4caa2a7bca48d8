//! The naive peer: transformers behind FastAPI, `tests/peers/naive.py`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::python;

use super::Name;
use super::peer::{Effort, Peer};

/// Its packages installed, about 6 GB on a disk: PyTorch's package for x86-64 brings CUDA along.
pub(super) fn prepared(sources: &Path, model: &Path, effort: Effort) -> Result<Peer> {
    let packages = python::installed(&fs::read_to_string(sources.join("naive.txt"))?)?;
    let script: PathBuf = sources.join("naive.py");
    let model = model.to_owned();
    let command = move |address: SocketAddr| {
        let mut command = python::python();
        command
            .arg("-B")
            .arg(&script)
            .arg(&model)
            .arg(address.port().to_string())
            .env("PYTHONPATH", &packages)
            .env("CUDA_VISIBLE_DEVICES", "")
            .env("HF_HUB_OFFLINE", "1");
        command
    };
    Ok(Peer {
        name: Name::Naive,
        command: Box::new(command),
        effort,
    })
}
