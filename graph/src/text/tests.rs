use super::*;
use crate::proto::{
    PaddingConfig, PaddingDimension, ReplicaGroup, ScatterDimensionNumbers, SliceDimensions,
};
use crate::sketch::{BF16, F32, S32, Sketch, U32, array, named, tuple};

/// A module of few instructions, as it was read by XLA's own parser (jaxlib 0.10.2).
const TEXT: &str = r#"HloModule sketch, input_output_alias={
  {1}: (1, {}, must-alias)
}

%copy_1 {
  %parameter.0 = bf16[] parameter(0)
  %parameter.1 = bf16[] parameter(1)
  ROOT %copy.2 = bf16[] copy(%parameter.1)
}

ENTRY %main {
  %slots = s32[2,1]{1,0} parameter(0), frontend_attributes={neff_input_names="slots"}
  %keys = bf16[8,4]{1,0} parameter(1), frontend_attributes={neff_input_names="keys"}
  %new = bf16[2,4]{1,0} constant({{0, 1, -2.5, 1e-6}, {inf, -inf, nan, 0.33398438}})
  %written = bf16[8,4]{1,0} scatter(%keys, %slots, %new), update_window_dims={1}, inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=%copy_1
  ROOT %root = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) tuple(%new, %written), frontend_attributes={neff_output_names="new,keys"}
}
"#;

fn sketch() -> HloModule {
    let mut sketch = Sketch::default();
    let assign = sketch.reducer("copy", BF16);
    sketch.parameter("slots", S32, &[2, 1]);
    sketch.parameter("keys", BF16, &[8, 4]);
    let infinity = f32::INFINITY;
    let values = [0.0, 1.0, -2.5, 1e-6, infinity, -infinity, f32::NAN, 0.334];
    let bytes = values.map(|value| bf16::from_f32(value).to_le_bytes());
    let new = sketch.add("new", "constant", array(BF16, &[2, 4]), &[]);
    new.literal = Some(Literal {
        shape: Some(array(BF16, &[2, 4])),
        bf16s: bytes.concat(),
        ..Literal::default()
    });
    let shape = array(BF16, &[8, 4]);
    let scatter = sketch.add("written", "scatter", shape, &["keys", "slots", "new"]);
    scatter.called_computation_ids = vec![assign];
    scatter.scatter_dimension_numbers = Some(ScatterDimensionNumbers {
        update_window_dims: vec![1],
        inserted_window_dims: vec![0],
        scatter_dims_to_operand_dims: vec![0],
        index_vector_dim: 1,
    });
    sketch.alias(1, 1);
    sketch.finish(&[("new", "new"), ("written", "keys")])
}

#[test]
fn a_module_is_written_in_xlas_syntax() {
    let written = text(&sketch());
    let small = float(bf16::from_f32(1e-6).to_f32());
    assert_eq!(written, TEXT.replace("1e-6", &small));
}

#[test]
fn the_same_module_has_the_same_text() {
    assert_eq!(text(&sketch()), text(&sketch()));
}

/// The line of one instruction.
fn line(change: impl FnOnce(&mut HloInstruction)) -> String {
    let mut sketch = Sketch::default();
    sketch.parameter("x", F32, &[4, 8]);
    sketch.add("it", "negate", array(F32, &[4, 8]), &["x"]);
    let mut module = sketch.finish(&[("it", "it")]);
    change(named(&mut module, "it"));
    let text = text(&module);
    let line = text.lines().find(|line| line.starts_with("  %it"));
    line.unwrap().trim().to_owned()
}

#[test]
fn attributes_are_those_of_the_operation() {
    let is = |change: fn(&mut HloInstruction), expected: &str| {
        let line = line(change);
        assert_eq!(line, format!("%it = f32[4,8]{{1,0}} {expected}"));
    };
    is(|_| (), "negate(%x)");
    is(
        |it| {
            it.opcode = "broadcast".into();
        },
        "broadcast(%x), dimensions={}",
    );
    is(
        |it| {
            it.opcode = "iota".into();
            it.operand_ids.clear();
            it.dimensions = vec![1];
        },
        "iota(), iota_dimension=1",
    );
    is(
        |it| {
            it.opcode = "slice".into();
            let slice = |stride| SliceDimensions {
                start: 0,
                limit: 4,
                stride,
            };
            it.slice_dimensions = vec![slice(1), slice(2)];
        },
        "slice(%x), slice={[0:4], [0:4:2]}",
    );
    is(
        |it| {
            it.opcode = "pad".into();
            let dimension = |interior| PaddingDimension {
                edge_padding_low: 1,
                edge_padding_high: 2,
                interior_padding: interior,
            };
            it.padding_config = Some(PaddingConfig {
                dimensions: vec![dimension(0), dimension(3)],
            });
        },
        "pad(%x), padding=1_2x1_2_3",
    );
    is(
        |it| {
            it.opcode = "all-reduce".into();
            let group = |ids: [i64; 2]| ReplicaGroup {
                replica_ids: ids.to_vec(),
            };
            it.replica_groups = vec![group([0, 1]), group([2, 3])];
        },
        "all-reduce(%x), replica_groups={{0,1},{2,3}}",
    );
    is(
        |it| {
            it.opcode = "dot".into();
            it.dot_dimension_numbers = Some(DotDimensionNumbers {
                lhs_contracting_dimensions: vec![1],
                rhs_contracting_dimensions: vec![0],
                ..DotDimensionNumbers::default()
            });
        },
        "dot(%x), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
    );
    is(
        |it| {
            it.opcode = "custom-call".into();
            it.custom_call_target = "AwsNeuronTopK".into();
            it.backend_config = b"a\"b\\\n".to_vec();
        },
        "custom-call(%x), custom_call_target=\"AwsNeuronTopK\", \
         backend_config=\"a\\\"b\\\\\\012\"",
    );
}

#[test]
fn tuples_and_parts_of_them_are_written() {
    let mut sketch = Sketch::default();
    sketch.parameter("x", F32, &[4, 8]);
    let both = tuple(vec![array(F32, &[4, 2]), array(U32, &[4, 2])]);
    sketch.add("both", "custom-call", both, &["x"]);
    let part = sketch.add("part", "get-tuple-element", array(U32, &[4, 2]), &["both"]);
    part.tuple_index = 1;
    let text = text(&sketch.finish(&[("part", "part")]));
    assert!(text.contains("%both = (f32[4,2]{1,0}, u32[4,2]{1,0}) custom-call(%x)"));
    assert!(text.contains("%part = u32[4,2]{1,0} get-tuple-element(%both), index=1"));
}

#[test]
fn what_no_compiler_takes_is_written_too() {
    let line = line(|it| {
        it.name = "a name, of sorts".into();
        it.operand_ids = vec![12_345];
        it.shape.as_mut().unwrap().element_type = 12;
        it.shape.as_mut().unwrap().is_dynamic_dimension[0] = true;
        it.name = "it".into();
    });
    assert_eq!(line, "%it = f64[<=4,8]{1,0} negate(%?12345)");
    assert_eq!(identifier("a name, of sorts"), "a_name__of_sorts");
    let empty = text(&HloModule::default());
    assert_eq!(empty, "HloModule _\n");
}

#[test]
fn floats_read_back_as_the_same_number() {
    for value in [0.0, -0.0, 1.0, 0.1, 1e-30, f32::MAX, f32::MIN_POSITIVE] {
        assert_eq!(
            float(value).parse::<f32>().unwrap().to_bits(),
            value.to_bits()
        );
    }
}
