//! What a model's authors advise for sampling, and the tokens that end a generation.

use std::path::Path;

use serde_json::{Map, Value};

use crate::fields::{self, ConfigError, Fields};

const GENERATION: &str = "generation_config.json";
const CONFIG: &str = "config.json";

/// `generation_config.json`, with `config.json` where it has no say on tokens. Like vLLM, this
/// takes the numbers as they stand, whatever `do_sample` says.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct GenerationDefaults {
    /// Tokens that end a generation; none in a base model without one.
    pub eos: Vec<u32>,
    /// The token that starts a text.
    pub bos: Option<u32>,
    /// Sampling temperature, at least 0.
    pub temperature: Option<f32>,
    /// How many of the most likely tokens to sample from; `None` where it is off (0 or -1).
    pub top_k: Option<u32>,
    /// The probability of the most likely tokens to sample from, above 0, at most 1.
    pub top_p: Option<f32>,
    /// The least probability to sample, as a part of the likeliest token's, from 0 to 1.
    pub min_p: Option<f32>,
    /// What the logits of tokens seen are divided by (or multiplied, below 0); above 0.
    pub repetition_penalty: Option<f32>,
}

impl GenerationDefaults {
    /// Reads the defaults of the model in `dir`, where either file may be absent.
    ///
    /// # Errors
    /// A file that is no JSON object, and a value outside its range.
    pub fn open(dir: &Path) -> Result<Self, ConfigError> {
        let read = |file| match dir.join(file).exists() {
            true => fields::parse(file, &fields::read(dir, file)?),
            false => Ok(Map::new()),
        };
        Self::of(&read(GENERATION)?, &read(CONFIG)?)
    }

    /// Reads the defaults from both files' objects.
    pub(crate) fn of(
        generation: &Map<String, Value>,
        config: &Map<String, Value>,
    ) -> Result<Self, ConfigError> {
        let generation = &Fields {
            file: GENERATION,
            within: "",
            object: generation,
        };
        let config = &Fields {
            file: CONFIG,
            within: "",
            object: config,
        };
        let eos = match tokens(generation, "eos_token_id")? {
            None => tokens(config, "eos_token_id")?,
            some => some,
        };
        let bos = match tokens(generation, "bos_token_id")? {
            None => tokens(config, "bos_token_id")?,
            some => some,
        };
        let unit = |number: f32| (0.0..=1.0).contains(&number);
        let above = |number: f32| number > 0.0 && number.is_finite();
        Ok(Self {
            eos: eos.unwrap_or_default(),
            bos: bos.and_then(|bos| bos.first().copied()),
            temperature: number(
                generation,
                "temperature",
                |number| number >= 0.0 && number.is_finite(),
                "a number from 0",
            )?,
            top_k: top_k(generation)?,
            top_p: number(
                generation,
                "top_p",
                |number| number > 0.0 && unit(number),
                "a number above 0, at most 1",
            )?,
            min_p: number(generation, "min_p", unit, "a number from 0 to 1")?,
            repetition_penalty: number(
                generation,
                "repetition_penalty",
                above,
                "a number above 0",
            )?,
        })
    }
}

/// A token id, or a list of them.
fn tokens(fields: &Fields<'_>, field: &str) -> Result<Option<Vec<u32>>, ConfigError> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = |value: &Value| match value.as_array() {
        Some(values) => values.iter().map(id).collect(),
        None => id(value).map(|id| vec![id]),
    };
    fields.read(field, ids, || "a token id or a list of them".into())
}

fn top_k(fields: &Fields<'_>) -> Result<Option<u32>, ConfigError> {
    let count = |value: &Value| match value.as_i64()? {
        -1 => Some(0),
        count => u32::try_from(count).ok(),
    };
    let count = fields.read("top_k", count, || "a whole number from -1".into())?;
    Ok(count.filter(|count| *count > 0))
}

fn number(
    fields: &Fields<'_>,
    field: &str,
    fits: impl Fn(f32) -> bool,
    expected: &str,
) -> Result<Option<f32>, ConfigError> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the nearest F32 is near enough for a setting"
    )]
    let narrow = |number: f64| number as f32;
    let fits = |number| fits(narrow(number));
    Ok(fields.number(field, fits, expected)?.map(narrow))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(generation: &str, config: &str) -> Result<GenerationDefaults, ConfigError> {
        GenerationDefaults::of(
            &fields::parse(GENERATION, generation.as_bytes())?,
            &fields::parse(CONFIG, config.as_bytes())?,
        )
    }

    fn refused(field: &str, found: &str, expected: &str) {
        let error = of(&format!(r#"{{"{field}": {found}}}"#), "{}").expect_err(found);
        let message =
            format!("generation_config.json: `{field}` is {found}, but must be {expected}");
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn tokens_come_from_either_file_and_numbers_from_one() {
        let generation = r#"{"eos_token_id": [2, 7], "temperature": 0.5, "top_k": -1,
            "top_p": 0.75, "repetition_penalty": 1.25, "do_sample": false}"#;
        let config = r#"{"eos_token_id": 3, "bos_token_id": 1, "min_p": 0.5}"#;
        let expected = GenerationDefaults {
            eos: vec![2, 7],
            bos: Some(1),
            temperature: Some(0.5),
            top_k: None,
            top_p: Some(0.75),
            min_p: None,
            repetition_penalty: Some(1.25),
        };
        assert_eq!(of(generation, config).unwrap(), expected);
        assert_eq!(of("{}", config).unwrap().eos, [3]);
        assert_eq!(of("{}", "{}").unwrap(), GenerationDefaults::default());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        refused("temperature", "-0.5", "a number from 0");
        refused("top_p", "1.5", "a number above 0, at most 1");
        refused("top_p", "1e-60", "a number above 0, at most 1");
        refused("min_p", "1.5", "a number from 0 to 1");
        refused("repetition_penalty", "0", "a number above 0");
        refused("top_k", "2.5", "a whole number from -1");
        refused("eos_token_id", "-1", "a token id or a list of them");
        refused("eos_token_id", "[1,\"x\"]", "a token id or a list of them");
    }
}
