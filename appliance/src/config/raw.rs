//! Settings as texts, each with where it came from.

use std::fmt;
use std::path::PathBuf;

use super::resolved::{SETTINGS, Scope, Setting};
use super::sources::Layer;
use super::value::Value;

/// Why there is no valid configuration. Each names where the value stands and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value is not of its setting's form.
    #[error("{place}: {value:?} is not {allowed}")]
    Invalid {
        /// The flag, variable or key.
        place: String,
        /// The value, masked if it is secret.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// No model is named.
    #[error("model is not set: use --model, APPLIANCE_MODEL, or model in the configuration file")]
    NoModel,
    /// The parameter store has a setting that must be known before it can be read.
    #[error(
        "{path}: {name} is read as the server starts, before the parameter store: set it by flag, variable, \
         user data or file, and delete the parameter"
    )]
    Early {
        /// The parameter.
        path: String,
        /// The setting.
        name: &'static str,
    },
    /// A configuration file, the user data or the parameter store has a key that is no setting.
    #[error("{file}: there is no setting {key:?}; did you mean {nearest:?}?")]
    UnknownKey {
        /// The file, or what stands for it.
        file: String,
        /// The key.
        key: String,
        /// The setting whose name is nearest.
        nearest: &'static str,
    },
    /// The configuration file cannot be used.
    #[error("cannot use the configuration file {file}: {why}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// Two settings do not go together.
    #[error("{0}")]
    Conflict(String),
}

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A flag of the command line.
    Flag,
    /// This environment variable.
    Environment(String),
    /// This parameter of the parameter store.
    Parameter(String),
    /// A key of the instance's user data.
    UserData,
    /// A key of this file.
    File(PathBuf),
    /// The table of settings.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => write!(f, "flag"),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Parameter(path) => write!(f, "parameter {path}"),
            Self::UserData => write!(f, "user data"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => write!(f, "default"),
        }
    }
}

/// For every setting of the table its text and origin.
#[derive(Clone, Debug)]
pub struct Raw {
    values: Vec<(&'static Setting, String, Origin)>,
}

impl Raw {
    /// Takes each setting from the first of `layers` that has it, else its default.
    pub fn new(layers: &[&Layer]) -> Self {
        let value = |setting: &'static Setting| {
            let found = layers.iter().find_map(|layer| layer.value(setting.name));
            let (text, origin) = found.unwrap_or((setting.default.to_owned(), Origin::Default));
            (setting, text, origin)
        };
        Self {
            values: SETTINGS.iter().map(value).collect(),
        }
    }

    /// The settings of `scope` whose texts differ from those of `other`.
    pub fn changes(&self, other: &Self, scope: Scope) -> Vec<&'static str> {
        let pairs = self.values.iter().zip(&other.values);
        let changed = pairs.filter(|((setting, a, _), (_, b, _))| setting.scope == scope && a != b);
        changed.map(|((setting, ..), _)| setting.name).collect()
    }

    /// The value of the setting `name`, as its type.
    pub(crate) fn parse<T: Value>(&self, name: &'static str) -> Result<T, ConfigError> {
        let (setting, text, origin) = self
            .values
            .iter()
            .find(|(setting, ..)| setting.name == name)
            .expect("only settings of the table are asked for");
        T::parse(text).ok_or_else(|| ConfigError::Invalid {
            place: setting.place(origin),
            value: setting.shown(text),
            allowed: T::FORM.allowed,
        })
    }
}

/// `--print-config`: each setting as a line of the configuration file, with its origin as a comment.
impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (setting, text, origin) in &self.values {
            let line = format!("{} = {:?}", setting.name, setting.shown(text));
            let required = text.is_empty() && *origin == Origin::Default;
            let missing = if required { ", but it must be set" } else { "" };
            writeln!(f, "{line:<48} # {origin}{missing}")?;
        }
        Ok(())
    }
}
