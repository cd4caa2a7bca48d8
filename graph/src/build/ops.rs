//! The instructions, each with the rules of its operands' shapes.

use std::ops::Range;

use crate::build::shape::{array, signed, tuple};
use crate::build::value::count;
use crate::build::{BuildError, Builder, Constant, Reducer, Value, instruction};
use crate::element::Element;
use crate::proto::{
    DotDimensionNumbers, GatherDimensionNumbers, HloInstruction, PaddingConfig, PaddingDimension,
    ReplicaGroup, ScatterDimensionNumbers, SliceDimensions,
};

/// A function of one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unary {
    /// `-x`
    Negate,
    /// `e^x`
    Exponential,
    /// The natural logarithm.
    Log,
    /// `1 / sqrt(x)`
    Rsqrt,
    /// `1 / (1 + e^-x)`
    Logistic,
    /// Of truths and of integers bit by bit.
    Not,
}

/// A function of two numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Binary {
    /// `x + y`
    Add,
    /// `x - y`
    Subtract,
    /// `x * y`
    Multiply,
    /// `x / y`, of floats.
    Divide,
    /// The greater.
    Maximum,
    /// The less.
    Minimum,
    /// Of truths and of integers bit by bit.
    And,
    /// The same.
    Or,
    /// To the right, filled with zeros.
    ShiftRight,
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `>=`
    GreaterOrEqual,
    /// `>`
    Greater,
    /// `<=`
    LessOrEqual,
    /// `<`
    Less,
}

/// Which dimensions a product sums over, and which it keeps apart. The result has the kept ones,
/// then the others of the left, then the others of the right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contraction<'a> {
    /// Kept apart, left and right.
    pub batch: (&'a [usize], &'a [usize]),
    /// Summed over, left and right.
    pub over: (usize, usize),
}

impl Unary {
    fn opcode(self) -> &'static str {
        match self {
            Self::Negate => "negate",
            Self::Exponential => "exponential",
            Self::Log => "log",
            Self::Rsqrt => "rsqrt",
            Self::Logistic => "logistic",
            Self::Not => "not",
        }
    }

    fn takes(self, element: Element) -> bool {
        match self {
            Self::Negate => is_float(element) || element == Element::S32,
            Self::Exponential | Self::Log | Self::Rsqrt | Self::Logistic => is_float(element),
            Self::Not => is_bits(element),
        }
    }
}

impl Binary {
    fn opcode(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Subtract => "subtract",
            Self::Multiply => "multiply",
            Self::Divide => "divide",
            Self::Maximum => "maximum",
            Self::Minimum => "minimum",
            Self::And => "and",
            Self::Or => "or",
            Self::ShiftRight => "shift-right-logical",
        }
    }

    fn takes(self, element: Element) -> bool {
        match self {
            Self::Add | Self::Subtract | Self::Multiply | Self::Maximum | Self::Minimum => {
                is_float(element) || is_integer(element)
            }
            // The device divides integers by way of floats, wrongly.
            Self::Divide => is_float(element),
            Self::And | Self::Or => is_bits(element),
            Self::ShiftRight => is_integer(element),
        }
    }
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Equal => "EQ",
            Self::NotEqual => "NE",
            Self::GreaterOrEqual => "GE",
            Self::Greater => "GT",
            Self::LessOrEqual => "LE",
            Self::Less => "LT",
        }
    }
}

fn is_float(element: Element) -> bool {
    matches!(element, Element::F32 | Element::Bf16)
}

fn is_integer(element: Element) -> bool {
    matches!(element, Element::S32 | Element::U32)
}

fn is_bits(element: Element) -> bool {
    is_integer(element) || element == Element::Pred
}

/// Fails with `reason` unless it `holds`.
fn require(
    holds: bool,
    opcode: &str,
    operands: &[&Value],
    reason: impl FnOnce() -> String,
) -> Result<(), BuildError> {
    match holds {
        true => Ok(()),
        false => Err(BuildError::new(opcode, operands, reason())),
    }
}

/// Elementwise.
impl Builder {
    /// The function of each element.
    ///
    /// # Errors
    /// It is none of this type.
    pub fn unary(&mut self, function: Unary, value: &Value) -> Result<Value, BuildError> {
        let (opcode, element) = (function.opcode(), value.element());
        require(function.takes(element), opcode, &[value], || {
            "it does not take this type".into()
        })?;
        self.push(instruction(opcode, &[value]), element, value.dims())
    }

    /// The function of each pair of elements.
    ///
    /// # Errors
    /// It is none of this type, or shapes differ.
    pub fn binary(
        &mut self,
        function: Binary,
        left: &Value,
        right: &Value,
    ) -> Result<Value, BuildError> {
        let (opcode, element) = (function.opcode(), left.element());
        same(opcode, left, right)?;
        require(function.takes(element), opcode, &[left, right], || {
            "it does not take this type".into()
        })?;
        self.push(instruction(opcode, &[left, right]), element, left.dims())
    }

    /// The function of each element and `constant`.
    ///
    /// # Errors
    /// As [`Builder::binary`].
    pub fn binary_scalar(
        &mut self,
        function: Binary,
        left: &Value,
        constant: Constant,
    ) -> Result<Value, BuildError> {
        let right = self.full(constant, left.dims())?;
        self.binary(function, left, &right)
    }

    /// Whether each pair of elements compares so.
    ///
    /// # Errors
    /// Shapes or types differ.
    pub fn compare(
        &mut self,
        direction: Direction,
        left: &Value,
        right: &Value,
    ) -> Result<Value, BuildError> {
        same("compare", left, right)?;
        let instruction = HloInstruction {
            comparison_direction: direction.name().to_owned(),
            ..instruction("compare", &[left, right])
        };
        self.push(instruction, Element::Pred, left.dims())
    }

    /// Each element of one of two arrays.
    ///
    /// # Errors
    /// Shapes or types differ, or `which` is not of truths.
    pub fn select(&mut self, which: &Value, yes: &Value, no: &Value) -> Result<Value, BuildError> {
        same("select", yes, no)?;
        let fits = which.element() == Element::Pred && which.dims() == yes.dims();
        require(fits, "select", &[which, yes, no], || {
            "there must be a truth for each element".into()
        })?;
        let instruction = instruction("select", &[which, yes, no]);
        self.push(instruction, yes.element(), yes.dims())
    }

    /// Each element, but none below `low` nor above `high`.
    ///
    /// # Errors
    /// The types differ.
    pub fn clamp(
        &mut self,
        low: Constant,
        value: &Value,
        high: Constant,
    ) -> Result<Value, BuildError> {
        let low = self.full(low, value.dims())?;
        let high = self.full(high, value.dims())?;
        same("clamp", &low, value)?;
        same("clamp", value, &high)?;
        let instruction = instruction("clamp", &[&low, value, &high]);
        self.push(instruction, value.element(), value.dims())
    }

    /// The same numbers in another type; nothing where they are of it.
    ///
    /// # Errors
    /// None today.
    pub fn convert(&mut self, value: &Value, element: Element) -> Result<Value, BuildError> {
        if value.element() == element {
            return Ok(value.clone());
        }
        self.push(instruction("convert", &[value]), element, value.dims())
    }
}

/// Shapes.
impl Builder {
    /// Repeats `value`, whose dimensions become those in `into` of the result.
    ///
    /// # Errors
    /// A dimension goes nowhere, or to one of another size; the order changes.
    pub fn broadcast(
        &mut self,
        value: &Value,
        dims: &[u32],
        into: &[usize],
    ) -> Result<Value, BuildError> {
        let sizes = into.iter().map(|place| dims.get(*place));
        let fits = into.len() == value.dims().len()
            && into.is_sorted_by(|one, next| one < next)
            && sizes.eq(value.dims().iter().map(Some));
        require(fits, "broadcast", &[value], || {
            format!("its dimensions cannot be {into:?} of {dims:?}")
        })?;
        if value.dims() == dims {
            return Ok(value.clone());
        }
        let instruction = HloInstruction {
            dimensions: into.iter().map(|place| signed(*place)).collect(),
            ..instruction("broadcast", &[value])
        };
        self.push(instruction, value.element(), dims)
    }

    /// The same elements in the same order, in another shape.
    ///
    /// # Errors
    /// There are more or fewer elements.
    pub fn reshape(&mut self, value: &Value, dims: &[u32]) -> Result<Value, BuildError> {
        require(value.len() == count(dims), "reshape", &[value], || {
            format!("{dims:?} has another number of elements")
        })?;
        if value.dims() == dims {
            return Ok(value.clone());
        }
        self.push(instruction("reshape", &[value]), value.element(), dims)
    }

    /// Dimension `order[i]` becomes dimension `i`.
    ///
    /// # Errors
    /// `order` is no order of all dimensions.
    pub fn transpose(&mut self, value: &Value, order: &[usize]) -> Result<Value, BuildError> {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        let fits = sorted.iter().copied().eq(0..value.dims().len());
        require(fits, "transpose", &[value], || {
            format!("{order:?} is no order of its dimensions")
        })?;
        let dims: Vec<_> = order.iter().map(|place| value.dims()[*place]).collect();
        let instruction = HloInstruction {
            dimensions: order.iter().map(|place| signed(*place)).collect(),
            ..instruction("transpose", &[value])
        };
        self.push(instruction, value.element(), &dims)
    }

    /// The elements in these ranges, one a dimension.
    ///
    /// # Errors
    /// A range is empty or ends outside.
    pub fn slice(&mut self, value: &Value, ranges: &[Range<u32>]) -> Result<Value, BuildError> {
        let inside = |(range, size): (&Range<u32>, &u32)| !range.is_empty() && range.end <= *size;
        let fits =
            ranges.len() == value.dims().len() && ranges.iter().zip(value.dims()).all(inside);
        require(fits, "slice", &[value], || {
            format!("{ranges:?} is empty or outside")
        })?;
        let dims: Vec<_> = ranges.iter().map(|range| range.end - range.start).collect();
        if dims == value.dims() {
            return Ok(value.clone());
        }
        let instruction = HloInstruction {
            slice_dimensions: ranges.iter().map(slice_dimensions).collect(),
            ..instruction("slice", &[value])
        };
        self.push(instruction, value.element(), &dims)
    }

    /// The elements in `range` of one dimension and all of the others.
    ///
    /// # Errors
    /// As [`Builder::slice`].
    pub fn slice_in(
        &mut self,
        value: &Value,
        dimension: usize,
        range: Range<u32>,
    ) -> Result<Value, BuildError> {
        let mut ranges: Vec<_> = value.dims().iter().map(|size| 0..*size).collect();
        match ranges.get_mut(dimension) {
            Some(place) => *place = range,
            None => ranges.push(range), // one too many, which `slice` refuses
        }
        self.slice(value, &ranges)
    }

    /// Arrays one after the other along `dimension`.
    ///
    /// # Errors
    /// There are none, or they differ in more than that size.
    pub fn concatenate(
        &mut self,
        values: &[&Value],
        dimension: usize,
    ) -> Result<Value, BuildError> {
        let refuse = |reason: &str| Err(BuildError::new("concatenate", values, reason));
        let Some((first, rest)) = values.split_first() else {
            return refuse("there is nothing");
        };
        if first.dims().len() <= dimension {
            return refuse("there is no such dimension");
        }
        if rest.is_empty() {
            return Ok((*first).clone());
        }
        let mut dims = first.dims().to_vec();
        for value in rest {
            let mut like_first = value.dims().to_vec();
            let Some(size) = like_first.get_mut(dimension) else {
                return refuse("there is no such dimension");
            };
            dims[dimension] += *size;
            *size = first.dims()[dimension];
            if like_first != first.dims() || value.element() != first.element() {
                return refuse("they differ in more than one size");
            }
        }
        let instruction = HloInstruction {
            dimensions: vec![signed(dimension)],
            ..instruction("concatenate", values)
        };
        self.push(instruction, first.element(), &dims)
    }

    /// 0, 1, 2, .. along `dimension`.
    ///
    /// # Errors
    /// There is no such dimension, or it is not of numbers.
    pub fn iota(
        &mut self,
        element: Element,
        dims: &[u32],
        dimension: usize,
    ) -> Result<Value, BuildError> {
        let fits = dimension < dims.len() && (is_integer(element) || is_float(element));
        require(fits, "iota", &[], || {
            format!("{} along {dimension} of {dims:?}", element.name())
        })?;
        let instruction = HloInstruction {
            dimensions: vec![signed(dimension)],
            ..instruction("iota", &[])
        };
        self.push(instruction, element, dims)
    }

    /// Adds `after` elements of `constant` at the end of `dimension`.
    ///
    /// # Errors
    /// There is no such dimension, or `constant` is of another type.
    pub fn pad(
        &mut self,
        value: &Value,
        dimension: usize,
        after: u32,
        constant: Constant,
    ) -> Result<Value, BuildError> {
        let fits = dimension < value.dims().len() && constant.element() == value.element();
        require(fits, "pad", &[value], || {
            format!("with {constant:?} along {dimension}")
        })?;
        if after == 0 {
            return Ok(value.clone());
        }
        let filler = self.scalar(constant);
        let mut dims = value.dims().to_vec();
        dims[dimension] += after;
        let added = |place: usize| PaddingDimension {
            edge_padding_high: if place == dimension { after.into() } else { 0 },
            ..PaddingDimension::default()
        };
        let instruction = HloInstruction {
            padding_config: Some(PaddingConfig {
                dimensions: (0..dims.len()).map(added).collect(),
            }),
            ..instruction("pad", &[value, &filler])
        };
        self.push(instruction, value.element(), &dims)
    }
}

/// Sums.
impl Builder {
    /// The product, summed in and given as F32 whatever the operands are.
    ///
    /// # Errors
    /// Types or sizes differ, or the operands are no floats.
    pub fn dot(
        &mut self,
        left: &Value,
        right: &Value,
        contraction: Contraction<'_>,
    ) -> Result<Value, BuildError> {
        let Contraction { batch, over } = contraction;
        let operands = [left, right];
        let sizes = |value: &Value, places: &[usize]| -> Option<Vec<u32>> {
            let size = |place: &usize| value.dims().get(*place).copied();
            places.iter().map(size).collect()
        };
        let kept = sizes(left, batch.0);
        let fits = left.element() == right.element()
            && is_float(left.element())
            && kept.is_some()
            && kept == sizes(right, batch.1)
            && sizes(left, &[over.0]).is_some()
            && sizes(left, &[over.0]) == sizes(right, &[over.1]);
        require(fits, "dot", &operands, || format!("by {contraction:?}"))?;
        let free = |value: &Value, batch: &[usize], over: usize| {
            let sizes = value.dims().iter().copied().enumerate();
            let free = sizes.filter(|(place, _)| *place != over && !batch.contains(place));
            free.map(|(_, size)| size).collect::<Vec<_>>()
        };
        let dims = [
            kept.unwrap_or_default(),
            free(left, batch.0, over.0),
            free(right, batch.1, over.1),
        ]
        .concat();
        let places = |places: &[usize]| places.iter().map(|place| signed(*place)).collect();
        let instruction = HloInstruction {
            dot_dimension_numbers: Some(DotDimensionNumbers {
                lhs_contracting_dimensions: vec![signed(over.0)],
                rhs_contracting_dimensions: vec![signed(over.1)],
                lhs_batch_dimensions: places(batch.0),
                rhs_batch_dimensions: places(batch.1),
            }),
            ..instruction("dot", &operands)
        };
        self.push(instruction, Element::F32, &dims)
    }

    /// The sum or the maximum along `dimension`, of floats.
    ///
    /// # Errors
    /// There is no such dimension, or it is not of floats.
    pub fn reduce(
        &mut self,
        reducer: Reducer,
        value: &Value,
        dimension: usize,
    ) -> Result<Value, BuildError> {
        let element = value.element();
        let fits = dimension < value.dims().len() && element == Element::F32;
        require(fits, "reduce", &[value], || {
            format!("by {reducer:?} along {dimension}: F32 is summed, as the device does")
        })?;
        let start = match reducer {
            Reducer::Sum => 0.0,
            // Finite, and below whatever is masked.
            Reducer::Max => f32::MIN,
            Reducer::Assign => {
                return Err(BuildError::new("reduce", &[value], "nothing is reduced"));
            }
        };
        let start = self.scalar(Constant::F32(start));
        let mut dims = value.dims().to_vec();
        dims.remove(dimension);
        let computation = self.reducer(reducer, element);
        let instruction = HloInstruction {
            dimensions: vec![signed(dimension)],
            called_computation_ids: vec![computation],
            ..instruction("reduce", &[value, &start])
        };
        self.push(instruction, element, &dims)
    }

    /// The sum over all of `ranks` ranks, on each of them; nothing where there is one.
    ///
    /// # Errors
    /// It is not of floats.
    pub fn all_reduce(&mut self, value: &Value, ranks: u32) -> Result<Value, BuildError> {
        let element = value.element();
        require(is_float(element), "all-reduce", &[value], || {
            "only floats are summed".into()
        })?;
        if ranks == 1 {
            return Ok(value.clone());
        }
        let computation = self.reducer(Reducer::Sum, element);
        let instruction = HloInstruction {
            called_computation_ids: vec![computation],
            replica_groups: vec![ReplicaGroup {
                replica_ids: (0..i64::from(ranks)).collect(),
            }],
            ..instruction("all-reduce", &[value])
        };
        self.push(instruction, element, value.dims())
    }
}

/// Rows by number.
impl Builder {
    /// The rows of `table` (along its first dimension) whose numbers are in `indices`, a vector of
    /// S32. They must be inside: the device stops at one that is not.
    ///
    /// # Errors
    /// `table` has no rows, or `indices` is no vector of S32.
    pub fn gather_rows(&mut self, table: &Value, indices: &Value) -> Result<Value, BuildError> {
        let operands = [table, indices];
        let fits = table.dims().len() > 1 && is_index(indices);
        require(fits, "gather", &operands, || {
            "rows are taken by a vector of S32".into()
        })?;
        let rows = indices.dims()[0];
        let indices = self.reshape(indices, &[rows, 1])?;
        let row = &table.dims()[1..];
        let dims = [&[rows], row].concat();
        let instruction = HloInstruction {
            gather_dimension_numbers: Some(GatherDimensionNumbers {
                offset_dims: (1..signed(dims.len())).collect(),
                collapsed_slice_dims: vec![0],
                start_index_map: vec![0],
                index_vector_dim: 1,
            }),
            gather_slice_sizes: std::iter::once(1)
                .chain(row.iter().map(|size| i64::from(*size)))
                .collect(),
            ..instruction("gather", &[table, &indices])
        };
        self.push(instruction, table.element(), &dims)
    }

    /// `table` with the rows whose numbers are in `indices`, a vector of S32, replaced by those of
    /// `rows`.
    ///
    /// # Errors
    /// Rows differ in shape or type, or there is not one number for each.
    pub fn scatter_rows(
        &mut self,
        table: &Value,
        indices: &Value,
        rows: &Value,
    ) -> Result<Value, BuildError> {
        let operands = [table, indices, rows];
        let fits = table.dims().len() > 1
            && is_index(indices)
            && rows.element() == table.element()
            && rows.dims() == [&indices.dims()[..1], &table.dims()[1..]].concat();
        require(fits, "scatter", &operands, || {
            "a row is replaced by one of the same shape and type".into()
        })?;
        let indices = self.reshape(indices, &[indices.dims()[0], 1])?;
        let computation = self.reducer(Reducer::Assign, table.element());
        let instruction = HloInstruction {
            called_computation_ids: vec![computation],
            scatter_dimension_numbers: Some(ScatterDimensionNumbers {
                update_window_dims: (1..signed(rows.dims().len())).collect(),
                inserted_window_dims: vec![0],
                scatter_dims_to_operand_dims: vec![0],
                index_vector_dim: 1,
            }),
            ..instruction("scatter", &[table, &indices, rows])
        };
        self.push(instruction, table.element(), table.dims())
    }

    /// The `k` greatest of each row of `[n, columns]` in F32, greatest first, and their columns in
    /// U32; of equals the lowest column first. What `neuronx-cc` calls `AwsNeuronTopK`.
    ///
    /// # Errors
    /// It is of another shape, or has fewer than `k` columns, or such as the device does not take:
    /// fewer than 8, more than 16,384, or no multiple of 8.
    pub fn top_k(&mut self, value: &Value, k: u32) -> Result<(Value, Value), BuildError> {
        let fits = match *value.dims() {
            [_, columns] => {
                value.element() == Element::F32
                    && (8..=crate::cut::TOP_K_COLUMNS).contains(&columns)
                    && columns.is_multiple_of(8)
                    && (1..=columns).contains(&k)
            }
            _ => false,
        };
        require(fits, "custom-call", &[value], || {
            format!("the {k} greatest of rows of 8, 16, .. 16384 numbers of F32")
        })?;
        let shape = [value.dims()[0], k];
        let results = [(Element::F32, &shape[..]), (Element::U32, &shape)];
        let config = k.to_string();
        match &self.custom_call("AwsNeuronTopK", config.as_bytes(), &[value], &results)?[..] {
            [values, columns] => Ok((values.clone(), columns.clone())),
            _ => Err(BuildError::new("custom-call", &[value], "two results")),
        }
    }

    /// What only the compiler of a device knows; gives several arrays.
    ///
    /// # Errors
    /// A size is 0.
    pub fn custom_call(
        &mut self,
        target: &str,
        config: &[u8],
        operands: &[&Value],
        results: &[(Element, &[u32])],
    ) -> Result<Vec<Value>, BuildError> {
        let shapes = results.iter().map(|(element, dims)| array(*element, dims));
        let call = Value::new(self.instructions.len(), Element::Pred, &[]);
        self.instructions.push(HloInstruction {
            shape: Some(tuple(shapes.collect())),
            custom_call_target: target.to_owned(),
            backend_config: config.to_vec(),
            ..instruction("custom-call", operands)
        });
        let results = results.iter().enumerate();
        results
            .map(|(place, (element, dims))| {
                let instruction = HloInstruction {
                    tuple_index: signed(place),
                    ..instruction("get-tuple-element", &[&call])
                };
                self.push(instruction, *element, dims)
            })
            .collect()
    }
}

/// Fails unless both are of the same shape and type.
fn same(opcode: &str, left: &Value, right: &Value) -> Result<(), BuildError> {
    let fits = left.dims() == right.dims() && left.element() == right.element();
    require(fits, opcode, &[left, right], || {
        "shapes or types differ".into()
    })
}

fn is_index(indices: &Value) -> bool {
    indices.element() == Element::S32 && indices.dims().len() == 1
}

fn slice_dimensions(range: &Range<u32>) -> SliceDimensions {
    SliceDimensions {
        start: range.start.into(),
        limit: range.end.into(),
        stride: 1,
    }
}
