//! Kernels in plain Rust: the reference that the others are held to, and what runs on a host that
//! has no other.

use super::{Blocks, Kernels, LANES, Panels, Sum, add_lanes, row_mut};

/// Kernels in plain Rust.
pub(crate) struct Scalar;

impl Kernels for Scalar {
    fn name(&self) -> &'static str {
        "scalar"
    }

    fn product_bf16(&self, input: Blocks<'_>, panels: Panels<'_, u16>, out: &mut [f32], sum: Sum) {
        product(input, panels, out, sum, |weights| {
            std::array::from_fn(|lane| {
                let place = lane % (LANES / 2) * 2 + lane / (LANES / 2);
                f32::from_bits(u32::from(weights[place]) << 16)
            })
        });
    }

    fn product_f32(&self, input: Blocks<'_>, panels: Panels<'_, f32>, out: &mut [f32], sum: Sum) {
        product(input, panels, out, sum, |weights| *weights);
    }

    fn max(&self, blocks: Blocks<'_>, row: usize) -> f32 {
        blocks
            .row(row)
            .flatten()
            .fold(f32::NEG_INFINITY, |max, value| value.max(max))
    }

    fn exp_sum(&self, blocks: Blocks<'_>, row: usize, max: f32) -> f32 {
        let mut sums = [0.0; LANES];
        for block in blocks.row(row) {
            for (sum, value) in sums.iter_mut().zip(block) {
                *sum += (value - max).exp();
            }
        }
        add_lanes(sums)
    }

    fn exp(&self, data: &mut [f32], rows: usize, row: usize, max: f32, scale: f32) -> f32 {
        let mut sums = [0.0; LANES];
        for block in row_mut(data, rows, row) {
            for (sum, value) in sums.iter_mut().zip(block) {
                *value = ((*value - max) * scale).exp();
                *sum += *value;
            }
        }
        add_lanes(sums)
    }

    fn silu_gate(&self, gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
    }

    fn square_sum(&self, blocks: Blocks<'_>, row: usize) -> f32 {
        let mut sums = [0.0; LANES];
        for block in blocks.row(row) {
            for (sum, value) in sums.iter_mut().zip(block) {
                *sum += value * value;
            }
        }
        add_lanes(sums)
    }
}

/// Multiplies `input` by panels whose weights `widen` makes F32, a step of depth at a time.
fn product<W>(
    input: Blocks<'_>,
    panels: Panels<'_, W>,
    out: &mut [f32],
    sum: Sum,
    widen: impl Fn(&[W; LANES]) -> [f32; LANES],
) {
    panels.check(input, out);
    let (outputs, _) = out.as_chunks_mut::<LANES>();
    for (start, outputs) in panels.starts.iter().zip(outputs.chunks_mut(input.rows)) {
        let panel = &panels.data[*start..][..panels.depth * LANES];
        for (row, output) in outputs.iter_mut().enumerate() {
            let mut sums = [0.0; LANES];
            let inputs = input.row(row).flatten();
            for (weights, value) in panel.as_chunks().0.iter().zip(inputs) {
                let weights = widen(weights);
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum += value * weight;
                }
            }
            for (output, total) in output.iter_mut().zip(sums) {
                *output = match sum {
                    Sum::Store => total,
                    Sum::Add => *output + total,
                };
            }
        }
    }
}
