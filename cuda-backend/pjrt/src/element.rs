//! What an array is made of.

/// The type of an array's elements: those of PJRT that take whole bytes and that we have a use for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Element {
    /// A truth, a byte each.
    Pred,
    /// A signed byte.
    S8,
    /// A signed integer of 32 bits.
    S32,
    /// A signed integer of 64 bits.
    S64,
    /// A byte.
    U8,
    /// An unsigned integer of 16 bits.
    U16,
    /// An unsigned integer of 32 bits.
    U32,
    /// A float of 16 bits.
    F16,
    /// A float of 32 bits.
    F32,
    /// The upper half of a float of 32 bits.
    Bf16,
    /// A float of 8 bits, 5 of exponent and 2 of mantissa.
    F8e5m2,
    /// A float of 8 bits, 4 of exponent and 3 of mantissa, without infinities.
    F8e4m3fn,
    /// A float of 8 bits, 4 of exponent and 3 of mantissa, with infinities.
    F8e4m3,
}

impl Element {
    const ALL: [Self; 13] = [
        Self::Pred,
        Self::S8,
        Self::S32,
        Self::S64,
        Self::U8,
        Self::U16,
        Self::U32,
        Self::F16,
        Self::F32,
        Self::Bf16,
        Self::F8e5m2,
        Self::F8e4m3fn,
        Self::F8e4m3,
    ];

    /// Bytes that one takes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Pred | Self::S8 | Self::U8 | Self::F8e5m2 | Self::F8e4m3fn | Self::F8e4m3 => 1,
            Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::S32 | Self::U32 | Self::F32 => 4,
            Self::S64 => 8,
        }
    }

    /// The type that has this number in a module (`PrimitiveType` of `xla_data.proto`).
    pub fn from_hlo(number: i32) -> Option<Self> {
        let element = match number {
            1 => Self::Pred,
            2 => Self::S8,
            4 => Self::S32,
            5 => Self::S64,
            6 => Self::U8,
            7 => Self::U16,
            8 => Self::U32,
            10 => Self::F16,
            11 => Self::F32,
            16 => Self::Bf16,
            19 => Self::F8e5m2,
            20 => Self::F8e4m3fn,
            28 => Self::F8e4m3,
            _ => return None,
        };
        Some(element)
    }

    /// PJRT's number of it (`PJRT_Buffer_Type`), which is not that of a module.
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Pred => 1,
            Self::S8 => 2,
            Self::S32 => 4,
            Self::S64 => 5,
            Self::U8 => 6,
            Self::U16 => 7,
            Self::U32 => 8,
            Self::F16 => 10,
            Self::F32 => 11,
            Self::Bf16 => 13,
            Self::F8e5m2 => 16,
            Self::F8e4m3fn => 17,
            Self::F8e4m3 => 26,
        }
    }

    pub(crate) fn from_number(number: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|element| element.number() == number)
    }
}
