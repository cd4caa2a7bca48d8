//! The body of a request: an object whose fields are taken one by one, each as its form, so that
//! every error names the field. What nobody took is what was ignored.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, header};
use bytes::BytesMut;
use futures_util::StreamExt as _;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Api;
use super::error::ApiError;
use super::field::{self, Field};
use crate::access::Caller;
use crate::served::Served;

/// How many fields a body may have; we know some sixty.
const FIELDS: usize = 1000;
/// How many letters of a value stand in an error.
const SHOWN: usize = 60;

/// A request with a body of JSON, for the model that is served.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) served: Arc<Served>,
    pub(super) body: Held,
    /// Who asks.
    pub(super) caller: Caller,
}

/// The bytes of a body. They count among those that all requests together may hold.
#[derive(Debug)]
pub(super) struct Held {
    bytes: BytesMut,
    share: Option<OwnedSemaphorePermit>,
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl FromRequest<Arc<Api>> for Asked {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, ApiError> {
        let served = api.served()?;
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| ApiError::internal("This place has no guard."))?;
        if !caller.may_use(&served.name) {
            return Err(ApiError::forbidden_model(caller.id(), &served.name));
        }
        let headers = request.headers();
        if !is_json(headers) {
            return Err(ApiError::not_json());
        }
        let limit = api.context.settings.now().body_limit.0;
        let said = text(headers, header::CONTENT_LENGTH).and_then(|said| said.parse().ok());
        if said.is_some_and(|said: u64| said > limit) {
            return Err(ApiError::too_large(limit));
        }
        let body = Held::read(request.into_body(), limit, &api.bodies).await?;
        Ok(Self {
            served,
            body,
            caller,
        })
    }
}

impl Held {
    /// Reads a whole body of at most `limit` bytes, as long as `all` has room for it.
    async fn read(body: Body, limit: u64, all: &Arc<Semaphore>) -> Result<Self, ApiError> {
        let mut held = Self {
            bytes: BytesMut::new(),
            share: None,
        };
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| ApiError::cut_off(&error.to_string()))?;
            if (held.bytes.len() + chunk.len()) as u64 > limit {
                return Err(ApiError::too_large(limit));
            }
            held.push(&chunk, all)?;
        }
        Ok(held)
    }

    fn push(&mut self, chunk: &[u8], all: &Arc<Semaphore>) -> Result<(), ApiError> {
        let busy = || ApiError::unavailable("The server is busy: too much is being sent to it.", 1);
        let share = u32::try_from(chunk.len()).map_err(|_| busy())?;
        let share = all
            .clone()
            .try_acquire_many_owned(share)
            .map_err(|_| busy())?;
        match &mut self.share {
            Some(all) => all.merge(share),
            none => *none = Some(share),
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }
}

/// Asking for JSON by name also keeps out other sites' pages in a visitor's browser: a page may
/// send anything else anywhere without being asked.
fn is_json(headers: &HeaderMap) -> bool {
    let name = text(headers, header::CONTENT_TYPE).and_then(|value| value.split(';').next());
    name.is_some_and(|name| name.trim().eq_ignore_ascii_case("application/json"))
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// The fields of a body that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    fields: BTreeMap<String, &'a RawValue>,
}

impl<'a> Fields<'a> {
    /// Reads `body`, an object.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        let text = std::str::from_utf8(body).map_err(|error| {
            let at = error.valid_up_to();
            ApiError::bad_request(format!("The body is not UTF-8: look at byte {at}."))
        })?;
        serde_json::from_str(text)
            .map_err(|error| ApiError::bad_request(format!("The body is not valid: {error}.")))
    }

    /// Takes the field `name`; absent and null are `None`.
    pub(super) fn take<T: Field>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(json) = self.take_raw(name) else {
            return Ok(None);
        };
        let invalid = || {
            let allowed = T::allowed();
            let message = format!("`{name}` is {}, but must be {allowed}.", shown(json));
            ApiError::invalid(name, message)
        };
        T::parse(json).map(Some).ok_or_else(invalid)
    }

    /// Refuses the field `name`, unless its value is one of `harmless`. `advice` says what to do.
    pub(super) fn refuse(
        &mut self,
        name: &str,
        harmless: &[&str],
        advice: &str,
    ) -> Result<(), ApiError> {
        let Some(json) = self.take_raw(name) else {
            return Ok(());
        };
        let value = field::value(json);
        let is = |text: &&str| value.is_some() && field::value(text) == value;
        if harmless.iter().any(is) {
            return Ok(());
        }
        let message = format!(
            "`{name}` is {}, which is not supported: {advice}.",
            shown(json)
        );
        Err(ApiError::invalid(name, message))
    }

    /// Drops the field `name`, whatever it holds.
    pub(super) fn drop(&mut self, name: &str) {
        self.fields.remove(name);
    }

    fn take_raw(&mut self, name: &str) -> Option<&'a str> {
        let json = self.fields.remove(name).map(RawValue::get);
        json.filter(|json| *json != "null")
    }

    /// The names of what is left, for the header `x-appliance-ignored`; those of `without_effect`
    /// change no answer and are not named.
    pub(super) fn ignored(self, without_effect: &[&str]) -> Option<HeaderValue> {
        let plain = |name: &str| {
            let letters = |letter: u8| letter.is_ascii_alphanumeric() || b"_-.".contains(&letter);
            !name.is_empty() && name.len() <= 64 && name.bytes().all(letters)
        };
        let named = |(name, json): &(&String, &&RawValue)| {
            json.get() != "null" && plain(name) && !without_effect.contains(&name.as_str())
        };
        let names: Vec<&str> = self
            .fields
            .iter()
            .filter(named)
            .map(|(name, _)| name.as_str())
            .take(32)
            .collect();
        let names = (!names.is_empty()).then(|| names.join(","))?;
        HeaderValue::from_str(&names).ok()
    }
}

/// The beginning of a value, to stand in an error.
fn shown(json: &str) -> String {
    match json.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}..", &json[..end]),
        None => json.to_owned(),
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = BTreeMap<String, &'de RawValue>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((name, json)) = map.next_entry()? {
                    fields.insert(name, json);
                    if fields.len() > FIELDS {
                        return Err(A::Error::custom(format!("more than {FIELDS} fields")));
                    }
                }
                Ok(fields)
            }
        }

        let fields = deserializer.deserialize_map(Entries)?;
        Ok(Self { fields })
    }
}

/// A table of fields: a struct in which each may be absent, how it is taken from a body, and how
/// it is described.
macro_rules! fields {
    ($(#[doc = $about:literal])+ $name:ident {
        $($(#[doc = $help:literal])+ $field:ident: $type:ty,)*
    }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug)]
        pub(super) struct $name {
            $($(#[doc = $help])+ pub(super) $field: Option<$type>,)*
        }

        impl $name {
            /// Takes all of them from a body.
            pub(super) fn take(
                fields: &mut $crate::api::body::Fields<'_>,
            ) -> Result<Self, $crate::api::error::ApiError> {
                Ok(Self { $($field: fields.take(stringify!($field))?,)* })
            }

            /// Each name, what it does, and its form.
            pub(super) fn described() -> Vec<$crate::api::body::Described> {
                use $crate::api::field::Field;
                vec![$((stringify!($field), concat!($($help),+).trim(), <$type>::schema()),)*]
            }
        }
    };
}
pub(super) use fields;

/// A field's name, what it does, and its form.
pub(super) type Described = (&'static str, &'static str, utoipa::openapi::schema::Schema);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::field::Real;

    #[track_caller]
    fn error(result: Result<impl fmt::Debug, ApiError>) -> String {
        serde_json::to_value(result.expect_err("refused").body()).unwrap()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    #[tokio::test]
    async fn bodies_are_bounded_one_by_one_and_all_together() {
        let all = Arc::new(Semaphore::new(10));
        let read = |text: &'static str, limit| Held::read(Body::from(text), limit, &all);
        let first = read("123456", 6).await.unwrap();
        assert_eq!(&first[..], b"123456");
        assert_eq!(read("1234567", 6).await.unwrap_err().status, 413);
        assert_eq!(read("12345", 6).await.unwrap_err().status, 503);
        drop(first);
        read("12345", 6).await.unwrap();
        assert_eq!(all.available_permits(), 10);
    }

    #[test]
    fn what_is_no_object_is_refused_with_its_place() {
        let cases: [(&[u8], &str); 5] = [
            (
                b"{\"a\": }",
                "The body is not valid: expected value at line 1 column 7.",
            ),
            (
                b"",
                "The body is not valid: EOF while parsing a value at line 1 column 0.",
            ),
            (
                b"[]",
                "The body is not valid: invalid type: sequence, expected an object at line 1 column 0.",
            ),
            (
                b"{} {}",
                "The body is not valid: trailing characters at line 1 column 4.",
            ),
            (
                b"{\"a\": \"\xff\"}",
                "The body is not UTF-8: look at byte 7.",
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(error(Fields::parse(body)), expected);
        }
        let many: Vec<String> = (0..=FIELDS).map(|i| format!("\"{i}\": 1")).collect();
        let many = format!("{{{}}}", many.join(","));
        assert!(error(Fields::parse(many.as_bytes())).contains("more than 1000 fields"));
        let deep = format!("{{\"a\": {}", "[".repeat(100_000));
        assert!(error(Fields::parse(deep.as_bytes())).contains("EOF"));
    }

    #[test]
    fn a_field_is_taken_once_and_errors_name_it() {
        let body = br#"{"t": 3, "n": null, "u": 1, "tools": [], "functions": [1]}"#;
        let mut fields = Fields::parse(body).unwrap();
        let message = "`t` is 3, but must be a number from 0 to 2.";
        assert_eq!(error(fields.take::<Real<0, 2>>("t")), message);
        assert_eq!(fields.take::<Real<0, 2>>("t").unwrap(), None);
        assert_eq!(fields.take::<bool>("n").unwrap(), None);
        fields.refuse("tools", &["[]"], "leave it out").unwrap();
        let message = "`functions` is [1], which is not supported: leave it out.";
        assert_eq!(
            error(fields.refuse("functions", &["[]"], "leave it out")),
            message
        );
        assert_eq!(fields.ignored(&[]).unwrap(), "u");
    }

    #[test]
    fn only_plain_names_of_what_has_an_effect_are_named() {
        let body = r#"{"b": 1, "a": false, "user": "x", "with,comma": 1, "é": 1, "null": null}"#;
        let ignored = Fields::parse(body.as_bytes()).unwrap().ignored(&["user"]);
        assert_eq!(ignored.unwrap(), "a,b");
        assert_eq!(Fields::parse(b"{}").unwrap().ignored(&[]), None);
    }

    #[test]
    fn long_values_are_cut_in_errors() {
        assert_eq!(shown("12"), "12");
        assert_eq!(shown(&"é".repeat(61)), "é".repeat(60) + "..");
    }
}
