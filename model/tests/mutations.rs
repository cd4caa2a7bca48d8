//! Valid files with a few bytes changed, many times over: no parser panics. The fuzz targets of
//! `tests/fuzz` go deeper; this runs wherever the tests do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod tiny;

use model::parsers;
use tiny::Gguf;

/// Mutants of each file.
const MUTANTS: u32 = 20_000;

/// Numbers that parsers trip over, as bytes of lengths, sizes and JSON.
const NASTY: [&[u8]; 12] = [
    &[0xff; 8],
    &[0; 8],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    &[0, 0, 0, 0, 0, 0, 0, 0x80],
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"null",
    b"[]",
    b"\"",
    b"{",
    b"\xc3",
];

fn seeds(name: &str) -> Vec<Vec<u8>> {
    match name {
        "safetensors" => vec![tiny::safetensors(&tiny::TENSORS[..3])],
        "index" => vec![br#"{"metadata": {}, "weight_map": {"a": "1.safetensors"}}"#.to_vec()],
        "config" => vec![
            tiny::CONFIG.into(),
            tiny::CONFIG.replace("llama3", "yarn").into(),
            tiny::CONFIG.replace("Llama", "Qwen2").into(),
        ],
        "generation" => vec![
            br#"{"eos_token_id": [1, 2], "bos_token_id": 1, "temperature": 0.6, "top_k": 20,
                "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1}"#
                .to_vec(),
        ],
        "gguf" => {
            let mut biased = Gguf::llama();
            for (name, length) in [("q", 32), ("k", 16), ("v", 16), ("output", 32)] {
                let numbers = [0.5; 32];
                biased.vector(&format!("blk.0.attn_{name}.bias"), &numbers[..length]);
            }
            biased.vector("rope_freqs.weight", &[1.0; 8]);
            biased.tensor("output.weight", vec![32, 6], 8, vec![1; 6 * 34]);
            vec![Gguf::llama().bytes(), biased.bytes()]
        }
        other => panic!("no seed for {other}"),
    }
}

/// SplitMix64: the same mutants every time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound.max(1) as u64).unwrap()
    }

    /// Changes one place of `file`. Most of a GGUF is numbers that are not parsed, so the places
    /// are mostly of its first 2000 bytes.
    fn mutate(&mut self, file: &mut Vec<u8>) {
        let within = [file.len().min(2000), file.len()][usize::from(self.below(8) == 0)];
        let at = self.below(within);
        match self.below(6) {
            0 => file.truncate(at),
            1 => file[at] ^= 1 << self.below(8),
            2 => file[at] = u8::try_from(self.below(256)).unwrap(),
            3 => drop(file.drain(at..(at + self.below(9)).min(file.len()))),
            4 => {
                let nasty = NASTY[self.below(NASTY.len())];
                let end = (at + nasty.len()).min(file.len());
                file.splice(at..end, nasty.iter().copied());
            }
            _ => {
                let from = self.below(file.len());
                let piece = file[from..(from + self.below(16)).min(file.len())].to_vec();
                file.splice(at..at, piece);
            }
        }
    }
}

#[test]
fn no_mutant_of_a_valid_file_panics() {
    let mut random = Random(1);
    for (name, parse) in parsers::ALL {
        for seed in seeds(name) {
            let accepted = parse(&seed);
            // The seed with made-up divisors goes through all but the last check.
            let refused = accepted.err().filter(|why| !why.contains("rope_freqs"));
            assert_eq!(refused, None, "{name}");
            for _ in 0..MUTANTS {
                let mut mutant = seed.clone();
                for _ in 0..=random.below(3) {
                    if !mutant.is_empty() {
                        random.mutate(&mut mutant);
                    }
                }
                let _ = parse(&mutant);
            }
        }
    }
}
