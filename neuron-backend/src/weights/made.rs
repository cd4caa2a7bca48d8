//! Of which tensors a slot is made, and of which part of them on a rank.

use std::ops::Range;

use graph::{Cut, LayerSlot, Slot};
use model::{Decoder, LayerRole, Role};

/// Rows of a tensor: part of its first dimension.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub(super) role: Role,
    pub(super) rows: Range<usize>,
    /// Where the first of them goes.
    pub(super) at: usize,
}

/// What a slot is made of. What no part fills is zero.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Made {
    /// A vector of so many numbers in F32.
    Vector { parts: Vec<Part>, len: usize },
    /// So many rows of a tensor as it is, in BF16.
    Rows { part: Part, rows: usize },
    /// Matrices one after the other, one for each expert or just one: a tensor's rows become columns.
    Columns(Vec<Shape>),
}

/// A matrix `[inputs, outputs]`, made of rows of tensors `[out, in]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    /// Of the outputs.
    pub(super) parts: Vec<Part>,
    /// Which inputs of the tensors, from the first input of the matrix on.
    pub(super) of: Range<usize>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Made {
    /// What `rank` has of `slot`.
    pub(super) fn of(decoder: &Decoder, cut: &Cut, slot: Slot, rank: u32) -> Self {
        let tokens = wide(&cut.vocabulary_of(rank, decoder.vocabulary));
        let vocabulary = cut.vocabulary as usize;
        let hidden = decoder.hidden as usize;
        match slot {
            Slot::Embedding => Self::Rows {
                part: part(Role::Embedding, tokens, 0),
                rows: vocabulary,
            },
            Slot::FinalNorm => Self::whole(Role::FinalNorm, hidden),
            Slot::Head => {
                let parts = vec![part(Role::Head, tokens, 0)];
                Self::by_output(parts, hidden, vocabulary)
            }
            Slot::Layer(layer, slot) => {
                let role = |role| Role::Layer(layer, role);
                Self::of_layer(decoder, cut, &role, slot, rank)
            }
        }
    }

    /// The tensors that it is made of, in order.
    pub(super) fn roles(&self) -> Vec<Role> {
        let of = |parts: &[Part]| parts.iter().map(|part| part.role).collect::<Vec<_>>();
        match self {
            Self::Vector { parts, .. } => of(parts),
            Self::Rows { part, .. } => vec![part.role],
            Self::Columns(shapes) => shapes.iter().flat_map(|shape| of(&shape.parts)).collect(),
        }
    }

    fn of_layer(
        decoder: &Decoder,
        cut: &Cut,
        role: &impl Fn(LayerRole) -> Role,
        slot: LayerSlot,
        rank: u32,
    ) -> Self {
        use LayerRole::*;
        let hidden = decoder.hidden as usize;
        let head = decoder.attention.head_size as usize;
        let whole = decoder.mlp.size();
        let (size, inner) = (cut.size as usize, wide(&cut.size_of(rank, whole)));
        let queries = times(&wide(&cut.heads_of(rank)), head);
        let keys = times(&wide(&cut.kv_heads_of(rank)), head);
        let columns = (queries.len(), keys.len());
        let input = columns.0 + 2 * columns.1;
        let qkv = |roles: [LayerRole; 3]| {
            let [query, key, value] = roles.map(role);
            vec![
                part(query, queries.clone(), 0),
                part(key, keys.clone(), columns.0),
                part(value, keys.clone(), columns.0 + columns.1),
            ]
        };
        let gate_up = |roles: [LayerRole; 2]| {
            let [gate, up] = roles.map(role);
            vec![part(gate, inner.clone(), 0), part(up, inner.clone(), size)]
        };
        match slot {
            LayerSlot::AttentionNorm => Self::whole(role(AttentionNorm), hidden),
            LayerSlot::MlpNorm => Self::whole(role(MlpNorm), hidden),
            LayerSlot::QueryNorm => Self::whole(role(QueryNorm), head),
            LayerSlot::KeyNorm => Self::whole(role(KeyNorm), head),
            LayerSlot::Qkv => Self::by_output(qkv([Query, Key, Value]), hidden, input),
            LayerSlot::QkvBias => Self::Vector {
                parts: qkv([QueryBias, KeyBias, ValueBias]),
                len: input,
            },
            LayerSlot::GateUp => Self::by_output(gate_up([Gate, Up]), hidden, 2 * size),
            LayerSlot::GateUpBias => Self::Vector {
                parts: gate_up([GateBias, UpBias]),
                len: 2 * size,
            },
            LayerSlot::Output => {
                let inputs = queries.len();
                Self::by_input(role(Output), queries, inputs, hidden)
            }
            LayerSlot::Down => Self::by_input(role(Down), inner.clone(), size, hidden),
            LayerSlot::Router => {
                let experts = decoder.mlp.experts() as usize;
                let parts = vec![part(role(Router), 0..experts, 0)];
                Self::by_output(parts, hidden, experts)
            }
            LayerSlot::ExpertsGateUp => Self::of_each(decoder, |expert| {
                let parts = gate_up([ExpertGate(expert), ExpertUp(expert)]);
                Self::by_output(parts, hidden, 2 * size)
            }),
            LayerSlot::ExpertsDown => Self::of_each(decoder, |expert| {
                Self::by_input(role(ExpertDown(expert)), inner.clone(), size, hidden)
            }),
            LayerSlot::OutputBias => Self::once(role(OutputBias), rank, hidden),
            LayerSlot::DownBias => Self::once(role(DownBias), rank, hidden),
        }
    }

    /// A vector that every rank has.
    fn whole(role: Role, len: usize) -> Self {
        Self::Vector {
            parts: vec![part(role, 0..len, 0)],
            len,
        }
    }

    /// A vector that is added to what all ranks add up: the first has it, the others have zeros.
    fn once(role: Role, rank: u32, len: usize) -> Self {
        match rank {
            0 => Self::whole(role, len),
            // It is read by none of them, and still counts as read.
            _ => Self::Vector {
                parts: vec![part(role, 0..0, 0)],
                len,
            },
        }
    }

    /// The matrices of all experts.
    fn of_each(decoder: &Decoder, one: impl Fn(u32) -> Self) -> Self {
        let experts = (0..decoder.mlp.experts()).flat_map(|expert| match one(expert) {
            Self::Columns(shapes) => shapes,
            _ => Vec::new(),
        });
        Self::Columns(experts.collect())
    }

    /// A matrix whose outputs are cut among ranks.
    fn by_output(parts: Vec<Part>, inputs: usize, outputs: usize) -> Self {
        Self::Columns(vec![Shape {
            parts,
            of: 0..inputs,
            inputs,
            outputs,
        }])
    }

    /// A matrix whose inputs are cut among ranks.
    fn by_input(role: Role, of: Range<usize>, inputs: usize, outputs: usize) -> Self {
        Self::Columns(vec![Shape {
            parts: vec![part(role, 0..outputs, 0)],
            of,
            inputs,
            outputs,
        }])
    }
}

fn part(role: Role, rows: Range<usize>, at: usize) -> Part {
    Part { role, rows, at }
}

fn wide(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// The rows of these heads.
fn times(heads: &Range<usize>, size: usize) -> Range<usize> {
    heads.start * size..heads.end * size
}
