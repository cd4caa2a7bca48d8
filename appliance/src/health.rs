//! How the server is doing: loading, ready, draining, or lost; and whether it makes progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::served::Served;

/// How long a step may take before the device counts as frozen: twenty times what `step-time` asks
/// for by default, and short enough for a load balancer to notice.
pub const FROZEN: Duration = Duration::from_secs(10);

/// Where the server is in its life.
#[derive(Clone, Debug)]
pub enum Phase {
    /// The model is not ready yet; the text says what is being done.
    Loading(String),
    /// Nothing is done until somebody changes the settings; the text says what is wrong with them.
    Waiting(String),
    /// The model has produced a token and takes requests.
    Ready(Arc<Served>),
    /// The model has proven itself, and its instance waits in a warm pool: no requests are taken.
    Warm(Arc<Served>),
    /// The server is about to end: running requests finish, new ones are refused.
    Draining(Option<Arc<Served>>),
    /// The model failed to load or its device is lost; the text says why.
    Failed(String),
}

/// The phase, written by the server's life and read by whoever answers.
#[derive(Clone, Debug)]
pub struct Health {
    phase: watch::Receiver<Phase>,
    duty: watch::Receiver<Duty>,
}

/// What a server that could serve is to do, by where its instance is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Duty {
    /// Serve.
    #[default]
    Serve,
    /// Wait in a warm pool.
    StandBy,
    /// Serve who comes, and say that nobody should: the instance is about to be taken away.
    Leave,
}

impl Health {
    /// A view on the phase.
    pub fn new(phase: watch::Receiver<Phase>, duty: watch::Receiver<Duty>) -> Self {
        Self { phase, duty }
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        let phase = self.phase.borrow().clone();
        match (phase, *self.duty.borrow()) {
            (Phase::Ready(served), Duty::StandBy) => Phase::Warm(served),
            (phase, _) => phase,
        }
    }

    /// Waits until the phase has changed; false if it never will again.
    pub async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.phase.changed() => changed.is_ok(),
            Ok(()) = self.duty.changed() => true,
        }
    }

    /// Whether nobody should send requests here, though who does is served.
    pub fn is_leaving(&self) -> bool {
        *self.duty.borrow() == Duty::Leave
    }

    /// Whether the process makes progress: false when an engine has work in flight and no step of it has
    /// landed for [`FROZEN`], and when a device is lost.
    pub fn live(&self) -> bool {
        match &*self.phase.borrow() {
            Phase::Loading(_) | Phase::Waiting(_) | Phase::Draining(None) => true,
            Phase::Ready(served) | Phase::Warm(served) | Phase::Draining(Some(served)) => {
                live(&served.pulses)
            }
            Phase::Failed(_) => false,
        }
    }
}

/// Whether each engine rests or has beaten within [`FROZEN`].
fn live(pulses: &[Arc<Pulse>]) -> bool {
    let silences = pulses.iter().filter_map(|pulse| pulse.silence());
    silences.max().is_none_or(|silence| silence < FROZEN)
}

/// When the engine last made progress. Written by its thread, read by anybody.
#[derive(Debug)]
pub struct Pulse {
    origin: Instant,
    /// Milliseconds from `origin` to the last beat, or [`RESTING`].
    beat: AtomicU64,
    /// Steps landed.
    steps: AtomicU64,
}

const RESTING: u64 = u64::MAX;

impl Pulse {
    /// A pulse at rest.
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            beat: AtomicU64::new(RESTING),
            steps: AtomicU64::new(0),
        }
    }

    /// Work goes on: a step is about to run, or has landed.
    pub fn beat(&self) {
        self.beat.store(self.now(), Ordering::Relaxed);
    }

    /// There is nothing to do.
    pub fn rest(&self) {
        self.beat.store(RESTING, Ordering::Relaxed);
    }

    /// So many steps of the device have landed in all.
    pub fn landed(&self, steps: u64) {
        self.steps.store(steps, Ordering::Relaxed);
    }

    /// How many those are.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Whether there is nothing to do.
    pub fn is_resting(&self) -> bool {
        self.silence().is_none()
    }

    /// How long ago the last beat was; `None` at rest.
    fn silence(&self) -> Option<Duration> {
        let beat = self.beat.load(Ordering::Relaxed);
        (beat != RESTING).then(|| Duration::from_millis(self.now().saturating_sub(beat)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(RESTING - 1)
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse(age: Duration, beat: u64) -> Pulse {
        let origin = Instant::now().checked_sub(age).expect("the host is up");
        Pulse {
            origin,
            beat: AtomicU64::new(beat),
            ..Pulse::new()
        }
    }

    fn check(pulse: Pulse, live: bool) {
        let pulses = [Pulse::new(), pulse].map(Arc::new);
        assert_eq!(super::live(&pulses), live);
    }

    #[test]
    fn a_server_is_live_while_each_engine_rests_or_beats() {
        let age = FROZEN + Duration::from_secs(1);
        check(pulse(age, RESTING), true);
        check(pulse(age, 5000), true);
        check(pulse(age, 0), false);
    }
}
