//! What is about to happen to the instance, and what is done about it: lifecycle hooks are told when it is
//! ready and when it has drained, and notices of its end start the drain in time.
//!
//! The metadata service says where Auto Scaling wants the instance to be. What cannot be found out is said
//! once in the log, and the server runs on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;

use super::Account;
use super::asg::{AsgError, Group, Hook, Outcome, Transition};
use super::imds::Imds;
use crate::config::{Live, Rebalance, Resolved};
use crate::health::{Duty, Health, Phase};

/// How often the metadata service is asked, give or take a fifth: it shares its link's packets with DNS.
const POLL: Duration = Duration::from_secs(5);

/// What a Spot notice leaves at the most.
const SPOT: Duration = Duration::from_secs(120);

/// What is kept of it for closing, the hook and the end of the process.
const MARGIN: Duration = Duration::from_secs(10);

/// How long the last word to Auto Scaling may take.
const LAST_WORD: Duration = Duration::from_secs(20);

/// The pause before Auto Scaling is asked again for what it did not do.
const AGAIN: Duration = Duration::from_secs(2);

/// Where Auto Scaling wants the instance to be (`autoscaling/target-lifecycle-state`).
const TARGET: &str = "autoscaling/target-lifecycle-state";

/// The paths of notices.
const SPOT_NOTICE: &str = "spot/instance-action";
const REBALANCE: &str = "events/recommendations/rebalance";

/// What the metadata service says of the instance's future.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Signs {
    /// Where it is wanted.
    target: Option<String>,
    /// When Spot takes it away.
    spot: Option<Instant>,
    /// Whether it is likely to be taken away.
    rebalance: bool,
}

impl Signs {
    fn is_warm(&self) -> bool {
        let target = self.target.as_deref();
        target.is_some_and(|target| target.starts_with("Warmed:") && target != "Warmed:Terminated")
    }

    fn is_terminating(&self) -> bool {
        matches!(
            self.target.as_deref(),
            Some("Terminated" | "Warmed:Terminated")
        )
    }

    /// What the server is to do.
    fn duty(&self, rebalance: Rebalance) -> Duty {
        let leaves = self.is_terminating() || self.spot.is_some();
        match leaves || (self.rebalance && rebalance == Rebalance::Drain) {
            true => Duty::Leave,
            false if self.is_warm() => Duty::StandBy,
            false => Duty::Serve,
        }
    }
}

/// Why the server is to end, and by when if somebody says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leave {
    why: &'static str,
    until: Option<Instant>,
}

impl Leave {
    /// How long requests are still taken on, so that the load balancer can notice, and how long those that
    /// run may go on after that.
    pub(crate) fn times(&self, settings: &Resolved) -> (Duration, Duration) {
        let (delay, grace) = (settings.deregistration_delay, settings.grace);
        let Some(until) = self.until else {
            return (delay, grace);
        };
        let left = until.saturating_duration_since(Instant::now());
        let left = left.saturating_sub(MARGIN);
        let delay = delay.min(left / 3);
        (delay, grace.min(left.saturating_sub(delay)))
    }
}

impl std::fmt::Display for Leave {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.why)
    }
}

/// The instance's life. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    signs: watch::Receiver<Signs>,
    duty: watch::Receiver<Duty>,
    /// `None` until it is found, or for ever.
    group: watch::Receiver<Option<Arc<Held>>>,
}

/// The group and its hooks that are ours.
#[derive(Debug)]
struct Held {
    group: Group,
    launching: Option<Hook>,
    terminating: Option<Hook>,
}

impl Life {
    /// Finds out where the instance stands, and watches it from then on. Without an account, a metadata
    /// service or a group, nothing ever happens to it.
    pub(crate) async fn begin(account: Option<&Account>, settings: &Live) -> Self {
        let imds = account.and_then(|account| account.imds.clone());
        let Some((account, imds)) = account.zip(imds) else {
            // Its sender is gone: it never changes.
            return Self {
                signs: watch::channel(Signs::default()).1,
                duty: watch::channel(Duty::Serve).1,
                group: watch::channel(None).1,
            };
        };
        let mut watcher = Watcher {
            imds,
            settings: settings.clone(),
            signs: watch::Sender::default(),
            duty: watch::Sender::new(Duty::Serve),
            silent: false,
        };
        watcher.look().await;
        let life = Self {
            signs: watcher.signs.subscribe(),
            duty: watcher.duty.subscribe(),
            group: found(account.clone(), settings.clone()),
        };
        tokio::spawn(watcher.watch());
        life
    }

    /// What the server is to do.
    pub(crate) fn duty(&self) -> watch::Receiver<Duty> {
        self.duty.clone()
    }

    /// Waits until the instance is to be taken away. May be dropped and waited for again.
    pub(crate) async fn leave(&self) -> Leave {
        let mut signs = self.signs.clone();
        let told = signs.wait_for(|signs| signs.is_terminating() || signs.spot.is_some());
        let Ok(signs) = told.await.map(|signs| signs.clone()) else {
            return std::future::pending().await;
        };
        let why = match signs.spot {
            Some(_) => "Spot takes the instance away",
            None => "Auto Scaling takes the instance away",
        };
        let until = signs.spot;
        Leave { why, until }
    }

    /// Tells the hooks of the group how the server is doing, for as long as it lives.
    pub(crate) fn keep(&self, health: Health) {
        let (signs, group) = (self.signs.clone(), self.group.clone());
        tokio::spawn(async move {
            if let Some(held) = of_group(group).await {
                tokio::join!(
                    keep_launching(&held, signs.clone(), health),
                    keep_terminating(&held, signs)
                );
            }
        });
    }

    /// The instance will never be ready: a hook that holds it need not wait.
    pub(crate) async fn abandon(&self, why: &str) {
        let Some(held) = self.held().await else {
            return;
        };
        let Some(hook) = &held.launching else { return };
        if finish(&held.group, hook, Outcome::Abandon).await {
            tracing::error!(hook = hook.name, "the instance is given up: {why}");
        }
    }

    /// All is done: the instance may go.
    pub(crate) async fn gone(&self) {
        if !self.signs.borrow().is_terminating() {
            return;
        }
        let Some(held) = self.held().await else {
            return;
        };
        if let Some(hook) = &held.terminating {
            finish(&held.group, hook, Outcome::Continue).await;
        }
    }

    /// This instance starts again and again, and ends badly each time: the group is to replace it.
    pub(crate) async fn unhealthy(&self, why: &str) {
        let Some(held) = self.held().await else {
            tracing::error!("{why}; there is no Auto Scaling group to replace the instance");
            return;
        };
        tracing::error!("{why}: asking the group to replace the instance");
        match tokio::time::timeout(LAST_WORD, held.group.unhealthy()).await {
            Ok(Ok(())) => tracing::warn!(
                group = held.group.name(),
                "the instance is marked unhealthy"
            ),
            Ok(Err(error)) => tracing::error!("the instance is not marked unhealthy: {error}"),
            Err(_) => tracing::error!("the instance is not marked unhealthy: no answer"),
        }
    }

    /// The group, for whoever needs it now.
    async fn held(&self) -> Option<Arc<Held>> {
        let found = tokio::time::timeout(LAST_WORD, of_group(self.group.clone())).await;
        found.ok().flatten()
    }
}

/// Waits until the group is found; `None` once it is known that there is none.
async fn of_group(mut group: watch::Receiver<Option<Arc<Held>>>) -> Option<Arc<Held>> {
    let found = group.wait_for(Option::is_some).await;
    found.ok().and_then(|found| found.clone())
}

/// Finds the group beside everything else, however long that takes.
fn found(account: Account, settings: Live) -> watch::Receiver<Option<Arc<Held>>> {
    let (found, group) = watch::channel(None);
    tokio::spawn(async move {
        let mut told = false;
        loop {
            match held(&account, &settings.now()).await {
                Ok(Some(held)) => {
                    found.send_replace(Some(Arc::new(held)));
                    // Who looks for it later finds it.
                    return found.closed().await;
                }
                Ok(None) => return,
                Err(error) if error.may_pass() => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            "{error}: the Auto Scaling group is looked for again and again"
                        );
                    }
                    tokio::time::sleep(jittered(2 * POLL)).await;
                }
                Err(error) => {
                    tracing::warn!(
                        "{error}: nothing is known of an Auto Scaling group or its hooks; let the metadata \
                         service show tags, and name hooks with launch-hook and terminate-hook"
                    );
                    return;
                }
            }
        }
    });
    group
}

/// The group that the instance is in, and those of its hooks that are ours.
async fn held(account: &Account, settings: &Resolved) -> Result<Option<Held>, AsgError> {
    let Some(group) = Group::find(account).await? else {
        return Ok(None);
    };
    let named = async |transition, setting: &Option<String>| match group
        .hook(transition, setting.as_deref())
        .await
    {
        Err(error @ AsgError::Denied { .. }) => {
            tracing::warn!("{error}, or name the hooks with launch-hook and terminate-hook");
            Ok(None)
        }
        other => other,
    };
    let launching = named(Transition::Launching, &settings.launch_hook).await?;
    let terminating = named(Transition::Terminating, &settings.terminate_hook).await?;
    let name = |hook: &Option<Hook>| {
        hook.as_ref()
            .map_or("none".to_owned(), |hook| hook.name.clone())
    };
    tracing::info!(
        group = group.name(),
        launch_hook = name(&launching),
        terminate_hook = name(&terminating),
        "in an Auto Scaling group"
    );
    Ok(Some(Held {
        group,
        launching,
        terminating,
    }))
}

/// Asks the metadata service.
#[derive(Debug)]
struct Watcher {
    imds: Imds,
    settings: Live,
    signs: watch::Sender<Signs>,
    duty: watch::Sender<Duty>,
    /// Whether it did not answer the last time.
    silent: bool,
}

impl Watcher {
    async fn watch(mut self) {
        loop {
            tokio::time::sleep(jittered(POLL)).await;
            self.look().await;
        }
    }

    /// Looks once. What does not answer has not changed.
    async fn look(&mut self) {
        let seen = self.seen().await;
        let signs = match seen {
            Ok(signs) => {
                if self.silent {
                    tracing::info!("the instance metadata service answers again");
                }
                self.silent = false;
                signs
            }
            Err(error) => {
                if !self.silent {
                    tracing::warn!(
                        "{error}: notices of the instance's end cannot be seen meanwhile, SIGTERM still is"
                    );
                }
                self.silent = true;
                return;
            }
        };
        let duty = signs.duty(self.settings.now().rebalance);
        let before = self.signs.borrow().clone();
        if before.target != signs.target {
            let target = signs.target.as_deref().unwrap_or("none");
            tracing::info!(target, "the state that Auto Scaling wants");
        }
        if signs.spot.is_some() && before.spot.is_none() {
            tracing::warn!("a notice from Spot: the instance is taken away within two minutes");
        }
        if signs.rebalance && !before.rebalance {
            let rebalance = self.settings.now().rebalance.name();
            tracing::warn!(
                rebalance,
                "a notice from EC2: the instance is likely to be taken away"
            );
        }
        self.signs.send_if_modified(|now| {
            let is_new = *now != signs;
            *now = signs;
            is_new
        });
        self.duty
            .send_if_modified(|now| std::mem::replace(now, duty) != duty);
    }

    async fn seen(&self) -> Result<Signs, super::imds::Silent> {
        let before = self.signs.borrow().spot;
        let spot = self.imds.get(SPOT_NOTICE).await?;
        Ok(Signs {
            target: self.imds.get(TARGET).await?,
            // Once told is told: the time does not move.
            spot: before
                .or_else(|| spot.map(|notice| Instant::now() + left(&notice, Timestamp::now()))),
            rebalance: self.imds.get(REBALANCE).await?.is_some(),
        })
    }
}

/// What a Spot notice leaves. Two minutes is the most it can be: where the clock says otherwise, it is the
/// clock that is wrong.
fn left(notice: &str, now: Timestamp) -> Duration {
    let notice: serde_json::Value = serde_json::from_str(notice).unwrap_or_default();
    let time = notice["time"]
        .as_str()
        .and_then(|time| time.parse::<Timestamp>().ok());
    let left = time.and_then(|time| Duration::try_from(time.duration_since(now)).ok());
    match left {
        Some(left) if left <= SPOT => left,
        _ => SPOT.saturating_sub(2 * POLL),
    }
}

/// Heartbeats for the launching hook while the model is loaded, and its end once it is ready. Out of a warm
/// pool the instance passes the hook again.
async fn keep_launching(held: &Held, mut signs: watch::Receiver<Signs>, mut health: Health) {
    let Some(hook) = &held.launching else { return };
    loop {
        let warm = signs.borrow().is_warm();
        let mut asked_for = true;
        while asked_for {
            match health.phase() {
                // Whoever changes the settings is given the hook's time.
                Phase::Loading(_) | Phase::Waiting(_) => match held.group.heartbeat(hook).await {
                    // Not at the start of an instance, but at that of the program.
                    Err(AsgError::NotHeld(_)) => asked_for = false,
                    Err(error) => tracing::warn!(hook = hook.name, "{error}"),
                    Ok(()) => {}
                },
                Phase::Ready(_) | Phase::Warm(_) => match held
                    .group
                    .complete(hook, Outcome::Continue)
                    .await
                {
                    Ok(()) => {
                        tracing::info!(hook = hook.name, "ready: the launching hook is completed");
                        asked_for = false;
                    }
                    Err(error) if error.may_pass() => tracing::warn!(hook = hook.name, "{error}"),
                    Err(AsgError::NotHeld(_)) => asked_for = false,
                    Err(error) => {
                        tracing::error!(
                            hook = hook.name,
                            "ready, but the hook cannot be told: {error}"
                        );
                        asked_for = false;
                    }
                },
                Phase::Failed(why) => {
                    if finish(&held.group, hook, Outcome::Abandon).await {
                        tracing::error!(hook = hook.name, "the instance is given up: {why}");
                    }
                    return;
                }
                Phase::Draining(_) => return,
            }
            let pause = match health.phase() {
                Phase::Loading(_) | Phase::Waiting(_) => hook.pause,
                _ => AGAIN,
            };
            if asked_for {
                tokio::time::timeout(pause, leaves_loading(&mut health))
                    .await
                    .ok();
            }
        }
        // The next passage: out of the warm pool.
        if signs
            .wait_for(|signs| signs.is_warm() != warm)
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Waits until the model is no longer being loaded; does not end if it is not now.
async fn leaves_loading(health: &mut Health) {
    let loads = |health: &Health| matches!(health.phase(), Phase::Loading(_) | Phase::Waiting(_));
    while loads(health) {
        if !health.changed().await {
            break;
        }
        if !loads(health) {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// Heartbeats for the terminating hook from when the instance is to go until it has drained.
async fn keep_terminating(held: &Held, mut signs: watch::Receiver<Signs>) {
    let Some(hook) = &held.terminating else {
        return;
    };
    if signs.wait_for(Signs::is_terminating).await.is_err() {
        return;
    }
    loop {
        match held.group.heartbeat(hook).await {
            Ok(()) => {}
            Err(error) if error.may_pass() => tracing::warn!(hook = hook.name, "{error}"),
            Err(error) => {
                tracing::warn!(hook = hook.name, "no heartbeats while draining: {error}");
                return;
            }
        }
        tokio::time::sleep(hook.pause).await;
    }
}

/// The last word to a hook, which is tried for a while; whether it held the instance until now.
async fn finish(group: &Group, hook: &Hook, outcome: Outcome) -> bool {
    let tried = async {
        loop {
            match group.complete(hook, outcome).await {
                Ok(()) => {
                    tracing::info!(hook = hook.name, ?outcome, "the hook is completed");
                    return true;
                }
                Err(error) if error.may_pass() => tracing::warn!(hook = hook.name, "{error}"),
                Err(AsgError::NotHeld(_)) => return false,
                Err(error) => {
                    tracing::error!(hook = hook.name, "{error}");
                    return false;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    let done = tokio::time::timeout(LAST_WORD, tried).await;
    done.unwrap_or_else(|_| {
        tracing::error!(
            hook = hook.name,
            "the hook is not completed: it ends by itself"
        );
        false
    })
}

/// `pause`, give or take a fifth, so that a fleet does not ask in step.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness there is no jitter.
    getrandom::fill(&mut byte).ok();
    pause.mul_f64(0.8 + 0.4 * f64::from(byte[0]) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(target: Option<&str>, spot: bool, rebalance: bool) -> Signs {
        Signs {
            target: target.map(str::to_owned),
            spot: spot.then(Instant::now),
            rebalance,
        }
    }

    #[test]
    fn a_duty_follows_from_the_signs() {
        let check = |target, spot, rebalance, expected| {
            let signs = signs(target, spot, rebalance);
            assert_eq!(signs.duty(Rebalance::Drain), expected, "{signs:?}");
        };
        check(None, false, false, Duty::Serve);
        check(Some("InService"), false, false, Duty::Serve);
        check(Some("Warmed:Stopped"), false, false, Duty::StandBy);
        check(Some("Warmed:Running"), false, false, Duty::StandBy);
        check(Some("Warmed:Terminated"), false, false, Duty::Leave);
        check(Some("Terminated"), false, false, Duty::Leave);
        check(Some("InService"), true, false, Duty::Leave);
        check(Some("InService"), false, true, Duty::Leave);
        let ignored = signs(Some("InService"), false, true).duty(Rebalance::Ignore);
        assert_eq!(ignored, Duty::Serve);
    }

    #[test]
    fn a_spot_notice_leaves_what_it_says_unless_the_clock_is_wrong() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let check = |time: &str, seconds| {
            let notice = format!(r#"{{"action":"terminate","time":"{time}"}}"#);
            assert_eq!(left(&notice, now), Duration::from_secs(seconds));
        };
        check("2026-01-01T12:01:30Z", 90);
        check("2026-01-01T12:02:00Z", 120);
        check("2026-01-01T12:30:00Z", 110);
        check("2026-01-01T11:59:00Z", 110);
        check("soon", 110);
        assert_eq!(left("terminate", now), Duration::from_secs(110));
    }
}
