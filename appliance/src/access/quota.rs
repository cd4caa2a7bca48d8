//! How much a key may still use: what a request may come to is taken before it begins, and what it did not
//! use is given back when it ends.

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::keys::Allowance;
use super::money::Money;
use super::usage::{Tally, Usage};

const MINUTE: Duration = Duration::from_secs(60);

/// What of its allowance a key has used up.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Over {
    /// Too many requests within a minute.
    #[error("the limit of {limit} requests per minute is reached")]
    Requests {
        /// The allowance.
        limit: NonZeroU32,
        /// After which there is room for one.
        wait: Duration,
    },
    /// Too many tokens within a minute.
    #[error("the limit of {limit} tokens per minute has no room for {asked} now")]
    Tokens {
        /// The allowance.
        limit: NonZeroU32,
        /// The prompt and the most that the answer may have.
        asked: u64,
        /// After which there is room for them.
        wait: Duration,
    },
    /// A prompt that no minute has room for.
    #[error("the prompt has {asked} tokens, and the limit is {limit} tokens per minute")]
    Prompt {
        /// The allowance.
        limit: NonZeroU32,
        /// Tokens of the prompt.
        asked: u64,
    },
    /// Too many requests at the same time.
    #[error("the limit of {limit} requests at the same time is reached")]
    Concurrent {
        /// The allowance.
        limit: NonZeroU32,
    },
    /// Too little money left.
    #[error(
        "the budget of {budget} dollars a {period} has {left} left, and this request may cost {asked}: ask \
         for fewer tokens, or wait for the next {period}"
    )]
    Budget {
        /// `day` or `month`.
        period: &'static str,
        /// The allowance.
        budget: Money,
        /// What of it is neither spent nor taken by requests that run.
        left: Money,
        /// The most that the request may cost.
        asked: Money,
    },
}

impl Over {
    /// Its name in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Requests { .. } => "requests",
            Self::Tokens { .. } | Self::Prompt { .. } => "tokens",
            Self::Concurrent { .. } => "concurrent",
            Self::Budget { .. } => "budget",
        }
    }

    /// After which another try makes sense; `None` if it does not.
    pub fn wait(&self) -> Option<Duration> {
        match self {
            Self::Requests { wait, .. } | Self::Tokens { wait, .. } => Some(*wait),
            Self::Concurrent { .. } => Some(Duration::from_secs(1)),
            Self::Prompt { .. } | Self::Budget { .. } => None,
        }
    }
}

/// A time, by the clock that only goes forward and by the one that people set.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For what is counted by the minute.
    pub instant: Instant,
    /// For days and months.
    pub wall: Timestamp,
}

impl Moment {
    /// This one.
    pub fn now() -> Self {
        Self {
            instant: Instant::now(),
            wall: Timestamp::now(),
        }
    }
}

/// An allowance by the minute: it fills evenly, up to a whole minute's worth.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// When it will be full if nothing more is taken.
    full: Instant,
}

impl Bucket {
    /// What `count` of `limit` a minute take to come back.
    fn time(limit: NonZeroU32, count: u64) -> Duration {
        let nanoseconds = MINUTE.as_nanos() * u128::from(count) / u128::from(limit.get());
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// How long until it is full.
    fn reset(self, now: Instant) -> Duration {
        self.full.saturating_duration_since(now)
    }

    /// What could be taken at once.
    fn room(self, limit: NonZeroU32, now: Instant) -> u64 {
        let there = MINUTE.saturating_sub(self.reset(now));
        let room = u128::from(limit.get()) * there.as_nanos() / MINUTE.as_nanos();
        u64::try_from(room).unwrap_or(u64::MAX)
    }

    /// Takes `count`, or says how long until that much is there.
    fn take(&mut self, limit: NonZeroU32, count: u64, now: Instant) -> Result<(), Duration> {
        let time = Self::time(limit, count);
        let over = (self.reset(now) + time).saturating_sub(MINUTE);
        if !over.is_zero() {
            return Err(over);
        }
        self.full = self.full.max(now) + time;
        Ok(())
    }

    /// Of `taken` only `used` was needed, or more.
    fn settle(&mut self, limit: NonZeroU32, taken: u64, used: u64) {
        let (taken, used) = (Self::time(limit, taken), Self::time(limit, used));
        self.full = match self.full.checked_sub(taken) {
            Some(before) => before.checked_add(used).unwrap_or(self.full),
            None => self.full,
        };
    }
}

/// What an allowance by the minute has left, as clients are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// The allowance.
    pub limit: NonZeroU32,
    /// What could be taken at once.
    pub remaining: u64,
    /// How long until it is whole again.
    pub reset: Duration,
}

/// What was taken for a request.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Tokens, and of which allowance.
    tokens: Option<(NonZeroU32, u64)>,
    money: Money,
}

/// What a key has used. It outlives every change of the key.
#[derive(Debug)]
pub struct Account(Mutex<State>);

#[derive(Debug)]
struct State {
    requests: Bucket,
    tokens: Bucket,
    running: u32,
    /// Taken by requests that have not ended.
    held: Money,
    usage: Usage,
}

impl Account {
    /// One that has used this much before.
    pub fn new(usage: Usage, now: Instant) -> Self {
        let full = Bucket { full: now };
        Self(Mutex::new(State {
            requests: full,
            tokens: full,
            running: 0,
            held: Money::default(),
            usage,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is whole, whatever panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins. Whoever was let in calls [`leave`](Self::leave) at its end.
    ///
    /// # Errors
    /// What there is too much of; then nothing was taken.
    pub fn enter(&self, allowance: &Allowance, now: Moment) -> Result<(), Over> {
        let mut state = self.state();
        if let Some(limit) = allowance.concurrent
            && state.running >= limit.get()
        {
            return Err(Over::Concurrent { limit });
        }
        if let Some(limit) = allowance.requests_per_minute {
            let taken = state.requests.take(limit, 1, now.instant);
            taken.map_err(|wait| Over::Requests { limit, wait })?;
        }
        state.running += 1;
        Ok(())
    }

    /// A request that was let in has ended. Returns how many still run.
    pub fn leave(&self) -> u32 {
        let mut state = self.state();
        state.running = state.running.saturating_sub(1);
        state.running
    }

    /// Takes what a request may come to: the tokens of its prompt, `most` of its answer, and `cost`.
    /// An answer that may have more than a minute's tokens takes all of them.
    ///
    /// # Errors
    /// What there is too little of; then nothing was taken.
    pub fn take(
        &self,
        allowance: &Allowance,
        prompt: u64,
        most: u64,
        cost: Money,
        now: Moment,
    ) -> Result<Taken, Over> {
        let mut state = self.state();
        state.usage.turn(now.wall);
        let budgets = [
            ("day", allowance.budget_per_day, state.usage.day.cost),
            ("month", allowance.budget_per_month, state.usage.month.cost),
        ];
        for (period, budget, spent) in budgets {
            let Some(budget) = budget else { continue };
            let left = budget.less(spent + state.held);
            if cost > left || spent >= budget {
                return Err(Over::Budget {
                    period,
                    budget,
                    left,
                    asked: cost,
                });
            }
        }
        let tokens = match allowance.tokens_per_minute {
            None => None,
            Some(limit) if prompt > u64::from(limit.get()) => {
                return Err(Over::Prompt {
                    limit,
                    asked: prompt,
                });
            }
            Some(limit) => {
                let asked = prompt.saturating_add(most).min(limit.get().into());
                let taken = state.tokens.take(limit, asked, now.instant);
                taken.map_err(|wait| Over::Tokens { limit, asked, wait })?;
                Some((limit, asked))
            }
        };
        state.held = state.held + cost;
        Ok(Taken {
            tokens,
            money: cost,
        })
    }

    /// A request has ended, or was not even begun: what was taken for it gives way to what it came to.
    pub fn settle(&self, taken: Taken, used: Option<Tally>, now: Moment) {
        let mut state = self.state();
        state.held = state.held.less(taken.money);
        let tokens = used.map_or(0, |used| used.input_tokens + used.output_tokens);
        if let Some((limit, taken)) = taken.tokens {
            state.tokens.settle(limit, taken, tokens);
        }
        if let Some(used) = used {
            state.usage.add(used, now.wall);
        }
    }

    /// What is left by the minute: of requests, and of tokens.
    pub fn rooms(&self, allowance: &Allowance, now: Moment) -> [Option<Room>; 2] {
        let state = self.state();
        let room = |limit: Option<NonZeroU32>, bucket: Bucket| {
            limit.map(|limit| Room {
                limit,
                remaining: bucket.room(limit, now.instant),
                reset: bucket.reset(now.instant),
            })
        };
        [
            room(allowance.requests_per_minute, state.requests),
            room(allowance.tokens_per_minute, state.tokens),
        ]
    }

    /// What was used, and how many requests run.
    pub fn standing(&self, now: Moment) -> (Usage, u32) {
        let mut state = self.state();
        state.usage.turn(now.wall);
        (state.usage, state.running)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::usage::Tokens;
    use super::*;
    use crate::config::Value as _;

    fn account() -> (Account, Moment) {
        let now = Moment::now();
        (Account::new(Usage::new(now.wall), now.instant), now)
    }

    fn later(now: Moment, milliseconds: u64) -> Moment {
        Moment {
            instant: now.instant + Duration::from_millis(milliseconds),
            wall: now.wall,
        }
    }

    fn money(text: &str) -> Money {
        Money::parse(text).unwrap()
    }

    fn used(input: u64, output: u64, cost: Money) -> Option<Tally> {
        let tokens = Tokens {
            input,
            cached: 0,
            output,
        };
        Some(Tally::of(tokens, cost))
    }

    #[test]
    fn requests_come_back_evenly() {
        let (account, now) = account();
        let allowance = Allowance {
            requests_per_minute: NonZeroU32::new(6),
            ..Allowance::default()
        };
        for _ in 0..6 {
            account.enter(&allowance, now).unwrap();
        }
        let over = account.enter(&allowance, now).unwrap_err();
        assert_eq!(over.wait(), Some(Duration::from_secs(10)));
        let [Some(room), None] = account.rooms(&allowance, later(now, 25_000)) else {
            panic!("an allowance of requests alone");
        };
        assert_eq!((room.remaining, room.reset), (2, Duration::from_secs(35)));
        account.enter(&allowance, later(now, 10_000)).unwrap();
        account.enter(&allowance, later(now, 10_000)).unwrap_err();
    }

    #[test]
    fn a_place_is_free_when_a_request_ends() {
        let (account, now) = account();
        let allowance = Allowance {
            concurrent: NonZeroU32::new(1),
            ..Allowance::default()
        };
        account.enter(&allowance, now).unwrap();
        assert_eq!(
            account.enter(&allowance, now).unwrap_err().reason(),
            "concurrent"
        );
        account.leave();
        account.enter(&allowance, now).unwrap();
    }

    #[test]
    fn tokens_that_were_not_used_are_given_back_at_once() {
        let (account, now) = account();
        let allowance = Allowance {
            tokens_per_minute: NonZeroU32::new(1000),
            ..Allowance::default()
        };
        let take = |prompt, most| account.take(&allowance, prompt, most, Money::default(), now);
        let first = take(100, 500).unwrap();
        let over = take(100, 500).unwrap_err();
        assert_eq!(over.wait(), Some(Duration::from_secs(12)));
        account.settle(first, used(100, 20, Money::default()), now);
        let [None, Some(room)] = account.rooms(&allowance, now) else {
            panic!("an allowance of tokens alone");
        };
        assert_eq!(room.remaining, 880);
        let second = take(100, 700).unwrap();
        account.settle(second, None, now);
        assert_eq!(account.standing(now).0.total.input_tokens, 100);
        assert!(matches!(take(1001, 1), Err(Over::Prompt { .. })));
        assert!(matches!(
            take(1000, 5000),
            Err(Over::Tokens { asked: 1000, .. })
        ));
    }

    #[test]
    fn a_budget_is_never_exceeded_and_begins_anew() {
        let (account, mut now) = account();
        now.wall = "2027-01-31T12:00:00Z".parse().unwrap();
        let allowance = Allowance {
            budget_per_day: Some(money("1")),
            budget_per_month: Some(money("1.5")),
            ..Allowance::default()
        };
        let first = account.take(&allowance, 1, 1, money("0.6"), now).unwrap();
        let over = account
            .take(&allowance, 1, 1, money("0.6"), now)
            .unwrap_err();
        assert!(matches!(&over, Over::Budget { period: "day", left, .. } if *left == money("0.4")));
        assert_eq!(over.wait(), None);
        account.settle(first, used(1, 1, money("0.1")), now);
        let second = account.take(&allowance, 1, 1, money("0.9"), now).unwrap();
        account.settle(second, used(1, 1, money("0.9")), now);
        account
            .take(&allowance, 0, 0, Money::default(), now)
            .unwrap_err();
        now.wall = "2027-02-01T00:00:00Z".parse().unwrap();
        account.take(&allowance, 1, 1, money("1"), now).unwrap();
    }

    proptest! {
        /// Whatever is asked in whatever order: what was settled and what is held stays within the
        /// budget, and when all has ended nothing is held.
        #[test]
        fn nothing_is_overspent_and_nothing_stays_taken(
            requests in proptest::collection::vec((0_u32..200, 0_u32..200, any::<bool>()), 1..100)
        ) {
            let (account, now) = account();
            let budget = money("0.01");
            let allowance = Allowance {
                tokens_per_minute: NonZeroU32::new(5000),
                budget_per_day: Some(budget),
                ..Allowance::default()
            };
            let mut open = Vec::new();
            let cost = |micros: u32| money(&format!("0.{micros:06}"));
            for (most, part, ends) in requests {
                let actual = most.min(part);
                if let Ok(taken) = account.take(&allowance, 0, most.into(), cost(most), now) {
                    open.push((taken, actual));
                }
                if ends && let Some((taken, actual)) = open.pop() {
                    account.settle(taken, used(0, actual.into(), cost(actual)), now);
                }
                let state = account.state();
                prop_assert!(state.usage.day.cost + state.held <= budget);
            }
            for (taken, _) in open {
                account.settle(taken, None, now);
            }
            let state = account.state();
            prop_assert_eq!(state.held, Money::default());
            let left = 5000 - state.usage.total.output_tokens;
            let room = state.tokens.room(NonZeroU32::new(5000).unwrap(), now.instant);
            prop_assert!(room.abs_diff(left) <= 1, "{} {}", room, left);
        }
    }
}
