//! Numbers about the device itself, from whichever driver has any, for `/metrics`: read and rendered
//! now and then by a thread of their own, so that neither a request nor a step ever waits for them.

use std::collections::BTreeMap;
use std::time::Duration;
use std::{io, thread};

use prometheus::proto::{Counter, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder as _, TextEncoder};

use crate::metrics::{Device, Metrics};

/// How often the numbers are read. The device counts by itself; nobody looks more often than this.
const EVERY: Duration = Duration::from_secs(5);

/// What all names begin with.
const PREFIX: &str = "appliance_device_";

/// A number about the device.
#[derive(Clone, PartialEq, Debug)]
pub struct Gauge {
    /// What it is called, after `appliance_device_`.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Whether it only ever goes up.
    pub counts: bool,
    /// Of what it is the number.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

/// Reads a device's numbers, all of them, as they are now.
pub type Reader = Box<dyn FnMut() -> Vec<Gauge> + Send>;

/// Reads the numbers and hands them to `metrics`, for as long as the process lives. Once is enough: later
/// calls do nothing.
///
/// # Errors
/// The system has no thread for it.
pub(crate) fn keep(mut read: Reader, metrics: Metrics) -> io::Result<()> {
    if metrics.is_device_read() {
        return Ok(());
    }
    let thread = thread::Builder::new().name("device-metrics".to_owned());
    thread.spawn(move || {
        loop {
            let gauges = read();
            match text(&gauges) {
                Ok(text) => metrics.device(text, in_short(&gauges)),
                Err(error) => tracing::warn!("cannot render the device's metrics: {error}"),
            }
            #[expect(clippy::disallowed_methods, reason = "on a thread of its own")]
            thread::sleep(EVERY);
        }
    })?;
    Ok(())
}

/// Memory in use by all cores together, and how busy they are on average.
fn in_short(gauges: &[Gauge]) -> Device {
    let of = |name: &str| -> Vec<f64> {
        let named = gauges.iter().filter(|gauge| gauge.name == name);
        named.map(|gauge| gauge.value).collect()
    };
    let (memory, busy) = (of("memory_bytes"), of("utilization"));
    let cores = u32::try_from(busy.len()).map_or(f64::MAX, f64::from);
    Device {
        memory: (!memory.is_empty()).then(|| memory.iter().sum()),
        utilisation: (!busy.is_empty()).then(|| busy.iter().sum::<f64>() / cores),
    }
}

/// The numbers as Prometheus reads them.
fn text(gauges: &[Gauge]) -> prometheus::Result<Vec<u8>> {
    let mut families: BTreeMap<&str, Vec<&Gauge>> = BTreeMap::new();
    for gauge in gauges {
        families.entry(gauge.name).or_default().push(gauge);
    }
    let families: Vec<_> = families.values().map(|gauges| family(gauges)).collect();
    let mut text = Vec::new();
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(text)
}

/// Numbers of one name.
fn family(gauges: &[&Gauge]) -> MetricFamily {
    let mut family = MetricFamily::default();
    if let Some(first) = gauges.first() {
        family.set_name(format!("{PREFIX}{}", first.name));
        family.set_help(first.help.to_owned());
        family.set_field_type(match first.counts {
            true => MetricType::COUNTER,
            false => MetricType::GAUGE,
        });
    }
    family.set_metric(gauges.iter().map(|gauge| metric(gauge)).collect());
    family
}

fn metric(gauge: &Gauge) -> Metric {
    let labels = gauge.labels.iter().map(|(name, value)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value(value.clone());
        label
    });
    let mut metric = Metric::from_label(labels.collect());
    if gauge.counts {
        let mut counter = Counter::default();
        counter.set_value(gauge.value);
        metric.set_counter(counter);
    } else {
        let mut value = prometheus::proto::Gauge::default();
        value.set_value(gauge.value);
        metric.set_gauge(value);
    }
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_in_short_is_all_its_memory_and_how_busy_it_is_on_average() {
        let gauge = |name, value| Gauge {
            name,
            help: "Something",
            counts: false,
            labels: Vec::new(),
            value,
        };
        let gauges = [
            gauge("memory_bytes", 2.0),
            gauge("memory_bytes", 3.0),
            gauge("utilization", 0.5),
            gauge("utilization", 1.0),
        ];
        let told = in_short(&gauges);
        assert_eq!((told.memory, told.utilisation), (Some(5.0), Some(0.75)));
        assert_eq!(in_short(&[]), Device::default());
    }

    #[test]
    fn numbers_of_one_name_are_one_family_whatever_their_order() {
        let gauge = |name, counts, labels: &[(&'static str, &str)], value| Gauge {
            name,
            help: "Something",
            counts,
            labels: (labels.iter())
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            value,
        };
        let text = text(&[
            gauge("calls_total", true, &[("status", "a\"b")], 3.0),
            gauge("chips", false, &[], 2.0),
            gauge("calls_total", true, &[("status", "timeout")], 0.5),
        ]);
        assert_eq!(
            String::from_utf8(text.unwrap()).unwrap(),
            "# HELP appliance_device_calls_total Something\n\
             # TYPE appliance_device_calls_total counter\n\
             appliance_device_calls_total{status=\"a\\\"b\"} 3\n\
             appliance_device_calls_total{status=\"timeout\"} 0.5\n\
             # HELP appliance_device_chips Something\n\
             # TYPE appliance_device_chips gauge\n\
             appliance_device_chips 2\n"
        );
    }
}
