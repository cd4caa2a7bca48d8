//! The messages of HLO that we write and read: the part of XLA's `hlo.proto` and `xla_data.proto`
//! that our modules use, with the field numbers of those files.
//!
//! Maps are B-trees, so that the same module always has the same bytes. A field that is not listed
//! here is dropped on reading.

use std::collections::BTreeMap;

use prost::Message;

/// A module: computations, the entry last.
#[derive(Clone, PartialEq, Message)]
pub struct HloModule {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The name of the computation that is run.
    #[prost(string, tag = "2")]
    pub entry_computation_name: String,
    /// Callees before their callers.
    #[prost(message, repeated, tag = "3")]
    pub computations: Vec<HloComputation>,
    /// What the entry takes and gives.
    #[prost(message, optional, tag = "4")]
    pub host_program_shape: Option<ProgramShape>,
    /// Any number.
    #[prost(int64, tag = "5")]
    pub id: i64,
    /// The id of the computation that is run.
    #[prost(int64, tag = "6")]
    pub entry_computation_id: i64,
    /// Which inputs share memory with which outputs.
    #[prost(message, optional, tag = "8")]
    pub input_output_alias: Option<HloInputOutputAlias>,
}

/// A computation: instructions, operands before users.
#[derive(Clone, PartialEq, Message)]
pub struct HloComputation {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Operands before their users.
    #[prost(message, repeated, tag = "2")]
    pub instructions: Vec<HloInstruction>,
    /// What it takes and gives.
    #[prost(message, optional, tag = "4")]
    pub program_shape: Option<ProgramShape>,
    /// Unique among the module's computations.
    #[prost(int64, tag = "5")]
    pub id: i64,
    /// The instruction whose value it gives.
    #[prost(int64, tag = "6")]
    pub root_id: i64,
}

/// An instruction. Which fields count depends on its opcode.
#[derive(Clone, PartialEq, Message)]
pub struct HloInstruction {
    /// Unique in the module.
    #[prost(string, tag = "1")]
    pub name: String,
    /// `add`, `dot`, `gather`, ..
    #[prost(string, tag = "2")]
    pub opcode: String,
    /// What it gives.
    #[prost(message, optional, tag = "3")]
    pub shape: Option<Shape>,
    /// Of a `constant`.
    #[prost(message, optional, tag = "8")]
    pub literal: Option<Literal>,
    /// Of a `parameter`.
    #[prost(int64, tag = "9")]
    pub parameter_number: i64,
    /// Of a `get-tuple-element`.
    #[prost(int64, tag = "13")]
    pub tuple_index: i64,
    /// Of `broadcast`, `transpose`, `reduce`, `concatenate`, `iota` and collectives.
    #[prost(int64, repeated, tag = "14")]
    pub dimensions: Vec<i64>,
    /// Of a `slice`, one a dimension.
    #[prost(message, repeated, tag = "17")]
    pub slice_dimensions: Vec<SliceDimensions>,
    /// Of a `dynamic-slice`.
    #[prost(int64, repeated, tag = "20")]
    pub dynamic_slice_sizes: Vec<i64>,
    /// Of a `pad`.
    #[prost(message, optional, tag = "21")]
    pub padding_config: Option<PaddingConfig>,
    /// Of collectives.
    #[prost(int64, tag = "26")]
    pub channel_id: i64,
    /// Of a `custom-call`.
    #[prost(string, tag = "28")]
    pub custom_call_target: String,
    /// Of a `dot`.
    #[prost(message, optional, tag = "30")]
    pub dot_dimension_numbers: Option<DotDimensionNumbers>,
    /// Of a `gather`.
    #[prost(message, optional, tag = "33")]
    pub gather_dimension_numbers: Option<GatherDimensionNumbers>,
    /// Of a `gather`.
    #[prost(int64, repeated, tag = "34")]
    pub gather_slice_sizes: Vec<i64>,
    /// Unique in the module, below 2^31.
    #[prost(int64, tag = "35")]
    pub id: i64,
    /// The instructions whose values it takes.
    #[prost(int64, repeated, tag = "36")]
    pub operand_ids: Vec<i64>,
    /// The instructions that must run before.
    #[prost(int64, repeated, tag = "37")]
    pub control_predecessor_ids: Vec<i64>,
    /// Reducers and the like.
    #[prost(int64, repeated, tag = "38")]
    pub called_computation_ids: Vec<i64>,
    /// Of a `custom-call`.
    #[prost(bytes = "vec", tag = "43")]
    pub backend_config: Vec<u8>,
    /// Of a `scatter`.
    #[prost(message, optional, tag = "48")]
    pub scatter_dimension_numbers: Option<ScatterDimensionNumbers>,
    /// Of collectives: a full partition of the ranks.
    #[prost(message, repeated, tag = "49")]
    pub replica_groups: Vec<ReplicaGroup>,
    /// `EQ`, `NE`, `GE`, `GT`, `LE`, `LT` of a `compare`.
    #[prost(string, tag = "63")]
    pub comparison_direction: String,
    /// Of `gather` and `scatter`.
    #[prost(bool, tag = "67")]
    pub indices_are_sorted: bool,
    /// Names of inputs and outputs in the NEFF.
    #[prost(message, optional, tag = "68")]
    pub frontend_attributes: Option<FrontendAttributes>,
    /// Of `gather` and `scatter`.
    #[prost(bool, tag = "69")]
    pub unique_indices: bool,
    /// Of a `topk`.
    #[prost(int64, tag = "81")]
    pub k: i64,
    /// Of a `topk`.
    #[prost(bool, tag = "85")]
    pub largest: bool,
}

/// Where a `slice` starts and ends in one dimension.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct SliceDimensions {
    /// The first.
    #[prost(int64, tag = "1")]
    pub start: i64,
    /// One after the last.
    #[prost(int64, tag = "2")]
    pub limit: i64,
    /// From one to the next.
    #[prost(int64, tag = "3")]
    pub stride: i64,
}

/// How much a `pad` adds.
#[derive(Clone, PartialEq, Message)]
pub struct PaddingConfig {
    /// One a dimension.
    #[prost(message, repeated, tag = "1")]
    pub dimensions: Vec<PaddingDimension>,
}

/// How much a `pad` adds in one dimension.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct PaddingDimension {
    /// Before.
    #[prost(int64, tag = "1")]
    pub edge_padding_low: i64,
    /// After.
    #[prost(int64, tag = "2")]
    pub edge_padding_high: i64,
    /// Between.
    #[prost(int64, tag = "3")]
    pub interior_padding: i64,
}

/// What a `dot` multiplies with what.
#[derive(Clone, PartialEq, Message)]
pub struct DotDimensionNumbers {
    /// Summed over, of the left.
    #[prost(int64, repeated, tag = "1")]
    pub lhs_contracting_dimensions: Vec<i64>,
    /// Summed over, of the right.
    #[prost(int64, repeated, tag = "2")]
    pub rhs_contracting_dimensions: Vec<i64>,
    /// Kept apart, of the left.
    #[prost(int64, repeated, tag = "3")]
    pub lhs_batch_dimensions: Vec<i64>,
    /// Kept apart, of the right.
    #[prost(int64, repeated, tag = "4")]
    pub rhs_batch_dimensions: Vec<i64>,
}

/// What a `gather` takes from where.
#[derive(Clone, PartialEq, Message)]
pub struct GatherDimensionNumbers {
    /// Dimensions of the result that run within a slice.
    #[prost(int64, repeated, tag = "1")]
    pub offset_dims: Vec<i64>,
    /// Dimensions of the operand that a slice has one of.
    #[prost(int64, repeated, tag = "2")]
    pub collapsed_slice_dims: Vec<i64>,
    /// The dimension of the operand that each number of an index is for.
    #[prost(int64, repeated, tag = "3")]
    pub start_index_map: Vec<i64>,
    /// The dimension of the indices that an index runs along.
    #[prost(int64, tag = "4")]
    pub index_vector_dim: i64,
}

/// What a `scatter` puts where.
#[derive(Clone, PartialEq, Message)]
pub struct ScatterDimensionNumbers {
    /// Dimensions of the updates that run within a window.
    #[prost(int64, repeated, tag = "1")]
    pub update_window_dims: Vec<i64>,
    /// Dimensions of the operand that a window has one of.
    #[prost(int64, repeated, tag = "2")]
    pub inserted_window_dims: Vec<i64>,
    /// The dimension of the operand that each number of an index is for.
    #[prost(int64, repeated, tag = "3")]
    pub scatter_dims_to_operand_dims: Vec<i64>,
    /// The dimension of the indices that an index runs along.
    #[prost(int64, tag = "4")]
    pub index_vector_dim: i64,
}

/// Ranks that a collective joins.
#[derive(Clone, PartialEq, Message)]
pub struct ReplicaGroup {
    /// Their numbers.
    #[prost(int64, repeated, tag = "1")]
    pub replica_ids: Vec<i64>,
}

/// Names that the compiler looks for.
#[derive(Clone, PartialEq, Message)]
pub struct FrontendAttributes {
    /// By key.
    #[prost(btree_map = "string, string", tag = "1")]
    pub map: BTreeMap<String, String>,
}

/// What a computation takes and gives.
#[derive(Clone, PartialEq, Message)]
pub struct ProgramShape {
    /// Its parameters, in order.
    #[prost(message, repeated, tag = "1")]
    pub parameters: Vec<Shape>,
    /// Its root's.
    #[prost(message, optional, tag = "2")]
    pub result: Option<Shape>,
    /// Of its parameters, in order.
    #[prost(string, repeated, tag = "3")]
    pub parameter_names: Vec<String>,
}

/// An array, or a tuple of shapes.
#[derive(Clone, PartialEq, Message)]
pub struct Shape {
    /// XLA's number of the element type; [`TUPLE`] for a tuple.
    #[prost(int32, tag = "2")]
    pub element_type: i32,
    /// Sizes, slowest first.
    #[prost(int64, repeated, tag = "3")]
    pub dimensions: Vec<i64>,
    /// Of a tuple.
    #[prost(message, repeated, tag = "4")]
    pub tuple_shapes: Vec<Shape>,
    /// Where its elements lie.
    #[prost(message, optional, tag = "5")]
    pub layout: Option<Layout>,
    /// All false: nothing of ours is dynamic.
    #[prost(bool, repeated, tag = "6")]
    pub is_dynamic_dimension: Vec<bool>,
}

/// The element type of a tuple.
pub const TUPLE: i32 = 13;

/// How the elements of an array lie in memory.
#[derive(Clone, PartialEq, Message)]
pub struct Layout {
    /// Dimensions, fastest first.
    #[prost(int64, repeated, tag = "1")]
    pub minor_to_major: Vec<i64>,
    /// 1.
    #[prost(int64, tag = "16")]
    pub tail_padding_alignment_in_elements: i64,
}

/// The values of a constant.
#[derive(Clone, PartialEq, Message)]
pub struct Literal {
    /// Its shape.
    #[prost(message, optional, tag = "1")]
    pub shape: Option<Shape>,
    /// Of predicates.
    #[prost(bool, repeated, tag = "2")]
    pub preds: Vec<bool>,
    /// Of 32-bit integers.
    #[prost(int32, repeated, tag = "4")]
    pub s32s: Vec<i32>,
    /// Of unsigned 32-bit integers.
    #[prost(uint32, repeated, tag = "6")]
    pub u32s: Vec<u32>,
    /// Of floats.
    #[prost(float, repeated, tag = "8")]
    pub f32s: Vec<f32>,
    /// Of doubles; the compiler takes none.
    #[prost(double, repeated, tag = "9")]
    pub f64s: Vec<f64>,
    /// Of BF16 numbers, two bytes each, the lower first.
    #[prost(bytes = "vec", tag = "13")]
    pub bf16s: Vec<u8>,
    /// Of signed bytes.
    #[prost(bytes = "vec", tag = "15")]
    pub s8s: Vec<u8>,
}

/// Which inputs share memory with which outputs.
#[derive(Clone, PartialEq, Message)]
pub struct HloInputOutputAlias {
    /// The pairs.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<AliasEntry>,
}

/// An input and an output that share memory.
#[derive(Clone, PartialEq, Message)]
pub struct AliasEntry {
    /// Where in the result's tuple; empty if it is none.
    #[prost(int64, repeated, tag = "1")]
    pub output_shape_index: Vec<i64>,
    /// Which parameter.
    #[prost(int64, tag = "2")]
    pub parameter_number: i64,
    /// Where in the parameter's tuple; ours are none.
    #[prost(int64, repeated, tag = "3")]
    pub parameter_shape_index: Vec<i64>,
    /// [`MUST_ALIAS`].
    #[prost(int32, tag = "4")]
    pub kind: i32,
}

/// The kind of an alias that is no mere permission.
pub const MUST_ALIAS: i32 = 2;

impl HloModule {
    /// Its bytes, as `neuronx-cc` and XLA's plugins read them. The same module has the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads a module.
    ///
    /// # Errors
    /// The bytes are no such message.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        Self::decode(bytes)
    }
}
