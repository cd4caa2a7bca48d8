//! Kernels for AVX2 with FMA (x86-64 since 2013): the first of the two places of this crate that
//! are unsafe, because instructions that a host may not have are unsafe to call.
//!
//! The product is the one that matters: a tile of up to six rows by sixteen columns is summed in
//! registers, and each weight read serves all rows of the tile. With one or two rows there would be
//! too few sums to hide the latency of an addition (four or five cycles, two units), so a tile then
//! spans several panels.

#![expect(unsafe_code, reason = "vector instructions and the pointers they read")]

use std::arch::x86_64::*;

use super::{Blocks, Kernels, LANES, Panels, Sum, add_lanes, row_mut};

/// Rows of the largest tile: 12 sums, 2 weights and an input fill the 16 registers.
const TILE: usize = 6;

/// Kernels for AVX2 with FMA. That one exists proves that the host has both.
pub(crate) struct Avx2(());

impl Avx2 {
    /// The kernels, if this host runs them.
    pub(crate) fn detect() -> Option<&'static Self> {
        static KERNELS: Avx2 = Avx2(());
        let found = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        found.then_some(&KERNELS)
    }
}

impl Kernels for Avx2 {
    fn name(&self) -> &'static str {
        "AVX2"
    }

    fn product_bf16(&self, input: Blocks<'_>, panels: Panels<'_, u16>, out: &mut [f32], sum: Sum) {
        panels.check(input, out);
        // SAFETY: `self` proves AVX2 and FMA; the sizes have just been checked.
        unsafe { product(input, panels, out, sum) }
    }

    fn product_f32(&self, input: Blocks<'_>, panels: Panels<'_, f32>, out: &mut [f32], sum: Sum) {
        panels.check(input, out);
        // SAFETY: `self` proves AVX2 and FMA; the sizes have just been checked.
        unsafe { product(input, panels, out, sum) }
    }

    fn max(&self, blocks: Blocks<'_>, row: usize) -> f32 {
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { max(blocks, row) }
    }

    fn exp_sum(&self, blocks: Blocks<'_>, row: usize, max: f32) -> f32 {
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { exp_sum(blocks, row, max) }
    }

    fn exp(&self, data: &mut [f32], rows: usize, row: usize, max: f32, scale: f32) -> f32 {
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { exp(data, rows, row, max, scale) }
    }

    fn silu_gate(&self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { silu_gate(gate, up) }
    }

    fn square_sum(&self, blocks: Blocks<'_>, row: usize) -> f32 {
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { square_sum(blocks, row) }
    }
}

/// A number format of weights that widens to two registers of F32.
trait Weight: Copy {
    /// Widens [`LANES`] weights.
    ///
    /// # Safety
    /// The host has AVX2, and `weights` may be read for [`LANES`] elements.
    unsafe fn widen(weights: *const Self) -> [__m256; 2];
}

impl Weight for u16 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn widen(weights: *const Self) -> [__m256; 2] {
        // SAFETY: the caller's promise; the load needs no alignment.
        let pairs = unsafe { _mm256_loadu_si256(weights.cast()) };
        let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        [
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)),
            _mm256_castsi256_ps(_mm256_and_si256(pairs, upper)),
        ]
    }
}

impl Weight for f32 {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn widen(weights: *const Self) -> [__m256; 2] {
        // SAFETY: the caller's promise; the loads need no alignment.
        unsafe { [_mm256_loadu_ps(weights), _mm256_loadu_ps(weights.add(8))] }
    }
}

/// Multiplies `input` by `panels`.
///
/// # Safety
/// The host has AVX2 and FMA, and [`Panels::check`] has passed.
#[target_feature(enable = "avx2,fma")]
unsafe fn product<W: Weight>(input: Blocks<'_>, panels: Panels<'_, W>, out: &mut [f32], sum: Sum) {
    let block = input.rows * LANES;
    let abreast = match input.rows {
        1 => 4,
        2 | 3 => 2,
        _ => 1,
    };
    let groups = panels.starts.chunks(abreast);
    for (starts, out) in groups.zip(out.chunks_mut(abreast * block)) {
        let panels = Panels { starts, ..panels };
        let tiles = input.rows.div_ceil(TILE);
        let (rows, wider) = (input.rows / tiles, input.rows % tiles);
        let mut row = 0;
        for tile in 0..tiles {
            let rows = rows + usize::from(tile < wider);
            // SAFETY: the caller's promises; the rows of all tiles together are those of the input.
            unsafe {
                match (rows, starts.len()) {
                    (1, 4) => product_of_tile::<W, 1, 4>(input, row, panels, out, sum),
                    (2, 2) => product_of_tile::<W, 2, 2>(input, row, panels, out, sum),
                    (3, 2) => product_of_tile::<W, 3, 2>(input, row, panels, out, sum),
                    (1, _) => product_one_by_one::<W, 1>(input, row, panels, out, sum),
                    (2, _) => product_one_by_one::<W, 2>(input, row, panels, out, sum),
                    (3, _) => product_one_by_one::<W, 3>(input, row, panels, out, sum),
                    (4, _) => product_one_by_one::<W, 4>(input, row, panels, out, sum),
                    (5, _) => product_one_by_one::<W, 5>(input, row, panels, out, sum),
                    _ => product_one_by_one::<W, 6>(input, row, panels, out, sum),
                }
            }
            row += rows;
        }
    }
}

/// Multiplies `ROWS` rows by each panel by itself.
///
/// # Safety
/// As for [`product_of_tile`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn product_one_by_one<W: Weight, const ROWS: usize>(
    input: Blocks<'_>,
    row: usize,
    panels: Panels<'_, W>,
    out: &mut [f32],
    sum: Sum,
) {
    let blocks = out.chunks_mut(input.rows * LANES);
    for (starts, out) in panels.starts.chunks(1).zip(blocks) {
        let panel = Panels { starts, ..panels };
        // SAFETY: the caller's promises.
        unsafe { product_of_tile::<W, ROWS, 1>(input, row, panel, out, sum) }
    }
}

/// Multiplies the `ROWS` rows from `row` on by `PANELS` panels.
///
/// # Safety
/// The host has AVX2 and FMA, [`Panels::check`] has passed, there are `PANELS` panels, and
/// `row + ROWS` is at most the rows of `input`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn product_of_tile<W: Weight, const ROWS: usize, const PANELS: usize>(
    input: Blocks<'_>,
    row: usize,
    panels: Panels<'_, W>,
    out: &mut [f32],
    sum: Sum,
) {
    let block = input.rows * LANES;
    let starts: [usize; PANELS] = std::array::from_fn(|panel| panels.starts[panel]);
    let weights = starts.map(|start| panels.data.as_ptr().wrapping_add(start));
    let inputs = input.data.as_ptr().wrapping_add(row * LANES);
    let mut sums = [[[_mm256_setzero_ps(); 2]; ROWS]; PANELS];
    let mut depth = 0;
    while depth < panels.depth {
        let inputs = inputs.wrapping_add(depth / LANES * block);
        for lane in 0..LANES.min(panels.depth - depth) {
            for panel in 0..PANELS {
                // SAFETY: `depth + lane < panels.depth`, and `check` saw that each panel is whole.
                let weights = unsafe { W::widen(weights[panel].add((depth + lane) * LANES)) };
                for row in 0..ROWS {
                    // SAFETY: this block is one of those that `check` saw, the row is one of its.
                    let value = unsafe { _mm256_broadcast_ss(&*inputs.add(row * LANES + lane)) };
                    let sums = &mut sums[panel][row];
                    sums[0] = _mm256_fmadd_ps(value, weights[0], sums[0]);
                    sums[1] = _mm256_fmadd_ps(value, weights[1], sums[1]);
                }
            }
        }
        depth += LANES;
    }
    // Copied out in loops that unroll: sums that were indexed by a variable anywhere would live in
    // memory, and each addition above would store its sum.
    let mut totals = [[[0.0; LANES]; ROWS]; PANELS];
    for panel in 0..PANELS {
        for row in 0..ROWS {
            totals[panel][row] = lanes(sums[panel][row]);
        }
    }
    for (panel, totals) in totals.iter().enumerate() {
        for (offset, totals) in totals.iter().enumerate() {
            let at = panel * block + (row + offset) * LANES;
            finish(totals, &mut out[at..at + LANES], sum);
        }
    }
}

/// Writes the sums of one row of one panel.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn finish(totals: &[f32; LANES], out: &mut [f32], sum: Sum) {
    for (out, total) in out.iter_mut().zip(totals) {
        match sum {
            Sum::Store => *out = *total,
            Sum::Add => *out += *total,
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn max(blocks: Blocks<'_>, row: usize) -> f32 {
    let mut most = [_mm256_set1_ps(f32::NEG_INFINITY); 2];
    for block in blocks.row(row) {
        for (most, half) in most.iter_mut().zip(block.as_chunks().0) {
            // Of a NaN and a number this gives the second.
            *most = _mm256_max_ps(load(half), *most);
        }
    }
    let lanes = lanes(most);
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[target_feature(enable = "avx2,fma")]
fn exp_sum(blocks: Blocks<'_>, row: usize, max: f32) -> f32 {
    let max = _mm256_set1_ps(max);
    let mut sums = [_mm256_setzero_ps(); 2];
    for block in blocks.row(row) {
        for (sum, half) in sums.iter_mut().zip(block.as_chunks().0) {
            *sum = _mm256_add_ps(*sum, exp_of(_mm256_sub_ps(load(half), max)));
        }
    }
    add_lanes(lanes(sums))
}

#[target_feature(enable = "avx2,fma")]
fn exp(data: &mut [f32], rows: usize, row: usize, max: f32, scale: f32) -> f32 {
    let (max, scale) = (_mm256_set1_ps(max), _mm256_set1_ps(scale));
    let mut sums = [_mm256_setzero_ps(); 2];
    for block in row_mut(data, rows, row) {
        for (sum, half) in sums.iter_mut().zip(block.as_chunks_mut().0) {
            let power = _mm256_mul_ps(_mm256_sub_ps(load(half), max), scale);
            let value = exp_of(power);
            store(half, value);
            *sum = _mm256_add_ps(*sum, value);
        }
    }
    add_lanes(lanes(sums))
}

#[target_feature(enable = "avx2,fma")]
fn silu_gate(gate: &mut [f32], up: &[f32]) {
    let one = _mm256_set1_ps(1.0);
    let sign = _mm256_set1_ps(-0.0);
    for (gate, up) in gate.as_chunks_mut().0.iter_mut().zip(up.as_chunks().0) {
        let x = load(gate);
        let divisor = _mm256_add_ps(one, exp_of(_mm256_xor_ps(x, sign)));
        store(gate, _mm256_mul_ps(_mm256_div_ps(x, divisor), load(up)));
    }
}

#[target_feature(enable = "avx2,fma")]
fn square_sum(blocks: Blocks<'_>, row: usize) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 2];
    for block in blocks.row(row) {
        for (sum, half) in sums.iter_mut().zip(block.as_chunks().0) {
            let value = load(half);
            *sum = _mm256_fmadd_ps(value, value, *sum);
        }
    }
    add_lanes(lanes(sums))
}

/// `exp` to within two units in the last place; 0 below the smallest normal number, NaN of NaN.
///
/// Cephes' `expf`: `exp(x) = 2^n * exp(r)`, where `n` is the nearest whole number to `x / ln 2`, `ln
/// 2` is subtracted in two parts so that `r` is exact, and `exp(r)` is a polynomial.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn exp_of(x: __m256) -> __m256 {
    /// The logarithms of the smallest normal number and of nearly the largest.
    const RANGE: (f32, f32) = (-87.336_54, 88.376_26);
    /// `ln 2` in two parts, the first with few digits.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    /// The polynomial of `(exp(r) - 1 - r) / r^2`, highest power first.
    const POLYNOMIAL: [f32; 6] = [
        1.987_569_2e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_66,
        0.5,
    ];
    let (least, most) = (_mm256_set1_ps(RANGE.0), _mm256_set1_ps(RANGE.1));
    let above = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, least);
    // Of a number and a NaN these give the second.
    let x = _mm256_max_ps(least, _mm256_min_ps(most, x));
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN_2.0), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN_2.1), r);
    let mut p = _mm256_set1_ps(POLYNOMIAL[0]);
    for coefficient in &POLYNOMIAL[1..] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*coefficient));
    }
    let p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
    let p = _mm256_add_ps(p, _mm256_set1_ps(1.0));
    let n = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
    let power = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n));
    _mm256_and_ps(power, above)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(from: &[f32; 8]) -> __m256 {
    // SAFETY: the array may be read, and the load needs no alignment.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(to: &mut [f32; 8], value: __m256) {
    // SAFETY: the array may be written, and the store needs no alignment.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
}

/// The lanes of two registers.
#[inline]
#[target_feature(enable = "avx2")]
fn lanes(halves: [__m256; 2]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    for (to, half) in lanes.as_chunks_mut().0.iter_mut().zip(halves) {
        store(to, half);
    }
    lanes
}
