//! What systemd is told of the server's life (sd_notify(3)): nothing by a bare timer. Readiness follows from
//! the golden self-test, more time from work that was seen, and the watchdog's food from steps of the device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sd_notify::NotifyState;

use crate::golden;
use crate::health::{FROZEN, Health, Phase};
use crate::served::Served;

/// How often systemd hears of what lasts.
const TICK: Duration = Duration::from_secs(5);

/// By how much it then lets the start or the stop go on. Two ticks may be late.
const MORE_MICROSECONDS: u32 = 20_000_000;

/// How long a start or a stop may go on at the most, however much is done meanwhile.
const LONGEST: Duration = Duration::from_secs(2 * 3600);

/// The share of one processor that counts as work. A process that waits for what never comes takes less.
const WORK: f64 = 0.01;

/// Tells systemd of each phase from now on, if it listens.
pub(crate) fn attend(health: Health) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let attendant = Attendant {
        health,
        told: Told::Nothing,
        status: String::new(),
        step: String::new(),
        since: Instant::now(),
        work: Work::new(),
    };
    tokio::spawn(attendant.attend());
}

/// The server ends, and why unless it was asked to: for `systemctl status`.
pub(crate) fn ended(why: Option<&impl std::fmt::Display>) {
    let why = why.map_or("drained".to_owned(), |why| one_line(&why.to_string()));
    tell(&[NotifyState::Stopping, NotifyState::Status(&why)]);
}

/// Which state systemd has been told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    Nothing,
    Ready,
    Reloading,
    Stopping,
}

/// Follows the phase.
#[derive(Debug)]
struct Attendant {
    health: Health,
    told: Told,
    status: String,
    /// How far the load had come at the last tick.
    step: String,
    /// When the state that systemd waits for the end of began.
    since: Instant,
    work: Work,
}

impl Attendant {
    async fn attend(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                goes_on = self.health.changed() => match goes_on {
                    true => self.follow(false),
                    false => return,
                },
                _ = ticks.tick() => self.follow(true),
            }
        }
    }

    /// Tells what is new; at a tick also that what lasts may go on, if it does.
    fn follow(&mut self, tick: bool) {
        match self.health.phase() {
            Phase::Loading(what) => {
                if self.told == Told::Ready {
                    self.told = Told::Reloading;
                    self.since = Instant::now();
                    reloading();
                }
                self.status(&what);
                if tick {
                    let came_on = self.step != step_of(&what);
                    step_of(&what).clone_into(&mut self.step);
                    let works = self.work.went_on();
                    self.more_time_if(came_on || works);
                }
            }
            Phase::Ready(served) | Phase::Warm(served) => {
                let does = match self.health.phase() {
                    Phase::Warm(_) => "warm, waiting to serve",
                    _ if self.health.is_leaving() => "about to be taken away, still serving",
                    _ => "serving",
                };
                self.status(&format!("{does} {}", served.name));
                if self.told == Told::Nothing
                    && let Some(interval) = sd_notify::watchdog_enabled()
                {
                    tokio::spawn(feed(self.health.clone(), interval));
                }
                if matches!(self.told, Told::Nothing | Told::Reloading) {
                    self.told = Told::Ready;
                    tell(&[NotifyState::Ready]);
                }
            }
            Phase::Draining(_) => {
                let begins = self.told != Told::Stopping;
                if begins {
                    self.told = Told::Stopping;
                    self.since = Instant::now();
                    tell(&[NotifyState::Stopping]);
                }
                self.status("draining: running requests finish, new ones are refused");
                if tick || begins {
                    let live = self.health.live();
                    self.more_time_if(live);
                }
            }
            Phase::Waiting(why) => {
                self.status(&why);
                // Another start would wait for the same.
                if tick {
                    self.more_time_if(true);
                }
            }
            Phase::Failed(why) => self.status(&why),
        }
    }

    fn status(&mut self, status: &str) {
        if self.status != status {
            status.clone_into(&mut self.status);
            tell(&[NotifyState::Status(&one_line(status))]);
        }
    }

    fn more_time_if(&self, goes_on: bool) {
        let waits = self.told != Told::Ready;
        if waits && goes_on && self.since.elapsed() < LONGEST {
            tell(&[NotifyState::ExtendTimeoutUsec(MORE_MICROSECONDS)]);
        }
    }
}

/// The server takes no requests for a while, and says when it does again.
fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!("systemd is not told of the reload: {error}"),
    }
}

/// Feeds the watchdog while the device is seen to work: steps have landed since it was last fed, or nothing
/// is asked of it and it answers a question of ours. Systemd ends whoever does not feed it for `interval`.
async fn feed(health: Health, interval: Duration) {
    let (mut steps, mut work) = (Steps::default(), Work::new());
    let mut fed = Instant::now();
    loop {
        tokio::time::sleep(interval / 4).await;
        let proven = match health.phase() {
            Phase::Ready(served) | Phase::Warm(served) | Phase::Draining(Some(served)) => {
                match steps.since_last(&served) {
                    Since::Landed => true,
                    Since::Nothing => false,
                    // Not more often than it takes: it is work for the device.
                    Since::AtRest => fed.elapsed() >= interval * 7 / 16 && answers(&served).await,
                }
            }
            Phase::Loading(_) => work.went_on(),
            Phase::Draining(None) | Phase::Waiting(_) => true,
            Phase::Failed(_) => false,
        };
        if proven {
            fed = Instant::now();
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// What a model's engines have done since they were last looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Since {
    /// Each has landed steps, or has nothing to do.
    Landed,
    /// One has work and has landed none.
    Nothing,
    /// None has anything to do.
    AtRest,
}

/// How many steps each engine had landed.
#[derive(Default, Debug)]
struct Steps(Vec<u64>);

impl Steps {
    fn since_last(&mut self, served: &Served) -> Since {
        let now: Vec<_> = served.pulses.iter().map(|pulse| pulse.steps()).collect();
        let resting = served.pulses.iter().map(|pulse| pulse.is_resting());
        let since = since(&self.0, &now, resting);
        self.0 = now;
        since
    }
}

fn since(before: &[u64], now: &[u64], resting: impl Iterator<Item = bool>) -> Since {
    // Another model's numbers say nothing.
    let landed = |(at, steps): (usize, &u64)| before.get(at).is_none_or(|before| before != steps);
    let engines = now.iter().enumerate().map(landed).zip(resting);
    engines.fold(Since::AtRest, |all, engine| match (all, engine) {
        (Since::Nothing, _) | (_, (false, false)) => Since::Nothing,
        (_, (true, _)) | (Since::Landed, _) => Since::Landed,
        (Since::AtRest, (false, true)) => Since::AtRest,
    })
}

/// Whether a token comes from each replica: as many are asked for at once as there are.
async fn answers(served: &Arc<Served>) -> bool {
    let asked = served.pulses.iter().map(|_| golden::any_token(served));
    match tokio::time::timeout(FROZEN, join_all(asked)).await {
        Ok(answers) => match answers.into_iter().find_map(Result::err) {
            None => true,
            Some(error) => {
                tracing::warn!("the watchdog is not fed: {error}");
                false
            }
        },
        Err(_) => {
            tracing::error!(
                "the watchdog is not fed: no token within {} s from a device with nothing else to do",
                FROZEN.as_secs()
            );
            false
        }
    }
}

/// How much this process has computed.
#[derive(Debug)]
struct Work {
    looked: Instant,
    computed: Duration,
}

impl Work {
    fn new() -> Self {
        Self {
            looked: Instant::now(),
            computed: computed().unwrap_or_default(),
        }
    }

    /// Whether it has since this was last asked.
    fn went_on(&mut self) -> bool {
        let now = Self::new();
        let elapsed = now.looked.duration_since(self.looked);
        let computed = now.computed.saturating_sub(self.computed);
        *self = now;
        computed.as_secs_f64() >= WORK * elapsed.as_secs_f64()
    }
}

/// Processor time of this process, in ticks of 10 ms (proc(5): fields 14 and 15).
fn computed() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Its second field is a name that may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis(10 * (ticks()? + ticks()?)))
}

/// What of a text says how far a load has come: a rate after the last comma changes by itself.
fn step_of(what: &str) -> &str {
    what.rsplit_once(',').map_or(what, |(step, _)| step)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("systemd cannot be told anything: {error}");
    }
}

/// A line feed would begin another assignment.
fn one_line(text: &str) -> String {
    let letters = text
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter });
    letters.take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_landed_and_engines_at_rest_are_told_apart() {
        let check = |before: &[u64], now: &[u64], resting: &[bool], expected| {
            assert_eq!(since(before, now, resting.iter().copied()), expected);
        };
        check(&[7], &[8], &[false], Since::Landed);
        check(&[7], &[8], &[true], Since::Landed);
        check(&[7], &[7], &[false], Since::Nothing);
        check(&[7], &[7], &[true], Since::AtRest);
        check(&[7, 3], &[8, 3], &[false, false], Since::Nothing);
        check(&[7, 3], &[8, 3], &[false, true], Since::Landed);
        check(&[7, 3], &[7, 4], &[false, false], Since::Nothing);
        check(&[7, 3], &[7, 3], &[true, true], Since::AtRest);
        check(&[], &[5], &[false], Since::Landed);
    }

    #[test]
    fn computing_is_seen_and_waiting_is_not_work() {
        let mut work = Work::new();
        let start = Instant::now();
        let mut sum = 0_u64;
        while start.elapsed() < Duration::from_millis(100) {
            sum = sum.wrapping_mul(31).wrapping_add(1);
        }
        assert!(work.went_on(), "{sum}");
        let idle = Work {
            looked: Instant::now() - Duration::from_secs(1000),
            computed: computed().unwrap(),
        };
        assert!(!{ idle }.went_on());
    }

    #[test]
    fn a_rate_is_no_progress() {
        let told = "the weights are being loaded: 45 % of 900 MiB";
        assert_eq!(step_of(&format!("{told}, 7 MiB/s")), told);
        assert_eq!(
            step_of("the model is being opened"),
            "the model is being opened"
        );
    }

    #[test]
    fn a_status_is_one_line() {
        assert_eq!(one_line("a\nREADY=1"), "a READY=1");
    }
}
