//! Weights as the kernels read them: matrices in panels of columns, vectors in F32.

use half::{bf16, f16};
use model::{Decoder, Dtype, LayerRole, ReadError, Role, Rows, Stream, Weights};

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
    /// Packs `weights` as they are read.
    pub(crate) fn new(
        decoder: &Decoder,
        weights: &Weights,
        precision: Precision,
        pool: &mut Pool,
    ) -> Result<Self, ReadError> {
        let order = decoder.roles().map(|(role, _)| role);
        let mut packer = Packer {
            weights,
            stream: weights.stream(order)?,
            precision,
            pool,
        };
        let embedding = packer.matrix(&[Role::Embedding])?;
        let layers = (0..decoder.layers).map(|layer| packer.layer(decoder, layer));
        let layers = layers.collect::<Result<_, _>>()?;
        let norm = packer.vector(&[Role::FinalNorm])?;
        let (embedding, matrix) = match decoder.tied_head {
            true => (None, embedding),
            false => (Some(embedding), packer.matrix(&[Role::Head])?),
        };
        Ok(Self {
            embedding,
            layers,
            norm,
            head: Linear { matrix, bias: None },
        })
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

/// Packs weights in the order of [`Decoder::roles`], as far as biases are not beside their matrices.
struct Packer<'a> {
    weights: &'a Weights,
    stream: Stream<'a>,
    precision: Precision,
    pool: &'a mut Pool,
}

/// Bytes of a checkpoint's rows that are packed at once, at the most.
const PIECE: usize = 8 << 20;

impl Packer<'_> {
    fn layer(&mut self, decoder: &Decoder, layer: u32) -> Result<Layer, ReadError> {
        use LayerRole::*;
        let attention = &decoder.attention;
        let role = |role| Role::Layer(layer, role);
        let norm = |packer: &mut Self, has: bool, norm| {
            let norm = has.then(|| packer.vector(&[role(norm)]));
            norm.transpose()
        };
        let linear = |packer: &mut Self, matrix: &[LayerRole], bias: Option<&[LayerRole]>| {
            let roles =
                |roles: &[LayerRole]| roles.iter().map(|one| role(*one)).collect::<Vec<_>>();
            Ok(Linear {
                matrix: packer.matrix(&roles(matrix))?,
                bias: bias.map(|bias| packer.vector(&roles(bias))).transpose()?,
            })
        };
        Ok(Layer {
            attention_norm: self.vector(&[role(AttentionNorm)])?,
            input: linear(
                self,
                &[Query, Key, Value],
                attention
                    .input_bias
                    .then_some(&[QueryBias, KeyBias, ValueBias]),
            )?,
            query_norm: norm(self, attention.head_norm, QueryNorm)?,
            key_norm: norm(self, attention.head_norm, KeyNorm)?,
            output: linear(
                self,
                &[Output],
                attention.output_bias.then_some(&[OutputBias]),
            )?,
            mlp_norm: self.vector(&[role(MlpNorm)])?,
            mlp: match decoder.mlp {
                model::Mlp::Gated { bias, .. } => Mlp::Gated(Gated {
                    gate: linear(self, &[Gate], bias.then_some(&[GateBias]))?,
                    up: linear(self, &[Up], bias.then_some(&[UpBias]))?,
                    down: linear(self, &[Down], bias.then_some(&[DownBias]))?,
                }),
                model::Mlp::Experts { experts, .. } => Mlp::Experts {
                    router: linear(self, &[Router], None)?,
                    experts: (0..experts)
                        .map(|expert| {
                            Ok(Gated {
                                gate: linear(self, &[ExpertGate(expert)], None)?,
                                up: linear(self, &[ExpertUp(expert)], None)?,
                                down: linear(self, &[ExpertDown(expert)], None)?,
                            })
                        })
                        .collect::<Result<_, ReadError>>()?,
                },
            },
        })
    }

    /// The outputs of `roles` side by side.
    fn matrix(&mut self, roles: &[Role]) -> Result<Matrix, ReadError> {
        let shape = |role: &Role| match self.weights.shape(*role) {
            (dtype, &[columns, depth]) => (dtype, columns, depth),
            (dtype, shape) => (dtype, 1, shape.iter().product()),
        };
        let parts: Vec<_> = roles.iter().map(shape).collect();
        let depth = parts.first().map_or(0, |(_, _, depth)| *depth);
        let columns: usize = parts.iter().map(|(_, columns, _)| columns).sum();
        let size = columns.next_multiple_of(LANES) * depth;
        let mut weights = match self.precision {
            Precision::Bf16 => Stored::Bf16(vec![0; size]),
            Precision::F32 => Stored::F32(vec![0.0; size]),
        };
        let mut first = 0;
        for (role, (dtype, columns, _)) in roles.iter().zip(parts) {
            let most = (PIECE / (depth * dtype.size()).max(1)).next_multiple_of(LANES);
            for row in (0..columns).step_by(most) {
                let rows = self.stream.rows(*role, row..columns.min(row + most))?;
                self.place(&mut weights, depth, first + row, dtype, &rows);
            }
            first += columns;
        }
        Ok(Matrix {
            weights,
            depth,
            columns,
        })
    }

    /// Writes rows of the checkpoint, which stores `[out, in]`, as columns from `first` on.
    fn place(
        &mut self,
        weights: &mut Stored,
        depth: usize,
        first: usize,
        dtype: Dtype,
        rows: &Rows,
    ) {
        let last = first + rows.len();
        let panels = first / LANES..last.div_ceil(LANES);
        let chunk = depth * LANES;
        // The bytes of a lane of a panel that is among the rows.
        let row = |panel: usize, lane: usize| {
            let column = (panels.start + panel) * LANES + lane;
            (first..last)
                .contains(&column)
                .then(|| rows.row(column - first))
        };
        let range = panels.start * chunk..panels.end * chunk;
        match weights {
            Stored::Bf16(data) => {
                let data = &mut data[range];
                self.pool.for_each_chunk(data, chunk, &|_, panel, out| {
                    for (lane, place) in PLACES.into_iter().enumerate() {
                        if let Some(bytes) = row(panel, lane) {
                            let out = out[place..].iter_mut().step_by(LANES);
                            write_bf16(dtype, bytes, out);
                        }
                    }
                });
            }
            Stored::F32(data) => {
                let data = &mut data[range];
                self.pool.for_each_chunk(data, chunk, &|_, panel, out| {
                    for lane in 0..LANES {
                        if let Some(bytes) = row(panel, lane) {
                            write_f32(dtype, bytes, out[lane..].iter_mut().step_by(LANES));
                        }
                    }
                });
            }
        }
    }

    /// The vectors of `roles` one after the other, padded to whole blocks.
    fn vector(&mut self, roles: &[Role]) -> Result<Vec<f32>, ReadError> {
        let size = |role: &Role| self.weights.shape(*role).1.iter().product::<usize>();
        let size: usize = roles.iter().map(size).sum();
        let mut vector = vec![0.0; size.next_multiple_of(LANES)];
        let mut rest = &mut vector[..];
        for role in roles {
            let (dtype, shape) = self.weights.shape(*role);
            let (out, after) = rest.split_at_mut(shape.iter().product());
            write_f32(dtype, self.stream.rows(*role, 0..1)?.row(0), out.iter_mut());
            rest = after;
        }
        Ok(vector)
    }
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
