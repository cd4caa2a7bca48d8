//! Dollars, counted exactly: prices, costs and budgets.

use std::fmt;
use std::iter::Sum;
use std::ops::Add;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::{Form, Value};

/// Parts of a dollar that are counted: so small that a price of a millionth of a dollar for a million
/// tokens is a whole number for each token.
const DOLLAR: u64 = 1_000_000_000_000;

/// Digits behind the point of an amount as it is written.
const DIGITS: usize = 6;

/// The largest amount that is written down, in dollars.
const MOST: u64 = 1_000_000;

/// An amount of dollars. What would be more than 18 million stays that.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Money(u64);

impl Money {
    /// What is left of it after `other`; nothing if that is more.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// As a number, which may be inexact: for metrics and for people.
    pub fn dollars(self) -> f64 {
        #[expect(
            clippy::cast_precision_loss,
            reason = "53 bits are more than anybody reads"
        )]
        let parts = self.0 as f64;
        parts / 1e12
    }

    /// What `tokens` cost, if a million of them costs this.
    #[must_use]
    pub fn for_tokens(self, tokens: u64) -> Self {
        Self((self.0 / 1_000_000).saturating_mul(tokens))
    }
}

impl Add for Money {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// Exact, with as many digits as it takes.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / DOLLAR, self.0 % DOLLAR);
        match format!("{rest:012}").trim_end_matches('0') {
            "" => write!(f, "{whole}"),
            rest => write!(f, "{whole}.{rest}"),
        }
    }
}

/// A number of dollars, as whoever adds up a ledger wants it: exact up to a thousand of them.
impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.dollars())
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parts = f64::deserialize(deserializer)? * 1e12;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "what is out of range becomes the nearest that is in it"
        )]
        let parts = parts.round() as u64;
        Ok(Self(parts))
    }
}

impl Value for Money {
    const FORM: Form = Form::plain(
        "DOLLARS",
        "an amount of dollars from 0 to 1000000 with at most 6 digits behind the point, like 0.15",
    );

    fn parse(text: &str) -> Option<Self> {
        let amount = Self::exact(text)?;
        let digits = text.split_once('.').map_or(0, |(_, rest)| rest.len());
        (digits <= DIGITS && amount.0 <= MOST * DOLLAR).then_some(amount)
    }
}

impl Money {
    /// The same of a number.
    pub fn from_dollars(dollars: f64) -> Option<Self> {
        let micros = (dollars * 1e6).round();
        #[expect(clippy::cast_precision_loss, reason = "a million millions has 40 bits")]
        let most = (MOST * 1_000_000) as f64;
        // Both are the number that is nearest to the same fraction.
        let exact = micros / 1e6 == dollars && (0.0..=most).contains(&micros);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number of at most a million millions"
        )]
        let parts = || Self(micros as u64 * (DOLLAR / 1_000_000));
        exact.then(parts)
    }

    /// Reads what [`Display`](fmt::Display) writes.
    pub fn exact(text: &str) -> Option<Self> {
        let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
            plain.then(|| digits.parse::<u64>().ok()).flatten()
        };
        let parts = (rest.len() <= 12).then(|| number(&format!("{rest:0<12}")))??;
        let plain = rest.bytes().all(|digit| digit.is_ascii_digit()) && !rest.is_empty();
        let whole = number(whole)?.checked_mul(DOLLAR)?;
        plain.then(|| whole.checked_add(parts)).flatten().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_read_and_written_exactly() {
        for text in ["0", "0.15", "12.5", "1000000", "0.000001"] {
            assert_eq!(Money::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "1000000.5",
            "0.0000001",
            "1,5",
            "1.5é",
        ] {
            assert_eq!(Money::parse(text), None, "{text}");
        }
        assert_eq!(Money::parse("2.50").unwrap().to_string(), "2.5");
    }

    #[test]
    fn a_token_costs_its_part_of_a_million() {
        let price = Money::parse("0.000001").unwrap();
        assert_eq!(price.for_tokens(1).to_string(), "0.000000000001");
        let price = Money::parse("0.15").unwrap();
        assert_eq!(price.for_tokens(2_000_000).to_string(), "0.3");
        assert_eq!(price.for_tokens(u64::MAX).0, u64::MAX);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(parts: u64) {
            prop_assert_eq!(Money::exact(&Money(parts).to_string()), Some(Money(parts)));
        }

        #[test]
        fn a_number_is_what_its_text_is(micros in 0..MOST * 1_000_000) {
            let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
            prop_assert_eq!(Money::from_dollars(text.parse().unwrap()), Money::parse(&text));
            prop_assert_eq!(Money::from_dollars(0.1234567), None);
        }

        #[test]
        fn a_thousand_dollars_go_through_json_exactly(parts in 0..1000 * DOLLAR) {
            let json = serde_json::to_string(&Money(parts)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Money>(&json).unwrap(), Money(parts));
        }
    }
}
