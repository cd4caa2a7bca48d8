//! A decoder and a bucket in, a module out.

use model::Decoder;

use crate::bucket::{Bucket, Form};
use crate::build::BuildError;
use crate::decoder::Lowering;
use crate::form::FormError;
use crate::layout::{Content, Layout};
use crate::proto::HloModule;
use crate::tiles::Tiles;

/// What is compiled for one bucket; all ranks run it.
#[derive(Clone, PartialEq, Debug)]
pub struct Module {
    /// The module, as the compilers read it.
    pub proto: HloModule,
    /// What it takes and gives.
    pub layout: Layout,
}

/// Why a decoder could not be lowered.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LowerError {
    /// There is no such module.
    #[error(transparent)]
    Form(#[from] FormError),
    /// The lowering has a mistake: an instruction whose operands do not fit.
    #[error("the lowering has a mistake, please report it: {0}")]
    Build(#[from] BuildError),
    /// The lowering has a mistake: it asks for what the layout does not have.
    #[error("the lowering has a mistake, please report it: no input holds {0:?}")]
    Input(Content),
}

/// The module of `bucket`: the same arguments always give the same bytes.
///
/// # Errors
/// Why `decoder` cannot be lowered in this form or bucket.
pub fn lower(decoder: &Decoder, form: &Form, bucket: Bucket) -> Result<Module, LowerError> {
    lower_in_tiles(decoder, form, bucket, &Tiles::default())
}

/// The same, with attention cut into tiles of other sizes than the usual ones.
///
/// # Errors
/// Why `decoder` cannot be lowered in this form or bucket.
pub fn lower_in_tiles(
    decoder: &Decoder,
    form: &Form,
    bucket: Bucket,
    tiles: &Tiles,
) -> Result<Module, LowerError> {
    let layout = Layout::of(decoder, form, bucket)?;
    let mut lowering = Lowering::new(decoder, form, bucket, &layout, *tiles)?;
    let values = match bucket {
        Bucket::Step {
            rows,
            tokens,
            pages,
            head,
        } => lowering.step(rows, tokens, pages, head)?,
        Bucket::Copy { .. } => lowering.copy()?,
    };
    let names = layout.outputs.iter().map(|port| port.name.as_str());
    let outputs: Vec<_> = names.zip(values).collect();
    let proto = lowering.builder.finish(&outputs, &layout.aliases)?;
    Ok(Module { proto, layout })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::bucket::{Activations, Head, KvFormat, WeightFormat};
    use crate::form::tests::{decoder, form};

    fn step(rows: u32, tokens: u32, pages: u32, head: Head) -> Bucket {
        Bucket::Step {
            rows,
            tokens,
            pages,
            head,
        }
    }

    /// A decoder that has everything that some family has.
    fn everything() -> Decoder {
        let mut decoder = decoder(8, 2);
        decoder.attention.input_bias = true;
        decoder.attention.output_bias = true;
        decoder.attention.head_norm = true;
        decoder.attention.window = Some(24);
        decoder.mlp = model::Mlp::Gated {
            size: 96,
            activation: model::Activation::Silu,
            bias: true,
        };
        decoder
    }

    /// The same with experts, of which a few rows choose some, and more all.
    fn experts(renormalise: bool) -> Decoder {
        let mut decoder = everything();
        decoder.mlp = model::Mlp::Experts {
            experts: 20,
            chosen: 3,
            size: 40,
            activation: model::Activation::Silu,
            renormalise,
        };
        decoder
    }

    fn buckets() -> Vec<Bucket> {
        vec![
            step(1, 1, 0, Head::Last),
            step(4, 1, 8, Head::Last),
            step(1, 48, 0, Head::Last),
            step(2, 48, 5, Head::Each),
            step(1, 16, 3, Head::Embedding),
            Bucket::Copy { pairs: 3 },
        ]
    }

    #[test]
    fn every_form_of_every_bucket_is_lowered() {
        let small = Tiles {
            queries: 32,
            positions: 32,
            bytes: 1 << 12,
        };
        for decoder in [decoder(8, 2), everything(), experts(true)] {
            for bucket in buckets() {
                for ranks in [1, 2, 8] {
                    for weights in [WeightFormat::Bf16, WeightFormat::Fp8, WeightFormat::Int8] {
                        for kv in [KvFormat::Bf16, KvFormat::Fp8, KvFormat::F32] {
                            for activations in [Activations::Bf16, Activations::F32] {
                                let form = Form {
                                    ranks,
                                    weights,
                                    kv,
                                    activations,
                                    ..form()
                                };
                                lower(&decoder, &form, bucket).unwrap();
                                lower_in_tiles(&decoder, &form, bucket, &small).unwrap();
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_same_bucket_has_the_same_bytes() {
        for bucket in buckets() {
            let bytes = || {
                let module = lower(&everything(), &form(), bucket).unwrap();
                module.proto.to_bytes()
            };
            assert_eq!(bytes(), bytes());
        }
    }

    #[test]
    fn parameters_and_results_are_those_of_the_layout() {
        for bucket in buckets() {
            let Module { proto, layout } = lower(&everything(), &form(), bucket).unwrap();
            let shape = proto.host_program_shape.unwrap();
            let names: Vec<_> = layout.inputs.iter().map(|port| &port.name).collect();
            assert_eq!(shape.parameter_names.iter().collect::<Vec<_>>(), names);
            let results = shape.result.unwrap().tuple_shapes;
            assert_eq!(results.len(), layout.outputs.len());
            for (port, shape) in layout.outputs.iter().zip(&results) {
                let dims: Vec<_> = port.shape.iter().map(|size| i64::from(*size)).collect();
                assert_eq!(shape.dimensions, dims);
                assert_eq!(shape.element_type, port.element.number());
            }
        }
    }

    #[test]
    fn every_input_is_used() {
        let decoders = [everything(), experts(true), experts(false)];
        for (bucket, decoder) in (buckets().into_iter())
            .flat_map(|bucket| decoders.each_ref().map(|decoder| (bucket, decoder)))
        {
            let Module { proto, layout } = lower(decoder, &form(), bucket).unwrap();
            let entry = proto.computations.last().unwrap();
            let used: BTreeSet<_> = (entry.instructions.iter())
                .flat_map(|one| &one.operand_ids)
                .collect();
            let parameters = entry.instructions.iter().take(layout.inputs.len());
            for (port, parameter) in layout.inputs.iter().zip(parameters) {
                assert!(used.contains(&parameter.id), "{} of {bucket:?}", port.name);
            }
        }
    }

    #[test]
    fn one_rank_needs_no_others_and_several_sum_twice_a_layer() {
        let sums = |ranks: u32| {
            let form = Form { ranks, ..form() };
            let module = lower(&decoder(8, 2), &form, step(1, 1, 2, Head::Last)).unwrap();
            let entry = module.proto.computations.last().unwrap();
            let sums = entry.instructions.iter();
            sums.filter(|one| one.opcode == "all-reduce").count()
        };
        assert_eq!(sums(1), 0);
        // The embedding, two layers, the candidates.
        assert_eq!(sums(4), 1 + 2 * 2 + 1);
    }

    #[test]
    fn few_rows_read_the_experts_that_they_choose_and_more_read_all() {
        let read = |rows| {
            let bucket = step(rows, 1, 2, Head::Last);
            let module = lower(&experts(true), &form(), bucket).unwrap();
            let entry = module.proto.computations.last().unwrap();
            let gathers = (entry.instructions.iter())
                .filter(|one| one.opcode == "gather")
                .filter_map(|one| one.shape.as_ref())
                .filter(|shape| shape.dimensions[1] == 64 * 80 || shape.dimensions[1] == 64 * 40);
            gathers.map(|shape| shape.dimensions[0]).sum::<i64>()
        };
        // Of two layers, gate and up and down.
        assert_eq!([1, 6, 7].map(read), [3 * 4, 18 * 4, 0]);
    }

    #[test]
    fn no_scores_grow_with_the_context() {
        let mut form = form();
        (form.context, form.pages) = (1 << 17, 1 << 13);
        let bucket = step(1, 4096, (1 << 13) - 1, Head::Last);
        let module = lower(&decoder(8, 2), &form, bucket).unwrap();
        let entry = module.proto.computations.last().unwrap();
        let largest = (entry.instructions.iter())
            .filter(|one| one.opcode == "dot" && one.name.contains("dot"))
            .filter_map(|one| one.shape.as_ref())
            .filter(|shape| shape.dimensions.len() == 4)
            .map(|shape| 4 * shape.dimensions.iter().product::<i64>())
            .max();
        assert_eq!(largest, Some(8 << 20));
    }
}
