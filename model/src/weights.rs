//! Weights by role: what a decoder needs, whatever a checkpoint calls it.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::bytes::{Directory, Files, Flow, ReadError};
use crate::checkpoint::{Checkpoint, CheckpointError, Shard};
use crate::decoder::{Decoder, Mlp};
use crate::dtype::Dtype;
use crate::stream::{Progress, Stream};

/// What transformers 5 calls tensors in memory that hold the weights of all experts of a layer.
const PACKED: [&str; 2] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"];

/// What a tensor is for. Matrices are `[out, in]`, row-major, as Hugging Face stores them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// `[vocabulary, hidden]`.
    Embedding,
    /// `[hidden]`.
    FinalNorm,
    /// `[vocabulary, hidden]`; the embedding itself where the head is tied.
    Head,
    /// One layer's, counted from 0.
    Layer(u32, LayerRole),
}

/// What a tensor of a layer is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LayerRole {
    /// `[hidden]`, before attention.
    AttentionNorm,
    /// `[heads * head_size, hidden]`.
    Query,
    /// `[heads * head_size]`.
    QueryBias,
    /// `[kv_heads * head_size, hidden]`.
    Key,
    /// `[kv_heads * head_size]`.
    KeyBias,
    /// `[kv_heads * head_size, hidden]`.
    Value,
    /// `[kv_heads * head_size]`.
    ValueBias,
    /// `[head_size]`, on each query head.
    QueryNorm,
    /// `[head_size]`, on each key head.
    KeyNorm,
    /// `[hidden, heads * head_size]`.
    Output,
    /// `[hidden]`.
    OutputBias,
    /// `[hidden]`, before the MLP.
    MlpNorm,
    /// `[experts, hidden]`: scores the experts.
    Router,
    /// `[size, hidden]`, of one expert, counted from 0.
    ExpertGate(u32),
    /// `[size, hidden]`, of one expert.
    ExpertUp(u32),
    /// `[hidden, size]`, of one expert.
    ExpertDown(u32),
    /// `[size, hidden]`.
    Gate,
    /// `[size]`.
    GateBias,
    /// `[size, hidden]`.
    Up,
    /// `[size]`.
    UpBias,
    /// `[hidden, size]`.
    Down,
    /// `[hidden]`.
    DownBias,
}

/// A tensor as the checkpoint stores it.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// How its numbers are stored, little-endian.
    pub dtype: Dtype,
    /// Its sizes, slowest first.
    pub shape: Vec<usize>,
    /// Its numbers; as long as shape and dtype say, at no particular alignment.
    pub bytes: Vec<u8>,
}

/// A checkpoint's weights: every role that its decoder has, in the shape that it says. They are where
/// they are stored until they are read, by [`Weights::stream`] or one at a time.
#[derive(Debug)]
pub struct Weights {
    shards: Vec<Shard>,
    places: HashMap<Role, Place>,
    flow: Flow,
    progress: Arc<Progress>,
}

#[derive(Clone, Debug)]
struct Place {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Weights {
    /// Opens the checkpoint in a directory of this host.
    ///
    /// # Errors
    /// As [`Weights::of`].
    pub fn open(dir: &Path, decoder: &Decoder) -> Result<Self, CheckpointError> {
        Self::of(&Directory(dir), decoder)
    }

    /// Opens a checkpoint, `model.safetensors` or shards with an index, and finds every role of
    /// `decoder` in it. Tensors that the decoder has no role for are left alone (old
    /// checkpoints store rotary frequencies, tied ones a second head), but for biases and norms of
    /// its layers: without those it would compute something else than was trained.
    ///
    /// # Errors
    /// Whatever is missing, of another shape or dtype, or not what the format says, by name.
    pub fn of(files: &dyn Files, decoder: &Decoder) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(files)?;
        if let Some(tensor) = packed(&checkpoint, decoder) {
            return Err(CheckpointError::Packed { tensor });
        }
        if let Some(tensor) = denied(&checkpoint, decoder) {
            return Err(CheckpointError::Unused { tensor });
        }
        let mut places = decoder
            .roles()
            .map(|(role, shape)| Ok((role, place(&checkpoint, role, shape)?)))
            .collect::<Result<HashMap<_, _>, CheckpointError>>()?;
        if decoder.tied_head {
            let embedding = &places[&Role::Embedding];
            places.insert(Role::Head, embedding.clone());
        }
        Ok(Self {
            shards: checkpoint.into_shards(),
            places,
            flow: files.flow(),
            progress: Arc::default(),
        })
    }

    /// Reads the tensor for `role`; for [`Role::Head`] the embedding where the head is tied.
    ///
    /// # Errors
    /// It cannot be read.
    ///
    /// # Panics
    /// If the decoder that the weights were opened with does not have the role: a mistake of the
    /// caller's.
    pub fn tensor(&self, role: Role) -> Result<Tensor, ReadError> {
        let place = self.place(role);
        let mut bytes = vec![0; place.bytes.len()];
        let (shard, path) = &self.shards[place.shard];
        let read = shard.read(place.bytes.start as u64, &mut bytes);
        read.map_err(|error| ReadError {
            path: path.clone(),
            why: Arc::new(error),
        })?;
        Ok(Tensor {
            dtype: place.dtype,
            shape: place.shape.clone(),
            bytes,
        })
    }

    /// How the tensor for `role` is stored, and its sizes, slowest first.
    ///
    /// # Panics
    /// As [`Weights::tensor`].
    pub fn shape(&self, role: Role) -> (Dtype, &[usize]) {
        let place = self.place(role);
        (place.dtype, &place.shape)
    }

    /// Begins to read the tensors for these roles, in this order, in memory that is bounded whatever
    /// their sizes.
    ///
    /// # Errors
    /// The host has no threads for it.
    ///
    /// # Panics
    /// As [`Weights::tensor`].
    pub fn stream(&self, order: impl IntoIterator<Item = Role>) -> Result<Stream<'_>, ReadError> {
        Stream::new(self, order)
    }

    /// How far all streams together have come.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// How they are best read from where they are.
    pub(crate) fn flow(&self) -> Flow {
        self.flow
    }

    pub(crate) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// In which shard a tensor lies.
    pub(crate) fn shard(&self, role: Role) -> usize {
        self.place(role).shard
    }

    /// Where in its shard a tensor lies, and the bytes of a row. A vector is one row.
    pub(crate) fn extent(&self, role: Role) -> (Range<usize>, usize) {
        let place = self.place(role);
        let width = match place.shape[..] {
            [rows, ..] if place.shape.len() > 1 => place.bytes.len() / rows.max(1),
            _ => place.bytes.len(),
        };
        (place.bytes.clone(), width)
    }

    fn place(&self, role: Role) -> &Place {
        let place = self.places.get(&role);
        place.unwrap_or_else(|| panic!("{role:?} is none of the decoder's roles"))
    }
}

/// Finds `role` in `checkpoint`, in this shape and a supported dtype.
fn place(
    checkpoint: &Checkpoint,
    role: Role,
    expected: Vec<usize>,
) -> Result<Place, CheckpointError> {
    let Some((tensor, located)) = role
        .names()
        .find_map(|name| checkpoint.find(&name).map(|located| (name, located)))
    else {
        let tensor = missed(checkpoint, role);
        return Err(CheckpointError::Missing { tensor, expected });
    };
    if located.shape != expected {
        let found = located.shape.clone();
        return Err(CheckpointError::Shape {
            tensor,
            expected,
            found,
        });
    }
    let dtype = match located.dtype {
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::F16 => Dtype::F16,
        safetensors::Dtype::BF16 => Dtype::Bf16,
        other => {
            let found = other.to_string();
            return Err(CheckpointError::Dtype { tensor, found });
        }
    };
    Ok(Place {
        shard: located.shard,
        dtype,
        shape: expected,
        bytes: located.bytes.clone(),
    })
}

/// What this checkpoint would call a tensor that it does not have.
fn missed(checkpoint: &Checkpoint, role: Role) -> String {
    let Role::Layer(layer, _) = role else {
        return role.name();
    };
    // Where the router has Mixtral's name, so have the experts.
    let router = Role::Layer(layer, LayerRole::Router).names();
    let called = router
        .zip(role.names())
        .find_map(|(router, name)| checkpoint.find(&router).map(|_| name));
    called.unwrap_or_else(|| role.name())
}

/// A tensor of the checkpoint that has a role in some decoder's layer, but none in this one's.
fn denied(checkpoint: &Checkpoint, decoder: &Decoder) -> Option<String> {
    let has = decoder.layer_roles().map(|(role, _)| role);
    let has = has.collect::<HashSet<_>>();
    // One expert more than there are stands for all that there could be.
    let more = match decoder.mlp {
        Mlp::Gated { .. } => 0,
        Mlp::Experts { experts, .. } => experts,
    };
    let experts = [
        LayerRole::ExpertGate,
        LayerRole::ExpertUp,
        LayerRole::ExpertDown,
    ];
    let roles: Vec<_> = (LayerRole::ALL.into_iter())
        .chain(experts.map(|role| role(more)))
        .filter(|role| !has.contains(role))
        .collect();
    (0..decoder.layers)
        .flat_map(|layer| roles.iter().map(move |role| Role::Layer(layer, *role)))
        .flat_map(Role::names)
        .find(|name| checkpoint.find(name).is_some())
}

/// A tensor that holds the weights of all experts of a layer.
fn packed(checkpoint: &Checkpoint, decoder: &Decoder) -> Option<String> {
    (0..decoder.layers)
        .flat_map(|layer| PACKED.map(|name| format!("model.layers.{layer}.{name}")))
        .find(|name| checkpoint.find(name).is_some())
}

impl Decoder {
    /// Every tensor that this decoder needs, with its shape. [`Role::Head`] is among them only
    /// where it is not tied; its sizes are `[vocabulary, hidden]` either way.
    pub fn roles(&self) -> impl Iterator<Item = (Role, Vec<usize>)> + '_ {
        let (vocabulary, hidden) = (self.vocabulary as usize, self.hidden as usize);
        let layers = (0..self.layers).flat_map(|layer| {
            self.layer_roles()
                .map(move |(role, shape)| (Role::Layer(layer, role), shape))
        });
        let head = (!self.tied_head).then_some((Role::Head, vec![vocabulary, hidden]));
        std::iter::once((Role::Embedding, vec![vocabulary, hidden]))
            .chain(layers)
            .chain([(Role::FinalNorm, vec![hidden])])
            .chain(head)
    }

    /// Every tensor that each layer needs, with its shape.
    pub fn layer_roles(&self) -> impl Iterator<Item = (LayerRole, Vec<usize>)> + use<> {
        use LayerRole::*;
        let attention = &self.attention;
        let (hidden, size) = (self.hidden as usize, self.mlp.size() as usize);
        let (experts, bias) = match self.mlp {
            Mlp::Gated { bias, .. } => (0, bias),
            Mlp::Experts { experts, .. } => (experts, false),
        };
        let gated = experts == 0;
        let head = attention.head_size as usize;
        let query = attention.heads as usize * head;
        let key = attention.kv_heads as usize * head;
        let (input_bias, output_bias) = (attention.input_bias, attention.output_bias);
        let head_norm = attention.head_norm;
        [
            (true, AttentionNorm, vec![hidden]),
            (true, Query, vec![query, hidden]),
            (input_bias, QueryBias, vec![query]),
            (true, Key, vec![key, hidden]),
            (input_bias, KeyBias, vec![key]),
            (true, Value, vec![key, hidden]),
            (input_bias, ValueBias, vec![key]),
            (head_norm, QueryNorm, vec![head]),
            (head_norm, KeyNorm, vec![head]),
            (true, Output, vec![hidden, query]),
            (output_bias, OutputBias, vec![hidden]),
            (true, MlpNorm, vec![hidden]),
            (gated, Gate, vec![size, hidden]),
            (bias, GateBias, vec![size]),
            (gated, Up, vec![size, hidden]),
            (bias, UpBias, vec![size]),
            (gated, Down, vec![hidden, size]),
            (bias, DownBias, vec![hidden]),
            (!gated, Router, vec![experts as usize, hidden]),
        ]
        .into_iter()
        .filter_map(|(has, role, shape)| has.then_some((role, shape)))
        .chain((0..experts).flat_map(move |expert| {
            [
                (ExpertGate(expert), vec![size, hidden]),
                (ExpertUp(expert), vec![size, hidden]),
                (ExpertDown(expert), vec![hidden, size]),
            ]
        }))
    }
}

impl Role {
    /// What Hugging Face checkpoints of all supported families call this tensor, but for the router
    /// and the experts of Mixtral: see [`Role::names`].
    pub fn name(self) -> String {
        self.named(LayerRole::name)
    }

    /// What Hugging Face checkpoints may call this tensor: the usual name, then Mixtral's.
    pub fn names(self) -> impl Iterator<Item = String> {
        [self.name(), self.named(LayerRole::name_in_mixtral)].into_iter()
    }

    fn named(self, of_layer: impl Fn(LayerRole) -> Cow<'static, str>) -> String {
        match self {
            Role::Embedding => "model.embed_tokens.weight".into(),
            Role::FinalNorm => "model.norm.weight".into(),
            Role::Head => "lm_head.weight".into(),
            Role::Layer(layer, role) => format!("model.layers.{layer}.{}", of_layer(role)),
        }
    }
}

impl LayerRole {
    /// All of them but the experts'.
    const ALL: [Self; 19] = {
        use LayerRole::*;
        [
            AttentionNorm,
            Query,
            QueryBias,
            Key,
            KeyBias,
            Value,
            ValueBias,
            QueryNorm,
            KeyNorm,
            Output,
            OutputBias,
            MlpNorm,
            Router,
            Gate,
            GateBias,
            Up,
            UpBias,
            Down,
            DownBias,
        ]
    };

    fn name(self) -> Cow<'static, str> {
        let name = match self {
            LayerRole::AttentionNorm => "input_layernorm.weight",
            LayerRole::Query => "self_attn.q_proj.weight",
            LayerRole::QueryBias => "self_attn.q_proj.bias",
            LayerRole::Key => "self_attn.k_proj.weight",
            LayerRole::KeyBias => "self_attn.k_proj.bias",
            LayerRole::Value => "self_attn.v_proj.weight",
            LayerRole::ValueBias => "self_attn.v_proj.bias",
            LayerRole::QueryNorm => "self_attn.q_norm.weight",
            LayerRole::KeyNorm => "self_attn.k_norm.weight",
            LayerRole::Output => "self_attn.o_proj.weight",
            LayerRole::OutputBias => "self_attn.o_proj.bias",
            LayerRole::MlpNorm => "post_attention_layernorm.weight",
            LayerRole::Router => "mlp.gate.weight",
            LayerRole::ExpertGate(expert) => {
                return format!("mlp.experts.{expert}.gate_proj.weight").into();
            }
            LayerRole::ExpertUp(expert) => {
                return format!("mlp.experts.{expert}.up_proj.weight").into();
            }
            LayerRole::ExpertDown(expert) => {
                return format!("mlp.experts.{expert}.down_proj.weight").into();
            }
            LayerRole::Gate => "mlp.gate_proj.weight",
            LayerRole::GateBias => "mlp.gate_proj.bias",
            LayerRole::Up => "mlp.up_proj.weight",
            LayerRole::UpBias => "mlp.up_proj.bias",
            LayerRole::Down => "mlp.down_proj.weight",
            LayerRole::DownBias => "mlp.down_proj.bias",
        };
        name.into()
    }

    fn name_in_mixtral(self) -> Cow<'static, str> {
        let expert = |expert: u32, of: &str| {
            let name = format!("block_sparse_moe.experts.{expert}.{of}.weight");
            name.into()
        };
        match self {
            LayerRole::Router => "block_sparse_moe.gate.weight".into(),
            LayerRole::ExpertGate(number) => expert(number, "w1"),
            LayerRole::ExpertUp(number) => expert(number, "w3"),
            LayerRole::ExpertDown(number) => expert(number, "w2"),
            _ => self.name(),
        }
    }
}
