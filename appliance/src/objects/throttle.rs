//! How many requests may be under way: fewer when the store asks for it, more while all goes well.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Requests under way at first.
const FIRST: usize = 32;

/// And at the most.
pub(super) const MOST: usize = 48;

/// And at the least.
const LEAST: usize = 4;

/// However many are told so at once, the store said it once.
const ONCE: Duration = Duration::from_secs(1);

/// Counts requests, as TCP counts packets: one more for each round that went well, half when it did not.
#[derive(Debug)]
pub(super) struct Throttle {
    state: Mutex<State>,
    free: Condvar,
}

#[derive(Debug)]
struct State {
    allowed: usize,
    running: usize,
    /// Requests that went well since `allowed` changed.
    well: usize,
    halved: Option<Instant>,
}

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Ticket<'a>(&'a Throttle);

impl Throttle {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                allowed: FIRST,
                running: 0,
                well: 0,
                halved: None,
            }),
            free: Condvar::new(),
        }
    }

    /// Waits for a place.
    pub(super) fn enter(&self) -> Ticket<'_> {
        let mut state = self.lock();
        while state.running >= state.allowed {
            state = self
                .free
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.running += 1;
        Ticket(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket<'_> {
    /// The store answered.
    pub(super) fn well(self) {
        let mut state = self.0.lock();
        state.well += 1;
        if state.well >= state.allowed && state.allowed < MOST {
            state.well = 0;
            state.allowed += 1;
            self.0.free.notify_one();
        }
    }

    /// The store asked for less.
    pub(super) fn busy(self) {
        let mut state = self.0.lock();
        if state.halved.is_none_or(|when| when.elapsed() > ONCE) {
            state.halved = Some(Instant::now());
            state.allowed = (state.allowed / 2).max(LEAST);
            state.well = 0;
            let allowed = state.allowed;
            drop(state);
            tracing::debug!(allowed, "the object store asks to slow down");
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_once_when_asked_and_grows_while_all_goes_well() {
        let throttle = Throttle::new();
        let allowed = || throttle.lock().allowed;
        let tickets: Vec<_> = (0..FIRST).map(|_| throttle.enter()).collect();
        tickets.into_iter().for_each(Ticket::busy);
        assert_eq!(allowed(), FIRST / 2, "all at once count once");
        (0..FIRST / 2).for_each(|_| throttle.enter().well());
        assert_eq!(allowed(), FIRST / 2 + 1);
        (0..10_000).for_each(|_| throttle.enter().well());
        assert_eq!(allowed(), MOST);
        assert_eq!(throttle.lock().running, 0);
    }
}
