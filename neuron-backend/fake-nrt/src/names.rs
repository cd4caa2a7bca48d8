//! What the runtime calls the inputs and outputs of a model. Whoever binds them must take every form
//! (neuron.md 2.3), so a test can choose.

use std::str::FromStr;

use crate::neff::{ALIAS_SUFFIX, Io};
use crate::status::{Failure, refuse};

/// A form of names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Names {
    /// As the module's attributes say.
    Attributes,
    /// `X.must_alias_input` for each input that shares memory with an output, whatever its attribute
    /// says.
    MustAlias,
    /// `X` for both of such a pair, whatever its attribute says.
    Plain,
    /// `input0`, `input1`, .. and `output0`, `output1`, ..
    Indexed,
}

impl Names {
    /// The names of all inputs, then of all outputs.
    pub fn of(self, io: &Io) -> (Vec<String>, Vec<String>) {
        let input = |(index, input): (usize, &crate::neff::Binding)| match self {
            Self::Attributes => input.name.clone(),
            Self::MustAlias if input.alias.is_some() => format!("{}{ALIAS_SUFFIX}", input.base()),
            Self::MustAlias | Self::Plain => input.base().to_owned(),
            Self::Indexed => format!("input{index}"),
        };
        let output = |(index, output): (usize, &crate::neff::Binding)| match self {
            Self::Indexed => format!("output{index}"),
            _ => output.name.clone(),
        };
        (
            io.inputs.iter().enumerate().map(input).collect(),
            io.outputs.iter().enumerate().map(output).collect(),
        )
    }
}

impl FromStr for Names {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        match text {
            "attributes" => Ok(Self::Attributes),
            "must_alias" => Ok(Self::MustAlias),
            "plain" => Ok(Self::Plain),
            "indexed" => Ok(Self::Indexed),
            _ => Err(refuse!(
                INVALID,
                "FAKE_NRT_NAMES={text}: attributes, must_alias, plain or indexed"
            )),
        }
    }
}
