//! What CloudWatch is told: each metric, and how it follows from two snapshots. No clock and no network.

use std::time::Duration;

use aws_sdk_cloudwatch::types::StandardUnit;

use crate::metrics::{Counts, ModelSnapshot, Snapshot};

/// A metric.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Measure {
    /// Its name, in the namespace `Appliance`.
    pub(super) name: &'static str,
    pub(super) unit: StandardUnit,
    /// Kept by the second for three hours, not by the minute.
    pub(super) fine: bool,
    /// What it is.
    pub(super) help: &'static str,
}

macro_rules! measures {
    ($($(#[doc = $help:literal])+ $constant:ident = $name:literal, $unit:ident $(, $fine:ident)?;)*) => {
        $($(#[doc = $help])+ const $constant: Measure = Measure {
            name: $name,
            unit: StandardUnit::$unit,
            fine: measures!(@ $($fine)?),
            help: concat!($($help),+),
        };)*

        /// All of them, in the order of the documentation.
        #[cfg(test)]
        const MEASURES: &[Measure] = &[$($constant),*];
    };
    (@ fine) => { true };
    (@) => { false };
}

measures! {
    /// Continuations that run and requests that wait, in percent of what can run at once: above 100 some wait. The signal to scale by.
    SLOT_UTILIZATION = "SlotUtilization", Percent, fine;
    /// How long a request that came now would wait for its first step: the prompt tokens before it at the measured rate, and a place if none is free. At most an hour; not told before there was anything to measure.
    QUEUE_SECONDS = "QueueSeconds", Seconds;
    /// Continuations that run.
    RUNNING = "Running", Count;
    /// Requests that wait.
    WAITING = "Waiting", Count;
    /// The part of the KV cache that some request holds.
    KV_USAGE = "KvUsage", Percent;
    /// From a request's arrival to its first token. A distribution: ask for p50, p99.
    FIRST_TOKEN = "TimeToFirstToken", Seconds;
    /// From a token to the next of the same continuation. A distribution: ask for p50, p99.
    INTER_TOKEN = "InterTokenLatency", Seconds;
    /// Prompt tokens of requests.
    TOKENS_IN = "TokensIn", Count;
    /// Tokens generated.
    TOKENS_OUT = "TokensOut", Count;
    /// The part of the prompt tokens that the prefix cache had; not told while nothing was looked up.
    CACHE_HIT_RATE = "CacheHitRate", Percent;
    /// The part of what the device ran that was padding; not told while nothing ran.
    PADDING_WASTE = "PaddingWaste", Percent;
    /// What went wrong, by the dimension Kind: device (a continuation failed on it), aborted (its client had gone, or its time was over), rejected (too much was waiting), client (answers 4xx), server (answers 5xx, the rejected among them).
    ERRORS = "Errors", Count;
    /// Device memory in use, all cores together. Where the device tells.
    DEVICE_MEMORY = "DeviceMemory", Bytes;
    /// The part of the time that the device's cores were in use, on average. Where the device tells.
    DEVICE_UTILISATION = "DeviceUtilisation", Percent;
    /// Tokens generated for a dollar of the instance's price. Where price-per-hour is set.
    TOKENS_PER_DOLLAR = "TokensPerDollar", Count;
}

/// Numbers of one metric at one moment.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Sample {
    pub(super) measure: Measure,
    /// What went wrong, of [`ERRORS`].
    pub(super) kind: Option<&'static str>,
    /// Whether it is told of the whole group too, without a model.
    pub(super) of_group: bool,
    /// Values, and how often each.
    pub(super) values: Vec<(f64, f64)>,
}

/// Follows the server from one report to the next.
#[derive(Default, Debug)]
pub(super) struct Observer {
    before: Snapshot,
    prompts: Rate,
    ends: Rate,
}

/// A wait that is longer is not told apart from it.
const LONGEST_WAIT: f64 = 3600.0;

/// The time after which half of a measured rate is forgotten.
const HALF_LIFE: Duration = Duration::from_secs(30);

/// How fast something gets done when there is enough of it to do, by the second.
#[derive(Clone, Copy, Default, Debug)]
struct Rate(f64);

impl Rate {
    /// So much got done in this time, and all the time there was more to do, or not: then it only
    /// shows that the rate is no smaller.
    fn measure(&mut self, done: u64, elapsed: Duration, enough: bool) {
        let seconds = elapsed.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let measured = float(done) / seconds;
        self.0 = match enough && self.0 > 0.0 {
            true => {
                let kept = (-seconds / HALF_LIFE.as_secs_f64()).exp2();
                self.0 * kept + measured * (1.0 - kept)
            }
            false => self.0.max(measured),
        };
    }

    /// How long it takes to get so much done; `None` if it is not known yet.
    fn time(self, to_do: u64) -> Option<f64> {
        match to_do {
            0 => Some(0.0),
            _ => (self.0 > 0.0).then(|| (float(to_do) / self.0).min(LONGEST_WAIT)),
        }
    }
}

impl Observer {
    /// What there is to tell of a server that stands like `now`, `elapsed` after the last time. `price`
    /// is the instance's, in dollars an hour.
    pub(super) fn samples(
        &mut self,
        now: Snapshot,
        elapsed: Duration,
        price: Option<f64>,
    ) -> Vec<Sample> {
        let mut samples = Samples::default();
        let last = std::mem::take(&mut self.before);
        if let Some(model) = &now.model {
            let before = last.model.as_ref();
            let grown = model.since(before);
            self.measure(before, model, &grown, elapsed);
            let busy = model.running + model.waiting;
            if let Some(sample) = samples.one(SLOT_UTILIZATION, percent(busy, model.slots)) {
                sample.of_group = true;
            }
            samples.one(QUEUE_SECONDS, self.wait(model));
            samples.one(RUNNING, Some(float(model.running)));
            samples.one(WAITING, Some(float(model.waiting)));
            samples.one(KV_USAGE, Some(100.0 * model.kv_usage));
            samples.counted(&grown);
            let errors = [
                ("device", grown.failed),
                ("aborted", grown.aborted),
                ("rejected", grown.rejected),
                (
                    "client",
                    now.client_errors.saturating_sub(last.client_errors),
                ),
                (
                    "server",
                    now.server_errors.saturating_sub(last.server_errors),
                ),
            ];
            for (kind, count) in errors {
                if let Some(sample) = samples.one(ERRORS, Some(float(count))) {
                    sample.kind = Some(kind);
                }
            }
            samples.one(DEVICE_MEMORY, now.device.memory);
            samples.one(
                DEVICE_UTILISATION,
                now.device.utilisation.map(|part| 100.0 * part),
            );
            let hours = elapsed.as_secs_f64() / 3600.0;
            let for_a_dollar = price.map(|price| float(grown.tokens_out) / (price * hours));
            samples.one(TOKENS_PER_DOLLAR, for_a_dollar);
        }
        self.before = now;
        samples.0
    }

    /// Measures how fast prompts are processed and places become free.
    fn measure(
        &mut self,
        before: Option<&ModelSnapshot>,
        now: &ModelSnapshot,
        grown: &Counts,
        elapsed: Duration,
    ) {
        let always = |holds: fn(&ModelSnapshot) -> bool| before.is_some_and(holds) && holds(now);
        let prompts = grown.run.saturating_sub(grown.tokens_out);
        let waited = always(|model| model.waiting > 0);
        self.prompts.measure(prompts, elapsed, waited);
        let full = always(|model| model.running >= model.slots);
        self.ends.measure(grown.ended, elapsed, full);
    }

    /// How long a request that came now would wait, if that can be told.
    fn wait(&self, model: &ModelSnapshot) -> Option<f64> {
        let prompts = self.prompts.time(model.waiting_tokens)?;
        let places = (model.running + model.waiting + 1).saturating_sub(model.slots);
        let place = self.ends.time(places)?;
        Some((prompts + place).min(LONGEST_WAIT))
    }
}

#[derive(Default)]
struct Samples(Vec<Sample>);

impl Samples {
    /// A metric with one value, if there is one that is a number.
    fn one(&mut self, measure: Measure, value: Option<f64>) -> Option<&mut Sample> {
        self.many(measure, value.map(|value| (value, 1.0)))
    }

    /// A metric with values, those of them that are numbers, if there are any.
    fn many(
        &mut self,
        measure: Measure,
        values: impl IntoIterator<Item = (f64, f64)>,
    ) -> Option<&mut Sample> {
        let values = values.into_iter().filter(|(value, _)| value.is_finite());
        let values: Vec<_> = values.collect();
        if values.is_empty() {
            return None;
        }
        self.0.push(Sample {
            measure,
            kind: None,
            of_group: false,
            values,
        });
        self.0.last_mut()
    }

    /// What was counted meanwhile.
    fn counted(&mut self, grown: &Counts) {
        let timed = |(seconds, count)| (seconds, float(count));
        self.many(FIRST_TOKEN, grown.first_token.values().map(timed));
        self.many(INTER_TOKEN, grown.inter_token.values().map(timed));
        self.one(TOKENS_IN, Some(float(grown.tokens_in)));
        self.one(TOKENS_OUT, Some(float(grown.tokens_out)));
        self.one(CACHE_HIT_RATE, percent(grown.found, grown.looked_up));
        self.one(
            PADDING_WASTE,
            percent(grown.padding, grown.padding + grown.run),
        );
    }
}

/// A part of a whole; `None` of nothing.
fn percent(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| 100.0 * float(part) / float(whole))
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Duration = Duration::from_secs(10);

    fn model() -> ModelSnapshot {
        ModelSnapshot::idle("tiny", 8)
    }

    fn snapshot(model: &ModelSnapshot) -> Snapshot {
        Snapshot {
            model: Some(model.clone()),
            ..Snapshot::default()
        }
    }

    fn value(samples: &[Sample], measure: &Measure, kind: Option<&str>) -> Option<f64> {
        let is = |sample: &&Sample| sample.measure == *measure && sample.kind == kind;
        let sample = samples.iter().find(is)?;
        let [(value, count)] = sample.values[..] else {
            panic!("{sample:?}")
        };
        assert_eq!(count, 1.0);
        Some(value)
    }

    #[test]
    fn nothing_is_told_before_there_is_a_model() {
        let samples = Observer::default().samples(Snapshot::default(), TEN, Some(1.0));
        assert_eq!(samples, []);
    }

    #[test]
    fn who_runs_and_who_waits_are_the_utilization() {
        let mut model = model();
        (model.running, model.waiting) = (8, 4);
        let samples = Observer::default().samples(snapshot(&model), TEN, None);
        assert_eq!(value(&samples, &SLOT_UTILIZATION, None), Some(150.0));
        let of_group: Vec<_> = samples.iter().filter(|sample| sample.of_group).collect();
        assert_eq!(of_group.len(), 1);
        assert_eq!(of_group[0].measure, SLOT_UTILIZATION);
    }

    #[test]
    fn counts_are_told_by_what_they_grew() {
        let mut observer = Observer::default();
        let mut model = model();
        model.counts.tokens_out = 100;
        model.counts.failed = 1;
        observer.samples(snapshot(&model), TEN, None);
        model.counts.tokens_out = 170;
        model.counts.looked_up = 40;
        model.counts.found = 10;
        model.counts.run = 75;
        model.counts.padding = 25;
        let mut now = snapshot(&model);
        now.server_errors = 3;
        let samples = observer.samples(now, TEN, Some(3.6));
        assert_eq!(value(&samples, &TOKENS_OUT, None), Some(70.0));
        assert_eq!(value(&samples, &CACHE_HIT_RATE, None), Some(25.0));
        assert_eq!(value(&samples, &PADDING_WASTE, None), Some(25.0));
        assert_eq!(value(&samples, &ERRORS, Some("device")), Some(0.0));
        assert_eq!(value(&samples, &ERRORS, Some("server")), Some(3.0));
        // Ten seconds at 3.6 dollars an hour are a cent.
        let for_a_dollar = value(&samples, &TOKENS_PER_DOLLAR, None).unwrap();
        assert!((for_a_dollar - 7000.0).abs() < 1e-6, "{for_a_dollar}");
    }

    #[test]
    fn another_model_is_counted_from_its_start() {
        let mut observer = Observer::default();
        let mut old = model();
        old.counts.tokens_out = 100;
        observer.samples(snapshot(&old), TEN, None);
        let mut new = model();
        new.counts.tokens_out = 30;
        let samples = observer.samples(snapshot(&new), TEN, None);
        assert_eq!(value(&samples, &TOKENS_OUT, None), Some(30.0));
    }

    #[test]
    fn what_is_no_number_is_not_told() {
        let mut model = model();
        (model.slots, model.kv_usage) = (0, f64::NAN);
        let samples = Observer::default().samples(snapshot(&model), Duration::ZERO, Some(0.0));
        for sample in &samples {
            assert!(
                sample.values.iter().all(|(value, _)| value.is_finite()),
                "{sample:?}"
            );
        }
        let told = |measure: &Measure| samples.iter().any(|sample| sample.measure == *measure);
        assert!(!told(&KV_USAGE) && !told(&SLOT_UTILIZATION) && !told(&TOKENS_PER_DOLLAR));
    }

    #[test]
    fn the_wait_is_what_is_before_at_the_rate_that_was_measured() {
        let mut observer = Observer::default();
        let wait = |samples: &[Sample]| value(samples, &QUEUE_SECONDS, None);
        let mut model = model();
        assert_eq!(
            wait(&observer.samples(snapshot(&model), TEN, None)),
            Some(0.0)
        );
        // All places taken, and nobody has ever ended: nobody can tell.
        (model.running, model.waiting, model.waiting_tokens) = (8, 3, 900);
        model.counts.run = 1000;
        assert_eq!(wait(&observer.samples(snapshot(&model), TEN, None)), None);
        // A thousand prompt tokens and five ends in ten seconds: 9 s for the prompts before it, 8 s for
        // the four places that it and those before it need.
        model.counts.run = 2000;
        model.counts.ended = 5;
        let told = wait(&observer.samples(snapshot(&model), TEN, None)).unwrap();
        assert!((told - 17.0).abs() < 1e-6, "{told}");
        // A device that does nothing any more: the wait grows, up to an hour.
        let mut before = told;
        for _ in 0..40 {
            let told = wait(&observer.samples(snapshot(&model), TEN, None)).unwrap();
            assert!(
                told > before || told == LONGEST_WAIT,
                "{told} after {before}"
            );
            before = told;
        }
        assert_eq!(before, LONGEST_WAIT);
    }

    #[test]
    fn an_hour_of_little_work_does_not_make_the_rate_small() {
        let mut observer = Observer::default();
        let mut model = model();
        model.counts.run = 10_000;
        observer.samples(snapshot(&model), TEN, None);
        for _ in 0..360 {
            model.counts.run += 10;
            observer.samples(snapshot(&model), TEN, None);
        }
        (model.waiting, model.waiting_tokens) = (1, 1000);
        let samples = observer.samples(snapshot(&model), TEN, None);
        assert_eq!(value(&samples, &QUEUE_SECONDS, None), Some(1.0));
    }

    /// To write it anew: `APPLIANCE_TEST_WRITE=1 cargo test -p appliance metrics_of_the_page`.
    #[test]
    fn the_metrics_of_the_page_are_current() {
        const BEGIN: &str =
            "<!-- Written from appliance/src/host/cloudwatch/measures.rs: see its last test. -->\n";
        const END: &str = "<!-- End of what is written. -->\n";
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../docs/operations/cloudwatch.md"
        );
        let page = std::fs::read_to_string(path).unwrap();
        let (head, rest) = page.split_once(BEGIN).expect("the table's beginning");
        let (table, tail) = rest.split_once(END).expect("the table's end");
        let mut current = "| Metric | Unit | What it is |\n|---|---|---|\n".to_owned();
        for Measure {
            name, unit, help, ..
        } in MEASURES
        {
            current += &format!("| `{name}` | {} | {} |\n", unit.as_str(), help.trim());
        }
        if std::env::var_os("APPLIANCE_TEST_WRITE").is_some() {
            std::fs::write(path, format!("{head}{BEGIN}{current}{END}{tail}")).unwrap();
        } else {
            assert_eq!(
                table, current,
                "docs/operations/cloudwatch.md is not what measures.rs says"
            );
        }
    }
}
