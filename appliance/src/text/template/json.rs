//! The filter `tojson` as transformers has it: what Python's `json.dumps` writes.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize as _;
use serde_json::ser::{CompactFormatter, Formatter};

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(
    value: &Value,
    ensure_ascii: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    if value.is_undefined() {
        let why = "an undefined value has no JSON";
        return Err(Error::new(ErrorKind::UndefinedError, why));
    }
    let indent = indent(options.get("indent")?)?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let ensure_ascii = ensure_ascii.or(options.get("ensure_ascii")?);
    let sort: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let default = if indent.is_some() { "," } else { ", " };
    let separator = |index: usize, default: &str| {
        let given = separators.as_ref().and_then(|both| both.get(index));
        given.cloned().unwrap_or_else(|| default.to_owned())
    };
    let style = Python {
        comma: separator(0, default),
        colon: separator(1, ": "),
        indent,
        ensure_ascii: ensure_ascii.unwrap_or(false),
        depth: 0,
        empty: true,
    };
    let wrong = |error| Error::new(ErrorKind::BadSerialization, "no JSON").with_source(error);
    let mut value = serde_json::to_value(value).map_err(wrong)?;
    if sort == Some(true) {
        value.sort_all_objects();
    }
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, style);
    value.serialize(&mut serializer).map_err(wrong)?;
    Ok(String::from_utf8_lossy(&json).into_owned())
}

/// What a level is indented with: so many spaces, or a text.
fn indent(value: Option<Value>) -> Result<Option<String>, Error> {
    /// More is no layout but a way to fill memory.
    const MOST: usize = 32;
    let Some(value) = value.filter(|value| !value.is_none()) else {
        return Ok(None);
    };
    let indent = match value.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(usize::try_from(value)?.min(MOST)),
    };
    Ok(Some(indent))
}

/// How Python lays JSON out.
struct Python {
    comma: String,
    colon: String,
    indent: Option<String>,
    ensure_ascii: bool,
    depth: usize,
    /// Nothing has been written into the innermost array or object.
    empty: bool,
}

impl Python {
    fn open<W: io::Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn close<W: io::Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !std::mem::replace(&mut self.empty, false) {
            self.new_line(writer)?;
        }
        writer.write_all(bracket)
    }

    fn item<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.empty = false;
        if !first {
            writer.write_all(self.comma.as_bytes())?;
        }
        self.new_line(writer)
    }

    fn new_line<W: io::Write + ?Sized>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl Formatter for Python {
    /// Python writes exponents with a sign and at least two digits.
    fn write_f64<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let mut shortest = Vec::new();
        CompactFormatter.write_f64(&mut shortest, value)?;
        let text = String::from_utf8_lossy(&shortest);
        let Some((digits, exponent)) = text.split_once('e') else {
            return writer.write_all(text.as_bytes());
        };
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent.trim_start_matches('+')),
        };
        write!(writer, "{digits}e{sign}{exponent:0>2}")
    }

    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.ensure_ascii {
            return writer.write_all(fragment.as_bytes());
        }
        for unit in fragment.encode_utf16() {
            match u8::try_from(unit).ok().filter(|byte| *byte < 0x7F) {
                Some(byte) => writer.write_all(&[byte])?,
                None => write!(writer, "\\u{unit:04x}")?,
            }
        }
        Ok(())
    }

    fn begin_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.colon.as_bytes())
    }
}
