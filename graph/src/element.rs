//! What an array is made of.

use serde::{Deserialize, Serialize};

/// The type of an array's elements: those that both compilers take and we use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Element {
    /// A truth.
    Pred,
    /// A signed byte.
    S8,
    /// A signed integer of 32 bits.
    S32,
    /// An unsigned integer of 32 bits.
    U32,
    /// A float of 32 bits.
    F32,
    /// The upper half of a float of 32 bits.
    Bf16,
    /// A float of 8 bits, 4 of exponent and 3 of mantissa, without infinities (OCP E4M3).
    F8e4m3fn,
}

impl Element {
    /// Bytes that one takes in a buffer.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Pred | Self::S8 | Self::F8e4m3fn => 1,
            Self::Bf16 => 2,
            Self::S32 | Self::U32 | Self::F32 => 4,
        }
    }

    /// XLA's number of it (`PrimitiveType` of `xla_data.proto`).
    pub fn number(self) -> i32 {
        match self {
            Self::Pred => 1,
            Self::S8 => 2,
            Self::S32 => 4,
            Self::U32 => 8,
            Self::F32 => 11,
            Self::Bf16 => 16,
            Self::F8e4m3fn => 20,
        }
    }

    /// The element type that XLA gives this number, if we use it.
    pub fn from_number(number: i32) -> Option<Self> {
        const ALL: [Element; 7] = [
            Element::Pred,
            Element::S8,
            Element::S32,
            Element::U32,
            Element::F32,
            Element::Bf16,
            Element::F8e4m3fn,
        ];
        ALL.into_iter().find(|element| element.number() == number)
    }

    /// Its name in HLO text.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pred => "pred",
            Self::S8 => "s8",
            Self::S32 => "s32",
            Self::U32 => "u32",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F8e4m3fn => "f8e4m3fn",
        }
    }
}
