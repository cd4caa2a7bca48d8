//! Weights as the kernels read them: matrices in panels of columns, vectors in F32.

use half::{bf16, f16};
use model::{Decoder, Dtype, LayerRole, Role, Tensor, Weights};

use crate::Precision;
use crate::kernels::{Blocks, Kernels, LANES, Panels, Sum};
use crate::pool::Pool;

/// All weights of a decoder.
#[derive(Debug)]
pub(crate) struct Packed {
    /// `None` where the head is the embedding.
    embedding: Option<Matrix>,
    /// In order.
    pub(crate) layers: Vec<Layer>,
    /// The weights of the last norm.
    pub(crate) norm: Vec<f32>,
    /// From the hidden state to the vocabulary.
    pub(crate) head: Linear,
}

/// The weights of one layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>,
    /// Query, key and value side by side.
    pub(crate) input: Linear,
    pub(crate) query_norm: Option<Vec<f32>>,
    pub(crate) key_norm: Option<Vec<f32>>,
    pub(crate) output: Linear,
    pub(crate) mlp_norm: Vec<f32>,
    pub(crate) mlp: Mlp,
}

/// What follows attention in a layer.
#[derive(Debug)]
pub(crate) enum Mlp {
    Gated(Gated),
    Experts {
        /// Scores the experts.
        router: Linear,
        /// In order.
        experts: Vec<Gated>,
    },
}

/// A gated MLP: the layer's, or one of its experts.
#[derive(Debug)]
pub(crate) struct Gated {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// A matrix and what is added to its product.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    /// One a column, padded to whole blocks.
    pub(crate) bias: Option<Vec<f32>>,
}

/// A matrix in panels of [`LANES`] columns, each of its `depth` inputs; the last is padded with
/// zeros.
#[derive(Debug)]
pub(crate) struct Matrix {
    weights: Stored,
    depth: usize,
    columns: usize,
}

#[derive(Debug)]
enum Stored {
    Bf16(Vec<u16>),
    F32(Vec<f32>),
}

/// The most panels of one product.
pub(crate) const GROUP: usize = 8;

/// Where a BF16 panel has each of its columns: see [`Panels`].
const PLACES: [usize; LANES] = {
    let mut places = [0; LANES];
    let mut lane = 0;
    while lane < LANES {
        places[lane] = lane % (LANES / 2) * 2 + lane / (LANES / 2);
        lane += 1;
    }
    places
};

impl Packed {
    /// Packs `weights`.
    pub(crate) fn new(
        decoder: &Decoder,
        weights: &Weights,
        precision: Precision,
        pool: &mut Pool,
    ) -> Self {
        let mut packer = Packer {
            weights,
            precision,
            pool,
        };
        Self {
            embedding: (!decoder.tied_head).then(|| packer.matrix(&[Role::Embedding])),
            layers: (0..decoder.layers)
                .map(|layer| packer.layer(decoder, layer))
                .collect(),
            norm: packer.vector(&[Role::FinalNorm]),
            head: Linear {
                matrix: packer.matrix(&[Role::Head]),
                bias: None,
            },
        }
    }

    /// The bytes that the weights of `decoder` take.
    pub(crate) fn bytes(decoder: &Decoder, precision: Precision) -> u64 {
        let width = match precision {
            Precision::Bf16 => 2,
            Precision::F32 => 4,
        };
        let bytes = |(_, shape): (_, Vec<usize>)| match shape[..] {
            [columns, depth] => (columns.next_multiple_of(LANES) * depth * width) as u64,
            _ => shape.iter().product::<usize>().next_multiple_of(LANES) as u64 * 4,
        };
        decoder.roles().map(bytes).sum()
    }

    /// Writes the embedding of `token` to `out`.
    pub(crate) fn embed(&self, token: usize, out: &mut [f32]) {
        let matrix = self.embedding.as_ref().unwrap_or(&self.head.matrix);
        matrix.column(token, out);
    }
}

struct Packer<'a> {
    weights: &'a Weights,
    precision: Precision,
    pool: &'a mut Pool,
}

impl Packer<'_> {
    fn layer(&mut self, decoder: &Decoder, layer: u32) -> Layer {
        use LayerRole::*;
        let attention = &decoder.attention;
        let [norm, query_norm, key_norm, mlp_norm] =
            [AttentionNorm, QueryNorm, KeyNorm, MlpNorm].map(|role| Role::Layer(layer, role));
        let mut linear = |matrix: &[LayerRole], biases: &[LayerRole], biased: bool| {
            let roles = |roles: &[LayerRole]| {
                let roles = roles.iter().map(|role| Role::Layer(layer, *role));
                roles.collect::<Vec<_>>()
            };
            Linear {
                matrix: self.matrix(&roles(matrix)),
                bias: biased.then(|| self.vector(&roles(biases))),
            }
        };
        Layer {
            input: linear(
                &[Query, Key, Value],
                &[QueryBias, KeyBias, ValueBias],
                attention.input_bias,
            ),
            output: linear(&[Output], &[OutputBias], attention.output_bias),
            mlp: match decoder.mlp {
                model::Mlp::Gated { bias, .. } => Mlp::Gated(Gated {
                    gate: linear(&[Gate], &[GateBias], bias),
                    up: linear(&[Up], &[UpBias], bias),
                    down: linear(&[Down], &[DownBias], bias),
                }),
                model::Mlp::Experts { experts, .. } => Mlp::Experts {
                    router: linear(&[Router], &[], false),
                    experts: (0..experts)
                        .map(|expert| Gated {
                            gate: linear(&[ExpertGate(expert)], &[], false),
                            up: linear(&[ExpertUp(expert)], &[], false),
                            down: linear(&[ExpertDown(expert)], &[], false),
                        })
                        .collect(),
                },
            },
            attention_norm: self.vector(&[norm]),
            query_norm: attention.head_norm.then(|| self.vector(&[query_norm])),
            key_norm: attention.head_norm.then(|| self.vector(&[key_norm])),
            mlp_norm: self.vector(&[mlp_norm]),
        }
    }

    /// The outputs of `roles` side by side.
    fn matrix(&mut self, roles: &[Role]) -> Matrix {
        let parts: Vec<_> = roles
            .iter()
            .map(|role| self.weights.tensor(*role))
            .collect();
        let depth = parts[0].shape[1];
        let columns: usize = parts.iter().map(|part| part.shape[0]).sum();
        let size = columns.next_multiple_of(LANES) * depth;
        let column = |column: usize| column_of(&parts, column);
        let weights = match self.precision {
            Precision::Bf16 => {
                let mut panels = vec![0; size];
                let chunk = depth * LANES;
                self.pool
                    .for_each_chunk(&mut panels, chunk, &|_, panel, out| {
                        for (lane, place) in PLACES.into_iter().enumerate() {
                            let Some((dtype, bytes)) = column(panel * LANES + lane) else {
                                break;
                            };
                            let out = out[place..].iter_mut().step_by(LANES);
                            write_bf16(dtype, bytes, out);
                        }
                    });
                Stored::Bf16(panels)
            }
            Precision::F32 => {
                let mut panels = vec![0.0; size];
                let chunk = depth * LANES;
                self.pool
                    .for_each_chunk(&mut panels, chunk, &|_, panel, out| {
                        for lane in 0..LANES {
                            let Some((dtype, bytes)) = column(panel * LANES + lane) else {
                                break;
                            };
                            write_f32(dtype, bytes, out[lane..].iter_mut().step_by(LANES));
                        }
                    });
                Stored::F32(panels)
            }
        };
        Matrix {
            weights,
            depth,
            columns,
        }
    }

    /// The vectors of `roles` one after the other, padded to whole blocks.
    fn vector(&self, roles: &[Role]) -> Vec<f32> {
        let parts: Vec<_> = roles
            .iter()
            .map(|role| self.weights.tensor(*role))
            .collect();
        let size: usize = parts.iter().map(|part| part.shape[0]).sum();
        let mut vector = vec![0.0; size.next_multiple_of(LANES)];
        let mut rest = &mut vector[..];
        for part in parts {
            let (out, after) = rest.split_at_mut(part.shape[0]);
            write_f32(part.dtype, part.bytes, out.iter_mut());
            rest = after;
        }
        vector
    }
}

/// The numbers of a column of `parts` side by side: a row of the checkpoint, which stores `[out,
/// in]`.
fn column_of<'a>(parts: &[Tensor<'a>], mut column: usize) -> Option<(Dtype, &'a [u8])> {
    for part in parts {
        let [columns, depth] = part.shape[..] else {
            return None;
        };
        if column < columns {
            let size = depth * part.dtype.size();
            return Some((part.dtype, &part.bytes[column * size..][..size]));
        }
        column -= columns;
    }
    None
}

/// Writes the numbers in `bytes` as F32.
fn write_f32<'a>(dtype: Dtype, bytes: &[u8], out: impl Iterator<Item = &'a mut f32>) {
    let halves = bytes.as_chunks().0.iter().copied();
    match dtype {
        Dtype::F32 => {
            let words = bytes.as_chunks().0.iter().copied();
            out.zip(words)
                .for_each(|(out, word)| *out = f32::from_le_bytes(word));
        }
        Dtype::F16 => out
            .zip(halves)
            .for_each(|(out, half)| *out = f16::from_le_bytes(half).into()),
        Dtype::Bf16 => {
            out.zip(halves)
                .for_each(|(out, half)| *out = bf16::from_le_bytes(half).into());
        }
    }
}

/// Writes the numbers in `bytes` as BF16, rounded to the nearest.
fn write_bf16<'a>(dtype: Dtype, bytes: &[u8], out: impl Iterator<Item = &'a mut u16>) {
    let halves = bytes.as_chunks().0.iter().copied();
    let round = |number: f32| bf16::from_f32(number).to_bits();
    match dtype {
        Dtype::F32 => {
            let words = bytes.as_chunks().0.iter().copied();
            out.zip(words)
                .for_each(|(out, word)| *out = round(f32::from_le_bytes(word)));
        }
        Dtype::F16 => {
            out.zip(halves)
                .for_each(|(out, half)| *out = round(f16::from_le_bytes(half).into()));
        }
        Dtype::Bf16 => out
            .zip(halves)
            .for_each(|(out, half)| *out = u16::from_le_bytes(half)),
    }
}

impl Matrix {
    /// How many columns there are, without the padding.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// How many panels there are.
    pub(crate) fn panels(&self) -> usize {
        self.columns.div_ceil(LANES)
    }

    /// Multiplies `input` by the panels from `first` on; `out` has a block for each, at most
    /// [`GROUP`] of them.
    pub(crate) fn product(
        &self,
        kernels: &dyn Kernels,
        input: Blocks<'_>,
        first: usize,
        out: &mut [f32],
        sum: Sum,
    ) {
        let depth = self.depth;
        let starts: [usize; GROUP] = std::array::from_fn(|panel| (first + panel) * depth * LANES);
        let starts = &starts[..out.len() / (input.rows * LANES)];
        match &self.weights {
            Stored::Bf16(data) => {
                let panels = Panels {
                    data,
                    starts,
                    depth,
                };
                kernels.product_bf16(input, panels, out, sum);
            }
            Stored::F32(data) => {
                let panels = Panels {
                    data,
                    starts,
                    depth,
                };
                kernels.product_f32(input, panels, out, sum);
            }
        }
    }

    /// Writes the weights of one column to `out`, one for each input.
    fn column(&self, column: usize, out: &mut [f32]) {
        let (panel, lane) = (column / LANES, column % LANES);
        let start = panel * self.depth * LANES;
        match &self.weights {
            Stored::Bf16(weights) => {
                let column = weights[start + PLACES[lane]..].iter().step_by(LANES);
                let widened = column.map(|weight| bf16::from_bits(*weight).to_f32());
                out.iter_mut()
                    .zip(widened)
                    .for_each(|(out, weight)| *out = weight);
            }
            Stored::F32(weights) => {
                let column = weights[start + lane..].iter().step_by(LANES);
                out.iter_mut()
                    .zip(column)
                    .for_each(|(out, weight)| *out = *weight);
            }
        }
    }
}
