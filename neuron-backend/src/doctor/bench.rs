//! What a check works with: the runtime with all its cores, and samples loaded on them.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use graph::Target;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::samples::{self, Port, Sample};
use crate::nrt::{self, Libnrt, Model, Runtime, Settings, Tensor, TensorInfo, TensorSet, Usage};
use crate::ranks::{Places, Ranks};

/// What a check is told.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) target: Target,
    /// Physical cores of a logical one.
    pub(super) lnc: u32,
    /// The logical cores of the instance to examine.
    pub(super) cores: Range<u32>,
    /// Where the samples' NEFFs are, by name.
    pub(super) neffs: BTreeMap<String, PathBuf>,
    /// A NEFF for another kind of device.
    pub(super) foreign: Option<PathBuf>,
    /// Bundles of models, for what memory they take.
    pub(super) bundles: Vec<PathBuf>,
    /// How long the soak takes.
    pub(super) soak: Duration,
    /// How long anything may take before it counts as hung.
    pub(super) patience: Duration,
}

impl Plan {
    /// What the runtime is to be told for it.
    pub(super) fn settings(&self) -> Settings {
        Settings {
            refuse_nan: true,
            ..Settings::new(self.cores.clone(), self.lnc)
        }
    }

    /// How many cores there are to examine.
    pub(super) fn count(&self) -> u32 {
        self.cores.end - self.cores.start
    }

    /// A sample by name.
    pub(super) fn sample(&self, name: &str) -> Result<Sample, String> {
        let samples = samples::all(self.count()).map_err(|error| error.to_string())?;
        let sample = samples.into_iter().find(|sample| sample.name == name);
        sample.ok_or_else(|| format!("there is no sample {name}"))
    }

    /// Its NEFF.
    pub(super) fn neff(&self, name: &str) -> Result<Vec<u8>, String> {
        let path = self.neffs.get(name);
        let path = path.ok_or_else(|| format!("{name} was not compiled"))?;
        read(path)
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// What a check has seen: names and values, in the order in which they were seen.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seen(pub(super) Map<String, Value>);

impl Seen {
    /// Notes a value.
    pub fn note(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(name.into(), value.into());
    }

    /// The values, by name.
    pub fn values(&self) -> &Map<String, Value> {
        &self.0
    }
}

/// Fails with `why` unless it `holds`.
pub(super) fn demand(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    match holds {
        true => Ok(()),
        false => Err(why()),
    }
}

pub(super) fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Milliseconds with three digits behind the point.
pub(super) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Starts the runtime on the plan's cores.
pub(super) fn start(plan: &Plan) -> Result<Runtime, String> {
    let libnrt = Libnrt::open(None).map_err(told)?;
    Runtime::start(libnrt, &plan.settings()).map_err(told)
}

/// A sample on a core, with a tensor for all that it takes and gives.
#[derive(Debug)]
pub(super) struct Loaded {
    // Before the tensors in them, and before the model.
    inputs: TensorSet,
    outputs: TensorSet,
    tensors: BTreeMap<String, Rc<Tensor>>,
    /// Outputs that the NEFF has beside those of the sample.
    pub(super) surplus: Vec<String>,
    model: Model,
}

impl Loaded {
    /// Loads a sample that runs by itself.
    pub(super) fn alone(
        runtime: &Runtime,
        plan: &Plan,
        name: &str,
        core: u32,
    ) -> Result<Self, String> {
        let model = Model::load(runtime, &plan.neff(name)?, core).map_err(told)?;
        Self::bound(runtime, &plan.sample(name)?, model, core)
    }

    /// Loads the part of one rank of a sample. All must do so at the same time.
    pub(super) fn rank(
        runtime: &Runtime,
        sample: &Sample,
        neff: &[u8],
        core: u32,
        rank: nrt::Rank,
    ) -> Result<Self, String> {
        let model = Model::load_collectives(runtime, neff, core, rank).map_err(told)?;
        Self::bound(runtime, sample, model, core)
    }

    fn bound(runtime: &Runtime, sample: &Sample, model: Model, core: u32) -> Result<Self, String> {
        let (inputs, outputs) = (TensorSet::new(runtime), TensorSet::new(runtime));
        let mut loaded = Self {
            inputs: inputs.map_err(told)?,
            outputs: outputs.map_err(told)?,
            tensors: BTreeMap::new(),
            surplus: Vec::new(),
            model,
        };
        for info in loaded.model.tensors().to_vec() {
            let port = port(sample, &info);
            if port.is_none() && info.usage == Usage::Input {
                return Err(format!(
                    "{} takes {}, which the module does not have",
                    sample.name, info.name
                ));
            }
            let name = port.map_or(info.name.as_str(), |port| port.name);
            if port.is_none() {
                loaded.surplus.push(info.name.clone());
            }
            let tensor = match loaded.tensors.get(name) {
                Some(tensor) => Rc::clone(tensor),
                None => {
                    let tensor = Tensor::allocate(runtime, core, info.size, name);
                    Rc::new(tensor.map_err(told)?)
                }
            };
            let set = match info.usage {
                Usage::Input => &mut loaded.inputs,
                Usage::Output => &mut loaded.outputs,
            };
            set.bind(&info.name, &tensor).map_err(told)?;
            loaded.tensors.insert(name.to_owned(), tensor);
        }
        Ok(loaded)
    }

    pub(super) fn tensor(&self, name: &str) -> Result<&Tensor, String> {
        let tensor = self.tensors.get(name);
        tensor.map(Rc::as_ref).ok_or_else(|| {
            let has: Vec<_> = self.tensors.keys().map(String::as_str).collect();
            format!("the NEFF has no {name}, but {}", has.join(", "))
        })
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        self.tensor(name)?.write(0, bytes).map_err(told)
    }

    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        let tensor = self.tensor(name)?;
        let mut bytes = vec![0; tensor.size()];
        tensor.read(0, &mut bytes).map_err(told)?;
        Ok(bytes)
    }

    pub(super) fn execute(&self) -> Result<(), String> {
        let done = self.model.execute(&self.inputs, &self.outputs);
        done.map_err(|status| format!("nrt_execute: {status}"))
    }

    pub(super) fn numbers(&self, name: &str) -> Result<Vec<f32>, String> {
        Ok(floats(&self.read(name)?))
    }
}

/// The sample's port that a NEFF's tensor is, by any of the forms that its name may have.
pub(super) fn port<'a>(sample: &'a Sample, info: &TensorInfo) -> Option<&'a Port> {
    let (ports, side) = match info.usage {
        Usage::Input => (&sample.inputs, "input"),
        Usage::Output => (&sample.outputs, "output"),
    };
    let plain = info.name.strip_suffix(".must_alias_input");
    let plain = plain.unwrap_or(&info.name);
    let place = || plain.strip_prefix(side)?.parse::<usize>().ok();
    let named = ports.iter().find(|port| port.name == plain);
    named.or_else(|| ports.get(place()?))
}

/// The group of ranks that run a sample together, on cores from `first` on.
pub(super) fn group(
    runtime: &Runtime,
    plan: &Plan,
    ranks: u32,
    first: u32,
) -> Result<Ranks<Option<Loaded>>, String> {
    let name = samples::sum_name(ranks);
    let (sample, neff) = (plan.sample(&name)?, plan.neff(&name)?);
    let chip = plan.target.facts().logical_cores(plan.lnc);
    let cores = plan.cores.start + first..plan.cores.start + first + ranks;
    let places = Places::near(Path::new("/sys"), plan.target, cores, chip);
    let mut threads: Ranks<Option<Loaded>> =
        Ranks::start(ranks as usize, &places, |_| None).map_err(told)?;
    let runtime = runtime.clone();
    let flight = threads.begin(move |index, state| -> Result<(), String> {
        let index = u32::try_from(index).map_err(told)?;
        let rank = nrt::Rank {
            index,
            count: ranks,
        };
        let loaded = Loaded::rank(&runtime, &sample, &neff, first + index, rank)?;
        *state = Some(loaded);
        Ok(())
    });
    for (rank, loaded) in flight
        .wait(plan.patience)
        .map_err(told)?
        .into_iter()
        .enumerate()
    {
        loaded
            .map_err(told)?
            .map_err(|why| format!("rank {rank} of {ranks}: {why}"))?;
    }
    Ok(threads)
}

/// What a rank puts into a sum: each rank something else, and all of it exact.
#[expect(clippy::cast_precision_loss, reason = "numbers below 2^24")]
fn part(rank: usize, round: usize) -> Vec<f32> {
    let count = (samples::ROWS * samples::COLUMNS) as usize;
    let numbers = (0..count).map(|at| ((rank + 1) * ((at + round) % 17)) as f32);
    numbers.collect()
}

/// Sums over the ranks of a group and checks it on every rank. How long the execution took.
pub(super) fn summed(
    group: &mut Ranks<Option<Loaded>>,
    plan: &Plan,
    round: usize,
) -> Result<Duration, String> {
    let write = group.begin(move |rank, state| match state {
        Some(loaded) => loaded.write("x", &bytes(&part(rank, round))),
        None => Ok(()),
    });
    all(write.wait(plan.patience).map_err(told)?)?;
    let took = executed(group, plan)?;
    let ranks = group.count();
    let check = group.begin(move |_, state| match state {
        Some(loaded) => {
            let parts = (0..ranks).map(|rank| part(rank, round));
            let expected = parts.reduce(|mut sum, part| {
                sum.iter_mut().zip(part).for_each(|(sum, one)| *sum += one);
                sum
            });
            exact(
                "total",
                &loaded.numbers("total")?,
                &expected.unwrap_or_default(),
            )
        }
        None => Ok(()),
    });
    all(check.wait(plan.patience).map_err(told)?)?;
    Ok(took)
}

/// Executes once on every rank.
pub(super) fn executed(group: &mut Ranks<Option<Loaded>>, plan: &Plan) -> Result<Duration, String> {
    let begun = Instant::now();
    let flight = group.begin(|_, state| state.as_ref().map_or(Ok(()), Loaded::execute));
    all(flight.wait(plan.patience).map_err(told)?)?;
    Ok(begun.elapsed())
}

/// The first that went wrong, if any did.
fn all(answers: Vec<Result<Result<(), String>, crate::ranks::Lost>>) -> Result<(), String> {
    for (rank, answer) in answers.into_iter().enumerate() {
        answer
            .map_err(told)?
            .map_err(|why| format!("rank {rank}: {why}"))?;
    }
    Ok(())
}

/// Fails at the first number that is not exactly as expected.
pub(super) fn exact(name: &str, found: &[f32], expected: &[f32]) -> Result<(), String> {
    demand(found.len() == expected.len(), || {
        format!("{name} has {} numbers, not {}", found.len(), expected.len())
    })?;
    let pairs = found.iter().zip(expected).enumerate();
    let mut wrong = pairs.filter(|(_, (found, expected))| found != expected);
    let Some((at, (first, right))) = wrong.next() else {
        return Ok(());
    };
    let (count, total) = (wrong.count() + 1, found.len());
    Err(format!(
        "{count} of {total} numbers of {name} are wrong, the first at {at}: {first}, not {right}"
    ))
}

/// The bytes of numbers, as the device has them.
pub(super) fn bytes(numbers: &[f32]) -> Vec<u8> {
    let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
    bytes.collect()
}

/// The same of whole numbers.
pub(super) fn int_bytes(numbers: &[i32]) -> Vec<u8> {
    let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
    bytes.collect()
}

/// Numbers from their bytes.
pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    let words = bytes.as_chunks().0.iter();
    words.map(|word| f32::from_le_bytes(*word)).collect()
}

/// The same of whole numbers.
pub(super) fn ints(bytes: &[u8]) -> Vec<i32> {
    let words = bytes.as_chunks().0.iter();
    words.map(|word| i32::from_le_bytes(*word)).collect()
}
