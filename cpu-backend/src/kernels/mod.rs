//! The arithmetic: what every instruction set must offer, and which one this host has.
//!
//! Each output is the sum of its products in ascending order, one after the other, whatever is
//! computed beside it: a row's result never depends on the batch it is in.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;

/// Columns of a block and of a panel: two AVX registers of F32.
pub(crate) const LANES: usize = 16;

/// Activations of some rows, their columns in blocks of [`LANES`]: the element of a row and a column
/// stands at `(column / LANES * rows + row) * LANES + column % LANES`. So the columns that a thread
/// computes for all rows lie together, and the rows of one block as well.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks<'a> {
    /// The elements; a whole number of blocks.
    pub(crate) data: &'a [f32],
    /// How many rows each block has; at least 1.
    pub(crate) rows: usize,
}

impl<'a> Blocks<'a> {
    /// The parts of `row`, block by block.
    pub(crate) fn row(self, row: usize) -> impl Iterator<Item = &'a [f32; LANES]> {
        let (blocks, _) = self.data.as_chunks();
        blocks.iter().skip(row).step_by(self.rows)
    }

    /// Copies the elements of `row` from `column` on.
    pub(crate) fn copy_row(self, row: usize, mut column: usize, out: &mut [f32]) {
        let mut out = out;
        while !out.is_empty() {
            let (block, lane) = (column / LANES, column % LANES);
            let (part, rest) = out.split_at_mut(out.len().min(LANES - lane));
            let start = (block * self.rows + row) * LANES + lane;
            part.copy_from_slice(&self.data[start..][..part.len()]);
            column += part.len();
            out = rest;
        }
    }

    /// Copies these rows, in this order.
    pub(crate) fn copy_rows(self, rows: &[usize], out: &mut Vec<f32>) {
        out.clear();
        for block in self.data.chunks(self.rows * LANES) {
            for row in rows {
                out.extend_from_slice(&block[row * LANES..][..LANES]);
            }
        }
    }
}

/// The parts of `row` in `data`, laid out as [`Blocks`] of `rows`.
pub(crate) fn row_mut(
    data: &mut [f32],
    rows: usize,
    row: usize,
) -> impl Iterator<Item = &mut [f32; LANES]> {
    let (blocks, _) = data.as_chunks_mut();
    blocks.iter_mut().skip(row).step_by(rows)
}

/// Some columns of a matrix in panels of [`LANES`]: a panel has the weights of its columns for the
/// first input, then for the second, and so on to `depth`.
///
/// In F32 a panel's columns stand in their order. In BF16 they stand as 0, 8, 1, 9, .. 7, 15, so that
/// each 32 bits hold two columns that widen to two registers by a shift and a mask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels<'a, W> {
    /// Where the panels lie.
    pub(crate) data: &'a [W],
    /// Where in `data` each panel starts.
    pub(crate) starts: &'a [usize],
    /// How many inputs are summed.
    pub(crate) depth: usize,
}

impl<W> Panels<'_, W> {
    /// Checks what kernels rely on when they compute `out` from `input` and these panels.
    ///
    /// # Panics
    /// If a size does not fit the others: a mistake of this crate's.
    fn check(&self, input: Blocks<'_>, out: &[f32]) {
        let Self {
            data,
            starts,
            depth,
        } = self;
        let inputs = depth.div_ceil(LANES) * input.rows * LANES;
        let (given, rows) = (input.data.len(), input.rows);
        assert!(rows > 0 && given >= inputs, "{given} inputs, not {inputs}");
        let last = data.len().checked_sub(depth * LANES);
        let inside = |start: &usize| last.is_some_and(|last| *start <= last);
        assert!(starts.iter().all(inside), "a panel is cut off");
        let outputs = starts.len() * rows * LANES;
        assert_eq!(out.len(), outputs, "outputs of {rows} rows");
    }
}

/// What becomes of a sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sum {
    /// It replaces the output.
    Store,
    /// It is added to the output.
    Add,
}

/// The arithmetic of one instruction set.
pub(crate) trait Kernels: Send + Sync {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// Multiplies `input` by BF16 panels; `out` has a block for each panel.
    fn product_bf16(&self, input: Blocks<'_>, panels: Panels<'_, u16>, out: &mut [f32], sum: Sum);

    /// Multiplies `input` by F32 panels; `out` has a block for each panel.
    fn product_f32(&self, input: Blocks<'_>, panels: Panels<'_, f32>, out: &mut [f32], sum: Sum);

    /// The largest element of a row, NaN aside.
    fn max(&self, blocks: Blocks<'_>, row: usize) -> f32;

    /// The sum over a row of `exp(element - max)`.
    fn exp_sum(&self, blocks: Blocks<'_>, row: usize, max: f32) -> f32;

    /// Replaces each element of a row by `exp((element - max) * scale)`; gives their sum.
    fn exp(&self, data: &mut [f32], rows: usize, row: usize, max: f32, scale: f32) -> f32;

    /// Multiplies each element of `up` by `gate * sigmoid(gate)` into `gate`.
    fn silu_gate(&self, gate: &mut [f32], up: &[f32]);

    /// The sum of the squares of a row.
    fn square_sum(&self, blocks: Blocks<'_>, row: usize) -> f32;
}

/// The fastest kernels that this host runs.
pub(crate) fn detect() -> &'static dyn Kernels {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernels) = avx2::Avx2::detect() {
        return kernels;
    }
    &scalar::Scalar
}

/// Adds up the lanes, in pairs ever nearer.
fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1, in no order to be seen.
    fn numbers(count: usize) -> Vec<f32> {
        let mut state = 0x2545_f491_u32;
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            f32::from(state.to_le_bytes()[2]) / 128.0 - 1.0
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    fn check_near(what: &str, one: &[f32], other: &[f32]) {
        assert_eq!(one.len(), other.len());
        for (one, other) in one.iter().zip(other) {
            let error = (one - other).abs() / other.abs().max(1.0);
            assert!(error < 1e-5, "{what}: {one}, not {other}");
        }
    }

    /// Both products of `rows` rows by `count` panels of `depth` inputs.
    fn products(kernels: &dyn Kernels, rows: usize, depth: usize, count: usize) -> [Vec<f32>; 2] {
        let inputs = numbers(depth.next_multiple_of(LANES) * rows);
        let data = &inputs[..];
        let input = Blocks { data, rows };
        let floats = numbers(depth * LANES * count);
        let halves: Vec<_> = floats
            .iter()
            .map(|float| half::bf16::from_f32(*float).to_bits())
            .collect();
        // The panels in reverse, so that starts matter.
        let starts: Vec<_> = (0..count)
            .rev()
            .map(|panel| panel * depth * LANES)
            .collect();
        let (data, starts) = (&floats[..], &starts[..]);
        let mut outs = [0; 2].map(|_| vec![1.0; count * rows * LANES]);
        let panels = Panels {
            data,
            starts,
            depth,
        };
        kernels.product_f32(input, panels, &mut outs[0], Sum::Store);
        let panels = Panels {
            data: &halves[..],
            starts,
            depth,
        };
        kernels.product_bf16(input, panels, &mut outs[1], Sum::Add);
        outs
    }

    #[test]
    fn products_are_those_of_the_reference() {
        for rows in [1, 2, 3, 4, 5, 6, 7, 8, 13] {
            for (depth, count) in [(1, 1), (15, 2), (16, 3), (50, 5), (64, 8)] {
                let given = products(detect(), rows, depth, count);
                let expected = products(&scalar::Scalar, rows, depth, count);
                for (given, expected) in given.iter().zip(&expected) {
                    check_near(&format!("{rows} x {depth} x {count}"), given, expected);
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_to_the_bit_in_any_batch() {
        let (depth, columns) = (100, 5 * LANES);
        let weights = numbers(depth * columns);
        let starts: Vec<_> = (0..5).map(|panel| panel * depth * LANES).collect();
        let row = numbers(depth.next_multiple_of(LANES));
        let panels = Panels {
            data: &weights[..],
            starts: &starts,
            depth,
        };
        for kernels in [detect(), &scalar::Scalar] {
            let mut alone = vec![0.0; columns];
            let input = Blocks {
                data: &row,
                rows: 1,
            };
            kernels.product_f32(input, panels, &mut alone, Sum::Store);
            for rows in 2..=20 {
                let mut batch = numbers(row.len() * rows);
                for (to, from) in row_mut(&mut batch, rows, rows / 2).zip(row.as_chunks().0) {
                    *to = *from;
                }
                let mut out = vec![0.0; columns * rows];
                let data = &batch[..];
                kernels.product_f32(Blocks { data, rows }, panels, &mut out, Sum::Store);
                let blocks = Blocks { data: &out, rows };
                assert!(blocks.row(rows / 2).flatten().eq(&alone), "{rows} rows");
            }
        }
    }

    #[test]
    fn exponentials_are_exact_enough() {
        // Whole parts of 32, so that nothing is lost before the exponential.
        let powers: Vec<_> = (-4096..=0_i16)
            .map(|power| f32::from(power) / 32.0)
            .collect();
        for kernels in [detect(), &scalar::Scalar] {
            let mut data = powers[..4096].to_vec();
            let sum = kernels.exp(&mut data, 1, 0, 0.5, 2.0);
            let exact = powers
                .iter()
                .map(|power| ((f64::from(*power) - 0.5) * 2.0).exp());
            let exact: Vec<_> = exact.take(4096).collect();
            for (given, exact) in data.iter().zip(&exact) {
                let error = (f64::from(*given) - exact).abs();
                let bound = 2.0 * f64::from(f32::EPSILON) * exact + f64::from(f32::MIN_POSITIVE);
                assert!(error < bound, "{given}, not {exact}");
            }
            let total: f64 = exact.iter().sum();
            assert!((f64::from(sum) - total).abs() < 1e-4 * total);
            let blocks = Blocks {
                data: &powers[..4096],
                rows: 2,
            };
            let max = kernels.max(blocks, 1);
            assert_eq!(max, powers[4095]);
            let odd = powers[..4096].chunks(LANES).skip(1).step_by(2).flatten();
            let exact: f64 = odd.map(|power| (f64::from(*power - max)).exp()).sum();
            let sum = f64::from(kernels.exp_sum(blocks, 1, max));
            assert!((sum - exact).abs() < 1e-5 * exact, "{sum}, not {exact}");
        }
    }

    #[test]
    fn infinities_and_nans_keep_their_meaning() {
        for kernels in [detect(), &scalar::Scalar] {
            let mut data = [0.0; LANES];
            data[3] = f32::NEG_INFINITY;
            let sum = kernels.exp(&mut data, 1, 0, 0.0, 1.0);
            assert_eq!((data[3], sum), (0.0, 15.0), "{}", kernels.name());
            data[5] = f32::NAN;
            let rows = 1;
            let blocks = Blocks { data: &data, rows };
            assert_eq!(kernels.max(blocks, 0), 1.0, "{}", kernels.name());
            assert!(
                kernels.exp_sum(blocks, 0, 1.0).is_nan(),
                "{}",
                kernels.name()
            );
        }
    }

    #[test]
    fn gates_and_squares_are_those_of_the_reference() {
        let up = numbers(96);
        let mut gates = [numbers(96), numbers(96)];
        for (kernels, gate) in [detect(), &scalar::Scalar].into_iter().zip(&mut gates) {
            gate.iter_mut().for_each(|gate| *gate *= 100.0);
            kernels.silu_gate(gate, &up);
        }
        check_near("gates", &gates[0], &gates[1]);
        let blocks = Blocks { data: &up, rows: 3 };
        for row in 0..3 {
            let sums = [detect(), &scalar::Scalar].map(|kernels| kernels.square_sum(blocks, row));
            check_near("squares", &sums[..1], &sums[1..]);
        }
    }
}
