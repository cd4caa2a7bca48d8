//! Times in buckets so narrow that a bucket can stand for what is in it, and so few that CloudWatch
//! takes them all at once.

use std::sync::atomic::{AtomicU64, Ordering};

/// The first bucket ends here, in seconds.
const SHORTEST: f64 = 1e-4;

/// Buckets in which a time doubles. A bucket's middle is at most a fourteenth off from what is in it.
const AN_OCTAVE: f64 = 5.0;

/// How many there are: the last begins at two hours. CloudWatch takes 150 values at once.
const BUCKETS: usize = 132;

/// How often which times were measured. Written by engines, read by anybody.
#[derive(Debug)]
pub(super) struct Distribution([AtomicU64; BUCKETS]);

/// A distribution at one moment, or what it grew by between two.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Counted(Box<[u64]>);

impl Distribution {
    /// Nothing was measured yet.
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// One more time was measured.
    pub(super) fn observe(&self, seconds: f64) {
        if let Some(bucket) = self.0.get(bucket(seconds)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was measured so far.
    pub(super) fn counted(&self) -> Counted {
        let counts = self.0.iter();
        Counted(counts.map(|count| count.load(Ordering::Relaxed)).collect())
    }
}

impl Default for Counted {
    fn default() -> Self {
        Self(Box::new([0; BUCKETS]))
    }
}

impl Counted {
    /// What was counted since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let pairs = self.0.iter().zip(&before.0);
        let grown = pairs.map(|(now, before)| now.saturating_sub(*before));
        Self(grown.collect())
    }

    /// The middle of each bucket that holds something, in seconds, and how much it holds.
    pub(crate) fn values(&self) -> impl Iterator<Item = (f64, u64)> {
        let filled = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (middle(bucket), *count))
    }
}

/// The bucket that a time belongs to.
fn bucket(seconds: f64) -> usize {
    let octaves = (seconds / SHORTEST).max(1.0).log2();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number that is not negative, and what is too large is the largest"
    )]
    let bucket = (octaves * AN_OCTAVE).ceil() as usize;
    bucket.min(BUCKETS - 1)
}

/// The geometric middle of a bucket.
fn middle(bucket: usize) -> f64 {
    let end = u32::try_from(bucket).map_or(f64::MAX, f64::from);
    SHORTEST * ((end - 0.5) / AN_OCTAVE).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_bucket_is_near_to_all_that_is_in_it() {
        let mut seconds = SHORTEST;
        while seconds < 7000.0 {
            let off = middle(bucket(seconds)) / seconds;
            assert!((0.93..1.0 / 0.93).contains(&off), "{seconds} s: {off}");
            seconds *= 1.01;
        }
    }

    #[test]
    fn times_that_are_none_are_taken_all_the_same() {
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(bucket(seconds) < BUCKETS, "{seconds}");
            assert!(middle(bucket(seconds)).is_finite());
        }
    }

    #[test]
    fn what_was_counted_meanwhile_is_the_difference() {
        let times = Distribution::new();
        times.observe(1.0);
        let before = times.counted();
        times.observe(1.0);
        times.observe(1.0);
        times.observe(0.01);
        let grown = times.counted().since(&before);
        let counts: Vec<u64> = grown.values().map(|(_, count)| count).collect();
        assert_eq!(counts, [1, 2]);
        assert_eq!(before.since(&before), Counted::default());
    }
}
