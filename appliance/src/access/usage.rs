//! What was used, in all, this day and this month.

use std::ops::AddAssign;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::Offset;
use serde::{Deserialize, Serialize};

use super::money::Money;

/// The tokens of a request, or of many.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tokens {
    /// Of prompts, cached ones among them.
    pub input: u64,
    /// Of prompts, found in the prefix cache.
    pub cached: u64,
    /// Produced.
    pub output: u64,
}

/// What a million tokens cost.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Prices {
    /// Of a prompt.
    pub input: Money,
    /// Of a prompt, if the prefix cache has them.
    pub cached: Money,
    /// Of an answer.
    pub output: Money,
}

impl Prices {
    /// What `tokens` cost.
    pub fn cost(&self, tokens: Tokens) -> Money {
        let Tokens {
            input,
            cached,
            output,
        } = tokens;
        self.input.for_tokens(input.saturating_sub(cached))
            + self.cached.for_tokens(cached)
            + self.output.for_tokens(output)
    }

    /// The most that `input` and `output` tokens can cost, however much is cached.
    pub fn at_most(&self, input: u64, output: u64) -> Money {
        self.input.max(self.cached).for_tokens(input) + self.output.for_tokens(output)
    }
}

/// What requests came to.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Tally {
    /// How many ended.
    pub requests: u64,
    /// Tokens of their prompts.
    pub input_tokens: u64,
    /// Those of them that the prefix cache had.
    pub cached_tokens: u64,
    /// Tokens of their answers.
    pub output_tokens: u64,
    /// What they cost, in dollars.
    pub cost: Money,
}

impl Tally {
    /// Of one request.
    pub fn of(tokens: Tokens, cost: Money) -> Self {
        Self {
            requests: 1,
            input_tokens: tokens.input,
            cached_tokens: tokens.cached,
            output_tokens: tokens.output,
            cost,
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(other.cached_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.cost = self.cost + other.cost;
    }
}

/// What was used in all, and in the day and the month of UTC that it is.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Usage {
    /// Since the ledger began.
    pub total: Tally,
    /// On `date`.
    pub day: Tally,
    /// In the month of `date`.
    pub month: Tally,
    /// The day of the last look at it.
    pub date: Date,
}

impl Usage {
    /// Nothing yet.
    pub fn new(now: Timestamp) -> Self {
        Self {
            total: Tally::default(),
            day: Tally::default(),
            month: Tally::default(),
            date: date(now),
        }
    }

    /// Begins a new day and a new month if it is time. A clock that is set back begins nothing.
    pub fn turn(&mut self, now: Timestamp) {
        let today = date(now);
        if today <= self.date {
            return;
        }
        self.day = Tally::default();
        if (today.year(), today.month()) != (self.date.year(), self.date.month()) {
            self.month = Tally::default();
        }
        self.date = today;
    }

    /// Something was used. What belongs to a day before today counts for its month and in all.
    pub fn add(&mut self, tally: Tally, at: Timestamp) {
        self.turn(at);
        let on = date(at);
        self.total += tally;
        if on == self.date {
            self.day += tally;
        }
        if (on.year(), on.month()) == (self.date.year(), self.date.month()) {
            self.month += tally;
        }
    }
}

/// What two have used, if both are of the same day.
impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.day += other.day;
        self.month += other.month;
    }
}

fn date(at: Timestamp) -> Date {
    Offset::UTC.to_datetime(at).date()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Value as _;

    fn at(time: &str) -> Timestamp {
        time.parse().unwrap()
    }

    fn one() -> Tally {
        Tally::of(Tokens::default(), Money::default())
    }

    #[test]
    fn days_and_months_begin_anew_at_midnight_of_utc() {
        let mut usage = Usage::new(at("2027-01-30T23:59:59Z"));
        let mut used = |time, day, month, total| {
            usage.add(one(), at(time));
            let told = [usage.day, usage.month, usage.total].map(|tally| tally.requests);
            assert_eq!(told, [day, month, total], "{time}");
        };
        used("2027-01-30T23:59:59Z", 1, 1, 1);
        used("2027-01-31T00:00:00Z", 1, 2, 2);
        used("2027-01-31T12:00:00Z", 2, 3, 3);
        used("2027-01-30T12:00:00Z", 2, 4, 4);
        used("2027-02-01T00:00:00Z", 1, 1, 5);
        used("2027-01-31T23:00:00Z", 1, 1, 6);
        used("2028-02-01T00:00:00Z", 1, 1, 7);
    }

    #[test]
    fn cached_tokens_have_a_price_of_their_own() {
        let price = |text| Money::parse(text).unwrap();
        let prices = Prices {
            input: price("1"),
            cached: price("0.1"),
            output: price("2"),
        };
        let tokens = Tokens {
            input: 1_000_000,
            cached: 500_000,
            output: 1_000_000,
        };
        assert_eq!(prices.cost(tokens), price("2.55"));
        assert_eq!(prices.at_most(1_000_000, 1_000_000), price("3"));
    }
}
