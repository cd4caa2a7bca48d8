//! The devices that this binary knows, in order of preference: the one place above the backends that
//! names them.

use std::ffi::OsString;
use std::time::Duration;

use engine::{Backend, Demand, Device};
use model::{Decoder, Weights};

use crate::artifacts::Artifacts;
use crate::config;
use crate::device_metrics::{Gauge, Reader};

/// Why no device was opened.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The device asked for cannot be used.
    #[error("--backend {name}: {why}")]
    Absent {
        /// Its name.
        name: &'static str,
        /// What is missing.
        why: String,
    },
    /// No device can be used at all.
    #[error("there is no device to run on: {0}")]
    None(String),
    /// The device has no such number format.
    #[error("--dtype {dtype}: the {name} backend has {has}")]
    Precision {
        /// The device's name.
        name: &'static str,
        /// The format asked for.
        dtype: &'static str,
        /// Those that it has.
        has: &'static str,
    },
    /// The device holds keys and values in no such number format.
    #[error("--kv-dtype {dtype}: the {name} backend has {has}")]
    KvPrecision {
        /// The device's name.
        name: &'static str,
        /// The format asked for.
        dtype: &'static str,
        /// Those that it has.
        has: &'static str,
    },
    /// The device needs something that is compiled ahead.
    #[error(
        "the {name} backend runs modules that are compiled ahead: name the directory or s3:// prefix that \
         appliance prepare filled with --artifacts"
    )]
    Artifacts {
        /// The device's name.
        name: &'static str,
    },
    /// What the device needs was not compiled yet.
    #[error("the {name} backend cannot open the model: {why}")]
    Unprepared {
        /// The device's name.
        name: &'static str,
        /// What is missing, and the command that makes it.
        why: String,
        /// The arguments of that command.
        arguments: Vec<String>,
    },
    /// The process has to be started again with these variables before the device can be used:
    /// nothing has been touched.
    #[error("the {name} backend needs variables in the environment that are not set")]
    Environment {
        /// The device's name.
        name: &'static str,
        /// What they are to be.
        variables: Vec<(&'static str, OsString)>,
    },
    /// The device has no room for the model, or none beside the one that it holds: nothing has been touched.
    #[error("the {name} device has no room for the model: {why}")]
    NoRoom {
        /// The device's name.
        name: &'static str,
        /// What is missing.
        why: String,
    },
    /// The device failed as the model was opened: another start may find it well.
    #[error("the {name} device failed as the model was opened: {why}")]
    Device {
        /// The device's name.
        name: &'static str,
        /// What it said.
        why: String,
    },
    /// The device could not open the model.
    #[error("the {name} backend cannot open the model: {why}")]
    Open {
        /// The device's name.
        name: &'static str,
        /// What it said.
        why: String,
    },
}

/// A device that may be there.
#[derive(Debug)]
struct Driver {
    choice: config::Backend,
    /// The device, or why it cannot be used.
    probe: fn() -> Result<Device, String>,
    open: fn(&Load<'_>) -> Opened,
    /// What reads the device's own numbers, if it has any.
    gauges: fn() -> Option<Reader>,
}

/// What is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The number format of the weights.
    pub precision: config::Precision,
    /// The number format of keys and values.
    pub kv: config::KvPrecision,
    /// How many devices it is opened on.
    pub replicas: u32,
    /// Whether a model serves on the device already.
    pub beside: bool,
    /// Where modules compiled ahead are.
    pub artifacts: Option<&'a Artifacts>,
    /// How long a step may take before the device counts as hung.
    pub patience: Duration,
    /// Where the model came from.
    pub source: &'a str,
    /// What is in it.
    pub decoder: &'a Decoder,
    /// Its weights.
    pub weights: &'a Weights,
    /// What each device is to be able to.
    pub demand: &'a Demand,
}

/// The replicas.
type Opened = Result<Vec<Box<dyn Backend>>, DriverError>;

/// Variables that look like settings and are none: by them the libraries of devices are found where they
/// are not installed, what computes in their stand-ins, and where the kernel tells of them.
pub const VARIABLES: [&str; 4] = [
    "APPLIANCE_KMSG",
    "APPLIANCE_LIBNRT",
    "APPLIANCE_NEURON_SYSFS",
    "APPLIANCE_XLA_CPU",
];

/// All of them, the best first.
const DRIVERS: [Driver; 3] = [
    Driver {
        choice: config::Backend::Neuron,
        probe: neuron_backend::probe,
        open: open_neuron,
        gauges: neuron_gauges,
    },
    Driver {
        choice: config::Backend::Cuda,
        probe: || Err("this build has no driver for NVIDIA GPUs; use auto or cpu".to_owned()),
        open: |_| Err(unopened(config::Backend::Cuda)),
        gauges: || None,
    },
    Driver {
        choice: config::Backend::Cpu,
        probe: || {
            let why = "this processor lacks what the kernels need";
            cpu_backend::probe().ok_or(why.to_owned())
        },
        open: open_cpu,
        gauges: || None,
    },
];

/// The driver of the device that `choice` names, or of the best that is there.
///
/// # Errors
/// The device is not there.
pub fn find(choice: config::Backend) -> Result<Found, DriverError> {
    let (driver, device) = pick(&DRIVERS, choice)?;
    let memory_mib = device.memory >> 20;
    let (backend, cores) = (driver.choice.name(), device.cores);
    tracing::info!(
        backend,
        device = device.name,
        cores,
        memory_mib,
        "device found"
    );
    Ok(Found(driver))
}

/// Keeps what devices need running while no model is open on them: some cannot be started twice.
#[derive(Debug)]
pub(crate) struct Hold {
    _neuron: Option<neuron_backend::nrt::Runtime>,
}

impl Hold {
    /// Holds whatever runs now.
    pub(crate) fn new() -> Self {
        Self {
            _neuron: neuron_backend::nrt::Runtime::running(),
        }
    }
}

/// The driver of a device that is there.
#[derive(Clone, Copy, Debug)]
pub struct Found(&'static Driver);

impl Found {
    /// Opens a model on the device, once for each replica.
    ///
    /// # Errors
    /// It cannot hold the model, or lacks the number format.
    pub fn open(self, load: &Load<'_>) -> Result<Vec<Box<dyn Backend>>, DriverError> {
        (self.0.open)(load)
    }

    /// Whether it is the processor, whose answers are those that other devices are held to.
    pub fn is_reference(self) -> bool {
        self.0.choice == config::Backend::Cpu
    }

    /// What reads the numbers of the device itself, if it has any.
    pub fn gauges(self) -> Option<Reader> {
        (self.0.gauges)()
    }
}

/// Opens a model on the processor, whose answers other devices are held to.
///
/// # Errors
/// It cannot hold the model.
pub fn reference(
    decoder: &Decoder,
    weights: &Weights,
    demand: &Demand,
) -> Result<Box<dyn Backend>, DriverError> {
    let opened = cpu_backend::open(decoder, weights, cpu_backend::Precision::Bf16, demand);
    let opened = opened.map(|cpu| Box::new(cpu) as Box<dyn Backend>);
    opened.map_err(|error| DriverError::Open {
        name: config::Backend::Cpu.name(),
        why: error.to_string(),
    })
}

/// The first driver that is wanted and whose device is there.
fn pick(
    drivers: &'static [Driver],
    choice: config::Backend,
) -> Result<(&'static Driver, Device), DriverError> {
    let mut missing = Vec::new();
    for driver in drivers {
        let name = driver.choice.name();
        match (driver.probe)() {
            _ if choice != config::Backend::Auto && choice != driver.choice => {}
            Ok(device) => return Ok((driver, device)),
            Err(why) if choice == driver.choice => {
                return Err(DriverError::Absent { name, why });
            }
            Err(why) => missing.push(format!("{name}: {why}")),
        }
    }
    Err(DriverError::None(missing.join("; ")))
}

fn open_cpu(load: &Load<'_>) -> Opened {
    let name = config::Backend::Cpu.name();
    let precision = match load.precision {
        config::Precision::Auto | config::Precision::Bf16 => cpu_backend::Precision::Bf16,
        config::Precision::F32 => cpu_backend::Precision::F32,
        config::Precision::Fp8 | config::Precision::Int8 => {
            let (dtype, has) = (load.precision.name(), "bf16 and f32");
            return Err(DriverError::Precision { name, dtype, has });
        }
    };
    if !matches!(
        load.kv,
        config::KvPrecision::Auto | config::KvPrecision::F32
    ) {
        let (dtype, has) = (load.kv.name(), "f32");
        return Err(DriverError::KvPrecision { name, dtype, has });
    }
    let cores = match load.demand.cores {
        None => cpu_backend::probe().map(|device| device.cores),
        cores => cores,
    };
    let demand = Demand {
        cores: cores.map(|cores| (cores / load.replicas).max(1)),
        ..load.demand.clone()
    };
    let replicas = (0..load.replicas).map(|_| {
        let opened = cpu_backend::open(load.decoder, load.weights, precision, &demand);
        let opened = opened.map(|cpu| Box::new(cpu) as Box<dyn Backend>);
        opened.map_err(|error| {
            let why = error.to_string();
            match error {
                cpu_backend::OpenError::Memory { .. } => DriverError::NoRoom { name, why },
                _ => DriverError::Open { name, why },
            }
        })
    });
    replicas.collect()
}

fn open_neuron(load: &Load<'_>) -> Opened {
    let name = config::Backend::Neuron.name();
    let format = match load.precision {
        config::Precision::Auto => None,
        config::Precision::Bf16 => Some(neuron_backend::WeightFormat::Bf16),
        config::Precision::Fp8 => Some(neuron_backend::WeightFormat::Fp8),
        config::Precision::Int8 => Some(neuron_backend::WeightFormat::Int8),
        config::Precision::F32 => {
            let (dtype, has) = (load.precision.name(), "bf16, fp8 and int8");
            return Err(DriverError::Precision { name, dtype, has });
        }
    };
    let artifacts = load.artifacts.ok_or(DriverError::Artifacts { name })?;
    let store = artifacts.store().map_err(|error| DriverError::Open {
        name,
        why: error.to_string(),
    })?;
    let opening = neuron_backend::Opening {
        source: load.source,
        decoder: load.decoder,
        weights: load.weights,
        store: &store,
        format,
        kv: match load.kv {
            config::KvPrecision::Auto => None,
            config::KvPrecision::Bf16 => Some(neuron_backend::KvFormat::Bf16),
            config::KvPrecision::Fp8 => Some(neuron_backend::KvFormat::Fp8),
            config::KvPrecision::F32 => Some(neuron_backend::KvFormat::F32),
        },
        demand: load.demand,
        replicas: load.replicas,
        patience: load.patience,
    };
    let failed = |error: neuron_backend::OpenError| match error.environment() {
        Some(variables) => DriverError::Environment {
            name,
            variables: variables.to_vec(),
        },
        None if error.unprepared().is_some() => DriverError::Unprepared {
            name,
            why: error.to_string(),
            arguments: error.unprepared().unwrap_or_default().to_vec(),
        },
        None if error.is_of_device() => DriverError::Device {
            name,
            why: error.to_string(),
        },
        None => DriverError::Open {
            name,
            why: error.to_string(),
        },
    };
    if load.beside {
        // Its cores and their memory are taken whole, but that is no reason to make room for a model that
        // would not be opened then either.
        neuron_backend::check(&opening).map_err(failed)?;
        let why = "it holds one model at a time".to_owned();
        return Err(DriverError::NoRoom { name, why });
    }
    let replicas = neuron_backend::open(&opening).map_err(failed)?;
    Ok(replicas.into_iter().map(|one| Box::new(one) as _).collect())
}

fn neuron_gauges() -> Option<Reader> {
    let mut gauges = neuron_backend::gauges::Gauges::open();
    let read = move || {
        let list = gauges.read().into_iter().map(|gauge| Gauge {
            name: gauge.name,
            help: gauge.help,
            counts: gauge.counts,
            labels: gauge.labels,
            value: gauge.value,
        });
        list.collect()
    };
    Some(Box::new(read))
}

/// What a device that is never found says if it is opened all the same.
fn unopened(choice: config::Backend) -> DriverError {
    DriverError::Absent {
        name: choice.name(),
        why: "this build has no driver for it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        Device {
            name: "test".into(),
            memory: 1,
            cores: 1,
        }
    }

    fn driver(choice: config::Backend, probe: fn() -> Result<Device, String>) -> Driver {
        Driver {
            choice,
            probe,
            open: |_| Err(unopened(config::Backend::Cpu)),
            gauges: || None,
        }
    }

    #[track_caller]
    fn check(choice: config::Backend, picked: Result<&str, &str>) {
        let drivers = Box::leak(Box::new([
            driver(config::Backend::Neuron, || Err("none".to_owned())),
            driver(config::Backend::Cuda, || Ok(device())),
            driver(config::Backend::Cpu, || Ok(device())),
        ]));
        let found = pick(drivers, choice).map(|(driver, _)| driver.choice.name());
        let found = found.map_err(|error| error.to_string());
        assert_eq!(
            found.as_ref().map(|name| *name).map_err(String::as_str),
            picked
        );
    }

    #[test]
    fn auto_takes_the_best_that_is_there_and_a_name_takes_that_or_nothing() {
        check(config::Backend::Auto, Ok("cuda"));
        check(config::Backend::Cpu, Ok("cpu"));
        check(config::Backend::Neuron, Err("--backend neuron: none"));
    }
}
