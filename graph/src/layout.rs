//! What a module takes and gives: names, shapes, element types, and which input is which output.

use std::ops::Range;

use model::{Decoder, Mlp};
use serde::{Deserialize, Serialize};

use crate::bucket::{Bucket, Form, Head, KvFormat, WeightFormat};
use crate::cut::Cut;
use crate::element::Element;
use crate::form::FormError;

/// What a module takes and gives, as one rank has it. The order is the order of the module's
/// parameters and of its results.
///
/// Inputs: [`Content::Ints`], [`Content::Masks`], [`Content::Rank`], the rotary tables, weights
/// (each matrix followed by its scale where it has one), then keys and values layer by layer.
/// Outputs: candidates or embeddings, then keys and values. What a bucket does not use it does not
/// take: a step that gives embeddings has no masks and no head, and [`Bucket::Copy`] has only
/// integers and the cache.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Layout {
    /// What it takes.
    pub inputs: Vec<Port>,
    /// What it gives.
    pub outputs: Vec<Port>,
    /// Which output lies in the memory of which input.
    pub aliases: Vec<Alias>,
}

/// An output that lies in the memory of an input: the cache, which is changed in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Alias {
    /// Its place among [`Layout::inputs`].
    pub input: usize,
    /// Its place among [`Layout::outputs`].
    pub output: usize,
}

/// An input or an output of a module, as one rank has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Its name in the NEFF.
    pub name: String,
    /// Sizes, slowest first.
    pub shape: Vec<u32>,
    /// The type of its elements.
    pub element: Element,
    /// What it holds.
    pub content: Content,
}

/// What an input or output holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// All small integers of a step: [`Ints`] says where.
    Ints,
    /// `[entries, vocabulary of a rank / 32]`: which tokens may be produced, a bit a token, as
    /// [`engine::TokenMask`] has them.
    Masks,
    /// `[1]`: the number of the rank. Written once.
    Rank,
    /// `[context, head_size / 2]` in F32. Written once.
    RopeCos,
    /// The same for sines.
    RopeSin,
    /// Of the weights. Written once.
    Weight(Slot),
    /// `[out]` in F32: what the products with this matrix are multiplied by; `[experts, out]` for
    /// those of experts. Written once.
    Scale(Slot),
    /// Keys of a layer: `[pages * page_tokens, kv_heads of a rank * head_size]`.
    Keys(u32),
    /// Values of a layer, the same.
    Values(u32),
    /// `[entries, 2 * candidates + 2]` in F32: ids (exact below 2^24), log-probabilities,
    /// normalizer, log-probability of the target.
    Candidates,
    /// `[entries, hidden]` in F32.
    Embedding,
}

/// A tensor of weights as a module takes it. Matrices are `[in, out]`: the transpose of what a
/// checkpoint holds, and cut to what one rank computes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// `[vocabulary of a rank, hidden]`, rows past the vocabulary zero, always BF16.
    Embedding,
    /// `[hidden]` in F32.
    FinalNorm,
    /// `[hidden, vocabulary of a rank]`, columns past the vocabulary zero. The transposed embedding
    /// where the head is tied.
    Head,
    /// One layer's.
    Layer(u32, LayerSlot),
}

/// A tensor of a layer's weights.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerSlot {
    /// `[hidden]` in F32.
    AttentionNorm,
    /// `[hidden, (heads + 2 * kv_heads) of a rank * head_size]`: query, key, value side by side.
    Qkv,
    /// `[(heads + 2 * kv_heads) of a rank * head_size]` in F32.
    QkvBias,
    /// `[head_size]` in F32.
    QueryNorm,
    /// `[head_size]` in F32.
    KeyNorm,
    /// `[heads of a rank * head_size, hidden]`.
    Output,
    /// `[hidden]` in F32; zero but on rank 0.
    OutputBias,
    /// `[hidden]` in F32.
    MlpNorm,
    /// `[hidden, 2 * size of a rank]`: gate and up side by side.
    GateUp,
    /// `[2 * size of a rank]` in F32.
    GateUpBias,
    /// `[size of a rank, hidden]`.
    Down,
    /// `[hidden]` in F32; zero but on rank 0.
    DownBias,
    /// `[hidden, experts]`, always BF16, on every rank: scores the experts.
    Router,
    /// `[experts, hidden, 2 * size of a rank]`: gate and up of each expert side by side.
    ExpertsGateUp,
    /// `[experts, size of a rank, hidden]`.
    ExpertsDown,
}

impl Layout {
    /// What the module of `bucket` takes and gives.
    ///
    /// # Errors
    /// Why `decoder` cannot be lowered in this form or bucket.
    pub fn of(decoder: &Decoder, form: &Form, bucket: Bucket) -> Result<Self, FormError> {
        form.check(decoder)?;
        bucket.check(form)?;
        let cut = Cut::of(decoder, form.ranks)?;
        let mut inputs = vec![ints(bucket)];
        let mut outputs = Vec::new();
        if let Bucket::Step { head, .. } = bucket {
            inputs.extend(masks(&cut, bucket));
            inputs.extend(tables(decoder, form));
            inputs.extend(weights(decoder, form, &cut, head));
            outputs.push(given(decoder, form, bucket));
        }
        let caches = caches(decoder, form, &cut);
        let alias = |cache: usize| Alias {
            input: inputs.len() + cache,
            output: outputs.len() + cache,
        };
        let aliases = (0..caches.len()).map(alias).collect();
        inputs.extend(caches.iter().cloned());
        outputs.extend(caches);
        Ok(Self {
            inputs,
            outputs,
            aliases,
        })
    }

    /// The place of the input that holds `content`, if the module takes it.
    pub fn input(&self, content: Content) -> Option<usize> {
        let holds = |port: &Port| port.content == content;
        self.inputs.iter().position(holds)
    }

    /// What the NEFF calls an input: that of an aliased one says so.
    pub fn input_name(&self, input: usize) -> String {
        let name = &self.inputs[input].name;
        match self.aliases.iter().any(|alias| alias.input == input) {
            true => format!("{name}.must_alias_input"),
            false => name.clone(),
        }
    }
}

impl Port {
    fn new(name: impl Into<String>, shape: &[u32], element: Element, content: Content) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            element,
            content,
        }
    }

    /// Elements it has.
    pub fn len(&self) -> u64 {
        self.shape.iter().map(|size| u64::from(*size)).product()
    }

    /// Whether it has none; no port of ours is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> u64 {
        self.len() * self.element.bytes()
    }
}

impl Slot {
    /// Its name in the NEFF; that of its scale is the same with `.scale` behind.
    pub fn name(self) -> String {
        match self {
            Self::Embedding => "embedding".into(),
            Self::FinalNorm => "final_norm".into(),
            Self::Head => "head".into(),
            Self::Layer(layer, slot) => format!("layers.{layer}.{}", slot.name()),
        }
    }

    /// What a matrix in this slot is made of where matrices are of `format`: the embedding and the
    /// router are always BF16.
    pub fn format(self, format: WeightFormat) -> WeightFormat {
        match self {
            Self::Embedding | Self::Layer(_, LayerSlot::Router) => WeightFormat::Bf16,
            _ => format,
        }
    }
}

impl LayerSlot {
    fn name(self) -> &'static str {
        match self {
            Self::AttentionNorm => "attention_norm",
            Self::Qkv => "qkv",
            Self::QkvBias => "qkv_bias",
            Self::QueryNorm => "query_norm",
            Self::KeyNorm => "key_norm",
            Self::Output => "output",
            Self::OutputBias => "output_bias",
            Self::MlpNorm => "mlp_norm",
            Self::GateUp => "gate_up",
            Self::GateUpBias => "gate_up_bias",
            Self::Down => "down",
            Self::DownBias => "down_bias",
            Self::Router => "router",
            Self::ExpertsGateUp => "experts.gate_up",
            Self::ExpertsDown => "experts.down",
        }
    }
}

impl WeightFormat {
    /// What a matrix is made of.
    pub fn element(self) -> Element {
        match self {
            Self::Bf16 => Element::Bf16,
            Self::Fp8 => Element::F8e4m3fn,
            Self::Int8 => Element::S8,
        }
    }

    /// Whether a matrix comes with a scale for each output channel.
    pub fn is_scaled(self) -> bool {
        self != Self::Bf16
    }
}

impl KvFormat {
    /// How the command line writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::F32 => "f32",
        }
    }

    /// What the cache is made of.
    pub fn element(self) -> Element {
        match self {
            Self::Bf16 => Element::Bf16,
            Self::Fp8 => Element::F8e4m3fn,
            Self::F32 => Element::F32,
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a bucket that was checked has less than 2^31 integers"
)]
fn ints(bucket: Bucket) -> Port {
    let len = Ints::of(bucket).len as u32;
    Port::new("ints", &[len], Element::S32, Content::Ints)
}

/// The masks, where candidates are given.
fn masks(cut: &Cut, bucket: Bucket) -> Option<Port> {
    let masked = matches!(bucket, Bucket::Step { head, .. } if head != Head::Embedding);
    let shape = [bucket.entries(), cut.vocabulary / 32];
    masked.then(|| Port::new("masks", &shape, Element::S32, Content::Masks))
}

/// What is written once and is no weight.
fn tables(decoder: &Decoder, form: &Form) -> [Port; 3] {
    let shape = [form.context, decoder.attention.head_size / 2];
    [
        Port::new("rank", &[1], Element::S32, Content::Rank),
        Port::new("rope.cos", &shape, Element::F32, Content::RopeCos),
        Port::new("rope.sin", &shape, Element::F32, Content::RopeSin),
    ]
}

fn weights(decoder: &Decoder, form: &Form, cut: &Cut, head: Head) -> Vec<Port> {
    let hidden = decoder.hidden;
    let embedding = Port::new(
        Slot::Embedding.name(),
        &[cut.vocabulary, hidden],
        Element::Bf16,
        Content::Weight(Slot::Embedding),
    );
    let layers = (0..decoder.layers).flat_map(|layer| {
        let slots = layer_slots(decoder, cut);
        slots.map(move |(slot, shape)| (Slot::Layer(layer, slot), shape))
    });
    let last = (head != Head::Embedding).then(|| (Slot::Head, vec![hidden, cut.vocabulary]));
    let rest = layers.chain([(Slot::FinalNorm, vec![hidden])]).chain(last);
    std::iter::once(embedding)
        .chain(rest.flat_map(|(slot, shape)| ports(slot, &shape, form.weights)))
        .collect()
}

/// A weight of this shape: a vector in F32, or a matrix or one for each expert, with its scale where
/// it has one.
fn ports(slot: Slot, shape: &[u32], format: WeightFormat) -> Vec<Port> {
    let (name, content) = (slot.name(), Content::Weight(slot));
    let scales = match *shape {
        [_, out] => vec![out],
        [experts, _, out] => vec![experts, out],
        _ => return vec![Port::new(name, shape, Element::F32, content)],
    };
    let format = slot.format(format);
    let scale = format.is_scaled().then(|| {
        let (name, content) = (format!("{name}.scale"), Content::Scale(slot));
        Port::new(name, &scales, Element::F32, content)
    });
    let matrix = Port::new(name, shape, format.element(), content);
    std::iter::once(matrix).chain(scale).collect()
}

/// Every tensor that each layer takes on one rank.
fn layer_slots(
    decoder: &Decoder,
    cut: &Cut,
) -> impl Iterator<Item = (LayerSlot, Vec<u32>)> + use<> {
    use LayerSlot::*;
    let attention = &decoder.attention;
    let (bias, experts) = (decoder.mlp.bias(), decoder.mlp.experts());
    let mixed = matches!(decoder.mlp, Mlp::Experts { .. });
    let (hidden, size, head) = (decoder.hidden, cut.size, attention.head_size);
    let query = cut.heads * head;
    let input = (cut.heads + 2 * cut.kv_heads) * head;
    let (input_bias, output_bias) = (attention.input_bias, attention.output_bias);
    let head_norm = attention.head_norm;
    [
        (true, AttentionNorm, vec![hidden]),
        (true, Qkv, vec![hidden, input]),
        (input_bias, QkvBias, vec![input]),
        (head_norm, QueryNorm, vec![head]),
        (head_norm, KeyNorm, vec![head]),
        (true, Output, vec![query, hidden]),
        (output_bias, OutputBias, vec![hidden]),
        (true, MlpNorm, vec![hidden]),
        (!mixed, GateUp, vec![hidden, 2 * size]),
        (bias, GateUpBias, vec![2 * size]),
        (!mixed, Down, vec![size, hidden]),
        (bias, DownBias, vec![hidden]),
        (mixed, Router, vec![hidden, experts]),
        (mixed, ExpertsGateUp, vec![experts, hidden, 2 * size]),
        (mixed, ExpertsDown, vec![experts, size, hidden]),
    ]
    .into_iter()
    .filter_map(|(has, slot, shape)| has.then_some((slot, shape)))
}

/// What a step gives besides the cache.
fn given(decoder: &Decoder, form: &Form, bucket: Bucket) -> Port {
    let (name, width, content) = match bucket {
        Bucket::Step {
            head: Head::Embedding,
            ..
        } => ("embedding", decoder.hidden, Content::Embedding),
        _ => ("candidates", 2 * form.candidates + 2, Content::Candidates),
    };
    let shape = [bucket.entries(), width];
    Port::new(name, &shape, Element::F32, content)
}

/// Keys and values, layer by layer.
fn caches(decoder: &Decoder, form: &Form, cut: &Cut) -> Vec<Port> {
    let shape = [
        form.pages * form.page_tokens,
        cut.kv_heads * decoder.attention.head_size,
    ];
    let element = form.kv.element();
    let pair = |layer| {
        [
            ("keys", Content::Keys(layer)),
            ("values", Content::Values(layer)),
        ]
        .map(|(name, content)| Port::new(format!("{name}.{layer}"), &shape, element, content))
    };
    (0..decoder.layers).flat_map(pair).collect()
}

/// Where a step's integers stand in its one input of S32: each a range of places.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ints {
    /// `[rows, tokens]`: token ids, padding 0.
    pub tokens: Range<usize>,
    /// `[rows]`: the position of each row's first token.
    pub starts: Range<usize>,
    /// `[rows]`: tokens that the row really brings; at least 1, also of padded rows.
    pub lengths: Range<usize>,
    /// `[rows, tokens]`: where in the cache each token's key and value go: `page * page_tokens +
    /// position % page_tokens`. Padding goes to places 1 .. of page 0, in turn, which nobody reads.
    pub slots: Range<usize>,
    /// `[rows, pages]`: the pages that hold the positions before the row's first, padding 0.
    pub tables: Range<usize>,
    /// `[entries]`: the token whose log-probability is asked, else 0.
    pub targets: Range<usize>,
    /// How many integers there are in all.
    pub len: usize,
}

impl Ints {
    /// Where the integers of a step of this bucket stand; for [`Bucket::Copy`], `tables` holds
    /// `[pairs]` pages that are read, and `slots` as many that are written.
    pub fn of(bucket: Bucket) -> Self {
        let mut len = 0;
        let mut take = |count: u32| {
            let start = len;
            len += count as usize;
            start..len
        };
        match bucket {
            Bucket::Step {
                rows,
                tokens,
                pages,
                head,
            } => {
                let targets = if head == Head::Embedding {
                    0
                } else {
                    bucket.entries()
                };
                Self {
                    tokens: take(rows * tokens),
                    starts: take(rows),
                    lengths: take(rows),
                    slots: take(rows * tokens),
                    tables: take(rows * pages),
                    targets: take(targets),
                    len,
                }
            }
            Bucket::Copy { pairs } => Self {
                tokens: take(0),
                starts: take(0),
                lengths: take(0),
                tables: take(pairs),
                slots: take(pairs),
                targets: take(0),
                len,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::form::tests::{decoder, form};

    const STEP: Bucket = Bucket::Step {
        rows: 4,
        tokens: 1,
        pages: 8,
        head: Head::Last,
    };

    fn names(ports: &[Port]) -> Vec<&str> {
        ports.iter().map(|port| port.name.as_str()).collect()
    }

    #[test]
    fn inputs_stand_in_the_agreed_order() {
        let mut decoder = decoder(4, 2);
        decoder.layers = 1;
        decoder.attention.input_bias = true;
        let mut form = form();
        form.weights = WeightFormat::Fp8;
        let layout = Layout::of(&decoder, &form, STEP).unwrap();
        let expected = "ints masks rank rope.cos rope.sin embedding layers.0.attention_norm \
            layers.0.qkv layers.0.qkv.scale layers.0.qkv_bias layers.0.output \
            layers.0.output.scale layers.0.mlp_norm layers.0.gate_up layers.0.gate_up.scale \
            layers.0.down layers.0.down.scale final_norm head head.scale keys.0 values.0";
        assert_eq!(
            names(&layout.inputs),
            expected
                .split(' ')
                .filter(|name| !name.is_empty())
                .collect::<Vec<_>>()
        );
        assert_eq!(names(&layout.outputs), ["candidates", "keys.0", "values.0"]);
        assert_eq!(layout.inputs[0].shape, [4 + 4 + 4 + 4 + 4 * 8 + 4]);
        assert_eq!(layout.inputs[1].shape, [4, 32]);
        assert_eq!(layout.outputs[0].shape, [4, 130]);
    }

    #[test]
    fn the_cache_is_changed_in_place() {
        let layout = Layout::of(&decoder(4, 2), &form(), STEP).unwrap();
        assert_eq!(layout.aliases.len(), 4);
        for alias in &layout.aliases {
            let input = &layout.inputs[alias.input];
            assert_eq!(input, &layout.outputs[alias.output]);
            let name = layout.input_name(alias.input);
            assert_eq!(name, format!("{}.must_alias_input", input.name));
        }
        assert_eq!(layout.input_name(0), "ints");
    }

    #[test]
    fn a_step_that_gives_embeddings_takes_no_masks_and_no_head() {
        let bucket = Bucket::Step {
            rows: 1,
            tokens: 16,
            pages: 0,
            head: Head::Embedding,
        };
        let layout = Layout::of(&decoder(4, 2), &form(), bucket).unwrap();
        assert_eq!(layout.input(Content::Masks), None);
        assert_eq!(layout.input(Content::Weight(Slot::Head)), None);
        assert_eq!(layout.outputs[0].shape, [1, 64]);
    }

    #[test]
    fn a_copy_takes_integers_and_the_cache_only() {
        let layout = Layout::of(&decoder(4, 2), &form(), Bucket::Copy { pairs: 3 }).unwrap();
        let inputs = ["ints", "keys.0", "values.0", "keys.1", "values.1"];
        assert_eq!(names(&layout.inputs), inputs);
        assert_eq!(names(&layout.outputs), &inputs[1..]);
        assert_eq!(layout.inputs[0].shape, [6]);
    }

    #[test]
    fn experts_are_one_tensor_a_projection_and_the_router_is_never_narrow() {
        let mut decoder = decoder(4, 2);
        decoder.layers = 1;
        decoder.mlp = Mlp::Experts {
            experts: 12,
            chosen: 2,
            size: 40,
            activation: model::Activation::Silu,
            renormalise: true,
        };
        let mut form = form();
        (form.weights, form.ranks) = (WeightFormat::Fp8, 2);
        let layout = Layout::of(&decoder, &form, STEP).unwrap();
        let of_mlp: Vec<_> = (layout.inputs.iter())
            .skip_while(|port| port.name != "layers.0.mlp_norm")
            .skip(1)
            .take_while(|port| port.name != "final_norm")
            .map(|port| (port.name.as_str(), &port.shape[..], port.element))
            .collect();
        let expected: [(&str, &[u32], Element); 5] = [
            ("layers.0.router", &[64, 12], Element::Bf16),
            ("layers.0.experts.gate_up", &[12, 64, 40], Element::F8e4m3fn),
            ("layers.0.experts.gate_up.scale", &[12, 40], Element::F32),
            ("layers.0.experts.down", &[12, 20, 64], Element::F8e4m3fn),
            ("layers.0.experts.down.scale", &[12, 64], Element::F32),
        ];
        assert_eq!(of_mlp, expected);
    }

    #[test]
    fn ranks_have_parts_of_what_is_cut() {
        let mut form = form();
        form.ranks = 4;
        let layout = Layout::of(&decoder(4, 2), &form, STEP).unwrap();
        let shape = |content| &layout.inputs[layout.input(content).unwrap()].shape;
        let layer = |slot| shape(Content::Weight(Slot::Layer(1, slot)));
        assert_eq!(layer(LayerSlot::Qkv), &[64, 48]);
        assert_eq!(layer(LayerSlot::Output), &[16, 64]);
        assert_eq!(layer(LayerSlot::GateUp), &[64, 48]);
        assert_eq!(layer(LayerSlot::Down), &[24, 64]);
        assert_eq!(shape(Content::Weight(Slot::Head)), &[64, 256]);
        assert_eq!(shape(Content::Weight(Slot::Embedding)), &[256, 64]);
        assert_eq!(shape(Content::Keys(0)), &[17 * 16, 16]);
    }
}
