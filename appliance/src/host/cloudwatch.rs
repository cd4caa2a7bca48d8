//! CloudWatch is told how the server does: every few seconds, without an agent, within the limits of
//! `PutMetricData`. When it does not listen, nothing waits for it; the newest hour of data is kept.

mod measures;

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::config::Builder;
use aws_sdk_cloudwatch::config::retry::RetryConfig;
use aws_sdk_cloudwatch::config::timeout::TimeoutConfig;
use aws_sdk_cloudwatch::error::ProvideErrorMetadata as _;
use aws_sdk_cloudwatch::types::{Dimension, MetricDatum};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use self::measures::{Observer, Sample};
use super::Account;
use super::account::told;
use super::imds::Identity;
use crate::config::Live;
use crate::metrics::Metrics;

/// Whose the metrics are.
const NAMESPACE: &str = "Appliance";

/// Data that are kept while CloudWatch does not take them: an hour's, at the usual interval.
const KEPT: usize = 10_000;

/// Data of one call. CloudWatch takes 1000 metrics.
const BATCH: usize = 1000;

/// Bytes of one call, before it is packed, as [`weight`] has them. CloudWatch takes a MiB.
const BATCH_BYTES: usize = 700_000;

/// From how many bytes on a call is packed with gzip.
const PACKED: u32 = 1024;

/// How long a call may take, with all attempts: less than the usual interval.
const CALL: Duration = Duration::from_secs(5);

/// How long the last report may take.
const LAST: Duration = Duration::from_secs(5);

/// The shortest interval.
const SHORTEST: Duration = Duration::from_millis(100);

/// Characters of a dimension's value.
const LONGEST_VALUE: usize = 255;

/// What tells metrics of one server from those of another.
#[derive(Clone, Default, Debug)]
pub(crate) struct Dimensions {
    group: Option<Dimension>,
    kind: Option<Dimension>,
    instance: Option<Dimension>,
}

impl Dimensions {
    /// Those of this machine.
    pub(crate) fn of(identity: &Identity) -> Self {
        let of = |name, value: &Option<String>| dimension(name, value.as_deref()?);
        Self {
            group: of("AutoScalingGroupName", &identity.group),
            kind: of("InstanceType", &identity.kind),
            instance: of("InstanceId", &identity.instance),
        }
    }

    /// Of a model on it; by instance too if that is wanted.
    fn of_model(&self, model: &str, by_instance: bool) -> Vec<Dimension> {
        let model = dimension("Model", model);
        let instance = self.instance.iter().filter(|_| by_instance);
        let all = self.group.iter().chain(&model).chain(&self.kind);
        all.chain(instance).cloned().collect()
    }

    /// Of the group as a whole, if it is in one.
    fn of_group(&self) -> Option<Vec<Dimension>> {
        Some(vec![self.group.clone()?])
    }
}

/// A dimension, its value made one that CloudWatch takes; `None` if nothing is left of it.
fn dimension(name: &str, value: &str) -> Option<Dimension> {
    let printable = |c: char| {
        if c.is_ascii() && !c.is_control() {
            c
        } else {
            '?'
        }
    };
    let value: String = value.chars().take(LONGEST_VALUE).map(printable).collect();
    let value = value.trim().trim_start_matches(':');
    let dimension = Dimension::builder().name(name).value(value).build();
    (!value.is_empty()).then_some(dimension)
}

/// Tells CloudWatch, until it is told to stop.
#[derive(Debug)]
pub(crate) struct CloudWatch {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl CloudWatch {
    /// Begins to tell the account's CloudWatch what `metrics` hold, as the settings say.
    pub(crate) fn start(account: &Account, settings: Live, metrics: Metrics) -> Self {
        let timeouts = TimeoutConfig::builder().operation_timeout(CALL).build();
        let config = Builder::from(&account.sdk)
            .request_min_compression_size_bytes(PACKED)
            .retry_config(RetryConfig::standard().with_max_attempts(2))
            .timeout_config(timeouts)
            .build();
        let reporter = Reporter {
            client: Client::from_conf(config),
            dimensions: Dimensions::of(&account.identity),
            settings,
            metrics,
            observer: Observer::default(),
            last: Instant::now(),
            buffer: VecDeque::new(),
            standing: Standing::Well,
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(reporter.keep(stopped));
        Self { stop, task }
    }

    /// Tells what there is to tell for the last time, for at most [`LAST`].
    pub(crate) async fn flush(self) {
        self.stop.send(()).ok();
        if tokio::time::timeout(LAST, self.task).await.is_err() {
            tracing::warn!("CloudWatch did not take the last metrics in time");
        }
    }
}

/// Whether CloudWatch listens.
#[derive(PartialEq, Eq, Debug)]
enum Standing {
    Well,
    /// It has not since then, and why not when that began.
    Not {
        since: Instant,
        why: Why,
    },
}

/// Why CloudWatch did not take data.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Why {
    /// The instance's role lacks the permission.
    Denied,
    /// It is away, or busy.
    Away,
    /// It does not take these data whenever they are sent.
    Wrong,
}

impl Why {
    fn of(code: Option<&str>) -> Self {
        match code {
            Some("AccessDenied" | "AccessDeniedException") => Self::Denied,
            Some(code) if code.starts_with("InvalidParameter") || code == "MissingParameter" => {
                Self::Wrong
            }
            _ => Self::Away,
        }
    }
}

#[derive(Debug)]
struct Reporter {
    client: Client,
    dimensions: Dimensions,
    settings: Live,
    metrics: Metrics,
    observer: Observer,
    last: Instant,
    buffer: VecDeque<MetricDatum>,
    standing: Standing,
}

impl Reporter {
    /// Tells what there is every interval, and once more at the end.
    async fn keep(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            let interval = self.settings.now().cloudwatch_interval.max(SHORTEST);
            let ended = tokio::select! {
                () = tokio::time::sleep(interval.saturating_sub(self.last.elapsed())) => false,
                _ = &mut stopped => true,
            };
            if self.settings.now().cloudwatch != Some(false) {
                self.collect();
                self.send().await;
            }
            if ended {
                return;
            }
        }
    }

    /// Adds what there is to tell now to what is still to be sent.
    fn collect(&mut self) {
        let settings = self.settings.now();
        let snapshot = self.metrics.snapshot();
        let Some(model) = snapshot.model.as_ref().map(|model| model.name.clone()) else {
            self.last = Instant::now();
            return;
        };
        let elapsed = self.last.elapsed();
        self.last = Instant::now();
        let price = settings.price_per_hour.map(|price| price.0);
        let samples = self.observer.samples(snapshot, elapsed, price);
        let of_model = self
            .dimensions
            .of_model(&model, settings.cloudwatch_instance);
        let now = SystemTime::now();
        for sample in samples {
            self.buffer.push_back(datum(&sample, of_model.clone(), now));
            if let Some(of_group) = self.dimensions.of_group().filter(|_| sample.of_group) {
                self.buffer.push_back(datum(&sample, of_group, now));
            }
        }
        self.drop(beyond(&self.buffer));
    }

    /// Sends what is still to be sent, as far as CloudWatch takes it.
    async fn send(&mut self) {
        while !self.buffer.is_empty() {
            let batch = batch(&self.buffer);
            let put = (self.client.put_metric_data())
                .namespace(NAMESPACE)
                .set_metric_data(Some(self.buffer.iter().take(batch).cloned().collect()))
                .send();
            let Err(error) = put.await else {
                self.buffer.drain(..batch);
                self.well();
                continue;
            };
            let why = Why::of(error.as_service_error().and_then(|error| error.code()));
            self.not(&why, &told(&error));
            match why {
                Why::Wrong => self.drop(batch),
                Why::Denied | Why::Away => return,
            }
        }
    }

    /// Gives up the oldest data.
    fn drop(&mut self, count: usize) {
        self.buffer.drain(..count);
        self.metrics.cloudwatch_dropped(count);
    }

    /// CloudWatch takes data.
    fn well(&mut self) {
        if let Standing::Not { since, .. } = std::mem::replace(&mut self.standing, Standing::Well) {
            let seconds = since.elapsed().as_secs();
            let dropped = self.metrics.dropped_by_cloudwatch();
            tracing::info!(seconds, dropped, "CloudWatch takes metrics again");
        }
    }

    /// CloudWatch does not take data: told when that begins, and when the reason is another.
    fn not(&mut self, because: &Why, error: &str) {
        let since = match &self.standing {
            Standing::Not { why, .. } if why == because => return,
            Standing::Not { since, .. } => *since,
            Standing::Well => Instant::now(),
        };
        match because {
            Why::Denied => tracing::warn!(
                error,
                "the instance may not cloudwatch:PutMetricData: allow it in the role's policy, or set \
                 cloudwatch = false"
            ),
            Why::Away => tracing::warn!(
                error,
                kept = KEPT,
                "CloudWatch does not take metrics: the newest are kept until it does"
            ),
            Why::Wrong => tracing::warn!(
                error,
                "CloudWatch refuses metrics, which are dropped: is this machine's clock right?"
            ),
        }
        self.standing = Standing::Not {
            since,
            why: because.clone(),
        };
    }
}

/// How many of the first data are too many to be kept.
fn beyond(buffer: &VecDeque<MetricDatum>) -> usize {
    buffer.len().saturating_sub(KEPT)
}

/// How many of the first data go into one call.
fn batch(buffer: &VecDeque<MetricDatum>) -> usize {
    let weights = buffer.iter().map(weight);
    let sums = weights.scan(0, |sum, weight| {
        *sum += weight;
        Some(*sum)
    });
    let fit = sums.take_while(|sum| *sum <= BATCH_BYTES).take(BATCH);
    fit.count().max(1)
}

/// No fewer bytes than a datum takes on the wire.
fn weight(datum: &MetricDatum) -> usize {
    let dimensions = datum.dimensions().iter();
    let text = dimensions
        .flat_map(|dimension| [dimension.name(), dimension.value()])
        .flatten();
    let text: usize = text.map(|text| text.len() + 16).sum();
    256 + text + 18 * datum.values().len()
}

fn datum(sample: &Sample, dimensions: Vec<Dimension>, now: SystemTime) -> MetricDatum {
    let kind = sample.kind.and_then(|kind| dimension("Kind", kind));
    let dimensions = dimensions.into_iter().chain(kind).collect();
    let datum = MetricDatum::builder()
        .metric_name(sample.measure.name)
        .set_dimensions(Some(dimensions))
        .timestamp(now.into())
        .unit(sample.measure.unit.clone())
        .set_storage_resolution(sample.measure.fine.then_some(1));
    match sample.values[..] {
        [(value, 1.0)] => datum.value(value),
        ref many => many.iter().fold(datum, |datum, (value, count)| {
            datum.values(*value).counts(*count)
        }),
    }
    .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(count: usize, values: usize) -> VecDeque<MetricDatum> {
        let dimensions: Vec<_> = ["AutoScalingGroupName", "Model", "InstanceType"]
            .map(|name| dimension(name, &"x".repeat(300)).unwrap())
            .into();
        let datum = MetricDatum::builder()
            .metric_name("TimeToFirstToken")
            .set_dimensions(Some(dimensions))
            .set_values(Some(vec![1.0; values]))
            .set_counts(Some(vec![1.0; values]))
            .build();
        vec![datum; count].into()
    }

    #[test]
    fn an_hour_away_costs_the_oldest_data_and_nothing_else() {
        let of_a_report = 24;
        assert!(KEPT >= 360 * of_a_report, "an hour of reports fits");
        let reports = VecDeque::from(vec![MetricDatum::builder().build(); 500 * of_a_report]);
        assert_eq!(beyond(&reports), 500 * of_a_report - KEPT);
        assert_eq!(beyond(&data(KEPT, 1)), 0);
    }

    #[test]
    fn a_call_holds_as_much_as_cloudwatch_takes() {
        assert_eq!(batch(&data(1, 150)), 1);
        for values in [1, 150] {
            let (fit, each) = (batch(&data(5000, values)), weight(&data(1, values)[0]));
            assert!(
                fit * each <= BATCH_BYTES && (fit + 1) * each > BATCH_BYTES,
                "{fit}"
            );
        }
        let small = VecDeque::from(vec![MetricDatum::builder().build(); 5000]);
        assert_eq!(batch(&small), BATCH);
    }

    #[test]
    fn what_cloudwatch_does_not_take_as_a_dimension_is_made_so_that_it_does() {
        let value = |text: &str| dimension("Model", text).and_then(|made| made.value);
        assert_eq!(value("tiny").as_deref(), Some("tiny"));
        assert_eq!(value(":ti\u{fc}ny\n").as_deref(), Some("ti?ny?"));
        assert_eq!(value(" "), None);
        assert_eq!(value(&"x".repeat(999)).unwrap().len(), LONGEST_VALUE);
    }

    #[test]
    fn metrics_are_of_the_group_the_model_and_the_kind_of_instance() {
        let identity = Identity {
            group: Some("fleet".to_owned()),
            kind: Some("inf2.xlarge".to_owned()),
            instance: Some("i-1".to_owned()),
            ..Identity::default()
        };
        let names = |dimensions: Vec<Dimension>| -> Vec<String> {
            let names = dimensions
                .into_iter()
                .filter_map(|dimension| dimension.name);
            names.collect()
        };
        let all = Dimensions::of(&identity);
        let usual = ["AutoScalingGroupName", "Model", "InstanceType"];
        assert_eq!(names(all.of_model("tiny", false)), usual);
        let by_instance = names(all.of_model("tiny", true));
        assert_eq!(by_instance.last().map(String::as_str), Some("InstanceId"));
        assert_eq!(names(all.of_group().unwrap()), usual[..1]);
        let nowhere = Dimensions::of(&Identity::default());
        assert_eq!(names(nowhere.of_model("tiny", true)), ["Model"]);
        assert_eq!(nowhere.of_group(), None);
    }

    #[test]
    fn errors_are_told_apart_by_whether_another_try_may_help() {
        assert_eq!(Why::of(Some("AccessDenied")), Why::Denied);
        assert_eq!(Why::of(Some("InvalidParameterValue")), Why::Wrong);
        assert_eq!(Why::of(Some("Throttling")), Why::Away);
        assert_eq!(Why::of(None), Why::Away);
    }
}
