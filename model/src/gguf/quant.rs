//! How GGML stores numbers, and what they are. The layouts are those of `ggml-quants.h`; the
//! arithmetic is that of its reference code, operation by operation, so that results are equal.

use std::ops::RangeInclusive;

use half::{bf16, f16};

/// One way to store numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    /// As GGML calls it.
    pub(super) name: &'static str,
    /// `enum ggml_type`.
    code: u32,
    /// Numbers in a block.
    pub(super) numbers: usize,
    /// Bytes of a block.
    pub(super) bytes: usize,
    decode: fn(&[u8], &mut [f32]),
}

const FORMATS: [Format; 11] = [
    format("F32", 0, 1, 4, decode_f32),
    format("F16", 1, 1, 2, decode_f16),
    format("BF16", 30, 1, 2, decode_bf16),
    format("Q8_0", 8, 32, 34, decode_q8_0),
    format("Q4_0", 2, 32, 18, decode_q4_0),
    format("Q4_1", 3, 32, 20, decode_q4_1),
    format("Q5_0", 6, 32, 22, decode_q5_0),
    format("Q5_1", 7, 32, 24, decode_q5_1),
    format("Q4_K", 12, 256, 144, decode_q4_k),
    format("Q5_K", 13, 256, 176, decode_q5_k),
    format("Q6_K", 14, 256, 210, decode_q6_k),
];

/// Formats that are refused, for a message that names them.
const OTHERS: [(&str, u32); 24] = [
    ("Q8_1", 9),
    ("Q2_K", 10),
    ("Q3_K", 11),
    ("Q8_K", 15),
    ("IQ2_XXS", 16),
    ("IQ2_XS", 17),
    ("IQ3_XXS", 18),
    ("IQ1_S", 19),
    ("IQ4_NL", 20),
    ("IQ3_S", 21),
    ("IQ2_S", 22),
    ("IQ4_XS", 23),
    ("I8", 24),
    ("I16", 25),
    ("I32", 26),
    ("I64", 27),
    ("F64", 28),
    ("IQ1_M", 29),
    ("TQ1_0", 34),
    ("TQ2_0", 35),
    ("MXFP4", 39),
    ("NVFP4", 40),
    ("Q4_2", 4),
    ("Q4_3", 5),
];

const fn format(
    name: &'static str,
    code: u32,
    numbers: usize,
    bytes: usize,
    decode: fn(&[u8], &mut [f32]),
) -> Format {
    Format {
        name,
        code,
        numbers,
        bytes,
        decode,
    }
}

impl Format {
    /// The format with this code; else its name or number, for a message.
    pub(super) fn of(code: u32) -> Result<&'static Self, String> {
        if let Some(format) = FORMATS.iter().find(|format| format.code == code) {
            return Ok(format);
        }
        let other = OTHERS.iter().find(|(_, other)| *other == code);
        Err(other.map_or_else(|| format!("type {code}"), |(name, _)| (*name).into()))
    }

    /// The names of all that are supported.
    pub(super) fn supported() -> String {
        FORMATS.map(|format| format.name).join(", ")
    }

    /// Decodes whole blocks: as many as `bytes` holds, `out` being as long as they are.
    pub(super) fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        let blocks = bytes.chunks_exact(self.bytes);
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.numbers)) {
            (self.decode)(block, out);
        }
    }
}

fn decode_f32(block: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
}

fn decode_f16(block: &[u8], out: &mut [f32]) {
    out[0] = half(block, 0);
}

fn decode_bf16(block: &[u8], out: &mut [f32]) {
    out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
}

/// The F16 at `at`: a block's scale or least value.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn decode_q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    for (out, byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte.cast_signed()) * scale;
    }
}

fn decode_q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    nibbles(&block[2..], out, |_, low| scale * (f32::from(low) - 8.0));
}

fn decode_q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |_, low| scale * f32::from(low) + least);
}

fn decode_q5_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    let high = fifth_bits(&block[2..6]);
    nibbles(&block[6..], out, |at, low| {
        scale * (f32::from(low | high(at)) - 16.0)
    });
}

fn decode_q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    let high = fifth_bits(&block[4..8]);
    nibbles(&block[8..], out, |at, low| {
        scale * f32::from(low | high(at)) + least
    });
}

/// Low nibbles are the first half of `out`, high ones the second; `number` makes a number of its
/// place and nibble.
fn nibbles(bytes: &[u8], out: &mut [f32], number: impl Fn(usize, u8) -> f32) {
    let half = bytes.len();
    for (at, byte) in bytes.iter().enumerate() {
        out[at] = number(at, byte & 15);
        out[at + half] = number(at + half, byte >> 4);
    }
}

/// The fifth bit, in its place, of each of 32 numbers.
fn fifth_bits(bytes: &[u8]) -> impl Fn(usize) -> u8 + '_ {
    |at| (bytes[at / 8] >> (at % 8) & 1) << 4
}

fn decode_q4_k(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    let low = &block[16..];
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (by, minus) = scale_and_least(&block[4..16], group);
        let (scale, least) = (scale * by, least * minus);
        for (at, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(nibble(low, group, at)) - least;
        }
    }
}

fn decode_q5_k(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    let (high, low) = (&block[16..48], &block[48..]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (by, minus) = scale_and_least(&block[4..16], group);
        let (scale, least) = (scale * by, least * minus);
        for (at, out) in out.iter_mut().enumerate() {
            let number = nibble(low, group, at) | (high[at] >> group & 1) << 4;
            *out = scale * f32::from(number) - least;
        }
    }
}

/// Of a block of eight groups, each pair sharing 32 bytes: number `at` of `group`.
fn nibble(bytes: &[u8], group: usize, at: usize) -> u8 {
    bytes[group / 2 * 32 + at] >> (group % 2 * 4) & 15
}

/// The 6-bit scale and least value of one of eight groups, packed in 12 bytes.
fn scale_and_least(packed: &[u8], group: usize) -> (f32, f32) {
    const LOW: RangeInclusive<usize> = 0..=3;
    let (scale, least) = if LOW.contains(&group) {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(least))
}

fn decode_q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, scale) = rest.split_at(16);
    let scale = half(scale, 0);
    for (at, out) in out.iter_mut().enumerate() {
        // Two halves of 128 numbers: 64 bytes of nibbles, 32 bytes of upper bit pairs.
        let (part, at_part) = (at / 128, at % 128);
        let low = low[part * 64 + at_part % 64] >> (at_part / 64 * 4) & 15;
        let high = high[part * 32 + at_part % 32] >> (at_part / 32 * 2) & 3;
        let number = f32::from(low | high << 4) - 32.0;
        *out = scale * f32::from(scales[at / 16].cast_signed()) * number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks and their numbers as the Python package `gguf` has them: tests/golden/README.md.
    const GOLDEN: &str = include_str!("../../../tests/golden/quants.json");

    fn unhex(text: &serde_json::Value) -> Vec<u8> {
        let pairs = text.as_str().unwrap().as_bytes().chunks_exact(2);
        let byte = |pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        pairs.map(byte).collect()
    }

    #[test]
    fn every_format_has_the_numbers_of_an_independent_reader() {
        let golden = serde_json::from_str::<serde_json::Value>(GOLDEN).unwrap();
        for format in &FORMATS {
            let golden = &golden[format.name];
            let (blocks, expected) = (unhex(&golden["blocks"]), unhex(&golden["numbers"]));
            assert!(blocks.len() >= 2 * format.bytes);
            let mut numbers = vec![0.0_f32; blocks.len() / format.bytes * format.numbers];
            format.decode(&blocks, &mut numbers);
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
            assert_eq!(bytes.collect::<Vec<_>>(), expected, "{}", format.name);
        }
    }

    #[test]
    fn a_code_is_a_format_or_a_name_for_the_message() {
        assert_eq!(Format::of(12).unwrap().name, "Q4_K");
        assert_eq!(Format::of(10).unwrap_err(), "Q2_K");
        assert_eq!(Format::of(77).unwrap_err(), "type 77");
    }
}
