//! What the driver and the kernel tell about the device, as a flat list of numbers with names and
//! labels: what a server shows to whoever watches it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::fault::Advice;
use crate::klog::{self, HardwareError, Log};
use crate::sysfs::{self, Chip, Core, Snapshot, Tree};

/// A number about the device.
#[derive(Clone, PartialEq, Debug)]
pub struct Gauge {
    /// What it is called, after the prefix of whoever shows it; unique with its labels.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Whether it only ever goes up, from 0 when the driver was loaded or the process started.
    pub counts: bool,
    /// Of what it is the number.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

/// Errors of the hardware by chip, error and what to do.
type Failures = BTreeMap<(String, String, Advice), u64>;

/// Reads the driver's tree and the kernel's log whenever it is asked.
#[derive(Debug)]
pub struct Gauges {
    tree: Option<Tree>,
    before: Option<Snapshot>,
    log: Option<Log>,
    failures: Failures,
}

impl Gauges {
    /// Opens what there is of both, and says in the log what there is not.
    pub fn open() -> Self {
        Self::of(&sysfs::root(), &klog::path())
    }

    fn of(root: &Path, path: &Path) -> Self {
        let tree = Tree::open(root).map_err(|error| {
            let root = root.display();
            tracing::warn!("no counters of the device: {root}: {error}");
        });
        let log = Log::from_now(path).map_err(|error| {
            let path = path.display();
            tracing::info!("the kernel's log is not watched: {path}: {error}");
        });
        Self {
            tree: tree.ok(),
            before: None,
            log: log.ok(),
            failures: Failures::new(),
        }
    }

    /// All numbers as they are now. What the kernel has said since the last time goes to the log.
    pub fn read(&mut self) -> Vec<Gauge> {
        let mut list = Vec::new();
        let errors = self.log.as_mut().map(Log::errors).unwrap_or_default();
        for error in errors {
            self.fail(&error);
        }
        for ((chip, error, advice), count) in &self.failures {
            let labels = vec![
                ("device", chip.clone()),
                ("error", error.clone()),
                ("advice", advice.name().to_owned()),
            ];
            list.push(counter(KERNEL, labels, *count));
        }
        if let Some(tree) = &mut self.tree {
            let now = tree.read();
            let before = self.before.as_ref().unwrap_or(&now);
            of_snapshot(&now, before, &mut list);
            self.before = Some(now);
        }
        list
    }

    fn fail(&mut self, error: &HardwareError) {
        let advice = error.advice();
        tracing::error!(
            error = error.error,
            device = error.chip,
            core = error.core,
            serial = error.serial,
            action = error.action,
            "the kernel says that the device failed: {}",
            advice.what_to_do()
        );
        let chip = error.chip.map_or_else(String::new, |chip| chip.to_string());
        let key = (chip, error.error.clone(), advice);
        // Whoever can write the kernel's log can make up errors; not without bound.
        if self.failures.len() < 100 || self.failures.contains_key(&key) {
            *self.failures.entry(key).or_default() += 1;
        }
    }
}

/// A name, and what it is.
type Named = (&'static str, &'static str);

const KERNEL: Named = (
    "kernel_errors_total",
    "Failures of the hardware that the kernel's log told of since the start, and what to do about them",
);
const CHIPS: Named = ("chips", "Chips that the driver shows");
const HARDWARE: Named = (
    "hardware_errors_total",
    "Memory errors that a chip counted since the driver was loaded",
);
const HOST: Named = (
    "host_memory_bytes",
    "Memory of the host that is held for a chip",
);
const POWER: Named = (
    "power_percent",
    "Power that a chip took in the last minute, in percent of what it may",
);
const CALLS: Named = (
    "calls_total",
    "Calls of the runtime by what they came to, all cores of a chip, since the driver was loaded",
);
const MEMORY: Named = (
    "memory_bytes",
    "Device memory in use by a core, by what for",
);
const PEAK: Named = (
    "memory_peak_bytes",
    "The same at its most since the driver was loaded",
);
const BUSY: Named = (
    "utilization",
    "The part of the time since the last reading that a core was in use, 1 being all",
);
const EXECUTIONS: Named = (
    "executions_total",
    "Executions that a core counted since the driver was loaded",
);
const RESETS: Named = (
    "resets_total",
    "Resets of a core since the driver was loaded",
);

fn gauge(named: Named, labels: Vec<(&'static str, String)>, value: f64) -> Gauge {
    Gauge {
        name: named.0,
        help: named.1,
        counts: false,
        labels,
        value,
    }
}

fn counter(named: Named, labels: Vec<(&'static str, String)>, count: u64) -> Gauge {
    Gauge {
        counts: true,
        ..gauge(named, labels, float(count))
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a number that is shown may lose its last digits beyond 2^53"
)]
fn float(count: u64) -> f64 {
    count as f64
}

fn of_snapshot(now: &Snapshot, before: &Snapshot, list: &mut Vec<Gauge>) {
    list.push(gauge(CHIPS, Vec::new(), float(now.chips.len() as u64)));
    for (index, chip) in &now.chips {
        let device = index.to_string();
        of_chip(&device, chip, list);
        for (core, counted) in &chip.cores {
            of_core(&device, &core.to_string(), counted, list);
        }
    }
    for ((chip, core), busy) in now.busy(before) {
        let labels = vec![("device", chip.to_string()), ("core", core.to_string())];
        list.push(gauge(BUSY, labels, busy));
    }
}

fn of_chip(device: &str, chip: &Chip, list: &mut Vec<Gauge>) {
    let device = || ("device", device.to_owned());
    for (kind, count) in &chip.hardware {
        let labels = vec![device(), ("kind", kind.clone())];
        list.push(counter(HARDWARE, labels, *count));
    }
    if let Some(usage) = chip.host_memory {
        list.push(gauge(HOST, vec![device()], float(usage.present)));
    }
    if let Some(power) = chip.power {
        let statistics = [
            ("min", power.least),
            ("max", power.most),
            ("mean", power.mean),
        ];
        for (statistic, percent) in statistics {
            let labels = vec![device(), ("statistic", statistic.to_owned())];
            list.push(gauge(POWER, labels, percent));
        }
    }
    let mut calls: BTreeMap<&str, u64> = BTreeMap::new();
    let counted = chip.cores.values().flat_map(|core| &core.statuses);
    for (status, count) in counted {
        let sum = calls.entry(status).or_default();
        *sum = sum.saturating_add(*count);
    }
    for (status, count) in calls {
        let labels = vec![device(), ("status", status.to_owned())];
        list.push(counter(CALLS, labels, count));
    }
}

fn of_core(device: &str, core: &str, counted: &Core, list: &mut Vec<Gauge>) {
    let labels = |more: Option<(&'static str, &str)>| {
        let more = more.map(|(name, value)| (name, value.to_owned()));
        let own = [("device", device.to_owned()), ("core", core.to_owned())];
        own.into_iter().chain(more).collect::<Vec<_>>()
    };
    for (kind, usage) in &counted.memory {
        let kind = Some(("kind", kind.as_str()));
        list.push(gauge(MEMORY, labels(kind), float(usage.present)));
        list.push(gauge(PEAK, labels(kind), float(usage.peak)));
    }
    let other = |name: &str| counted.others.get(name).copied();
    if let Some(count) = other("inference_count") {
        list.push(counter(EXECUTIONS, labels(None), count));
    }
    let resets = [
        ("requested", "reset_req_count"),
        ("failed", "reset_fail_count"),
    ];
    for (outcome, name) in resets {
        if let Some(count) = other(name) {
            list.push(counter(RESETS, labels(Some(("outcome", outcome))), count));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn value(list: &[Gauge], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let is = |gauge: &&Gauge| {
            let has = |(key, value): &(&str, &str)| {
                let mut own = gauge.labels.iter();
                own.any(|(name, own)| name == key && own == value)
            };
            gauge.name == name && labels.iter().all(has)
        };
        list.iter().find(is).map(|gauge| gauge.value)
    }

    #[test]
    fn calls_are_summed_over_the_cores_of_a_chip_and_memory_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for (core, count) in [("neuron_core0", "2"), ("neuron_core1", "3")] {
            let stats = format!("neuron0/{core}/stats");
            put(root, &format!("{stats}/status/success/total"), count);
            let rings = format!("{stats}/memory_usage/device_mem/dma_rings/present");
            put(root, &rings, count);
        }
        put(root, "neuron0/stats/hardware/sram_ecc_uncorrected", "1");
        let list = Gauges::of(root, &root.join("no-log")).read();
        let of = |name, labels: &[_]| value(&list, name, labels);
        assert_eq!(of("calls_total", &[("status", "success")]), Some(5.0));
        let rings = |core| [("core", core), ("kind", "dma_rings")];
        assert_eq!(of("memory_bytes", &rings("0")), Some(2.0));
        assert_eq!(of("memory_bytes", &rings("1")), Some(3.0));
        let kind = [("kind", "sram_ecc_uncorrected")];
        assert_eq!(of("hardware_errors_total", &kind), Some(1.0));
        assert_eq!(of("chips", &[]), Some(1.0));
    }

    #[test]
    fn the_kernels_words_are_counted_from_the_start_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kmsg");
        let line = "NEURON_HW_ERR=DMA_ERROR nd-id=2 nc-id=0 action=TERMINATE_INSTANCE\n";
        fs::write(&path, line).unwrap();
        let mut gauges = Gauges::of(&directory.path().join("no-tree"), &path);
        assert_eq!(gauges.read(), []);
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(line.repeat(2).as_bytes()).unwrap();
        let list = gauges.read();
        let labels = [("device", "2"), ("advice", "replace-instance")];
        assert_eq!(value(&list, "kernel_errors_total", &labels), Some(2.0));
        assert_eq!(gauges.read(), list);
    }

    #[test]
    fn a_number_has_one_name_and_one_set_of_labels() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for core in 0..2 {
            let stats = format!("neuron0/neuron_core{core}/stats");
            for file in [
                "status/success/total",
                "memory_usage/device_mem/tensors/present",
                "other_info/inference_count/total",
                "other_info/nc_time_in_use/total",
                "other_info/reset_req_count/total",
                "other_info/reset_fail_count/total",
            ] {
                put(root, &format!("{stats}/{file}"), "4");
            }
        }
        let mut gauges = Gauges::of(root, &root.join("no-log"));
        gauges.read();
        let list = gauges.read();
        for (index, one) in list.iter().enumerate() {
            let same = |other: &Gauge| other.name == one.name && other.labels == one.labels;
            assert_eq!(list.iter().position(same), Some(index), "{one:?}");
        }
        assert_eq!(value(&list, "utilization", &[("core", "1")]), Some(0.0));
    }
}
