//! A GGUF's metadata read key by key; every error names the key and what it holds.

use std::collections::BTreeMap;

use super::container::Value;

/// Why a GGUF's metadata are refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A key that has no default is missing.
    #[error("the key `{0}` is missing")]
    Missing(String),
    /// A value makes no sense.
    #[error("the key `{key}` is {found}, but must be {expected}")]
    Invalid {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A value may make sense, but not to this program.
    #[error("the key `{key}` is {found}, which is not supported; supported: {supported}")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is.
        supported: String,
    },
}

/// The metadata.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys<'a>(pub(super) &'a BTreeMap<String, Value>);

impl<'a> Keys<'a> {
    pub(super) fn text(self, key: &str) -> Result<Option<&'a str>, KeyError> {
        self.read(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(super) fn flag(self, key: &str) -> Result<Option<bool>, KeyError> {
        self.read(key, "true or false", |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    pub(super) fn whole(self, key: &str) -> Result<Option<u32>, KeyError> {
        self.read(key, "a whole number of 32 bits", |value| match value {
            Value::Whole(number) => u32::try_from(*number).ok(),
            _ => None,
        })
    }

    pub(super) fn number(self, key: &str) -> Result<Option<f64>, KeyError> {
        self.read(key, "a number", |value| match value {
            Value::Number(number) if number.is_finite() => Some(*number),
            _ => None,
        })
    }

    pub(super) fn texts(self, key: &str) -> Result<Option<&'a [String]>, KeyError> {
        self.read(key, "a list of strings", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    pub(super) fn wholes(self, key: &str) -> Result<Option<&'a [i64]>, KeyError> {
        self.read(key, "a list of whole numbers", |value| match value {
            Value::Wholes(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// All keys that begin with `prefix`.
    pub(super) fn under(self, prefix: &str) -> impl Iterator<Item = &'a str> {
        let keys = self
            .0
            .range(prefix.to_owned()..)
            .map(|(key, _)| key.as_str());
        keys.take_while(move |key| key.starts_with(prefix))
    }

    /// That `key` must be `expected`.
    pub(super) fn invalid(self, key: &str, expected: &str) -> KeyError {
        KeyError::Invalid {
            key: key.into(),
            found: self.found(key),
            expected: expected.into(),
        }
    }

    /// That the value of `key` is not among the `supported`.
    pub(super) fn unsupported(self, key: &str, supported: &str) -> KeyError {
        KeyError::Unsupported {
            key: key.into(),
            found: self.found(key),
            supported: supported.into(),
        }
    }

    fn found(self, key: &str) -> String {
        (self.0.get(key)).map_or_else(|| "absent".into(), Value::to_string)
    }

    fn read<T>(
        self,
        key: &str,
        expected: &str,
        parse: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, KeyError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(value) => parse(value)
                .map(Some)
                .ok_or_else(|| self.invalid(key, expected)),
        }
    }
}

/// What a key must have.
pub(super) fn required<T>(key: &str, value: Option<T>) -> Result<T, KeyError> {
    value.ok_or_else(|| KeyError::Missing(key.into()))
}
