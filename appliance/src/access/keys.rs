//! The keys of clients: one JSON object a line, each with who it is, what it may use, and how much.
//!
//! Only the SHA-256 of a key is stored. A key is 32 random bytes, so that a plain digest is as good as a
//! slow one: there is nothing to guess.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value as Json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::money::Money;
use crate::config::{Value as _, nearest_of};

/// The most keys: each is compared with what a request brings, and has its own series in the metrics.
pub const MOST: usize = 1000;

/// The most bytes that hold keys.
const TEXT: usize = 1 << 20;

/// The longest id of a key and name of a project.
const NAME: usize = 64;

/// The most models that a key may list.
const MODELS: usize = 100;

/// The farthest that a key's priority is from 0.
pub const PRIORITY: i32 = 1000;

/// The fields of a key, in the order in which they are written.
const FIELDS: [&str; 11] = [
    "id",
    "sha256",
    "project",
    "models",
    "requests-per-minute",
    "tokens-per-minute",
    "concurrent",
    "budget-per-day",
    "budget-per-month",
    "priority",
    "expires",
];

/// Why keys are no good. Nothing of what is secret stands in it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeysError {
    /// There is none, and a server whose keys are gone must not be open to all.
    #[error(
        "there are no keys: make one with `appliance keys new --id NAME`, or leave the setting out to \
         serve anybody"
    )]
    None,
    /// They are too many, or too long.
    #[error("the keys are more than {MOST}, or longer than 1 MiB: remove those that nobody uses")]
    TooMany,
    /// A line is not a key.
    #[error("line {line} of the keys: {why}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        why: KeyError,
    },
}

/// Why a line is not a key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// It is no JSON.
    #[error("not a JSON object of one line: look at column {0}")]
    Json(usize),
    /// It has a field that no key has.
    #[error("there is no field {field:?}; did you mean {nearest:?}?")]
    Unknown {
        /// The field.
        field: String,
        /// The field whose name is nearest.
        nearest: &'static str,
    },
    /// A field that every key has is missing.
    #[error("{0:?} is missing: `appliance keys new` writes the whole line")]
    Missing(&'static str),
    /// A field's value is not of its form.
    #[error("{field:?} is not {allowed}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Another line has the same id or the same key.
    #[error("its {0:?} stands in another line too: each key has its own")]
    Twice(&'static str),
}

/// What a key may use up. `None` is as much as it likes.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Allowance {
    /// Requests that may begin within a minute.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens within a minute, prompts and answers together.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Requests at the same time.
    pub concurrent: Option<NonZeroU32>,
    /// What a day of UTC may cost.
    pub budget_per_day: Option<Money>,
    /// What a month of UTC may cost.
    pub budget_per_month: Option<Money>,
}

/// One client's key: who it is and what it may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    /// Its name in logs, metrics and the ledger.
    pub id: String,
    /// What it is counted under.
    pub project: String,
    /// The models it may use; `None` is all.
    pub models: Option<Vec<String>>,
    /// How much it may use.
    pub allowance: Allowance,
    /// Whose requests go first: lower is earlier.
    pub priority: i32,
    /// When it ends.
    pub expires: Option<Timestamp>,
    digest: Sum,
}

/// The SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sum([u8; 32]);

impl fmt::Debug for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sum(..)")
    }
}

/// The project of keys that name none.
pub const PROJECT: &str = "default";

/// The id that stands for whoever asks a server without keys.
pub const ANYONE: &str = "anyone";

impl Key {
    /// A key of that id whose secret is `secret`, with no limit.
    pub fn new(id: &str, secret: &str) -> Self {
        Self {
            id: id.to_owned(),
            project: PROJECT.to_owned(),
            models: None,
            allowance: Allowance::default(),
            priority: 0,
            expires: None,
            digest: Sum(Sha256::digest(secret).into()),
        }
    }

    /// Whoever asks a server that has no keys.
    pub fn anyone() -> Self {
        Self::new(ANYONE, "")
    }

    /// Whether it may use the model of that name.
    pub fn may_use(&self, model: &str) -> bool {
        let listed = |models: &Vec<String>| models.iter().any(|name| name == model);
        self.models.as_ref().is_none_or(listed)
    }

    fn parse(line: &str) -> Result<Self, KeyError> {
        let object: Map<String, Json> =
            serde_json::from_str(line).map_err(|error| KeyError::Json(error.column()))?;
        let unknown = object.keys().find(|name| !FIELDS.contains(&name.as_str()));
        if let Some(field) = unknown {
            return Err(KeyError::Unknown {
                nearest: nearest_of(field, FIELDS.into_iter()),
                field: field.chars().take(NAME).collect(),
            });
        }
        let fields = Fields(object);
        let read_name = |value: &Json| {
            value
                .as_str()
                .filter(|text| is_name(text))
                .map(str::to_owned)
        };
        let count = |value: &Json| {
            u32::try_from(value.as_u64()?)
                .ok()
                .and_then(NonZeroU32::new)
        };
        let id = fields.needed("id", NAMES, |value| {
            read_name(value).filter(|id| id != ANYONE)
        })?;
        Ok(Self {
            id,
            digest: fields.needed("sha256", "64 hexadecimal digits", |value| {
                digest(value.as_str()?)
            })?,
            project: (fields.optional("project", NAMES, read_name)?).unwrap_or(PROJECT.to_owned()),
            models: fields.optional("models", "a list of 1 to 100 names of models", models)?,
            allowance: Allowance {
                requests_per_minute: fields.optional("requests-per-minute", COUNT, count)?,
                tokens_per_minute: fields.optional("tokens-per-minute", COUNT, count)?,
                concurrent: fields.optional("concurrent", COUNT, count)?,
                budget_per_day: fields.optional("budget-per-day", Money::FORM.allowed, money)?,
                budget_per_month: fields.optional(
                    "budget-per-month",
                    Money::FORM.allowed,
                    money,
                )?,
            },
            priority: fields
                .optional("priority", PRIORITIES, priority)?
                .unwrap_or(0),
            expires: fields.optional("expires", TIMES, |value| value.as_str()?.parse().ok())?,
        })
    }
}

const NAMES: &str =
    "a name of 1 to 64 letters, digits and any of . _ -, nor \"anyone\", which stands for no key";
const COUNT: &str = "a whole number from 1 to 4294967295";
const PRIORITIES: &str = "a whole number from -1000, which goes first, to 1000";
const TIMES: &str = "a time like 2027-01-31T00:00:00Z";

/// Whether `text` may be the id of a key or the name of a project: it stands in logs and metrics.
pub fn is_name(text: &str) -> bool {
    let plain = |letter: u8| letter.is_ascii_alphanumeric() || b"._-".contains(&letter);
    (1..=NAME).contains(&text.len()) && text.bytes().all(plain)
}

fn digest(text: &str) -> Option<Sum> {
    let mut sum = [0; 32];
    let plain = text.len() == 64 && text.is_ascii();
    for (byte, at) in sum.iter_mut().zip((0..).step_by(2)) {
        let digits = plain.then(|| &text[at..at + 2])?;
        let hexadecimal = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = hexadecimal
            .then(|| u8::from_str_radix(digits, 16).ok())
            .flatten()?;
    }
    Some(Sum(sum))
}

fn models(value: &Json) -> Option<Vec<String>> {
    let names = value
        .as_array()?
        .iter()
        .map(|name| name.as_str().map(str::to_owned));
    let names: Vec<String> = names.collect::<Option<_>>()?;
    (1..=MODELS).contains(&names.len()).then_some(names)
}

fn money(value: &Json) -> Option<Money> {
    Money::from_dollars(value.as_f64()?)
}

fn priority(value: &Json) -> Option<i32> {
    let priority = i32::try_from(value.as_i64()?).ok()?;
    (-PRIORITY..=PRIORITY)
        .contains(&priority)
        .then_some(priority)
}

/// The fields of a line.
struct Fields(Map<String, Json>);

impl Fields {
    /// The field `name` as `read` has it; null is as good as absent.
    fn optional<T>(
        &self,
        name: &'static str,
        allowed: &'static str,
        read: impl FnOnce(&Json) -> Option<T>,
    ) -> Result<Option<T>, KeyError> {
        let invalid = KeyError::Invalid {
            field: name,
            allowed,
        };
        match self.0.get(name) {
            None | Some(Json::Null) => Ok(None),
            Some(value) => read(value).map(Some).ok_or(invalid),
        }
    }

    fn needed<T>(
        &self,
        name: &'static str,
        allowed: &'static str,
        read: impl FnOnce(&Json) -> Option<T>,
    ) -> Result<T, KeyError> {
        self.optional(name, allowed, read)?
            .ok_or(KeyError::Missing(name))
    }
}

/// The line that stores it: what [`Keys::parse`] reads.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |text: &str| Some(Json::from(text).to_string());
        let sum: String = self
            .digest
            .0
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let models = self
            .models
            .as_ref()
            .map(|models| Json::from(models.clone()).to_string());
        let count = |count: Option<NonZeroU32>| count.map(|count| count.to_string());
        let money = |money: Option<Money>| money.map(|money| money.to_string());
        let Allowance {
            requests_per_minute,
            tokens_per_minute,
            concurrent,
            budget_per_day,
            budget_per_month,
        } = self.allowance;
        let values = [
            text(&self.id),
            text(&sum),
            (self.project != PROJECT)
                .then(|| text(&self.project))
                .flatten(),
            models,
            count(requests_per_minute),
            count(tokens_per_minute),
            count(concurrent),
            money(budget_per_day),
            money(budget_per_month),
            (self.priority != 0).then(|| self.priority.to_string()),
            self.expires.and_then(|time| text(&time.to_string())),
        ];
        let fields = FIELDS.iter().zip(values);
        let fields = fields.filter_map(|(name, value)| Some(format!("\"{name}\":{}", value?)));
        write!(f, "{{{}}}", fields.collect::<Vec<_>>().join(","))
    }
}

/// All keys of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keys(Vec<Arc<Key>>);

impl Keys {
    /// Reads one key a line. Empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// The first line that is no key: then none of them counts.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        if text.len() > TEXT {
            return Err(KeysError::TooMany);
        }
        let mut keys: Vec<Arc<Key>> = Vec::new();
        for (line, text) in (1..).zip(text.lines().map(str::trim)) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let key = Key::parse(text).and_then(|key| {
                match keys
                    .iter()
                    .find(|other| other.id == key.id || other.digest == key.digest)
                {
                    Some(other) if other.id == key.id => Err(KeyError::Twice("id")),
                    Some(_) => Err(KeyError::Twice("sha256")),
                    None => Ok(key),
                }
            });
            keys.push(Arc::new(key.map_err(|why| KeysError::Line { line, why })?));
            if keys.len() > MOST {
                return Err(KeysError::TooMany);
            }
        }
        match keys.is_empty() {
            true => Err(KeysError::None),
            false => Ok(Self(keys)),
        }
    }

    /// The key whose secret is `secret`. How long it takes does not tell how near a guess was.
    pub fn find(&self, secret: &[u8]) -> Option<&Arc<Key>> {
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let mut found = None;
        for key in &self.0 {
            if bool::from(key.digest.0.ct_eq(&digest)) {
                found = Some(key);
            }
        }
        found
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SUM: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    #[track_caller]
    fn refused(line: &str) -> KeyError {
        match Keys::parse(line) {
            Err(KeysError::Line { line: 1, why }) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_is_found_by_its_secret_and_nothing_else() {
        let line = format!("# ours\n\n{{\"id\":\"team-a\",\"sha256\":\"{SUM}\"}}\n");
        let keys = Keys::parse(&line).unwrap();
        assert_eq!(keys.find(b"secret").unwrap().id, "team-a");
        for other in ["", "secre", "secret ", SUM] {
            assert_eq!(keys.find(other.as_bytes()), None);
        }
        assert!(!format!("{keys:?}").contains(&SUM[..8]));
    }

    #[test]
    fn every_field_is_read() {
        let line = format!(
            r#"{{"id":"a","sha256":"{SUM}","project":"p","models":["m"],"requests-per-minute":60,
            "tokens-per-minute":1000,"concurrent":2,"budget-per-day":1.5,"budget-per-month":20,
            "priority":-3,"expires":"2027-01-01T00:00:00Z"}}"#
        );
        let keys = Keys::parse(&line.replace('\n', " ")).unwrap();
        let key = keys.iter().next().unwrap();
        assert_eq!((key.project.as_str(), key.priority), ("p", -3));
        assert!(key.may_use("m") && !key.may_use("n"));
        let Allowance {
            requests_per_minute,
            tokens_per_minute,
            concurrent,
            budget_per_day,
            budget_per_month,
        } = key.allowance;
        assert_eq!(requests_per_minute, NonZeroU32::new(60));
        assert_eq!(tokens_per_minute, NonZeroU32::new(1000));
        assert_eq!(concurrent, NonZeroU32::new(2));
        assert_eq!(budget_per_day, Money::parse("1.5"));
        assert_eq!(budget_per_month, Money::parse("20"));
        assert_eq!(key.expires.unwrap().to_string(), "2027-01-01T00:00:00Z");
    }

    #[test]
    fn what_is_no_key_is_refused_with_its_line_and_no_secret() {
        let key = |more: &str| format!("{{\"id\":\"a\",\"sha256\":\"{SUM}\"{more}}}");
        let unknown = refused(&key(",\"request-per-minute\":1"));
        assert_eq!(
            unknown.to_string(),
            "there is no field \"request-per-minute\"; did you mean \"requests-per-minute\"?"
        );
        let why = refused("\"sk-verysecret\"").to_string();
        assert!(
            why.contains("not a JSON object") && !why.contains("very"),
            "{why}"
        );
        assert_eq!(refused("{\"id\":\"a\"}"), KeyError::Missing("sha256"));
        for (more, field) in [
            (",\"requests-per-minute\":0", "requests-per-minute"),
            (",\"concurrent\":1.5", "concurrent"),
            (",\"budget-per-day\":-1", "budget-per-day"),
            (",\"budget-per-day\":\"1\"", "budget-per-day"),
            (",\"models\":[]", "models"),
            (",\"priority\":1001", "priority"),
            (",\"expires\":\"tomorrow\"", "expires"),
            (",\"project\":\"a b\"", "project"),
        ] {
            let why = refused(&key(more));
            assert!(
                matches!(why, KeyError::Invalid { field: told, .. } if told == field),
                "{why}"
            );
        }
        let short = format!("{{\"id\":\"a\",\"sha256\":\"{}\"}}", &SUM[1..]);
        assert!(!refused(&short).to_string().contains(&SUM[1..9]));
        let twice = format!("{}\n{}", key(""), key("").replace("\"a\"", "\"b\""));
        let error = Keys::parse(&twice).unwrap_err();
        assert!(matches!(
            error,
            KeysError::Line {
                line: 2,
                why: KeyError::Twice("sha256")
            }
        ));
        assert_eq!(Keys::parse("\n# none\n"), Err(KeysError::None));
        assert!(matches!(
            refused(&key("").replace("\"a\"", "\"anyone\"")),
            KeyError::Invalid { .. }
        ));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            Keys::parse(&text).ok();
        }

        #[test]
        fn anything_like_a_key_is_read_or_refused_without_a_part_of_it(
            text in "[\\{\\}\\[\\]\",:a-z0-9 \n-]{0,200}"
        ) {
            Keys::parse(&text).ok();
        }

        #[test]
        fn what_is_written_is_read_back(
            id in "[a-z0-9._-]{1,64}", project in "[A-Z]{1,8}", secret: String,
            models in proptest::option::of(proptest::collection::vec(any::<String>(), 1..4)),
            counts: [Option<NonZeroU32>; 3], budgets: [Option<u32>; 2],
            priority in -PRIORITY..=PRIORITY, expires in proptest::option::of(0_i64..4_000_000_000),
        ) {
            prop_assume!(id != ANYONE);
            let [requests_per_minute, tokens_per_minute, concurrent] = counts;
            let micros = |micros: u32| {
                let (whole, rest) = (micros / 1_000_000, micros % 1_000_000);
                Money::parse(&format!("{whole}.{rest:06}"))
            };
            let [budget_per_day, budget_per_month] = budgets.map(|budget| budget.and_then(micros));
            let key = Key {
                project,
                models,
                allowance: Allowance {
                    requests_per_minute, tokens_per_minute, concurrent, budget_per_day, budget_per_month,
                },
                priority,
                expires: expires.map(|at| Timestamp::from_second(at).unwrap()),
                ..Key::new(&id, &secret)
            };
            let keys = Keys::parse(&key.to_string()).unwrap();
            prop_assert_eq!(keys.find(secret.as_bytes()).map(|key| (**key).clone()), Some(key));
        }
    }
}
