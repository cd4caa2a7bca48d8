//! CBOR (RFC 8949), as much of it as CloudWatch's protocol speaks.

/// A value that was read.
#[derive(Clone, PartialEq, Debug)]
pub enum Cbor {
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Values in a row.
    List(Vec<Cbor>),
    /// Values by name.
    Map(Vec<(String, Cbor)>),
    /// A value with a tag: 1 is seconds since 1970.
    Tagged(u64, Box<Cbor>),
    /// Yes or no.
    Bool(bool),
    /// Nothing.
    Null,
}

impl Cbor {
    /// Reads one value, which must be all there is.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader { rest: bytes };
        let value = reader.value(0)?;
        match reader.rest.len() {
            0 => Ok(value),
            more => Err(format!("{more} bytes after the value")),
        }
    }

    /// The value of this name in a map.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is one.
    #[expect(
        clippy::cast_precision_loss,
        reason = "metrics are floats whatever they were"
    )]
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            Self::Tagged(1, time) => time.number(),
            _ => None,
        }
    }

    /// The list, if it is one.
    pub fn list(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }
}

/// A map of text, as answers are written.
pub fn text_map(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    head(&mut bytes, 5, entries.len());
    for text in entries.iter().flat_map(|(name, value)| [name, value]) {
        head(&mut bytes, 3, text.len());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// The head of an item with a major type and a length below 2^16.
fn head(bytes: &mut Vec<u8>, major: u8, length: usize) {
    let length = u16::try_from(length).expect("our answers are short");
    let [high, low] = length.to_be_bytes();
    match length {
        0..24 => bytes.push(major << 5 | low),
        24..256 => bytes.extend([major << 5 | 24, low]),
        _ => bytes.extend([major << 5 | 25, high, low]),
    }
}

/// How deep values may be nested.
const DEEPEST: usize = 16;

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Cbor, String> {
        if depth > DEEPEST {
            return Err("nested too deep".to_owned());
        }
        let [first] = self.take::<1>()?;
        let (major, low) = (first >> 5, first & 31);
        match (major, low) {
            (2 | 3, 31) => return self.pieces(major, depth),
            (4, 31) => {
                return Ok(Cbor::List(
                    self.until_break(|reader| reader.value(depth + 1))?,
                ));
            }
            (5, 31) => return Ok(Cbor::Map(self.until_break(|reader| reader.entry(depth))?)),
            (7, 20 | 21) => return Ok(Cbor::Bool(low == 21)),
            (7, 22 | 23) => return Ok(Cbor::Null),
            (7, 26) => return Ok(Cbor::Float(f32::from_be_bytes(self.take()?).into())),
            (7, 27) => return Ok(Cbor::Float(f64::from_be_bytes(self.take()?))),
            (7, _) => return Err(format!("simple value {low}")),
            _ => {}
        }
        let number = self.argument(low)?;
        let whole = || i64::try_from(number).map_err(|_| format!("the number {number}"));
        let length = || usize::try_from(number).map_err(|_| format!("the length {number}"));
        match major {
            0 => Ok(Cbor::Integer(whole()?)),
            1 => Ok(Cbor::Integer(-1 - whole()?)),
            2 => Ok(Cbor::Bytes(self.bytes(length()?)?.to_vec())),
            3 => {
                let text = std::str::from_utf8(self.bytes(length()?)?);
                Ok(Cbor::Text(
                    text.map_err(|error| error.to_string())?.to_owned(),
                ))
            }
            4 => (0..number)
                .map(|_| self.value(depth + 1))
                .collect::<Result<_, _>>()
                .map(Cbor::List),
            5 => (0..number)
                .map(|_| self.entry(depth))
                .collect::<Result<_, _>>()
                .map(Cbor::Map),
            _ => Ok(Cbor::Tagged(number, Box::new(self.value(depth + 1)?))),
        }
    }

    fn entry(&mut self, depth: usize) -> Result<(String, Cbor), String> {
        match self.value(depth + 1)? {
            Cbor::Text(name) => Ok((name, self.value(depth + 1)?)),
            other => Err(format!("a name that is {other:?}")),
        }
    }

    /// Text or bytes that come in pieces.
    fn pieces(&mut self, major: u8, depth: usize) -> Result<Cbor, String> {
        let pieces = self.until_break(|reader| reader.value(depth + 1))?;
        let (mut text, mut bytes) = (String::new(), Vec::new());
        for piece in pieces {
            match piece {
                Cbor::Text(piece) if major == 3 => text.push_str(&piece),
                Cbor::Bytes(piece) if major == 2 => bytes.extend(piece),
                other => return Err(format!("a piece that is {other:?}")),
            }
        }
        Ok(if major == 3 {
            Cbor::Text(text)
        } else {
            Cbor::Bytes(bytes)
        })
    }

    fn until_break<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let mut items = Vec::new();
        while self.rest.first() != Some(&0xff) {
            items.push(item(self)?);
        }
        self.take::<1>()?;
        Ok(items)
    }

    /// The number that follows, or is, the low bits of a head.
    fn argument(&mut self, low: u8) -> Result<u64, String> {
        Ok(match low {
            0..24 => low.into(),
            24 => u8::from_be_bytes(self.take()?).into(),
            25 => u16::from_be_bytes(self.take()?).into(),
            26 => u32::from_be_bytes(self.take()?).into(),
            27 => u64::from_be_bytes(self.take()?),
            _ => return Err(format!("the length {low}")),
        })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or("it ends early")?;
        self.rest = rest;
        Ok(*taken)
    }

    fn bytes(&mut self, length: usize) -> Result<&[u8], String> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or("it ends early")?;
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let long = "x".repeat(300);
        let written = text_map(&[("a", "b"), ("long", &long)]);
        let read = Cbor::read(&written).unwrap();
        assert_eq!(read.get("a").and_then(Cbor::text), Some("b"));
        assert_eq!(read.get("long").and_then(Cbor::text), Some(&*long));
    }

    /// Examples of RFC 8949, appendix A.
    #[test]
    fn values_of_the_standard_are_read() {
        let check = |bytes: &[u8], value: Cbor| assert_eq!(Cbor::read(bytes), Ok(value));
        check(&[0x19, 0x03, 0xe8], Cbor::Integer(1000));
        check(&[0x38, 0x63], Cbor::Integer(-100));
        check(
            &[0xfb, 0x3f, 0xf1, 0x99, 0x99, 0x99, 0x99, 0x99, 0x9a],
            Cbor::Float(1.1),
        );
        check(
            &[0xc1, 0x1a, 0x51, 0x4b, 0x67, 0xb0],
            Cbor::Tagged(1, Box::new(Cbor::Integer(1_363_896_240))),
        );
        check(&[0x9f, 0x01, 0xff], Cbor::List(vec![Cbor::Integer(1)]));
        check(
            &[0xbf, 0x61, 0x61, 0xf5, 0xff],
            Cbor::Map(vec![("a".into(), Cbor::Bool(true))]),
        );
        check(
            &[0x7f, 0x61, 0x61, 0x61, 0x62, 0xff],
            Cbor::Text("ab".into()),
        );
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        for bytes in [
            &[0x19, 0x03][..],
            &[0x82, 0x01],
            &[0xbf, 0x61],
            &[0x01, 0x02],
        ] {
            assert!(Cbor::read(bytes).is_err(), "{bytes:?}");
        }
    }
}
