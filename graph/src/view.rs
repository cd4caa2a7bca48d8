//! A module with its parts found: what walks over instructions start from.

use std::collections::{BTreeMap, HashMap};

use crate::proto::{HloComputation, HloInstruction, HloModule, Shape, TUPLE};

/// Why a module cannot be walked over. [`crate::check`] says where it is wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// The computation to run is not there.
    #[error(
        "module {module:?} has no computation with the id {id} of its entry: write it anew with \
         the lowering of this version"
    )]
    NoEntry {
        /// The module's name.
        module: String,
        /// The id that its `entry_computation_id` has.
        id: i64,
    },
    /// An operand does not stand before its user, or the root is not there.
    #[error(
        "in computation {computation:?}, instruction {instruction:?} refers to id {id}, which does \
         not stand before it: write operands before their users"
    )]
    Operand {
        /// The computation's name.
        computation: String,
        /// The user's name.
        instruction: String,
        /// The id it refers to.
        id: i64,
    },
}

/// A module's entry: instructions by their place, operands and users as places too.
pub(crate) struct View<'a> {
    /// Every computation by its id.
    pub(crate) computations: BTreeMap<i64, &'a HloComputation>,
    /// What is run, operands before users.
    pub(crate) instructions: &'a [HloInstruction],
    /// For each instruction, where its operands stand.
    pub(crate) operands: Vec<Vec<usize>>,
    /// For each instruction, where those stand that take it: once for each time they do.
    pub(crate) users: Vec<Vec<usize>>,
    /// Where the root stands.
    pub(crate) root: usize,
    /// For each output, where the instruction stands that gives it.
    pub(crate) outputs: Vec<usize>,
    /// For each parameter, where it stands.
    pub(crate) parameters: BTreeMap<i64, usize>,
    /// Pairs of places: an output, and the parameter in whose memory it lies.
    pub(crate) aliases: Vec<(usize, usize)>,
}

impl<'a> View<'a> {
    /// Finds the parts of a module.
    ///
    /// # Errors
    /// No entry, or an operand that does not stand before its user.
    pub(crate) fn of(module: &'a HloModule) -> Result<Self, Malformed> {
        let computations: BTreeMap<_, _> = module
            .computations
            .iter()
            .map(|computation| (computation.id, computation))
            .collect();
        let entry = computations
            .get(&module.entry_computation_id)
            .ok_or_else(|| Malformed::NoEntry {
                module: module.name.clone(),
                id: module.entry_computation_id,
            })?;
        let operands = operand_places(entry)?;
        let mut users = vec![Vec::new(); operands.len()];
        for (user, operands) in operands.iter().enumerate() {
            for &operand in operands {
                users[operand].push(user);
            }
        }
        let root = root_place(entry)?;
        let instructions = entry.instructions.as_slice();
        let outputs = match instructions[root].opcode.as_str() {
            "tuple" => operands[root].clone(),
            _ => vec![root],
        };
        let parameters: BTreeMap<_, _> = instructions
            .iter()
            .enumerate()
            .filter(|(_, instruction)| instruction.opcode == "parameter")
            .map(|(place, instruction)| (instruction.parameter_number, place))
            .collect();
        let aliases = aliases(module, &outputs, &parameters);
        Ok(Self {
            computations,
            instructions,
            operands,
            users,
            root,
            outputs,
            parameters,
            aliases,
        })
    }

    /// The operation of an instruction.
    pub(crate) fn opcode(&self, place: usize) -> &'a str {
        &self.instructions[place].opcode
    }

    /// Bytes that the value of an instruction takes, all parts of a tuple together.
    pub(crate) fn bytes(&self, place: usize) -> u64 {
        self.instructions[place].shape.as_ref().map_or(0, bytes)
    }

    /// Sizes of the value of an instruction.
    pub(crate) fn dimensions(&self, place: usize) -> &'a [i64] {
        self.instructions[place]
            .shape
            .as_ref()
            .map_or(&[], |shape| &shape.dimensions)
    }

    /// Elements of the value of an instruction.
    pub(crate) fn elements(&self, place: usize) -> u64 {
        count(self.dimensions(place))
    }

    /// The operand of that number, if there is one.
    pub(crate) fn operand(&self, place: usize, number: usize) -> Option<usize> {
        self.operands[place].get(number).copied()
    }

    /// Follows a value up through what only renames its elements.
    pub(crate) fn source(&self, mut place: usize) -> usize {
        while is_view(self.opcode(place)) {
            match self.operand(place, 0) {
                Some(operand) => place = operand,
                None => break,
            }
        }
        place
    }

    /// Products and sums of a `dot`, two operations each; 0 for all else.
    pub(crate) fn dot_flops(&self, place: usize) -> u64 {
        match self.opcode(place) {
            "dot" => 2 * self.elements(place) * self.contracted(place),
            _ => 0,
        }
    }

    /// Elements that a `dot` sums over for each element it gives.
    pub(crate) fn contracted(&self, place: usize) -> u64 {
        let Some(numbers) = &self.instructions[place].dot_dimension_numbers else {
            return 1;
        };
        let Some(left) = self.operand(place, 0) else {
            return 1;
        };
        let sizes = self.dimensions(left);
        numbers
            .lhs_contracting_dimensions
            .iter()
            .filter_map(|&dimension| sizes.get(usize::try_from(dimension).ok()?))
            .map(|&size| u64::try_from(size).unwrap_or(0))
            .product()
    }

    /// What the compiler will call a parameter, if it says so.
    pub(crate) fn input_name(&self, place: usize) -> Option<&'a str> {
        attribute(&self.instructions[place], "neff_input_names")
    }
}

/// Whether an operation gives its operand's elements in the same order, so that nothing is moved.
pub(crate) fn is_view(opcode: &str) -> bool {
    matches!(opcode, "reshape" | "bitcast")
}

/// A frontend attribute of an instruction.
pub(crate) fn attribute<'a>(instruction: &'a HloInstruction, key: &str) -> Option<&'a str> {
    let attributes = instruction.frontend_attributes.as_ref()?;
    attributes.map.get(key).map(String::as_str)
}

/// Bytes that an element of XLA's number takes in memory; 0 for what is no number.
pub(crate) fn element_bytes(number: i32) -> u64 {
    match number {
        1 | 2 | 6 | 19 | 20 | 23..=29 | 33 => 1,
        3 | 7 | 10 | 16 => 2,
        4 | 8 | 11 => 4,
        5 | 9 | 12 | 15 => 8,
        18 => 16,
        _ => 0,
    }
}

/// Elements of an array of these sizes.
pub(crate) fn count(dimensions: &[i64]) -> u64 {
    dimensions
        .iter()
        .map(|&size| u64::try_from(size).unwrap_or(0))
        .fold(1, u64::saturating_mul)
}

/// Bytes that a value of this shape takes.
pub(crate) fn bytes(shape: &Shape) -> u64 {
    match shape.element_type {
        TUPLE => shape.tuple_shapes.iter().map(bytes).sum(),
        number => count(&shape.dimensions).saturating_mul(element_bytes(number)),
    }
}

/// For each instruction, where its operands stand, all of them before it.
fn operand_places(computation: &HloComputation) -> Result<Vec<Vec<usize>>, Malformed> {
    let mut places = HashMap::with_capacity(computation.instructions.len());
    let mut operands = Vec::with_capacity(computation.instructions.len());
    for (place, instruction) in computation.instructions.iter().enumerate() {
        let find = |id: &i64| {
            places.get(id).copied().ok_or_else(|| Malformed::Operand {
                computation: computation.name.clone(),
                instruction: instruction.name.clone(),
                id: *id,
            })
        };
        let found: Result<Vec<usize>, _> = instruction.operand_ids.iter().map(find).collect();
        operands.push(found?);
        places.insert(instruction.id, place);
    }
    Ok(operands)
}

/// Where a computation's root stands.
fn root_place(computation: &HloComputation) -> Result<usize, Malformed> {
    computation
        .instructions
        .iter()
        .position(|instruction| instruction.id == computation.root_id)
        .ok_or_else(|| Malformed::Operand {
            computation: computation.name.clone(),
            instruction: "root".into(),
            id: computation.root_id,
        })
}

/// Pairs of places, output and parameter, of the aliases that refer to what is there.
fn aliases(
    module: &HloModule,
    outputs: &[usize],
    parameters: &BTreeMap<i64, usize>,
) -> Vec<(usize, usize)> {
    let entries = module.input_output_alias.iter().flat_map(|a| &a.entries);
    entries
        .filter_map(|entry| {
            let index = entry.output_shape_index.first().copied().unwrap_or(0);
            let output = outputs.get(usize::try_from(index).ok()?)?;
            Some((*output, *parameters.get(&entry.parameter_number)?))
        })
        .collect()
}
