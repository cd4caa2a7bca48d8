//! What a rank holds of a checkpoint, made in the plainest way.

use std::path::Path;

use graph::{Content, Cut, Form, LayerSlot, Slot, WeightFormat};
use model::{Decoder, Dtype, LayerRole, Role, Weights};

/// A matrix `[in, out]`, several of them one below the other, or a vector `[1, out]`.
#[derive(Clone, Debug)]
struct Matrix {
    columns: usize,
    numbers: Vec<f32>,
    /// How many matrices there are.
    experts: usize,
}

/// The bytes of an input that is written once. Where `rounded` names another format than the form
/// has, matrices hold what they would be in that, exactly.
pub(crate) fn bytes(
    decoder: &Decoder,
    form: &Form,
    weights: &Weights,
    rank: u32,
    content: Content,
    rounded: Option<WeightFormat>,
) -> Vec<u8> {
    let cut = Cut::of(decoder, form.ranks).expect("a cut");
    let source = Source {
        decoder,
        weights,
        cut,
        rank,
    };
    match content {
        Content::Rank => rank.to_le_bytes().to_vec(),
        Content::RopeCos => f32s(&source.rope(form.context, f32::cos)),
        Content::RopeSin => f32s(&source.rope(form.context, f32::sin)),
        Content::Weight(Slot::Embedding) => bf16s(&source.embedding().numbers),
        Content::Weight(slot) => {
            let matrix = source.slot(slot);
            let is_exact = matches!(slot, Slot::Layer(_, LayerSlot::Router));
            match (is_matrix(slot), form.weights, rounded) {
                _ if is_exact => bf16s(&matrix.numbers),
                (false, ..) => f32s(&matrix.numbers),
                (true, WeightFormat::Bf16, Some(format)) => bf16s(&restored(
                    &quantized(&matrix, format, form),
                    matrix.columns,
                    format,
                )),
                (true, WeightFormat::Bf16, None) => bf16s(&matrix.numbers),
                (true, format, _) => quantized(&matrix, format, form).0,
            }
        }
        Content::Scale(slot) => f32s(&quantized(&source.slot(slot), form.weights, form).1),
        _ => panic!("{content:?} is not written once"),
    }
}

fn is_matrix(slot: Slot) -> bool {
    use LayerSlot::{Down, ExpertsDown, ExpertsGateUp, GateUp, Output, Qkv};
    matches!(
        slot,
        Slot::Head
            | Slot::Layer(
                _,
                Qkv | Output | GateUp | Down | ExpertsGateUp | ExpertsDown
            )
    )
}

struct Source<'a> {
    decoder: &'a Decoder,
    weights: &'a Weights,
    cut: Cut,
    rank: u32,
}

impl Source<'_> {
    fn rope(&self, context: u32, function: fn(f32) -> f32) -> Vec<f32> {
        let attention = &self.decoder.attention;
        let (frequencies, factor) = attention.rope.frequencies(attention.head_size);
        #[expect(clippy::cast_precision_loss, reason = "positions are small")]
        let position = |position: u32| position as f32;
        (0..context)
            .flat_map(|at| {
                let angles = frequencies.iter().map(move |step| step * position(at));
                angles.map(move |angle| function(angle) * factor)
            })
            .collect()
    }

    /// A tensor of the checkpoint, `[out, in]` or `[out]`, as `[in, out]`.
    fn role(&self, role: Role) -> Matrix {
        let tensor = self.weights.tensor(role).expect("a tensor");
        assert_eq!(tensor.dtype, Dtype::Bf16);
        let (halves, _) = tensor.bytes.as_chunks::<2>();
        let number = |half: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*half)) << 16);
        let numbers: Vec<_> = halves.iter().map(number).collect();
        match *tensor.shape {
            [columns] => Matrix {
                columns,
                numbers,
                experts: 1,
            },
            [out, inner] => {
                let at = |place: usize| numbers[place % out * inner + place / out];
                Matrix {
                    columns: out,
                    numbers: (0..out * inner).map(at).collect(),
                    experts: 1,
                }
            }
            _ => panic!("{role:?}"),
        }
    }

    fn embedding(&self) -> Matrix {
        let all = self.role(Role::Embedding);
        let own = self.cut.vocabulary_of(self.rank, self.decoder.vocabulary);
        let own = all.columns_of(own.start, own.end, self.cut.vocabulary);
        // `[hidden, vocabulary]` so far.
        let rows = own.numbers.len() / own.columns;
        let at = |place: usize| own.numbers[place % rows * own.columns + place / rows];
        Matrix {
            columns: rows,
            numbers: (0..own.numbers.len()).map(at).collect(),
            experts: 1,
        }
    }

    fn slot(&self, slot: Slot) -> Matrix {
        let (cut, rank) = (&self.cut, self.rank);
        match slot {
            Slot::Embedding => self.embedding(),
            Slot::FinalNorm => self.role(Role::FinalNorm),
            Slot::Head => {
                let own = cut.vocabulary_of(rank, self.decoder.vocabulary);
                let all = self.role(Role::Head);
                all.columns_of(own.start, own.end, cut.vocabulary)
            }
            Slot::Layer(layer, slot) => {
                self.layer(slot, &|role| self.role(Role::Layer(layer, role)))
            }
        }
    }

    fn layer(&self, slot: LayerSlot, of: &dyn Fn(LayerRole) -> Matrix) -> Matrix {
        let (cut, rank) = (&self.cut, self.rank);
        let head = self.decoder.attention.head_size;
        let size = self.decoder.mlp.size();
        let heads = cut.heads_of(rank);
        let kv_heads = cut.kv_heads_of(rank);
        let inner = cut.size_of(rank, size);
        let heads = |role| {
            let width = (heads.end - heads.start) * head;
            of(role).columns_of(heads.start * head, heads.end * head, width)
        };
        let kv_heads = |role| {
            let width = (kv_heads.end - kv_heads.start) * head;
            of(role).columns_of(kv_heads.start * head, kv_heads.end * head, width)
        };
        let inside = |role| of(role).columns_of(inner.start, inner.end, cut.size);
        let once = |role| {
            let mut vector = of(role);
            if rank > 0 {
                vector.numbers.fill(0.0);
            }
            vector
        };
        match slot {
            LayerSlot::AttentionNorm => of(LayerRole::AttentionNorm),
            LayerSlot::Qkv => beside(&[
                heads(LayerRole::Query),
                kv_heads(LayerRole::Key),
                kv_heads(LayerRole::Value),
            ]),
            LayerSlot::QkvBias => beside(&[
                heads(LayerRole::QueryBias),
                kv_heads(LayerRole::KeyBias),
                kv_heads(LayerRole::ValueBias),
            ]),
            LayerSlot::QueryNorm => of(LayerRole::QueryNorm),
            LayerSlot::KeyNorm => of(LayerRole::KeyNorm),
            LayerSlot::Output => {
                let heads = cut.heads_of(rank);
                of(LayerRole::Output).rows_of(
                    heads.start * head,
                    heads.end * head,
                    cut.heads * head,
                )
            }
            LayerSlot::OutputBias => once(LayerRole::OutputBias),
            LayerSlot::MlpNorm => of(LayerRole::MlpNorm),
            LayerSlot::GateUp => beside(&[inside(LayerRole::Gate), inside(LayerRole::Up)]),
            LayerSlot::GateUpBias => {
                beside(&[inside(LayerRole::GateBias), inside(LayerRole::UpBias)])
            }
            LayerSlot::Down => of(LayerRole::Down).rows_of(inner.start, inner.end, cut.size),
            LayerSlot::DownBias => once(LayerRole::DownBias),
            LayerSlot::Router => of(LayerRole::Router),
            LayerSlot::ExpertsGateUp => self.each_expert(&|expert| {
                let parts = [LayerRole::ExpertGate, LayerRole::ExpertUp];
                beside(&parts.map(|role| inside(role(expert))))
            }),
            LayerSlot::ExpertsDown => self.each_expert(&|expert| {
                of(LayerRole::ExpertDown(expert)).rows_of(inner.start, inner.end, cut.size)
            }),
        }
    }
}

impl Source<'_> {
    /// The matrices of all experts one below the other.
    fn each_expert(&self, of: &dyn Fn(u32) -> Matrix) -> Matrix {
        let all: Vec<_> = (0..self.decoder.mlp.experts()).map(of).collect();
        Matrix {
            columns: all[0].columns,
            numbers: all.iter().flat_map(|one| one.numbers.clone()).collect(),
            experts: all.len(),
        }
    }
}

impl Matrix {
    /// Columns `from .. to`, then zeros up to `width`.
    fn columns_of(&self, from: u32, to: u32, width: u32) -> Self {
        let (from, to, width) = (from as usize, to as usize, width as usize);
        let mut numbers = Vec::new();
        for row in self.numbers.chunks(self.columns) {
            numbers.extend(&row[from..to]);
            numbers.resize(numbers.len() + width - (to - from), 0.0);
        }
        Self {
            columns: width,
            numbers,
            experts: 1,
        }
    }

    /// The same of rows.
    fn rows_of(&self, from: u32, to: u32, height: u32) -> Self {
        let columns = self.columns;
        let mut numbers = self.numbers[from as usize * columns..to as usize * columns].to_vec();
        numbers.resize(height as usize * columns, 0.0);
        Self {
            columns,
            numbers,
            experts: 1,
        }
    }
}

/// Matrices side by side.
fn beside(parts: &[Matrix]) -> Matrix {
    let rows = parts[0].numbers.len() / parts[0].columns;
    let numbers = (0..rows).flat_map(|row| {
        let part = move |part: &Matrix| part.numbers[row * part.columns..][..part.columns].to_vec();
        parts.iter().flat_map(part)
    });
    Matrix {
        columns: parts.iter().map(|part| part.columns).sum(),
        numbers: numbers.collect(),
        experts: 1,
    }
}

/// A byte for each number, and a scale for each column: a power of two, so that what they stand for
/// is a BF16 number, and not the same in each column, so that one column's scale does not do for
/// another's.
fn quantized(matrix: &Matrix, format: WeightFormat, form: &Form) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut scales) = (Vec::new(), Vec::new());
    for numbers in matrix.numbers.chunks(matrix.numbers.len() / matrix.experts) {
        let one = quantized_one(numbers, matrix.columns, format, form);
        bytes.extend(one.0);
        scales.extend(one.1);
    }
    (bytes, scales)
}

fn quantized_one(
    numbers: &[f32],
    columns: usize,
    format: WeightFormat,
    form: &Form,
) -> (Vec<u8>, Vec<f32>) {
    #[expect(clippy::cast_precision_loss, reason = "it is 240 or 448")]
    let most = match format {
        WeightFormat::Fp8 => form.fp8_max as f32,
        _ => 127.0,
    };
    let mut greatest = vec![1e-5_f32; columns];
    for row in numbers.chunks(columns) {
        for (greatest, number) in greatest.iter_mut().zip(row) {
            *greatest = greatest.max(number.abs());
        }
    }
    let scales = greatest.iter().zip([0.0, 1.0].into_iter().cycle());
    let scales: Vec<_> = scales
        .map(|(greatest, coarser)| ((greatest / most).log2().ceil() + coarser).exp2())
        .collect();
    let scaled = numbers.iter().zip(scales.iter().cycle());
    let bytes = scaled.map(|(number, scale)| match format {
        WeightFormat::Fp8 => fp8(number / scale, most),
        _ => int8(number / scale),
    });
    (bytes.collect(), scales)
}

/// What bytes and scales stand for.
fn restored(
    (bytes, scales): &(Vec<u8>, Vec<f32>),
    columns: usize,
    format: WeightFormat,
) -> Vec<f32> {
    let experts = scales.len() / columns;
    let scales = scales.chunks(columns).flat_map(|of_one| {
        let count = bytes.len() / experts;
        of_one.iter().cycle().take(count)
    });
    let pairs = bytes.iter().zip(scales);
    let restored = pairs.map(|(byte, scale)| match format {
        WeightFormat::Fp8 if *byte >= 0x80 => -value(byte & 0x7f) * scale,
        WeightFormat::Fp8 => value(*byte) * scale,
        _ => f32::from(byte.cast_signed()) * scale,
    });
    restored.collect()
}

#[expect(clippy::cast_possible_truncation, reason = "clamped")]
fn int8(number: f32) -> u8 {
    (number.round_ties_even().clamp(-127.0, 127.0) as i8).cast_unsigned()
}

/// The nearest E4M3 number.
fn fp8(number: f32, most: f32) -> u8 {
    let magnitude = number.abs().min(most);
    let code = (0..0x7f_u8).min_by(|one, other| {
        let distance = |code: u8| (value(code) - magnitude).abs();
        distance(*one).total_cmp(&distance(*other))
    });
    code.expect("there are codes") | if number < 0.0 { 0x80 } else { 0 }
}

/// The positive number that a code of E4M3 stands for.
fn value(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3), f32::from(code & 7));
    match exponent {
        0 => mantissa / 8.0 * 2_f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2_f32.powi(exponent - 7),
    }
}

fn f32s(numbers: &[f32]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

/// The upper halves; all numbers of the goldens have empty lower ones.
fn bf16s(numbers: &[f32]) -> Vec<u8> {
    let halves = numbers.iter().map(|number| {
        let [_, _, low, high] = number.to_le_bytes();
        [low, high]
    });
    halves.flatten().collect()
}

/// A hidden state times the head: the logits of all tokens.
pub(crate) fn multiplied_by_head(path: &Path, state: &[f32]) -> Vec<f32> {
    let decoder = Decoder::open(path).expect("a configuration");
    let weights = Weights::open(path, &decoder).expect("a checkpoint");
    let source = Source {
        decoder: &decoder,
        weights: &weights,
        cut: Cut::of(&decoder, 1).expect("a cut"),
        rank: 0,
    };
    let head = source.slot(Slot::Head);
    let mut logits = vec![0.0; head.columns];
    for (number, row) in state.iter().zip(head.numbers.chunks(head.columns)) {
        for (logit, weight) in logits.iter_mut().zip(row) {
            *logit += number * weight;
        }
    }
    logits
}
