//! What time an account thinks it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

/// The clock of an account: the machine's, put forward or back. Cloning shares it.
#[derive(Clone, Default, Debug)]
pub struct Clock(Arc<AtomicI64>);

impl Clock {
    /// Puts it so many seconds before the machine's, or behind.
    pub fn ahead(&self, seconds: i64) {
        self.0.store(seconds, Ordering::Relaxed);
    }

    /// What it shows.
    pub fn now(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::from_secs(self.0.load(Ordering::Relaxed))
    }

    /// The same as HTTP writes it.
    pub(super) fn date(&self) -> String {
        self.now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    }

    /// In `seconds` from now, as AWS writes it in JSON: `2026-11-24T18:00:00Z`.
    pub fn after(&self, seconds: i64) -> String {
        let then = self.now() + SignedDuration::from_secs(seconds);
        then.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }
}
