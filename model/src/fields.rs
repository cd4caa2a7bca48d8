//! A JSON object read field by field; every error names the file, the field and what it holds.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::{Map, Value};

/// The largest real config.json is some 10 kB; a megabyte of one is a mistake.
const LIMIT: u64 = 1 << 20;

/// Why `config.json` or `generation_config.json` is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not a JSON object.
    #[error("{file} is not a JSON object: {why}")]
    Syntax {
        /// Which file.
        file: &'static str,
        /// What is wrong, and where.
        why: String,
    },
    /// A field that has no default is missing.
    #[error("{file}: `{field}` is missing")]
    Missing {
        /// Which file.
        file: &'static str,
        /// The field.
        field: String,
    },
    /// A field's value makes no sense.
    #[error("{file}: `{field}` is {found}, but must be {expected}")]
    Invalid {
        /// Which file.
        file: &'static str,
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A field's value may make sense, but not to this program.
    #[error("{file}: `{field}` is {found}, which is not supported; supported: {supported}")]
    Unsupported {
        /// Which file.
        file: &'static str,
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What is.
        supported: String,
    },
}

/// Reads `file` in `dir`, unless it is absurdly large.
pub(crate) fn read(dir: &Path, file: &'static str) -> Result<Vec<u8>, ConfigError> {
    let path = dir.join(file);
    let bytes = fs::metadata(&path).and_then(|metadata| match metadata.len() {
        length if length > LIMIT => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has {length} bytes, more than {LIMIT}"),
        )),
        _ => fs::read(&path),
    });
    bytes.map_err(|source| ConfigError::Read { path, source })
}

/// Parses `json`, the content of `file`, as an object.
pub(crate) fn parse(file: &'static str, json: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    serde_json::from_slice(json).map_err(|error| ConfigError::Syntax {
        file,
        why: error.to_string(),
    })
}

/// A JSON object and where it stands. A field that is `null` counts as absent.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    /// The file it is from.
    pub(crate) file: &'static str,
    /// The field that holds it, with a dot behind; empty at the top.
    pub(crate) within: &'a str,
    /// The object.
    pub(crate) object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The value of `field`, unless it is absent or `null`.
    pub(crate) fn value(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// A whole number of `range`.
    pub(crate) fn whole(&self, field: &str, range: [u32; 2]) -> Result<Option<u32>, ConfigError> {
        let [least, most] = range;
        let fits = |value: &Value| {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.filter(|number| (least..=most).contains(number))
        };
        self.read(field, fits, || {
            format!("a whole number from {least} to {most}")
        })
    }

    /// A number that `fits`, which `expected` describes.
    pub(crate) fn number(
        &self,
        field: &str,
        fits: impl Fn(f64) -> bool,
        expected: &str,
    ) -> Result<Option<f64>, ConfigError> {
        let number = |value: &Value| value.as_f64().filter(|number| fits(*number));
        self.read(field, number, || expected.into())
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        self.read(field, Value::as_bool, || "true or false".into())
    }

    /// A string.
    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>, ConfigError> {
        self.read(field, Value::as_str, || "a string".into())
    }

    /// Whatever `parse` makes of a field that is there.
    pub(crate) fn read<T>(
        &self,
        field: &str,
        parse: impl Fn(&'a Value) -> Option<T>,
        expected: impl Fn() -> String,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.value(field) else {
            return Ok(None);
        };
        match parse(value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(self.invalid(field, &expected())),
        }
    }

    /// That `field` must be there.
    pub(crate) fn missing(&self, field: &str) -> ConfigError {
        ConfigError::Missing {
            file: self.file,
            field: self.path(field),
        }
    }

    /// That `field` must be `expected`.
    pub(crate) fn invalid(&self, field: &str, expected: &str) -> ConfigError {
        ConfigError::Invalid {
            file: self.file,
            field: self.path(field),
            found: self.found(field),
            expected: expected.into(),
        }
    }

    /// That the value of `field` is not among the `supported`.
    pub(crate) fn unsupported(&self, field: &str, supported: &str) -> ConfigError {
        ConfigError::Unsupported {
            file: self.file,
            field: self.path(field),
            found: self.found(field),
            supported: supported.into(),
        }
    }

    fn path(&self, field: &str) -> String {
        format!("{}{field}", self.within)
    }

    /// The value of `field` as JSON, cut where it is long: it is foreign, and goes into a log line.
    fn found(&self, field: &str) -> String {
        const MOST: usize = 100;
        let text = (self.object.get(field)).map_or_else(|| "absent".into(), Value::to_string);
        match text.char_indices().nth(MOST) {
            None => text,
            Some((cut, _)) => format!("{}..", &text[..cut]),
        }
    }
}
