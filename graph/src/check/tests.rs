//! A module that breaks no rule, and for each rule a change that breaks just that one.

use super::*;
use crate::proto::{
    DotDimensionNumbers, GatherDimensionNumbers, Literal, ReplicaGroup, ScatterDimensionNumbers,
    SliceDimensions,
};
use crate::sketch::{BF16, F32, S32, Sketch, U32, array, named, tuple};

/// Rows of the cache.
const SLOTS: i64 = 64;

/// A step in small: a product, its all-reduce and top-K, a sum, a cache written and read.
fn sketch() -> Sketch {
    let mut sketch = Sketch::default();
    let (sum, assign) = (sketch.reducer("add", F32), sketch.reducer("copy", BF16));
    sketch.parameter("x", BF16, &[4, 16]);
    sketch.parameter("weight", BF16, &[16, 32]);
    sketch.parameter("slots", S32, &[4, 1]);
    sketch.parameter("keys.must_alias_input", BF16, &[SLOTS, 16]);
    let dot = sketch.add("dot", "dot", array(F32, &[4, 32]), &["x", "weight"]);
    dot.dot_dimension_numbers = Some(DotDimensionNumbers {
        lhs_contracting_dimensions: vec![1],
        rhs_contracting_dimensions: vec![0],
        ..DotDimensionNumbers::default()
    });
    let all = sketch.add("all", "all-reduce", array(F32, &[4, 32]), &["dot"]);
    all.called_computation_ids = vec![sum];
    all.replica_groups = vec![ReplicaGroup {
        replica_ids: vec![0, 1],
    }];
    let best = tuple(vec![array(F32, &[4, 8]), array(U32, &[4, 8])]);
    let best = sketch.add("best", "custom-call", best, &["all"]);
    best.custom_call_target = "AwsNeuronTopK".into();
    best.backend_config = b"8".into();
    sketch.add(
        "values",
        "get-tuple-element",
        array(F32, &[4, 8]),
        &["best"],
    );
    sketch.float("zero", 0.0);
    let reduce = sketch.add("reduce", "reduce", array(F32, &[4]), &["all", "zero"]);
    reduce.dimensions = vec![1];
    reduce.called_computation_ids = vec![sum];
    write(&mut sketch, "written", "keys.must_alias_input", assign);
    read(&mut sketch, "read", "written", "slots");
    sketch
}

/// Writes `x` at `slots`.
fn write(sketch: &mut Sketch, name: &str, cache: &str, assign: i64) {
    let shape = array(BF16, &[SLOTS, 16]);
    let scatter = sketch.add(name, "scatter", shape, &[cache, "slots", "x"]);
    scatter.called_computation_ids = vec![assign];
    scatter.scatter_dimension_numbers = Some(ScatterDimensionNumbers {
        update_window_dims: vec![1],
        inserted_window_dims: vec![0],
        scatter_dims_to_operand_dims: vec![0],
        index_vector_dim: 1,
    });
}

/// Reads four rows.
fn read(sketch: &mut Sketch, name: &str, cache: &str, indices: &str) {
    let gather = sketch.add(name, "gather", array(BF16, &[4, 16]), &[cache, indices]);
    gather.gather_slice_sizes = vec![1, 16];
    gather.gather_dimension_numbers = Some(GatherDimensionNumbers {
        offset_dims: vec![1],
        collapsed_slice_dims: vec![0],
        start_index_map: vec![0],
        index_vector_dim: 1,
    });
}

const OUTPUTS: [(&str, &str); 4] = [
    ("values", "candidates"),
    ("reduce", "sums"),
    ("read", "read"),
    ("written", "keys"),
];

/// The sketch, with more added to it and given.
fn with(add: impl FnOnce(&mut Sketch) -> Option<(&'static str, &'static str)>) -> HloModule {
    let mut sketch = sketch();
    let more = add(&mut sketch);
    sketch.alias(3, 3);
    let outputs: Vec<_> = OUTPUTS.into_iter().chain(more).collect();
    sketch.finish(&outputs)
}

fn good() -> HloModule {
    with(|_| None)
}

/// The rules that a module breaks, each once.
fn broken(module: &HloModule, compile: impl Into<Compile>) -> Vec<Rule> {
    match check(module, compile) {
        Ok(()) => Vec::new(),
        Err(refusal) => {
            let mut rules: Vec<_> = refusal.broken.iter().map(|one| one.rule).collect();
            rules.sort();
            rules.dedup();
            rules
        }
    }
}

/// Asserts that a change to the good module breaks one rule and no other.
#[track_caller]
fn breaks(rule: Rule, change: impl FnOnce(&mut HloModule)) {
    let mut module = good();
    change(&mut module);
    assert_eq!(broken(&module, Target::Trn2), [rule]);
}

/// Asserts that an instruction, added and given, breaks one rule and no other.
#[track_caller]
fn adding_breaks(rule: Rule, add: impl FnOnce(&mut Sketch)) {
    let module = with(|sketch| {
        add(sketch);
        Some(("more", "more"))
    });
    assert_eq!(broken(&module, Target::Trn2), [rule]);
}

#[test]
fn a_good_module_passes_for_every_target() {
    for target in Target::ALL {
        assert_eq!(check(&good(), target), Ok(()));
    }
}

#[test]
fn a_refusal_names_rule_instruction_and_what_would_do() {
    let mut module = good();
    named(&mut module, "reduce").opcode = "sort".into();
    let text = check(&module, Target::Trn2).unwrap_err().to_string();
    for word in ["sketch", "trn2", "NCC_EVRF029", "reduce", "AwsNeuronTopK"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn every_rule_has_a_name() {
    assert_eq!(Rule::Sort.to_string(), "NCC_EVRF029");
    assert_eq!(Rule::Writers.to_string(), "Writers");
}

#[test]
fn ids_must_be_below_two_to_the_31() {
    breaks(Rule::Identity, |module| {
        let root = module.computations.last_mut().unwrap();
        root.root_id = 1 << 31;
        named(module, "root").id = 1 << 31;
    });
}

#[test]
fn ids_must_be_unique_in_the_module() {
    breaks(Rule::Identity, |module| {
        module.computations[1].instructions[2].id = 2;
        module.computations[1].root_id = 2;
    });
}

#[test]
fn names_must_be_unique_in_a_computation() {
    breaks(Rule::Identity, |module| {
        named(module, "reduce").name = "dot".into();
    });
}

#[test]
fn operands_must_stand_before_their_users() {
    breaks(Rule::Identity, |module| {
        let last = module.computations.last().unwrap().root_id;
        named(module, "all").operand_ids = vec![last];
    });
}

#[test]
fn callees_must_be_there() {
    breaks(Rule::Identity, |module| {
        named(module, "all").called_computation_ids = vec![9];
    });
}

#[test]
fn the_entry_must_be_there_and_last() {
    breaks(Rule::Identity, |module| module.entry_computation_id = 1);
    breaks(Rule::Identity, |module| {
        module.entry_computation_name = "other".into();
    });
}

#[test]
fn parameters_must_be_numbered_without_gaps() {
    breaks(Rule::Identity, |module| {
        named(module, "keys.must_alias_input").parameter_number = 9;
        let alias = module.input_output_alias.as_mut().unwrap();
        alias.entries[0].parameter_number = 9;
    });
}

#[test]
fn dynamic_sizes_are_refused() {
    breaks(Rule::DynamicShape, |module| {
        let shape = named(module, "dot").shape.as_mut().unwrap();
        shape.is_dynamic_dimension[0] = true;
    });
}

#[test]
fn floats_of_64_bits_are_refused() {
    adding_breaks(Rule::Double, |sketch| {
        sketch.add("more", "convert", array(12, &[4, 16]), &["x"]);
    });
    breaks(Rule::Double, |module| {
        let zero = named(module, "zero").literal.as_mut().unwrap();
        zero.f64s = vec![0.0];
    });
}

#[test]
fn integers_of_64_bits_are_refused() {
    for element in [5, 9] {
        adding_breaks(Rule::Integer64, |sketch| {
            sketch.add("more", "convert", array(element, &[4, 16]), &["x"]);
        });
    }
}

#[test]
fn element_types_that_no_device_knows_are_refused() {
    adding_breaks(Rule::ElementType, |sketch| {
        sketch.add("more", "convert", array(15, &[4, 16]), &["x"]);
    });
}

/// The good module with a value of an element type.
fn converted(element: i32) -> HloModule {
    with(|sketch| {
        sketch.add("more", "convert", array(element, &[4, 16]), &["x"]);
        Some(("more", "more"))
    })
}

#[test]
fn fp8_is_the_targets_own_or_made_so_by_the_flag() {
    let none: [Rule; 0] = [];
    let without = |target| Compile {
        fp8_as_device: false,
        ..Compile::from(target)
    };
    let ocp = converted(20);
    for target in Target::ALL {
        assert_eq!(broken(&ocp, target), none);
        assert_eq!(broken(&converted(24), target), [Rule::Fp8Fnuz]);
    }
    assert_eq!(broken(&ocp, without(Target::Trn1)), [Rule::Fp8Ocp]);
    assert_eq!(broken(&ocp, without(Target::Trn2)), [Rule::Fp8Ocp]);
    assert_eq!(broken(&ocp, without(Target::Trn3)), none);
    let ieee = converted(28);
    assert_eq!(broken(&ieee, Target::Trn2), none);
    assert_eq!(broken(&ieee, Target::Trn3), [Rule::Fp8Ieee]);
}

#[test]
fn the_fp8_flag_and_ready_kernels_do_not_go_together_on_trn3() {
    let module = with(|sketch| {
        let call = sketch.add("more", "custom-call", array(BF16, &[4, 16]), &["x"]);
        call.custom_call_target = "AwsNeuronCustomNativeKernel".into();
        Some(("more", "more"))
    });
    let flagged = Compile {
        fp8_as_device: true,
        ..Compile::from(Target::Trn3)
    };
    assert_eq!(broken(&module, flagged), [Rule::Fp8Flag]);
    assert!(broken(&module, Target::Trn3).is_empty());
    assert!(broken(&module, Target::Trn2).is_empty());
}

#[test]
fn arrays_lie_row_by_row() {
    breaks(Rule::Layout, |module| {
        let shape = named(module, "dot").shape.as_mut().unwrap();
        shape.layout.as_mut().unwrap().minor_to_major = vec![0, 1];
    });
    breaks(Rule::Layout, |module| {
        named(module, "dot").shape.as_mut().unwrap().layout = None;
    });
}

#[test]
fn program_shapes_are_there_and_have_no_layout() {
    breaks(Rule::Layout, |module| module.host_program_shape = None);
    breaks(Rule::Layout, |module| {
        let program = module.host_program_shape.as_mut().unwrap();
        program.parameters[0] = array(BF16, &[4, 16]);
    });
    breaks(Rule::Shape, |module| {
        let program = module.host_program_shape.as_mut().unwrap();
        program.parameters[0].dimensions[0] = 5;
    });
}

#[test]
fn constants_have_as_many_values_as_their_shape_says() {
    breaks(Rule::Shape, |module| {
        let zero = named(module, "zero").literal.as_mut().unwrap();
        zero.f32s = Vec::new();
    });
}

#[test]
fn sizes_follow_from_those_of_the_operands() {
    let cases: [(&str, &[i64], &[&str]); 4] = [
        ("reshape", &[4, 31], &["dot"]),
        ("add", &[4, 16], &["x", "weight"]),
        ("negate", &[4, 8], &["x"]),
        ("negate", &[4, 16], &["x", "x"]),
    ];
    for (opcode, sizes, operands) in cases {
        adding_breaks(Rule::Shape, |sketch| {
            sketch.add("more", opcode, array(BF16, sizes), operands);
        });
    }
    adding_breaks(Rule::Shape, |sketch| {
        let broadcast = sketch.add("more", "broadcast", array(BF16, &[16, 4]), &["x"]);
        broadcast.dimensions = vec![0, 1];
    });
    breaks(Rule::Shape, |module| {
        let numbers = named(module, "dot").dot_dimension_numbers.as_mut();
        numbers.unwrap().rhs_contracting_dimensions = vec![1];
    });
}

#[test]
fn sort_is_refused() {
    for opcode in ["sort", "topk"] {
        adding_breaks(Rule::Sort, |sketch| {
            sketch.add("more", opcode, array(BF16, &[4, 16]), &["x"]);
        });
    }
}

#[test]
fn loops_and_branches_are_refused() {
    for opcode in ["while", "conditional", "call"] {
        adding_breaks(Rule::ControlFlow, |sketch| {
            sketch.add("more", opcode, array(BF16, &[4, 16]), &["x"]);
        });
    }
}

#[test]
fn random_numbers_are_refused() {
    for opcode in ["rng", "rng-bit-generator"] {
        adding_breaks(Rule::Random, |sketch| {
            sketch.add("more", opcode, array(BF16, &[4, 16]), &["x"]);
        });
    }
}

#[test]
fn operations_that_nobody_has_seen_compile_are_refused() {
    adding_breaks(Rule::Operation, |sketch| {
        sketch.add("more", "cholesky", array(BF16, &[4, 16]), &["x"]);
    });
}

/// The good module with a product of integers.
fn integer_dot() -> HloModule {
    with(|sketch| {
        let dot = sketch.add("more", "dot", array(S32, &[4, 4]), &["slots", "slots"]);
        dot.dot_dimension_numbers = Some(DotDimensionNumbers {
            lhs_contracting_dimensions: vec![1],
            rhs_contracting_dimensions: vec![1],
            ..DotDimensionNumbers::default()
        });
        Some(("more", "more"))
    })
}

#[test]
fn products_of_integers_are_refused_from_trn2_on() {
    assert!(broken(&integer_dot(), Target::Trn1).is_empty());
    for target in [Target::Trn2, Target::Trn3] {
        assert_eq!(broken(&integer_dot(), target), [Rule::IntegerDot]);
    }
}

/// The good module with a division of integers.
fn divided(opcode: &str, by: i32) -> HloModule {
    with(|sketch| {
        sketch.integer("by", by);
        sketch.add("all_by", "broadcast", array(S32, &[4, 1]), &["by"]);
        sketch.add("more", opcode, array(S32, &[4, 1]), &["slots", "all_by"]);
        Some(("more", "more"))
    })
}

#[test]
fn integers_are_divided_by_constant_powers_of_two_only() {
    for opcode in ["divide", "remainder"] {
        assert!(broken(&divided(opcode, 16), Target::Trn2).is_empty());
        for by in [0, 3, 48, -16] {
            let rules = broken(&divided(opcode, by), Target::Trn2);
            assert_eq!(rules, [Rule::IntegerDivision]);
        }
        adding_breaks(Rule::IntegerDivision, |sketch| {
            sketch.add("more", opcode, array(S32, &[4, 1]), &["slots", "slots"]);
        });
    }
}

/// The good module with a top-K.
fn top_k(element: i32, columns: i64, k: i64, config: &str, indices: i32) -> HloModule {
    with(|sketch| {
        sketch.parameter("logits", element, &[4, columns]);
        let shape = tuple(vec![array(element, &[4, k]), array(indices, &[4, k])]);
        let call = sketch.add("top", "custom-call", shape, &["logits"]);
        call.custom_call_target = "AwsNeuronTopK".into();
        call.backend_config = config.into();
        sketch.add(
            "more",
            "get-tuple-element",
            array(element, &[4, k]),
            &["top"],
        );
        Some(("more", "more"))
    })
}

#[test]
fn a_top_k_has_8_to_16384_columns_of_floats() {
    for columns in [8, 16_384] {
        assert!(broken(&top_k(F32, columns, 8, "8", U32), Target::Trn2).is_empty());
    }
    let wrong = [
        top_k(F32, 4, 4, "4", U32),
        top_k(F32, 16_392, 8, "8", U32),
        top_k(F32, 100, 8, "8", U32),
        top_k(S32, 64, 8, "8", U32),
        top_k(F32, 64, 8, "8", S32),
        top_k(F32, 64, 8, "16", U32),
        top_k(F32, 64, 8, "{k: 8}", U32),
        top_k(F32, 64, 65, "65", U32),
    ];
    for module in wrong {
        assert_eq!(broken(&module, Target::Trn2), [Rule::TopK]);
    }
}

/// The good module with a custom call.
fn called(target: &str) -> HloModule {
    with(|sketch| {
        let call = sketch.add("more", "custom-call", array(BF16, &[4, 16]), &["x"]);
        call.custom_call_target = target.into();
        Some(("more", "more"))
    })
}

#[test]
fn custom_calls_are_those_that_the_compiler_knows() {
    for known in ["AwsNeuronSilu", "AwsNeuronResizeNearest", "AwsNeuronGelu"] {
        assert!(broken(&called(known), Target::Trn2).is_empty());
    }
    for unknown in ["", "TopK", "AwsNeuronSilu2", "__cudnn$fmhaSoftmax"] {
        let rules = broken(&called(unknown), Target::Trn2);
        assert_eq!(rules, [Rule::CustomCall]);
    }
    let rules = broken(&called("QuantizeMX"), Target::Trn2);
    assert_eq!(rules, [Rule::CustomCall]);
    assert!(broken(&called("QuantizeMX"), Target::Trn3).is_empty());
}

/// The good module with a read at an iota to which a number is added.
fn read_at(shift: i32) -> HloModule {
    with(|sketch| {
        let iota = sketch.add("iota", "iota", array(S32, &[4, 1]), &[]);
        iota.dimensions = vec![0];
        sketch.integer("shift", shift);
        sketch.add("shifts", "broadcast", array(S32, &[4, 1]), &["shift"]);
        sketch.add("at", "add", array(S32, &[4, 1]), &["iota", "shifts"]);
        read(sketch, "more", "written", "at");
        Some(("more", "more"))
    })
}

#[test]
fn indices_that_are_outside_for_certain_are_refused() {
    for inside in [0, 60] {
        assert!(broken(&read_at(inside), Target::Trn2).is_empty());
    }
    for outside in [-1, 61, 1000] {
        assert_eq!(broken(&read_at(outside), Target::Trn2), [Rule::Bounds]);
    }
}

#[test]
fn indices_of_which_nothing_is_known_pass_and_so_do_clamped_ones() {
    let clamped = with(|sketch| {
        let iota = sketch.add("iota", "iota", array(S32, &[4, 1]), &[]);
        iota.dimensions = vec![0];
        sketch.integer("many", 1000);
        sketch.integer("least", 0);
        sketch.integer("most", 63);
        sketch.add("step", "broadcast", array(S32, &[4, 1]), &["many"]);
        sketch.add("far", "multiply", array(S32, &[4, 1]), &["iota", "step"]);
        sketch.add(
            "at",
            "clamp",
            array(S32, &[4, 1]),
            &["least", "far", "most"],
        );
        read(sketch, "more", "written", "at");
        Some(("more", "more"))
    });
    assert_eq!(check(&clamped, Target::Trn2), Ok(()));
}

#[test]
fn reducers_are_a_sum_product_minimum_or_maximum() {
    for opcode in ["subtract", "or"] {
        breaks(Rule::Reducer, |module| {
            module.computations[0].instructions[2].opcode = opcode.into();
        });
    }
    breaks(Rule::Reducer, |module| {
        let root = &mut module.computations[0].instructions[2];
        root.operand_ids = vec![root.operand_ids[0]; 2];
    });
}

#[test]
fn a_scatter_assigns() {
    breaks(Rule::Reducer, |module| {
        module.computations[1].instructions[2].operand_ids = vec![3];
    });
    breaks(Rule::Reducer, |module| {
        let sum = &mut module.computations[1].instructions[2];
        sum.opcode = "add".into();
        sum.operand_ids = vec![3, 4];
    });
}

#[test]
fn a_reduction_starts_from_a_constant() {
    adding_breaks(Rule::ReduceStart, |sketch| {
        sketch.parameter("start", F32, &[]);
        let sum = sketch.add("more", "reduce", array(F32, &[4]), &["dot", "start"]);
        sum.dimensions = vec![1];
        sum.called_computation_ids = vec![1];
    });
}

#[test]
fn groups_part_all_ranks_evenly_without_a_channel() {
    let group = |ids: &[i64]| ReplicaGroup {
        replica_ids: ids.to_vec(),
    };
    let mut halves = good();
    named(&mut halves, "all").replica_groups = vec![group(&[0, 2]), group(&[1, 3])];
    assert_eq!(check(&halves, Target::Trn2), Ok(()));
    let wrong = [
        vec![],
        vec![group(&[])],
        vec![group(&[1, 2])],
        vec![group(&[0, 0])],
        vec![group(&[0, 1]), group(&[2])],
        vec![group(&[0, 1]), group(&[1, 2])],
    ];
    for groups in wrong {
        breaks(Rule::Groups, |module| {
            named(module, "all").replica_groups = groups;
        });
    }
    breaks(Rule::Groups, |module| named(module, "all").channel_id = 1);
    adding_breaks(Rule::Groups, |sketch| {
        let all = sketch.add("more", "all-reduce", array(F32, &[4, 32]), &["dot"]);
        all.called_computation_ids = vec![1];
        all.replica_groups = vec![group(&[0, 1, 2, 3])];
    });
}

#[test]
fn a_parameter_is_given_back_through_a_copy() {
    let given = |copied: bool| {
        with(|sketch| match copied {
            false => Some(("x", "more")),
            true => {
                sketch.add("more", "copy", array(BF16, &[4, 16]), &["x"]);
                Some(("more", "more"))
            }
        })
    };
    assert_eq!(check(&given(true), Target::Trn2), Ok(()));
    let rules = broken(&given(false), Target::Trn2);
    assert_eq!(rules, [Rule::ReturnedParameter]);
    adding_breaks(Rule::ReturnedParameter, |sketch| {
        sketch.add("more", "reshape", array(BF16, &[64]), &["x"]);
    });
}

#[test]
fn every_input_has_a_name_of_its_own() {
    breaks(Rule::InputNames, |module| {
        named(module, "x").frontend_attributes = None;
    });
    breaks(Rule::InputNames, |module| {
        let attributes = named(module, "weight").frontend_attributes.clone();
        named(module, "x").frontend_attributes = attributes;
    });
}

#[test]
fn every_output_has_a_name_of_its_own() {
    let rename = |module: &mut HloModule, names: &str| {
        let root = named(module, "root").frontend_attributes.as_mut().unwrap();
        root.map.insert("neff_output_names".into(), names.into());
    };
    for names in [
        "candidates,sums,sums,keys",
        "candidates,,read,keys",
        "x,y,read,keys,z",
    ] {
        breaks(Rule::OutputNames, |module| rename(module, names));
    }
}

#[test]
fn an_alias_refers_to_what_is_there_once_and_must() {
    let entries = |module: &mut HloModule| {
        let alias = module.input_output_alias.as_mut().unwrap();
        alias.entries.clone()
    };
    breaks(Rule::Alias, |module| {
        let mut entries = entries(module);
        entries[0].kind = 1;
        module.input_output_alias.as_mut().unwrap().entries = entries;
    });
    breaks(Rule::Alias, |module| {
        let entries = entries(module);
        let alias = module.input_output_alias.as_mut().unwrap();
        alias.entries = [entries.clone(), entries].concat();
    });
    for (output, parameter) in [(9, 3), (3, 9)] {
        breaks(Rule::Alias, |module| {
            let alias = module.input_output_alias.as_mut().unwrap();
            alias.entries[0].output_shape_index = vec![output];
            alias.entries[0].parameter_number = parameter;
        });
    }
}

#[test]
fn an_alias_has_one_shape_and_names_that_agree() {
    // Another output than what is written of the cache.
    breaks(Rule::Alias, |module| {
        let alias = module.input_output_alias.as_mut().unwrap();
        alias.entries[0].output_shape_index = vec![2];
    });
    breaks(Rule::Alias, |module| {
        let input = named(module, "keys.must_alias_input");
        let attributes = input.frontend_attributes.as_mut().unwrap();
        attributes
            .map
            .insert("neff_input_names".into(), "keys".into());
    });
}

#[test]
fn a_cache_is_written_once() {
    let module = {
        let mut sketch = sketch();
        write(&mut sketch, "twice", "written", 2);
        sketch.alias(3, 3);
        let mut outputs = OUTPUTS;
        outputs[3].0 = "twice";
        sketch.finish(&outputs)
    };
    assert_eq!(broken(&module, Target::Trn2), [Rule::Writers]);
}

#[test]
fn a_cache_is_read_before_its_write_only_for_it() {
    adding_breaks(Rule::UnorderedRead, |sketch| {
        read(sketch, "more", "keys.must_alias_input", "slots");
    });
    // Rows that are read to be written elsewhere: a copy of pages.
    let mut sketch = Sketch::default();
    let assign = sketch.reducer("copy", BF16);
    sketch.parameter("slots", S32, &[4, 1]);
    sketch.parameter("keys.must_alias_input", BF16, &[SLOTS, 16]);
    read(&mut sketch, "x", "keys.must_alias_input", "slots");
    write(&mut sketch, "written", "keys.must_alias_input", assign);
    sketch.alias(0, 1);
    let module = sketch.finish(&[("written", "keys")]);
    assert_eq!(check(&module, Target::Trn2), Ok(()));
}

#[test]
fn nothing_empty_is_taken_or_given() {
    adding_breaks(Rule::Empty, |sketch| {
        let none = sketch.add("more", "slice", array(BF16, &[0, 16]), &["x"]);
        none.slice_dimensions = vec![
            SliceDimensions {
                start: 0,
                limit: 0,
                stride: 1,
            },
            SliceDimensions {
                start: 0,
                limit: 16,
                stride: 1,
            },
        ];
    });
}

#[test]
fn inputs_and_outputs_fit_the_bank() {
    let module = |gib: i64| {
        with(|sketch| {
            sketch.parameter("large", BF16, &[gib << 19, 1024]);
            None
        })
    };
    assert_eq!(check(&module(20), Target::Trn2), Ok(()));
    assert_eq!(broken(&module(20), Target::Trn1), [Rule::Memory]);
    let halves = Compile {
        logical: 1,
        ..Compile::from(Target::Trn2)
    };
    assert_eq!(broken(&module(20), halves), [Rule::Memory]);
}

#[test]
fn graphs_of_too_many_machine_instructions_are_refused() {
    adding_breaks(Rule::GraphSize, |sketch| {
        sketch.float("number", 1.0);
        let long = array(F32, &[128, 1 << 30]);
        sketch.add("left", "broadcast", long, &["number"]);
        let long = array(F32, &[1 << 30, 128]);
        sketch.add("right", "broadcast", long, &["number"]);
        let dot = sketch.add("more", "dot", array(F32, &[128, 128]), &["left", "right"]);
        dot.dot_dimension_numbers = Some(DotDimensionNumbers {
            lhs_contracting_dimensions: vec![1],
            rhs_contracting_dimensions: vec![0],
            ..DotDimensionNumbers::default()
        });
    });
}

#[test]
fn foreign_bytes_are_refused_and_never_a_panic() {
    let empty = HloModule::default();
    assert_eq!(broken(&empty, Target::Trn2), [Rule::Identity]);
    let mut module = good();
    for instruction in &mut module.computations.last_mut().unwrap().instructions {
        instruction.operand_ids.clear();
        instruction.dimensions = vec![-7, 1 << 40];
        instruction.literal = Some(Literal::default());
    }
    assert!(check(&module, Target::Trn2).is_err());
    let mut module = good();
    for instruction in &mut module.computations.last_mut().unwrap().instructions {
        instruction.shape = None;
    }
    assert!(check(&module, Target::Trn2).is_err());
}

#[test]
fn what_the_lowering_makes_passes_for_every_target() {
    use crate::bucket::{Activations, Bucket, Form, Head, KvFormat, WeightFormat};

    let dense = crate::form::tests::decoder(8, 2);
    let mut mixed = dense.clone();
    mixed.mlp = model::Mlp::Experts {
        experts: 12,
        chosen: 3,
        size: 40,
        activation: model::Activation::Silu,
        renormalise: false,
    };
    let step = |rows, tokens, pages, head| Bucket::Step {
        rows,
        tokens,
        pages,
        head,
    };
    let buckets = [
        step(1, 1, 8, Head::Last),
        step(4, 1, 8, Head::Last),
        step(1, 48, 3, Head::Last),
        step(2, 16, 0, Head::Each),
        step(1, 16, 3, Head::Embedding),
        Bucket::Copy { pairs: 3 },
    ];
    for target in Target::ALL {
        for (weights, kv, activations) in [
            (WeightFormat::Bf16, KvFormat::Bf16, Activations::Bf16),
            (WeightFormat::Fp8, KvFormat::Fp8, Activations::Bf16),
            (WeightFormat::Int8, KvFormat::F32, Activations::F32),
        ] {
            for ranks in [1, 4] {
                let form = Form {
                    ranks,
                    weights,
                    kv,
                    activations,
                    fp8_max: target.facts().fp8_max,
                    ..crate::form::tests::form()
                };
                for (bucket, decoder) in buckets
                    .into_iter()
                    .flat_map(|bucket| [(bucket, &dense), (bucket, &mixed)])
                {
                    let module = crate::lower::lower(decoder, &form, bucket).unwrap();
                    assert_eq!(check(&module.proto, target), Ok(()), "{bucket:?}");
                }
            }
        }
    }
}
