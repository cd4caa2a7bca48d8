//! `AwsNeuronTopK` does not exist in XLA, which has an operation of its own for it.

use graph::Element;
use graph::proto::{HloModule, Shape};

/// The module with XLA's `topk` for each `AwsNeuronTopK`. It gives columns in S32 instead of U32,
/// and whoever takes them converts them to S32 anyway.
pub(crate) fn with_top_k_of_xla(mut module: HloModule) -> HloModule {
    let entry = module.computations.last_mut().expect("an entry");
    let mut calls = Vec::new();
    for instruction in &mut entry.instructions {
        if instruction.custom_call_target == "AwsNeuronTopK" {
            let k = String::from_utf8(std::mem::take(&mut instruction.backend_config));
            instruction.k = k.expect("a number").parse().expect("a number");
            instruction.largest = true;
            instruction.opcode = "topk".into();
            instruction.custom_call_target.clear();
            let shape = instruction.shape.as_mut().expect("a shape");
            signed(&mut shape.tuple_shapes[1]);
            calls.push(instruction.id);
        } else if instruction.opcode == "get-tuple-element"
            && instruction.tuple_index == 1
            && calls.contains(&instruction.operand_ids[0])
        {
            signed(instruction.shape.as_mut().expect("a shape"));
        }
    }
    module
}

fn signed(shape: &mut Shape) {
    assert_eq!(shape.element_type, Element::U32.number());
    shape.element_type = Element::S32.number();
}
