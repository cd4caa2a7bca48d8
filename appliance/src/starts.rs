//! Starts that ended badly, remembered over them: an instance on which the program ends again and again is
//! not well, and its group is to replace it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::state::StateDir;

/// Bad ends that count are not older than this.
const WINDOW: Duration = Duration::from_secs(600);

/// The file in the state directory.
const FILE: &str = "starts.json";

/// What is remembered.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(crate) struct Starts {
    /// Whether the last start has not come to a good end.
    running: bool,
    /// When bad ends were found, in seconds since the epoch.
    bad: Vec<u64>,
    /// Whether somebody was told of them.
    told: bool,
}

impl Starts {
    /// The program starts: the one before ended badly if it did not say otherwise. Returns how many have
    /// done so lately, if that makes `limit` and nobody was told yet.
    pub(crate) fn begin(state: &StateDir, limit: u32) -> Option<usize> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut starts = Self::read(state);
        let due = starts.found(now.unwrap_or_default().as_secs(), limit);
        starts.write(state);
        due
    }

    /// The program ends as it should.
    pub(crate) fn end(state: &StateDir) {
        let starts = Self {
            running: false,
            ..Self::read(state)
        };
        starts.write(state);
    }

    fn found(&mut self, now: u64, limit: u32) -> Option<usize> {
        if self.running {
            self.bad.push(now);
        }
        self.running = true;
        // A clock that was put back makes them of the future: they do not count either.
        self.bad.retain(|at| {
            now.checked_sub(*at)
                .is_some_and(|age| age < WINDOW.as_secs())
        });
        let count = self.bad.len();
        if count < limit as usize {
            self.told = false;
            return None;
        }
        (!std::mem::replace(&mut self.told, true)).then_some(count)
    }

    fn read(state: &StateDir) -> Self {
        let read = state.read(FILE).unwrap_or_else(|error| {
            tracing::warn!("what is remembered of earlier starts cannot be used: {error}");
            None
        });
        read.unwrap_or_default()
    }

    fn write(&self, state: &StateDir) {
        if let Err(error) = state.write(FILE, self) {
            tracing::warn!("how starts end is not remembered: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_bad_ends_in_ten_minutes_are_told_once() {
        let mut starts = Starts::default();
        let found = [0, 10, 20, 30, 40].map(|now| starts.found(1000 + now, 3));
        assert_eq!(found, [None, None, None, Some(3), None]);
        // Long after, it begins anew.
        let found = [2000, 2010, 2020, 2030].map(|now| starts.found(1000 + now, 3));
        assert_eq!(found, [None, None, Some(3), None]);
    }

    #[test]
    fn a_good_end_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(Some(dir.path())).unwrap();
        for _ in 0..5 {
            assert_eq!(Starts::begin(&state, 1), None);
            Starts::end(&state);
        }
        assert_eq!(Starts::begin(&state, 1), None);
        assert_eq!(Starts::begin(&state, 1), Some(1));
    }
}
