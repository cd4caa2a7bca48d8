//! The forms that fields of a request have. Each reads itself from JSON: a value that exists is
//! valid. Each also describes itself, so that `/openapi.json` cannot say anything else.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde_json::{Map, Value};
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};

/// A form of field.
pub(super) trait Field: Sized {
    /// What is allowed, to stand after "must be".
    fn allowed() -> String;

    /// Reads one; `None` if it is not of this form.
    fn parse(json: &str) -> Option<Self>;

    /// The same for machines.
    fn schema() -> Schema;
}

/// JSON that stands for `T` and nothing else.
fn read<T: DeserializeOwned>(json: &str) -> Option<T> {
    serde_json::from_str(json).ok()
}

fn typed(r#type: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(r#type)
}

impl Field for bool {
    fn allowed() -> String {
        "true or false".into()
    }

    fn parse(json: &str) -> Option<Self> {
        read(json)
    }

    fn schema() -> Schema {
        typed(Type::Boolean).into()
    }
}

impl Field for String {
    fn allowed() -> String {
        "a text".into()
    }

    fn parse(json: &str) -> Option<Self> {
        read(json)
    }

    fn schema() -> Schema {
        typed(Type::String).into()
    }
}

/// A number from `FROM` to `TO`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Real<const FROM: i32, const TO: i32>(pub(super) f32);

impl<const FROM: i32, const TO: i32> Field for Real<FROM, TO> {
    fn allowed() -> String {
        format!("a number from {FROM} to {TO}")
    }

    fn parse(json: &str) -> Option<Self> {
        let number: f32 = read(json)?;
        let range = f64::from(FROM)..=f64::from(TO);
        range.contains(&f64::from(number)).then_some(Self(number))
    }

    fn schema() -> Schema {
        let number = typed(Type::Number).minimum(Some(FROM)).maximum(Some(TO));
        number.into()
    }
}

/// A number above 0, at most 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Share(pub(super) f32);

impl Field for Share {
    fn allowed() -> String {
        "a number above 0, at most 1".into()
    }

    fn parse(json: &str) -> Option<Self> {
        read(json)
            .filter(|number| *number > 0.0 && *number <= 1.0)
            .map(Self)
    }

    fn schema() -> Schema {
        let number = typed(Type::Number)
            .exclusive_minimum(Some(0))
            .maximum(Some(1));
        number.into()
    }
}

/// A number above 0.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Positive(pub(super) f32);

impl Field for Positive {
    fn allowed() -> String {
        "a number above 0".into()
    }

    fn parse(json: &str) -> Option<Self> {
        let number = read(json).filter(|number: &f32| *number > 0.0 && number.is_finite());
        number.map(Self)
    }

    fn schema() -> Schema {
        typed(Type::Number).exclusive_minimum(Some(0)).into()
    }
}

/// A whole number from `FROM` to `TO`; 5.0 is one too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Whole<const FROM: i64, const TO: i64>(pub(super) i64);

/// The largest count of anything.
pub(super) const MOST: i64 = u32::MAX as i64;

impl<const FROM: i64, const TO: i64> Whole<FROM, TO> {
    /// As a count; numbers below 0 are 0.
    pub(super) fn count(self) -> u32 {
        u32::try_from(self.0.max(0)).unwrap_or(u32::MAX)
    }
}

impl<const FROM: i64, const TO: i64> Field for Whole<FROM, TO> {
    fn allowed() -> String {
        match (FROM, TO) {
            (i64::MIN, i64::MAX) => "a whole number of 64 bits".into(),
            (_, MOST) => format!("a whole number from {FROM}"),
            _ => format!("a whole number from {FROM} to {TO}"),
        }
    }

    fn parse(json: &str) -> Option<Self> {
        let number: i64 = match read(json) {
            Some(number) => number,
            None => whole(read(json)?)?,
        };
        (FROM..=TO).contains(&number).then_some(Self(number))
    }

    fn schema() -> Schema {
        let mut number = typed(Type::Integer);
        if FROM != i64::MIN {
            number = number.minimum(Some(FROM));
        }
        if TO != i64::MAX && TO != MOST {
            number = number.maximum(Some(TO));
        }
        number.into()
    }
}

/// A number such as 5.0 as a whole one.
#[expect(
    clippy::cast_possible_truncation,
    reason = "it is whole and below 2^53"
)]
fn whole(number: f64) -> Option<i64> {
    let exact = 9_007_199_254_740_992.0; // 2^53
    (number.fract() == 0.0 && number.abs() < exact).then_some(number as i64)
}

/// A list of at most `MOST` elements, refused before more are read.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Few<T, const MOST: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Few<T, MOST> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MOST: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Elements<T, MOST> {
            type Value = Few<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = list.next_element()? {
                    if elements.len() == MOST {
                        return Err(A::Error::custom(format!("more than {MOST}")));
                    }
                    elements.push(element);
                }
                Ok(Few(elements))
            }
        }

        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

/// A list of at most `MOST` token ids.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TokenIds<const MOST: usize>(pub(super) Vec<u32>);

impl<const MOST: usize> Field for TokenIds<MOST> {
    fn allowed() -> String {
        format!("a list of at most {MOST} token ids")
    }

    fn parse(json: &str) -> Option<Self> {
        read::<Few<u32, MOST>>(json).map(|Few(ids)| Self(ids))
    }

    fn schema() -> Schema {
        ArrayBuilder::new().items(id()).max_items(Some(MOST)).into()
    }
}

fn id() -> ObjectBuilder {
    typed(Type::Integer).minimum(Some(0))
}

/// One to sixteen texts, none of them empty: a text by itself is a list of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct StopTexts(pub(super) Vec<String>);

impl Field for StopTexts {
    fn allowed() -> String {
        "a text or a list of at most 16 texts, none of them empty".into()
    }

    fn parse(json: &str) -> Option<Self> {
        let texts = match read(json) {
            Some(text) => vec![text],
            None => read::<Few<String, 16>>(json)?.0,
        };
        let empty = texts.iter().any(String::is_empty);
        (!empty).then_some(Self(texts))
    }

    fn schema() -> Schema {
        let text = || typed(Type::String).min_length(Some(1));
        let list = ArrayBuilder::new().items(text()).max_items(Some(16));
        OneOfBuilder::new().item(text()).item(list).into()
    }
}

/// What is added to the logits of tokens.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Bias(pub(super) BTreeMap<u32, f32>);

/// How many tokens may have a bias; OpenAI allows 300.
const BIASES: usize = 1024;

impl Field for Bias {
    fn allowed() -> String {
        format!("an object of at most {BIASES} token ids, each with a number from -100 to 100")
    }

    fn parse(json: &str) -> Option<Self> {
        let bias = Object::parse(json)?.0;
        let entry = |(token, bias): (&String, &Value)| {
            let Real::<-100, 100>(bias) = Real::parse(&bias.to_string())?;
            Some((token.parse().ok()?, bias))
        };
        let fits = bias.len() <= BIASES;
        let bias = bias.iter().map(entry).collect::<Option<_>>()?;
        fits.then_some(Self(bias))
    }

    fn schema() -> Schema {
        let number = Real::<-100, 100>::schema();
        typed(Type::Object)
            .additional_properties(Some(number))
            .into()
    }
}

/// How many values any JSON of a request may hold where its form is free. Each takes a hundred
/// times the memory of its text, so this is what bounds a request.
const VALUES: usize = 200_000;

/// Any JSON of a bounded size.
pub(super) fn value(json: &str) -> Option<Value> {
    let mut values = 1;
    let mut letters = json.bytes();
    while let Some(letter) = letters.next() {
        match letter {
            b'"' => skip_text(&mut letters),
            b',' | b'[' | b'{' => values += 1,
            _ => {}
        }
    }
    if values > VALUES { None } else { read(json) }
}

/// Goes past the end of a JSON string that is known to have one.
fn skip_text(letters: &mut std::str::Bytes<'_>) {
    while let Some(letter) = letters.next() {
        match letter {
            b'"' => return,
            b'\\' => _ = letters.next(),
            _ => {}
        }
    }
}

/// An object of any content.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Object(pub(super) Map<String, Value>);

impl Field for Object {
    fn allowed() -> String {
        format!("an object of at most {VALUES} values")
    }

    fn parse(json: &str) -> Option<Self> {
        match value(json)? {
            Value::Object(object) => Some(Self(object)),
            _ => None,
        }
    }

    fn schema() -> Schema {
        typed(Type::Object).into()
    }
}

/// A list of objects of any content.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Objects(pub(super) Vec<Value>);

impl Field for Objects {
    fn allowed() -> String {
        format!("a list of objects, of at most {VALUES} values")
    }

    fn parse(json: &str) -> Option<Self> {
        match value(json)? {
            Value::Array(list) if list.iter().all(Value::is_object) => Some(Self(list)),
            _ => None,
        }
    }

    fn schema() -> Schema {
        ArrayBuilder::new().items(typed(Type::Object)).into()
    }
}

/// How many prompts one request may bring.
const PROMPTS: usize = 256;

/// The prompts of a completion, one at least.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Prompts {
    /// Texts.
    Texts(Vec<String>),
    /// Token ids.
    Tokens(Vec<Vec<u32>>),
}

impl Prompts {
    /// How many.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Tokens(lists) => lists.len(),
        }
    }
}

impl Field for Prompts {
    fn allowed() -> String {
        format!("a text, a list of token ids, or a list of 1 to {PROMPTS} of either")
    }

    fn parse(json: &str) -> Option<Self> {
        let prompts = match json.as_bytes() {
            [b'"', ..] => Self::Texts(vec![read(json)?]),
            _ => list_of_prompts(json)?,
        };
        (prompts.count() > 0).then_some(prompts)
    }

    fn schema() -> Schema {
        let text = || typed(Type::String);
        let ids = || ArrayBuilder::new().items(id());
        let texts = ArrayBuilder::new().items(text()).max_items(Some(PROMPTS));
        let lists = ArrayBuilder::new().items(ids()).max_items(Some(PROMPTS));
        let one = OneOfBuilder::new().item(text()).item(ids());
        one.item(texts).item(lists).into()
    }
}

/// Told apart by how the first element begins.
fn list_of_prompts(json: &str) -> Option<Prompts> {
    let inside = json.strip_prefix('[')?.trim_start();
    match inside.as_bytes().first()? {
        b'"' => read::<Few<String, PROMPTS>>(json).map(|Few(texts)| Prompts::Texts(texts)),
        b'[' => read::<Few<Vec<u32>, PROMPTS>>(json).map(|Few(lists)| Prompts::Tokens(lists)),
        b']' => None,
        _ => read(json).map(|ids| Prompts::Tokens(vec![ids])),
    }
}

/// What a stream is to tell beside its tokens.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize, Debug)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: Option<bool>,
    #[serde(default)]
    pub(super) continuous_usage_stats: Option<bool>,
}

impl Field for StreamOptions {
    fn allowed() -> String {
        "an object with include_usage and continuous_usage_stats, each true or false".into()
    }

    fn parse(json: &str) -> Option<Self> {
        // A list would do for a struct as well.
        json.starts_with('{').then(|| read(json)).flatten()
    }

    fn schema() -> Schema {
        typed(Type::Object)
            .property("include_usage", typed(Type::Boolean))
            .property("continuous_usage_stats", typed(Type::Boolean))
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: Field + PartialEq + fmt::Debug>(json: &str, expected: Option<T>) {
        assert_eq!(T::parse(json), expected, "{json}");
    }

    #[test]
    fn numbers_stay_in_their_range() {
        check("0", Some(Real::<0, 2>(0.0)));
        check("2", Some(Real::<0, 2>(2.0)));
        check("2.0001", None::<Real<0, 2>>);
        check("-0.1", None::<Real<0, 2>>);
        check("1e999", None::<Real<0, 2>>);
        check("\"1\"", None::<Real<0, 2>>);
        check("1", Some(Share(1.0)));
        check("0", None::<Share>);
        check("0.5", Some(Positive(0.5)));
        check("0", None::<Positive>);
        check("5.0", Some(Whole::<1, 128>(5)));
        check("5.5", None::<Whole<1, 128>>);
        check("129", None::<Whole<1, 128>>);
        check("-1", Some(Whole::<-1, MOST>(-1)));
        check(
            "-9223372036854775808",
            Some(Whole::<{ i64::MIN }, { i64::MAX }>(i64::MIN)),
        );
        check(
            "9223372036854775808",
            None::<Whole<{ i64::MIN }, { i64::MAX }>>,
        );
        check("true", None::<Whole<0, 1>>);
    }

    #[test]
    fn lists_are_bounded() {
        check("[1, 2]", Some(TokenIds::<2>(vec![1, 2])));
        check("[1, 2, 3]", None::<TokenIds<2>>);
        check("[-1]", None::<TokenIds<2>>);
        check("\"a\"", Some(StopTexts(vec!["a".into()])));
        check(
            "[\"a\", \"b\"]",
            Some(StopTexts(vec!["a".into(), "b".into()])),
        );
        check("[]", Some(StopTexts(vec![])));
        check("[\"\"]", None::<StopTexts>);
        check(&format!("{:?}", ["x"; 17]), None::<StopTexts>);
        check(r#"{"7": -100}"#, Some(Bias([(7, -100.0)].into())));
        check(r#"{"7": 101}"#, None::<Bias>);
        check(r#"{"x": 1}"#, None::<Bias>);
        check("{\"a\": 1}", Object::parse("{\"a\":1}"));
        check("[1]", None::<Object>);
        check("[{}]", Some(Objects(vec![Value::Object(Map::new())])));
        check("[{}, 1]", None::<Objects>);
        let many = format!("[{}1]", "1,".repeat(VALUES));
        assert_eq!(value(&many), None);
        let commas = format!("\"{}\\\"\"", ",".repeat(VALUES));
        assert!(value(&commas).is_some(), "a comma in a text is no value");
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(value(&deep), None);
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let texts = |texts: &[&str]| {
            Some(Prompts::Texts(
                texts.iter().map(ToString::to_string).collect(),
            ))
        };
        let tokens = |lists: &[&[u32]]| {
            Some(Prompts::Tokens(
                lists.iter().map(|list| list.to_vec()).collect(),
            ))
        };
        check("\"a\"", texts(&["a"]));
        check("[\"a\", \"b\"]", texts(&["a", "b"]));
        check("[ 1,2]", tokens(&[&[1, 2]]));
        check("[[1], [2, 3]]", tokens(&[&[1], &[2, 3]]));
        for json in [
            "[]",
            "1",
            "null",
            "{}",
            "[1, \"a\"]",
            "[[\"a\"]]",
            "[-1]",
            "[1.5]",
        ] {
            check(json, None::<Prompts>);
        }
        check(&format!("{:?}", ["x"; 257]), None::<Prompts>);
    }

    #[test]
    fn stream_options_may_say_less() {
        let options = |include_usage, continuous_usage_stats| StreamOptions {
            include_usage,
            continuous_usage_stats,
        };
        check("{}", Some(options(None, None)));
        check(
            "{\"include_usage\": true, \"other\": 1}",
            Some(options(Some(true), None)),
        );
        check("{\"include_usage\": null}", Some(options(None, None)));
        check("{\"include_usage\": 1}", None::<StreamOptions>);
        check("[true]", None::<StreamOptions>);
    }
}
