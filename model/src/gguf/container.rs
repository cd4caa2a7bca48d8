//! The GGUF container: keys with values, and tensors by name.
//!
//! All of it is foreign bytes. Nothing is allocated before the file is known to hold as much.

use std::collections::BTreeMap;
use std::ops::Range;

use super::quant::Format;

/// Version 1 had 32-bit lengths, and ended in 2023.
const VERSIONS: [u32; 2] = [2, 3];
/// GGML has no tensors of more.
const DIMENSIONS: u32 = 4;
/// Where `general.alignment` is absent.
const ALIGNMENT: u64 = 32;

/// Why a file is no GGUF, or none that can be read.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// Does not begin as a GGUF does.
    #[error("it does not begin with `GGUF`")]
    Magic,
    /// Another version, or big-endian.
    #[error("it is GGUF of version {0}; supported are little-endian files of versions 2 and 3")]
    Version(u32),
    /// Ends before what it promises.
    #[error("it ends at byte {end}, within {what}: download it again")]
    Truncated {
        /// Bytes of the file.
        end: usize,
        /// What was being read.
        what: &'static str,
    },
    /// A string is not UTF-8.
    #[error("the string at byte {0} is not UTF-8")]
    Encoding(usize),
    /// A value of a type that does not exist, or an array of arrays.
    #[error("`{key}` has a value of type {kind}, which is not supported")]
    Kind {
        /// The key.
        key: String,
        /// `enum gguf_type`.
        kind: u32,
    },
    /// A key or tensor occurs twice.
    #[error("`{0}` occurs twice")]
    Repeated(String),
    /// `general.alignment` makes no sense.
    #[error("`general.alignment` is {0}, but must be a power of two up to 1048576")]
    Alignment(String),
    /// A tensor has no sizes, too many or too large ones, or rows of broken blocks.
    #[error("tensor `{tensor}` has the sizes {sizes:?}, which make no tensor of {format}")]
    Sizes {
        /// The tensor.
        tensor: String,
        /// Its sizes, fastest first, as GGUF has them.
        sizes: Vec<u64>,
        /// How it is stored.
        format: &'static str,
    },
    /// A tensor is stored in a way that is not supported.
    #[error("tensor `{tensor}` is stored as {found}; supported: {supported}")]
    Format {
        /// The tensor.
        tensor: String,
        /// How it is stored.
        found: String,
        /// How it may be.
        supported: String,
    },
    /// A tensor lies beyond the end or over another one.
    #[error("tensor `{tensor}` lies at bytes {start} to {end} of {length}, {why}")]
    Place {
        /// The tensor.
        tensor: String,
        /// First byte, from the start of the tensor data.
        start: u64,
        /// The byte behind.
        end: u64,
        /// Bytes of tensor data.
        length: u64,
        /// What is wrong with that.
        why: &'static str,
    },
}

/// A value of the metadata.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    /// Beyond 63 bits: the most that they hold.
    Whole(i64),
    Number(f64),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Wholes(Vec<i64>),
    /// Numbers or flags, of which nothing is needed.
    Other(usize),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Whole(number) => write!(f, "{number}"),
            Value::Number(number) => write!(f, "{number}"),
            Value::Flag(flag) => write!(f, "{flag}"),
            Value::Text(text) => match text.char_indices().nth(100) {
                None => write!(f, "{text:?}"),
                Some((cut, _)) => write!(f, "{:?}..", &text[..cut]),
            },
            Value::Texts(texts) => write!(f, "a list of {} strings", texts.len()),
            Value::Wholes(numbers) => write!(f, "a list of {} whole numbers", numbers.len()),
            Value::Other(length) => write!(f, "a list of {length} values"),
        }
    }
}

/// A tensor as the file stores it.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) format: &'static Format,
    /// Its sizes, slowest first.
    pub(super) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(super) bytes: Range<usize>,
}

/// What a GGUF holds.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) values: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Stored>,
}

impl Container {
    /// Reads the head of a `file` given whole. Every tensor's range lies within it, as long as its
    /// sizes and format say, and over no other.
    pub(super) fn parse(file: &[u8]) -> Result<Self, GgufError> {
        let mut cursor = Cursor { file, at: 0 };
        if cursor.take(4, "the magic number").ok() != Some(b"GGUF".as_slice()) {
            return Err(GgufError::Magic);
        }
        let version = cursor.u32("the version")?;
        if !VERSIONS.contains(&version) {
            return Err(GgufError::Version(version));
        }
        let tensors = cursor.u64("the number of tensors")?;
        let keys = cursor.u64("the number of keys")?;
        let mut values = BTreeMap::new();
        for _ in 0..keys {
            let key = cursor.text("a key")?;
            let value = cursor.value(&key)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(GgufError::Repeated(key));
            }
        }
        let mut described = Vec::new();
        for _ in 0..tensors {
            described.push(cursor.tensor()?);
        }
        let data = cursor.padded_to(alignment(&values)?);
        Ok(Self {
            values,
            tensors: place(described, data, file.len())?,
        })
    }
}

/// A tensor before its place in the file is known.
struct Described {
    name: String,
    format: &'static Format,
    shape: Vec<usize>,
    start: u64,
    length: u64,
}

fn alignment(values: &BTreeMap<String, Value>) -> Result<u64, GgufError> {
    const MOST: u64 = 1 << 20;
    match values.get("general.alignment") {
        None => Ok(ALIGNMENT),
        Some(value) => match value {
            Value::Whole(number) => u64::try_from(*number).ok(),
            _ => None,
        }
        .filter(|alignment| alignment.is_power_of_two() && *alignment <= MOST)
        .ok_or_else(|| GgufError::Alignment(value.to_string())),
    }
}

/// Finds each tensor's range in a file of `total` bytes whose tensor data begin at `data`.
fn place(
    mut described: Vec<Described>,
    data: usize,
    total: usize,
) -> Result<BTreeMap<String, Stored>, GgufError> {
    let length = total.saturating_sub(data) as u64;
    described.sort_by_key(|tensor| tensor.start);
    let mut tensors = BTreeMap::new();
    let mut free = 0;
    for tensor in described {
        let (start, end) = (tensor.start, tensor.start.saturating_add(tensor.length));
        let why = match () {
            () if end > length => "beyond the end: the file is not whole, download it again",
            () if start < free => "over another tensor",
            () => "",
        };
        if !why.is_empty() {
            return Err(GgufError::Place {
                tensor: tensor.name,
                start,
                end,
                length,
                why,
            });
        }
        free = end;
        // Both are at most `length`, which came from a usize.
        let within = |offset: u64| data + usize::try_from(offset).unwrap_or(usize::MAX - data);
        let stored = Stored {
            format: tensor.format,
            shape: tensor.shape,
            bytes: within(start)..within(end),
        };
        if tensors.insert(tensor.name.clone(), stored).is_some() {
            return Err(GgufError::Repeated(tensor.name));
        }
    }
    Ok(tensors)
}

/// A place in the file.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let rest = &self.file[self.at..];
        let taken = usize::try_from(length)
            .ok()
            .and_then(|length| rest.get(..length))
            .ok_or(GgufError::Truncated {
                end: self.file.len(),
                what,
            })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, what)?);
        Ok(bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, what: &'static str) -> Result<String, GgufError> {
        let length = self.u64(what)?;
        let at = self.at;
        let bytes = self.take(length, what)?.to_vec();
        String::from_utf8(bytes).map_err(|_| GgufError::Encoding(at))
    }

    fn value(&mut self, key: &str) -> Result<Value, GgufError> {
        const ARRAY: u32 = 9;
        match self.u32("a type")? {
            ARRAY => self.values(key),
            kind => self.single(key, kind),
        }
    }

    /// A value of `enum gguf_type`.
    fn single(&mut self, key: &str, kind: u32) -> Result<Value, GgufError> {
        const WHAT: &str = "a value";
        Ok(match kind {
            0 => Value::Whole(u8::from_le_bytes(self.array(WHAT)?).into()),
            1 => Value::Whole(i8::from_le_bytes(self.array(WHAT)?).into()),
            2 => Value::Whole(u16::from_le_bytes(self.array(WHAT)?).into()),
            3 => Value::Whole(i16::from_le_bytes(self.array(WHAT)?).into()),
            4 => Value::Whole(u32::from_le_bytes(self.array(WHAT)?).into()),
            5 => Value::Whole(i32::from_le_bytes(self.array(WHAT)?).into()),
            6 => Value::Number(shortest(f32::from_le_bytes(self.array(WHAT)?))),
            7 => Value::Flag(self.array::<1>(WHAT)? != [0]),
            8 => Value::Text(self.text(WHAT)?),
            10 => Value::Whole(self.u64(WHAT)?.try_into().unwrap_or(i64::MAX)),
            11 => Value::Whole(i64::from_le_bytes(self.array(WHAT)?)),
            12 => Value::Number(f64::from_le_bytes(self.array(WHAT)?)),
            kind => {
                let key = key.into();
                return Err(GgufError::Kind { key, kind });
            }
        })
    }

    /// A list of values of one type.
    fn values(&mut self, key: &str) -> Result<Value, GgufError> {
        let kind = self.u32("a type")?;
        let length = self.u64("the length of a list")?;
        // A value has at least a byte: a list longer than the file is refused by its first
        // missing value, and grows no further than what was read.
        let (mut texts, mut wholes, mut others) = (Vec::new(), Vec::new(), 0);
        for _ in 0..length {
            match self.single(key, kind)? {
                Value::Text(text) => texts.push(text),
                Value::Whole(number) => wholes.push(number),
                _ => others += 1,
            }
        }
        Ok(match kind {
            8 => Value::Texts(texts),
            6 | 7 | 12 => Value::Other(others),
            _ => Value::Wholes(wholes),
        })
    }

    fn tensor(&mut self) -> Result<Described, GgufError> {
        const WHAT: &str = "the description of a tensor";
        let name = self.text(WHAT)?;
        let dimensions = self.u32(WHAT)?;
        let counted = dimensions.min(DIMENSIONS + 1);
        let sizes = (0..counted).map(|_| self.u64(WHAT));
        let sizes = sizes.collect::<Result<Vec<_>, _>>()?;
        if dimensions > DIMENSIONS {
            let format = "any format";
            return Err(GgufError::Sizes {
                tensor: name,
                sizes,
                format,
            });
        }
        let format = Format::of(self.u32(WHAT)?).map_err(|found| GgufError::Format {
            tensor: name.clone(),
            found,
            supported: Format::supported(),
        })?;
        let start = self.u64(WHAT)?;
        let Some((shape, length)) = measure(&sizes, format) else {
            return Err(GgufError::Sizes {
                tensor: name,
                sizes,
                format: format.name,
            });
        };
        Ok(Described {
            name,
            format,
            shape,
            start,
            length,
        })
    }

    /// Where the tensor data begin: may be beyond the end.
    fn padded_to(&self, alignment: u64) -> usize {
        let at = (self.at as u64).next_multiple_of(alignment);
        usize::try_from(at).unwrap_or(usize::MAX)
    }
}

/// The shape, slowest first, and the bytes of a tensor of these `sizes`; `None` if there is none.
fn measure(sizes: &[u64], format: &Format) -> Option<(Vec<usize>, u64)> {
    let row = *sizes.first()?;
    let (numbers, bytes) = (format.numbers as u64, format.bytes as u64);
    if sizes.contains(&0) || row % numbers != 0 {
        return None;
    }
    let total = sizes.iter().try_fold(1_u64, |a, b| a.checked_mul(*b))?;
    let shape = sizes.iter().rev().map(|size| usize::try_from(*size).ok());
    Some((
        shape.collect::<Option<_>>()?,
        (total / numbers).checked_mul(bytes)?,
    ))
}

/// The F64 that prints as `number` does: 1e-5 rather than 9.999999747378752e-6.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::NAN)
}
