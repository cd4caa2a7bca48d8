//! Weights of one byte: E4M3 and INT8 with a scale for each output channel.
//!
//! A channel's scale is its largest magnitude over the largest number of the format, at least
//! [`LEAST_SCALE`]; a weight is divided by it and rounded to the nearest, ties to even.
//!
//! E4M3 comes in two forms: with infinities, up to 240 (NeuronCore-v2 and v3), and without, up to
//! 448. Up to 240 they have the same codes, so clamping is all there is to it.

use crate::bucket::{Form, WeightFormat};

/// No scale is smaller, so that a channel of zeros has one: what AWS's own quantisation keeps to.
pub const LEAST_SCALE: f32 = 1e-5;

/// The largest magnitude of INT8 that is used: that of its least number has no opposite.
const INT8_MAX: f32 = 127.0;

/// A format of one byte.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Narrow {
    /// E4M3, no further from 0 than this.
    Fp8 {
        /// [`Form::fp8_max`].
        max: f32,
    },
    /// A signed byte, -127 to 127.
    Int8,
}

impl Narrow {
    /// The format of a form's matrices, if it is one of these.
    pub fn of(form: &Form) -> Option<Self> {
        match form.weights {
            WeightFormat::Bf16 => None,
            WeightFormat::Int8 => Some(Self::Int8),
            #[expect(clippy::cast_precision_loss, reason = "it is 240 or 448")]
            WeightFormat::Fp8 => Some(Self::Fp8 {
                max: form.fp8_max as f32,
            }),
        }
    }

    /// The scale of a channel whose largest magnitude is this. Not a number if that is not one.
    #[inline]
    pub fn scale(self, largest: f32) -> f32 {
        let scale = match self {
            Self::Fp8 { max } => largest / max,
            Self::Int8 => largest / INT8_MAX,
        };
        // `f32::max` would pass over what is not a number.
        if scale < LEAST_SCALE {
            LEAST_SCALE
        } else {
            scale
        }
    }

    /// The code of a weight in a channel with this scale.
    #[inline]
    pub fn code(self, weight: f32, scale: f32) -> u8 {
        let number = weight / scale;
        match self {
            Self::Fp8 { max } => e4m3(number, max),
            Self::Int8 => int8(number).cast_unsigned(),
        }
    }

    /// The weight that a code stands for in a channel with this scale.
    pub fn weight(self, code: u8, scale: f32) -> f32 {
        match self {
            Self::Fp8 { .. } => from_e4m3(code) * scale,
            Self::Int8 => f32::from(code.cast_signed()) * scale,
        }
    }
}

/// The largest magnitude of `numbers`, 0 for none; not a number if one is not.
#[inline]
pub fn largest(numbers: impl IntoIterator<Item = f32>) -> f32 {
    // As whole numbers magnitudes are in order, and what is not a number is above all. Signed ones,
    // because any processor compares many of those at once.
    let sizes = numbers.into_iter().map(|number| number.abs().to_bits());
    let largest = sizes.fold(0, |largest: i32, size| largest.max(size.cast_signed()));
    f32::from_bits(largest.cast_unsigned())
}

/// The E4M3 code nearest to `number`, ties to even, clamped to `max` (240 or 448). What is not a
/// number stays so.
#[inline]
pub fn e4m3(number: f32, max: f32) -> u8 {
    /// Bits of F32's mantissa that E4M3 does not have.
    const DROPPED: u32 = 20;
    /// F32's exponents less E4M3's.
    const EXPONENTS: u32 = (127 - 7) << 3;
    /// The least normal number of E4M3.
    const NORMAL: f32 = 1.0 / 64.0;
    /// The sum of this and a small number is rounded to the least step of E4M3, 2^-9.
    const ROUNDS: f32 = 16_384.0;
    let sign = number.to_bits() >> 31 << 7;
    let size = number.abs().min(max);
    let bits = size.to_bits();
    let half = (1 << (DROPPED - 1)) - 1 + (bits >> DROPPED & 1);
    let normal = (bits.wrapping_add(half) >> DROPPED).wrapping_sub(EXPONENTS);
    let small = (size + ROUNDS).to_bits() - ROUNDS.to_bits();
    let code = if size < NORMAL { small } else { normal };
    let code = if number.is_nan() { 0x7f } else { code };
    #[expect(clippy::cast_possible_truncation, reason = "a code has 7 bits")]
    let code = (sign | code) as u8;
    code
}

/// What an E4M3 code (of the form without infinities) is.
pub fn from_e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (code >> 3 & 0xf, f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (0xf, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(i32::from(exponent) - 7),
    };
    if code >> 7 == 1 { -size } else { size }
}

/// The nearest whole number from -127 to 127, ties to even. What is not a number becomes one: the
/// channel's scale tells of it.
#[inline]
fn int8(number: f32) -> i8 {
    /// The sum of this and a small number is rounded to a whole one, whose bits are the last.
    const ROUNDS: f32 = 12_582_912.0;
    let [whole, ..] = (number.clamp(-INT8_MAX, INT8_MAX) + ROUNDS)
        .to_bits()
        .to_le_bytes();
    whole.cast_signed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Made by ml_dtypes: see `tests/golden/README.md`.
    const GOLDEN: &str = include_str!("../../tests/golden/e4m3.txt");

    fn hex(word: &str) -> u32 {
        u32::from_str_radix(word, 16).unwrap()
    }

    #[test]
    fn codes_are_what_they_are_elsewhere() {
        let (mut are, mut to) = (0, 0);
        for line in GOLDEN.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["is", code, bits] => {
                    let found = from_e4m3(u8::try_from(hex(code)).unwrap());
                    let expected = f32::from_bits(hex(bits));
                    let same = found.to_bits() == expected.to_bits();
                    assert!(same || found.is_nan() && expected.is_nan(), "{line}");
                    are += 1;
                }
                ["to", bits, to_448, to_240] => {
                    let number = f32::from_bits(hex(bits));
                    assert_eq!(u32::from(e4m3(number, 448.0)), hex(to_448), "{line}");
                    assert_eq!(u32::from(e4m3(number, 240.0)), hex(to_240), "{line}");
                    to += 1;
                }
                _ => panic!("{line}"),
            }
        }
        assert_eq!(are, 256);
        assert!(to > 1000);
    }

    #[test]
    fn each_code_is_its_own() {
        for code in 0..=u8::MAX {
            let number = from_e4m3(code);
            if !number.is_nan() {
                assert_eq!(e4m3(number, 448.0), code);
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        assert!(from_e4m3(e4m3(f32::NAN, 240.0)).is_nan());
        assert!(from_e4m3(e4m3(-f32::NAN, 448.0)).is_nan());
        assert!(largest([1.0, f32::NAN, 2.0]).is_nan());
        assert!(Narrow::Int8.scale(f32::NAN).is_nan());
    }

    #[test]
    fn a_channel_of_zeros_has_a_scale() {
        for format in [Narrow::Int8, Narrow::Fp8 { max: 240.0 }] {
            let scale = format.scale(largest([0.0, -0.0]));
            assert_eq!(scale, LEAST_SCALE);
            assert_eq!(format.weight(format.code(0.0, scale), scale), 0.0);
        }
    }

    #[test]
    fn a_forms_matrices_have_the_format_that_it_says() {
        let mut form = crate::form::tests::form();
        assert_eq!(Narrow::of(&form), None);
        form.weights = WeightFormat::Int8;
        assert_eq!(Narrow::of(&form), Some(Narrow::Int8));
        (form.weights, form.fp8_max) = (WeightFormat::Fp8, 240);
        assert_eq!(Narrow::of(&form), Some(Narrow::Fp8 { max: 240.0 }));
    }

    fn channel() -> impl Strategy<Value = Vec<f32>> {
        let size = -3..=3_i32;
        (proptest::collection::vec(-1.0..1.0_f32, 1..40), size).prop_map(|(weights, size)| {
            let factor = 10.0_f32.powi(size);
            weights.into_iter().map(|weight| weight * factor).collect()
        })
    }

    proptest! {
        #[test]
        fn fp8_is_off_by_a_sixteenth_at_most(weights in channel(), wide in any::<bool>()) {
            let max = if wide { 448.0 } else { 240.0 };
            let format = Narrow::Fp8 { max };
            let scale = format.scale(largest(weights.iter().copied()));
            for weight in weights {
                let back = format.weight(format.code(weight, scale), scale);
                // Half a step of 3 bits, or half the least step there is.
                let most = (weight.abs() / 16.0).max(scale / 1024.0) * 1.0001;
                prop_assert!((back - weight).abs() <= most, "{weight} {back}");
                prop_assert!(back.abs() <= scale * max * 1.0001);
            }
        }

        #[test]
        fn int8_is_off_by_half_a_step_at_most(weights in channel()) {
            let scale = Narrow::Int8.scale(largest(weights.iter().copied()));
            for weight in weights {
                let back = Narrow::Int8.weight(Narrow::Int8.code(weight, scale), scale);
                prop_assert!((back - weight).abs() <= scale * 0.5001, "{weight} {back}");
            }
        }

        #[test]
        fn larger_numbers_have_no_smaller_codes(one in any::<f32>(), other in any::<f32>()) {
            let number = |number| from_e4m3(e4m3(number, 448.0));
            if one <= other {
                prop_assert!(number(one) <= number(other));
            }
        }
    }
}
