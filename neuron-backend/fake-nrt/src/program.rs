//! A module as XLA takes it, and how XLA is told to compile it: with the operations that only
//! `neuronx-cc` knows written in XLA's own, and with every rounding kept.

use std::collections::HashMap;

use graph::Element;
use graph::proto::{HloComputation, HloInstruction, HloModule, Shape};
use pjrt::{CompileOptions, Value};

use crate::caches;

/// The custom call that XLA has an operation of its own for.
const TOP_K: &str = "AwsNeuronTopK";

/// Seconds that a rank waits in a collective before XLA ends the process. Its own 40 are too few
/// where many tests share few cores.
const PATIENCE: i64 = 600;

/// Why a module cannot be run by XLA.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProgramError {
    /// A custom call that is not rewritten.
    #[error(
        "{instruction} calls {target}, for which the stand-in knows nothing of XLA's: teach it in \
         program.rs"
    )]
    CustomCall {
        /// The instruction's name.
        instruction: String,
        /// What it calls.
        target: String,
    },
    /// An `AwsNeuronTopK` that is none.
    #[error("{instruction} calls {TOP_K} {what}")]
    TopK {
        /// The instruction's name.
        instruction: String,
        /// What is wrong.
        what: &'static str,
    },
}

/// The module with XLA's operations in place of custom calls, and with integers in place of caches
/// of narrow floats. What it takes and gives has the same bits in the same sizes.
///
/// # Errors
/// It calls what cannot be rewritten.
pub fn for_xla(module: &HloModule) -> Result<HloModule, ProgramError> {
    let mut module = module.clone();
    let ids = module.computations.iter().flat_map(|computation| {
        let instructions = computation.instructions.iter();
        instructions.map(|instruction| instruction.id)
    });
    let mut free = ids.max().unwrap_or(0) + 1;
    for computation in &mut module.computations {
        rewrite(computation, &mut free)?;
    }
    caches::as_integers(&mut module, &mut free);
    Ok(module)
}

/// How XLA compiles a module that so many ranks run, the first on the first of `devices`.
pub fn options(ranks: u32, devices: &[i32]) -> CompileOptions {
    let options = CompileOptions {
        replicas: ranks,
        devices: Some(devices.iter().take(ranks as usize).copied().collect()),
        ..CompileOptions::default()
    };
    let patience = "xla_cpu_collective_call_terminate_timeout_seconds";
    // The second level compiles a quarter longer for code that is no faster and gives the same.
    options
        .flag("xla_backend_optimization_level", Value::Integer(1))
        .flag("xla_allow_excess_precision", Value::Truth(false))
        .flag(patience, Value::Integer(PATIENCE))
}

/// Rewrites the calls of a computation. XLA gives columns in S32 where the compiler's call gives
/// U32: each is converted, under the id that its users know.
fn rewrite(computation: &mut HloComputation, free: &mut i64) -> Result<(), ProgramError> {
    let mut calls = HashMap::new();
    let mut written = Vec::with_capacity(computation.instructions.len());
    for mut instruction in std::mem::take(&mut computation.instructions) {
        if instruction.opcode == "custom-call" {
            let name = top_k(&mut instruction)?;
            calls.insert(instruction.id, name);
        } else if let Some(call) = operand_in(&instruction, &calls) {
            if instruction.opcode != "get-tuple-element" {
                let what = "and hands its results on together: XLA's have other types";
                return Err(refused(call, what));
            }
            if instruction.tuple_index == 1 {
                let column = signed_column(&mut instruction, free);
                written.push(column);
            }
        }
        written.push(instruction);
    }
    if let Some(call) = calls.get(&computation.root_id) {
        return Err(refused(call, "as the root: XLA's results have other types"));
    }
    computation.instructions = written;
    Ok(())
}

/// The name of the call whose results an instruction takes, if it takes such.
fn operand_in<'a>(
    instruction: &HloInstruction,
    calls: &'a HashMap<i64, String>,
) -> Option<&'a str> {
    let mut operands = instruction.operand_ids.iter();
    operands.find_map(|operand| calls.get(operand).map(String::as_str))
}

fn refused(instruction: &str, what: &'static str) -> ProgramError {
    ProgramError::TopK {
        instruction: instruction.to_owned(),
        what,
    }
}

/// Turns a call into XLA's `topk`, and returns its name.
fn top_k(call: &mut HloInstruction) -> Result<String, ProgramError> {
    if call.custom_call_target != TOP_K {
        return Err(ProgramError::CustomCall {
            instruction: call.name.clone(),
            target: call.custom_call_target.clone(),
        });
    }
    let config = std::str::from_utf8(&call.backend_config).ok();
    let k = config.and_then(|config| config.parse().ok());
    let k = k.ok_or_else(|| refused(&call.name, "without a number as backend_config"))?;
    let parts = call.shape.as_mut().map(|shape| &mut shape.tuple_shapes[..]);
    let Some([_, columns]) = parts else {
        return Err(refused(&call.name, "for something else than two results"));
    };
    if columns.element_type != Element::U32.number() {
        return Err(refused(&call.name, "for columns that are no U32"));
    }
    columns.element_type = Element::S32.number();
    call.opcode = "topk".to_owned();
    call.k = k;
    call.largest = true;
    call.custom_call_target.clear();
    call.backend_config.clear();
    Ok(call.name.clone())
}

/// The columns as XLA gives them, under an id of their own; what took the call's is made to convert
/// them.
fn signed_column(column: &mut HloInstruction, free: &mut i64) -> HloInstruction {
    let mut signed = column.clone();
    signed.id = *free;
    signed.name = format!("{}.signed", column.name);
    signed.shape = column.shape.as_ref().map(|shape| Shape {
        element_type: Element::S32.number(),
        ..shape.clone()
    });
    *column = HloInstruction {
        name: column.name.clone(),
        opcode: "convert".to_owned(),
        shape: column.shape.take(),
        id: column.id,
        operand_ids: vec![*free],
        frontend_attributes: column.frontend_attributes.take(),
        ..HloInstruction::default()
    };
    *free += 1;
    signed
}

#[cfg(test)]
mod tests {
    use graph::build::Builder;
    use pjrt::{Client, Plugin};

    use super::*;

    /// `values` and `columns` of the three largest of eight.
    fn top_three() -> HloModule {
        let mut b = Builder::new("top");
        let x = b.parameter("x", "x", Element::F32, &[2, 8]).unwrap();
        let (values, columns) = b.top_k(&x, 3).unwrap();
        b.finish(&[("values", values), ("columns", columns)], &[])
            .unwrap()
    }

    fn client() -> Option<Client> {
        let Some(path) = std::env::var_os("APPLIANCE_XLA_CPU") else {
            eprintln!("skipped: APPLIANCE_XLA_CPU names no plugin; `make test` sets it");
            return None;
        };
        let plugin = Plugin::open(path.as_ref()).expect("a plugin");
        Some(plugin.client(&[]).expect("a client"))
    }

    fn call(module: &mut HloModule) -> &mut HloInstruction {
        let mut instructions = module.computations[0].instructions.iter_mut();
        instructions
            .find(|one| one.opcode == "custom-call")
            .unwrap()
    }

    #[test]
    fn of_equal_numbers_the_lowest_column_is_first_and_columns_stay_unsigned() {
        let Some(client) = client() else { return };
        let module = for_xla(&top_three()).unwrap();
        let options = options(1, client.devices());
        let program = client.compile(&module.to_bytes(), &options).unwrap();
        let rows = [1.0, 5.0, 2.0, 5.0, 0.0, 5.0, 5.0, -1.0]
            .into_iter()
            .chain([f32::NEG_INFINITY, -3.0, -2.0, -2.0, -9.0, -8.0, -7.0, -2.0]);
        let bytes: Vec<u8> = rows.flat_map(f32::to_le_bytes).collect();
        let x = client.buffer(client.devices()[0], pjrt::Element::F32, &[2, 8], &bytes);
        let results = program.execute(&[vec![&x.unwrap()]]).unwrap();
        let columns = &results[0][1];
        assert_eq!(columns.element().unwrap(), pjrt::Element::U32);
        let mut bytes = [0; 24];
        columns.to_host(&mut bytes).unwrap();
        let columns = bytes
            .as_chunks()
            .0
            .iter()
            .map(|four| u32::from_le_bytes(*four));
        assert_eq!(columns.collect::<Vec<_>>(), [1, 3, 5, 2, 3, 7]);
    }

    #[test]
    fn what_users_know_keeps_its_id_and_its_type() {
        let module = top_three();
        let rewritten = for_xla(&module).unwrap();
        for before in &module.computations[0].instructions {
            let mut after = rewritten.computations[0].instructions.iter();
            let after = after.find(|after| after.id == before.id).unwrap();
            if before.opcode != "custom-call" {
                assert_eq!(after.shape, before.shape, "{}", before.name);
            }
        }
        assert_eq!(rewritten.host_program_shape, module.host_program_shape);
    }

    #[test]
    fn calls_that_xla_has_nothing_for_are_refused_by_name() {
        let mut module = top_three();
        call(&mut module).custom_call_target = "AwsNeuronRmsNorm".to_owned();
        let error = for_xla(&module).unwrap_err().to_string();
        assert!(error.contains("AwsNeuronRmsNorm"), "{error}");
        let mut module = top_three();
        call(&mut module).backend_config = b"many".to_vec();
        let error = for_xla(&module).unwrap_err().to_string();
        assert!(error.contains("backend_config"), "{error}");
        let mut module = top_three();
        module.computations[0].root_id = call(&mut module).id;
        assert!(for_xla(&module).is_err());
    }
}
