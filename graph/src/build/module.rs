//! The end of building: numbers, names, outputs, aliases.

use std::collections::{BTreeMap, BTreeSet};

use crate::build::reducers::INSTRUCTIONS;
use crate::build::shape::{array, plain, signed, tuple};
use crate::build::{BuildError, Builder, Value, instruction};
use crate::layout::Alias;
use crate::proto::{
    AliasEntry, FrontendAttributes, HloComputation, HloInputOutputAlias, HloInstruction, HloModule,
    MUST_ALIAS, ProgramShape, Shape,
};

/// What the entry is called.
const ENTRY: &str = "main";

/// The highest id that the compiler takes: its XLA aborts above.
const MAX_IDS: usize = (1 << 31) - 1;

impl Builder {
    /// The module that gives `outputs`, each with its name in the NEFF, of which some lie in the
    /// memory of parameters.
    ///
    /// # Errors
    /// There is no output, an alias does not fit, or there are too many instructions.
    pub fn finish(
        mut self,
        outputs: &[(&str, Value)],
        aliases: &[Alias],
    ) -> Result<HloModule, BuildError> {
        self.check_aliases(outputs, aliases)?;
        let names: Vec<_> = outputs.iter().map(|(name, _)| *name).collect();
        let values: Vec<_> = outputs.iter().map(|(_, value)| self.given(value)).collect();
        let result = self.root(&values, &names.join(","))?;
        let offset = self.reducers.len() * INSTRUCTIONS;
        if offset + self.instructions.len() > MAX_IDS {
            let reason = "there are more instructions than ids";
            return Err(BuildError::new("tuple", &[], reason));
        }
        let single = outputs.len() == 1;
        let entry_id = signed(self.reducers.len()) + 1;
        let shape = self.program_shape(result);
        let mut computations = self.callees();
        computations.push(self.entry(entry_id, offset, shape.clone()));
        Ok(HloModule {
            name: self.name,
            entry_computation_name: ENTRY.to_owned(),
            computations,
            host_program_shape: Some(shape),
            id: 0,
            entry_computation_id: entry_id,
            input_output_alias: Some(HloInputOutputAlias {
                entries: aliases.iter().map(|alias| entry(*alias, single)).collect(),
            }),
        })
    }

    fn check_aliases(
        &self,
        outputs: &[(&str, Value)],
        aliases: &[Alias],
    ) -> Result<(), BuildError> {
        let mut taken = BTreeSet::new();
        for alias in aliases {
            let input = self.parameters.get(alias.input).map(|(_, value)| value);
            let output = outputs.get(alias.output).map(|(_, value)| value);
            let (Some(input), Some(output)) = (input, output) else {
                let reason = format!("there are no such ends of {alias:?}");
                return Err(BuildError::new("tuple", &[], reason));
            };
            if (input.element(), input.dims()) != (output.element(), output.dims()) {
                let reason = "they cannot lie in the same memory";
                return Err(BuildError::new("tuple", &[input, output], reason));
            }
            if !taken.insert(input.id) {
                let reason = "two outputs cannot lie in the same memory";
                return Err(BuildError::new("tuple", &[input, output], reason));
            }
        }
        Ok(())
    }

    /// What the module may give: a parameter must be copied first.
    fn given(&mut self, value: &Value) -> Value {
        match self.instructions[value.id].opcode.as_str() {
            "parameter" => self.add(instruction("copy", &[value]), value.element(), value.dims()),
            _ => value.clone(),
        }
    }

    /// Adds the last instruction and gives the shape of the result.
    fn root(&mut self, values: &[Value], names: &str) -> Result<Shape, BuildError> {
        let (opcode, shape, result) = match values {
            [] => return Err(BuildError::new("tuple", &[], "the module gives nothing")),
            [one] => (
                "copy",
                array(one.element(), one.dims()),
                plain(one.element(), one.dims()),
            ),
            _ => {
                let arrays = values.iter().map(|one| array(one.element(), one.dims()));
                let plains = values.iter().map(|one| plain(one.element(), one.dims()));
                ("tuple", tuple(arrays.collect()), tuple(plains.collect()))
            }
        };
        let operands: Vec<_> = values.iter().collect();
        self.instructions.push(HloInstruction {
            shape: Some(shape),
            frontend_attributes: Some(attribute("neff_output_names", names)),
            ..instruction(opcode, &operands)
        });
        Ok(result)
    }

    fn program_shape(&self, result: Shape) -> ProgramShape {
        let parameters = self.parameters.iter();
        ProgramShape {
            parameters: parameters
                .clone()
                .map(|(_, value)| plain(value.element(), value.dims()))
                .collect(),
            result: Some(result),
            parameter_names: parameters.map(|(name, _)| name.clone()).collect(),
        }
    }

    fn callees(&self) -> Vec<HloComputation> {
        let callees = self.reducers.iter().enumerate();
        callees
            .map(|(place, (reducer, element))| {
                let (id, first) = (signed(place) + 1, signed(place * INSTRUCTIONS));
                reducer.computation(*element, id, first)
            })
            .collect()
    }

    /// The entry, its ids after those of the callees.
    fn entry(&mut self, id: i64, offset: usize, shape: ProgramShape) -> HloComputation {
        let mut instructions = std::mem::take(&mut self.instructions);
        for (place, instruction) in instructions.iter_mut().enumerate() {
            instruction.id = signed(place + offset);
            if instruction.name.is_empty() {
                instruction.name = format!("{}.{}", instruction.opcode, instruction.id);
            }
            for operand in &mut instruction.operand_ids {
                *operand += signed(offset);
            }
        }
        HloComputation {
            name: ENTRY.to_owned(),
            root_id: instructions.last().map_or(0, |root| root.id),
            instructions,
            program_shape: Some(shape),
            id,
        }
    }
}

fn entry(alias: Alias, single: bool) -> AliasEntry {
    let output = signed(alias.output);
    AliasEntry {
        output_shape_index: if single { Vec::new() } else { vec![output] },
        parameter_number: signed(alias.input),
        parameter_shape_index: Vec::new(),
        kind: MUST_ALIAS,
    }
}

/// One attribute that the compiler looks for.
pub(super) fn attribute(key: &str, value: &str) -> FrontendAttributes {
    FrontendAttributes {
        map: BTreeMap::from([(key.to_owned(), value.to_owned())]),
    }
}
