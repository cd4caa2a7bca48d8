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
