//! What templates expect of Python beyond what minijinja has: some methods, and how lists are printed.

use std::fmt::{self, Write as _};

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State, Value, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;

/// A method that minijinja does not know.
pub(super) fn method(
    state: &State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, name, args);
    };
    match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            Ok(rsplit(text, separator, most).into_iter().collect())
        }
        _ => unknown_method_callback(state, value, name, args),
    }
}

/// `str.rsplit`: at white space if there is no separator, at most so often, from the end.
fn rsplit<'a>(text: &'a str, separator: Option<&str>, most: Option<i64>) -> Vec<&'a str> {
    let most = most.and_then(|most| usize::try_from(most).ok());
    let most = most.unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        if separator.is_none() {
            rest = rest.trim_end();
        }
        let cut = match separator {
            Some(separator) => rest.rsplit_once(separator),
            None => rest.rsplit_once(char::is_whitespace),
        };
        match cut {
            Some((before, after)) if parts.len() < most => {
                parts.push(after);
                rest = before;
            }
            _ => break,
        }
    }
    if separator.is_some() || !rest.is_empty() {
        parts.push(rest);
    }
    parts.reverse();
    parts
}

/// Writes a value as Python's `str` does.
pub(super) fn write(
    out: &mut Output<'_>,
    state: &State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map => {
            let wrong =
                |error| Error::new(ErrorKind::WriteFailure, "cannot write").with_source(error);
            repr(out, value, 0).map_err(wrong)
        }
        _ => escape_formatter(out, state, value),
    }
}

/// Writes a value as Python's `repr` does. What is nested deeper than JSON may be is left out.
fn repr(out: &mut Output<'_>, value: &Value, depth: usize) -> fmt::Result {
    const DEEPEST: usize = 128;
    let (brackets, items) = match (value.kind(), value.as_str()) {
        (_, Some(text)) => return quoted(out, text),
        (ValueKind::Seq, _) => (["[", "]"], value.try_iter()),
        (ValueKind::Map, _) => (["{", "}"], value.try_iter()),
        _ => return write!(out, "{value}"),
    };
    out.write_str(brackets[0])?;
    let items = items.map_err(|_| fmt::Error)?;
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.write_str(", ")?;
        }
        if depth == DEEPEST {
            out.write_str("...")?;
            break;
        }
        repr(out, &item, depth + 1)?;
        if value.kind() == ValueKind::Map {
            out.write_str(": ")?;
            repr(out, &value.get_item(&item).unwrap_or_default(), depth + 1)?;
        }
    }
    out.write_str(brackets[1])
}

/// A text in the quotes that Python would take.
fn quoted(out: &mut Output<'_>, text: &str) -> fmt::Result {
    let double = text.contains('\'') && !text.contains('"');
    let quote = if double { '"' } else { '\'' };
    out.write_char(quote)?;
    for letter in text.chars() {
        match letter {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\\' => out.write_str("\\\\")?,
            letter if letter == quote => write!(out, "\\{letter}")?,
            letter if letter.is_control() => write!(out, "\\x{:02x}", u32::from(letter))?,
            letter => out.write_char(letter)?,
        }
    }
    out.write_char(quote)
}
