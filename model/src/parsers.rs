//! The parsers of foreign bytes, for the tests that mutate and fuzz them. Each refuses or accepts,
//! and never panics; what it accepts it also looks up, so that a place beyond the end shows.

use crate::checkpoint::{header_length, locate, parse_index};
use crate::decoder::Decoder;
use crate::generation::GenerationDefaults;
use crate::{fields, gguf};

/// A parser of a file given whole: whether it refuses it, and why.
pub type Parser = fn(&[u8]) -> Result<(), String>;

/// All of them, by what they parse.
pub const ALL: [(&str, Parser); 5] = [
    ("safetensors", safetensors),
    ("index", index),
    ("config", config),
    ("generation", generation),
    ("gguf", gguf),
];

/// A safetensors file.
///
/// # Errors
/// What [`crate::HeaderError`] says.
///
/// # Panics
/// If a tensor that it accepts has another length than its shape and dtype say: a mistake of ours.
pub fn safetensors(file: &[u8]) -> Result<(), String> {
    let total = file.len() as u64;
    let length = header_length(file, total).map_err(|error| error.to_string())?;
    let end = usize::try_from(8 + length).map_err(|error| error.to_string())?;
    let located = locate(&file[8..end], total, 0);
    for (name, located) in located.map_err(|error| error.to_string())? {
        let numbers = located.shape.iter().product::<usize>();
        let bits = file[located.bytes].len() * 8;
        assert_eq!(numbers * located.dtype.bitsize(), bits, "{name}");
    }
    Ok(())
}

/// `model.safetensors.index.json`.
///
/// # Errors
/// What [`crate::IndexError`] says.
pub fn index(json: &[u8]) -> Result<(), String> {
    parse_index(json).map_err(|error| error.to_string())?;
    Ok(())
}

/// `config.json`.
///
/// # Errors
/// What [`crate::ConfigError`] says.
pub fn config(json: &[u8]) -> Result<(), String> {
    let decoder = Decoder::parse(json).map_err(|error| error.to_string())?;
    // No product of sizes overflows.
    decoder.roles().for_each(drop);
    (decoder.attention.rope).frequencies(decoder.attention.head_size);
    Ok(())
}

/// `generation_config.json`.
///
/// # Errors
/// What [`crate::ConfigError`] says.
pub fn generation(json: &[u8]) -> Result<(), String> {
    let object = fields::parse("generation_config.json", json);
    let object = object.map_err(|error| error.to_string())?;
    GenerationDefaults::of(&object, &object).map_err(|error| error.to_string())?;
    Ok(())
}

/// A GGUF file, to the numbers of its tensors.
///
/// # Errors
/// What [`gguf::Refusal`] says.
pub fn gguf(file: &[u8]) -> Result<(), String> {
    gguf::rehearse(file).map_err(|error| error.to_string())
}
