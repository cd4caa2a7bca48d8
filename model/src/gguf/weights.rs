//! A GGUF's tensors -> `model.safetensors`, in BF16.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{self, Write};

use half::bf16;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::config::{Architecture, FREQUENCIES};
use super::container::{Container, Stored};
use crate::decoder::Decoder;
use crate::weights::{LayerRole, Role};

/// Why a GGUF's tensors are not those of its model.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// A tensor that the model needs is missing.
    #[error("tensor `{tensor}` of shape {expected:?} is missing")]
    Missing {
        /// The tensor.
        tensor: String,
        /// Its shape, slowest size first.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the metadata say.
    #[error("tensor `{tensor}` has shape {found:?}, but the metadata make it {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape, slowest size first.
        found: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor that the model has no use for: without it something else than was trained would
    /// be computed.
    #[error("tensor `{0}` is not supported: no model of this architecture has it")]
    Unknown(String),
}

/// One tensor to write.
#[derive(Debug)]
pub(super) struct Planned {
    /// What Hugging Face calls it.
    name: String,
    stored: Stored,
    /// Rows of a head, if they are to be moved back from the interleaved order.
    interleaved: Option<usize>,
}

impl Planned {
    /// Its bytes in the GGUF.
    pub(super) fn length(&self) -> u64 {
        self.stored.bytes.len() as u64
    }
}

/// Finds a tensor for every role of `decoder`, and a role for every tensor.
pub(super) fn plan(
    gguf: &Container,
    architecture: Architecture,
    decoder: &Decoder,
) -> Result<Vec<Planned>, TensorError> {
    let mut unknown = gguf
        .tensors
        .keys()
        .map(String::as_str)
        .collect::<BTreeSet<_>>();
    unknown.remove(FREQUENCIES);
    let mut planned = Vec::new();
    for (role, expected) in decoder.roles() {
        let tensor = name(role);
        let Some(stored) = gguf.tensors.get(&tensor) else {
            return Err(TensorError::Missing { tensor, expected });
        };
        if stored.shape != expected {
            let found = stored.shape.clone();
            return Err(TensorError::Shape {
                tensor,
                found,
                expected,
            });
        }
        unknown.remove(tensor.as_str());
        let moved = architecture.interleaved && is_rotated(role);
        planned.push(Planned {
            name: role.name(),
            stored: stored.clone(),
            interleaved: moved.then_some(decoder.attention.head_size as usize),
        });
    }
    match unknown.first() {
        None => Ok(planned),
        Some(name) => Err(TensorError::Unknown((*name).into())),
    }
}

/// The numbers of a tensor in the GGUF `file`.
pub(super) fn numbers(file: &[u8], stored: &Stored) -> Vec<f32> {
    let mut numbers = vec![0.0; stored.shape.iter().product()];
    stored
        .format
        .decode(&file[stored.bytes.clone()], &mut numbers);
    numbers
}

/// Writes the `planned` tensors of the GGUF `file` as a safetensors file. `progress` hears how many bytes of
/// the file each had.
pub(super) fn write(
    file: &[u8],
    planned: &[Planned],
    out: &mut impl Write,
    mut progress: impl FnMut(u64),
) -> io::Result<()> {
    let header = header(planned)?;
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for tensor in planned {
        match (tensor.interleaved, tensor.stored.shape.as_slice()) {
            (Some(head), [_]) => write_vector(file, &tensor.stored, head, out)?,
            (interleaved, _) => write_rows(file, &tensor.stored, interleaved, out)?,
        }
        progress(tensor.length());
    }
    Ok(())
}

/// Writes a matrix row by row, so that no more than a row is ever held as numbers.
fn write_rows(
    file: &[u8],
    stored: &Stored,
    head: Option<usize>,
    out: &mut impl Write,
) -> io::Result<()> {
    let whole = &file[stored.bytes.clone()];
    let columns = stored.shape.last().copied().unwrap_or(1);
    let row_bytes = columns / stored.format.numbers * stored.format.bytes;
    let mut numbers = vec![0.0; columns];
    for row in 0..whole.len() / row_bytes {
        let from = head.map_or(row, |head| interleaved(row, head));
        let row = &whole[from * row_bytes..][..row_bytes];
        stored.format.decode(row, &mut numbers);
        write_numbers(numbers.iter().copied(), out)?;
    }
    Ok(())
}

/// Writes a bias whose numbers are in the interleaved order.
fn write_vector(file: &[u8], stored: &Stored, head: usize, out: &mut impl Write) -> io::Result<()> {
    let numbers = numbers(file, stored);
    write_numbers(
        (0..numbers.len()).map(|at| numbers[interleaved(at, head)]),
        out,
    )
}

/// Writes `numbers` as BF16, rounded to the nearest, ties to even.
fn write_numbers(numbers: impl Iterator<Item = f32>, out: &mut impl Write) -> io::Result<()> {
    let bytes = numbers.flat_map(|number| bf16::from_f32(number).to_le_bytes());
    out.write_all(&bytes.collect::<Vec<_>>())
}

/// Where the interleaved order has `row`: pairs side by side rather than half a head apart.
fn interleaved(row: usize, head: usize) -> usize {
    let (start, within) = (row / head * head, row % head);
    start + within % (head / 2) * 2 + within / (head / 2)
}

/// The JSON header, padded so that the numbers behind are aligned.
fn header(planned: &[Planned]) -> io::Result<Vec<u8>> {
    let mut end = 0;
    let tensors = planned.iter().map(|tensor| {
        let start = end;
        let shape = tensor.stored.shape.clone();
        end += shape.iter().product::<usize>() * size_of::<bf16>();
        let info = TensorInfo {
            dtype: Dtype::BF16,
            shape,
            data_offsets: (start, end),
        };
        (tensor.name.clone(), info)
    });
    // transformers refuses a file that does not say so.
    let format = [("format".to_owned(), "pt".to_owned())].into();
    let metadata = Metadata::new(Some(format), tensors.collect()).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

fn is_rotated(role: Role) -> bool {
    use LayerRole::*;
    matches!(role, Role::Layer(_, Query | QueryBias | Key | KeyBias))
}

/// What GGUF calls the tensor for `role`.
fn name(role: Role) -> String {
    match role {
        Role::Embedding => "token_embd.weight".into(),
        Role::FinalNorm => "output_norm.weight".into(),
        Role::Head => "output.weight".into(),
        Role::Layer(layer, role) => format!("blk.{layer}.{}", layer_name(role)),
    }
}

fn layer_name(role: LayerRole) -> Cow<'static, str> {
    let name = match role {
        LayerRole::AttentionNorm => "attn_norm.weight",
        LayerRole::Query => "attn_q.weight",
        LayerRole::QueryBias => "attn_q.bias",
        LayerRole::Key => "attn_k.weight",
        LayerRole::KeyBias => "attn_k.bias",
        LayerRole::Value => "attn_v.weight",
        LayerRole::ValueBias => "attn_v.bias",
        LayerRole::QueryNorm => "attn_q_norm.weight",
        LayerRole::KeyNorm => "attn_k_norm.weight",
        LayerRole::Output => "attn_output.weight",
        LayerRole::OutputBias => "attn_output.bias",
        LayerRole::MlpNorm => "ffn_norm.weight",
        LayerRole::Router => "ffn_gate_inp.weight",
        LayerRole::ExpertGate(expert) => return format!("ffn_gate.{expert}.weight").into(),
        LayerRole::ExpertUp(expert) => return format!("ffn_up.{expert}.weight").into(),
        LayerRole::ExpertDown(expert) => return format!("ffn_down.{expert}.weight").into(),
        LayerRole::Gate => "ffn_gate.weight",
        LayerRole::GateBias => "ffn_gate.bias",
        LayerRole::Up => "ffn_up.weight",
        LayerRole::UpBias => "ffn_up.bias",
        LayerRole::Down => "ffn_down.weight",
        LayerRole::DownBias => "ffn_down.bias",
    };
    name.into()
}
