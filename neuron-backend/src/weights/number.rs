//! The numbers of a checkpoint, and what they become.

use graph::narrow;
use half::{bf16, f16};
use model::Dtype;

/// Writes what `to` makes of each number in `bytes`, of which there are as many as `out` has places.
#[inline]
pub(super) fn convert<T>(dtype: Dtype, bytes: &[u8], out: &mut [T], to: impl Fn(f32) -> T) {
    match dtype {
        Dtype::F32 => {
            let numbers = bytes.as_chunks().0.iter();
            (out.iter_mut().zip(numbers))
                .for_each(|(out, one)| *out = to(f32::from_le_bytes(*one)));
        }
        Dtype::F16 => {
            let numbers = bytes.as_chunks().0.iter();
            let wide = numbers.map(|one| f16::from_le_bytes(*one).to_f32());
            (out.iter_mut().zip(wide)).for_each(|(out, one)| *out = to(one));
        }
        Dtype::Bf16 => {
            let numbers = bytes.as_chunks().0.iter();
            (out.iter_mut().zip(numbers)).for_each(|(out, one)| *out = to(from_bf16(*one)));
        }
    }
}

/// The same in BF16, rounded to the nearest.
#[inline]
pub(super) fn to_bf16(dtype: Dtype, bytes: &[u8], out: &mut [[u8; 2]]) {
    match dtype {
        Dtype::Bf16 => out.copy_from_slice(bytes.as_chunks().0),
        _ => convert(dtype, bytes, out, |number| {
            bf16::from_f32(number).to_le_bytes()
        }),
    }
}

/// The largest magnitude in `bytes`; not a number if one is not.
pub(super) fn largest_of(dtype: Dtype, bytes: &[u8]) -> f32 {
    match dtype {
        Dtype::F32 => {
            let numbers = bytes.as_chunks().0.iter();
            narrow::largest(numbers.map(|one| f32::from_le_bytes(*one)))
        }
        Dtype::F16 => {
            let numbers = bytes.as_chunks().0.iter();
            narrow::largest(numbers.map(|one| f16::from_le_bytes(*one).to_f32()))
        }
        Dtype::Bf16 => {
            // As whole numbers magnitudes are in order; see `narrow::largest`.
            let numbers = bytes.as_chunks().0.iter();
            let sizes = numbers.map(|one| i16::from_le_bytes(*one) & i16::MAX);
            from_bf16(sizes.fold(0, i16::max).to_le_bytes())
        }
    }
}

#[inline]
fn from_bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}
