//! What happens while a model runs: the module is computed on XLA's devices, or only time passes.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use graph::Element;
use pjrt::Buffer;

use crate::caches;
use crate::collectives::Outcome;
use crate::faults::Effect;
use crate::model::Bound;
use crate::neff::{Binding, Neff};
use crate::settings::Settings;
use crate::status::{Failure, Status, misuse, refuse};
use crate::tensor::Tensor;
use crate::xla::{Devices, Form, Program, failure};

/// The token that plausible candidates begin with: `a` where tokens are bytes.
const LIKELY: usize = 97;

/// What all ranks of a NEFF share. It is compiled when it first runs.
#[derive(Debug, Default)]
pub(crate) struct Work {
    program: OnceLock<Result<Program, Failure>>,
    plausible: OnceLock<Vec<Arc<Vec<u8>>>>,
}

/// An execution of one NEFF by all its ranks.
#[derive(Debug)]
pub(crate) struct Execution<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) devices: &'a OnceLock<Result<Devices, Failure>>,
    pub(crate) neff: &'a Neff,
    pub(crate) work: &'a Work,
    pub(crate) effect: Effect,
}

/// Whether an execution that comes to this has not begun.
pub(crate) fn never_ran(status: Status) -> bool {
    matches!(
        status,
        Status::EXEC_BAD_INPUT
            | Status::EXEC_NC_BUSY
            | Status::QUEUE_FULL
            | Status::EXEC_UNIT_UNRECOVERABLE
            | Status::INVALID
            | Status::INVALID_HANDLE
            | Status::UNINITIALIZED
            | Status::CLOSED
    )
}

impl Execution<'_> {
    /// Runs it with the tensors of each rank.
    ///
    /// # Errors
    /// What the faults say, XLA says, or a result that is no number if that counts as one.
    pub(crate) fn run(&self, ranks: &[Arc<Bound>]) -> Outcome {
        let start = Instant::now();
        suffer(&self.effect)?;
        match self.effect.status {
            Some(status) if never_ran(status) => return Err(injected(status)),
            None | Some(Status::EXEC_COMPLETED_WITH_NUM_ERR) => {}
            Some(status) => {
                self.spoil(ranks)?;
                return Err(injected(status));
            }
        }
        match self.settings.latency {
            Some(latency) => self.pretend(ranks, latency)?,
            None => self.compute(ranks)?,
        }
        if self.effect.nan {
            self.spoil_floats(ranks)?;
        }
        if self.settings.nan_fails {
            self.find_nan(ranks)?;
        }
        match self.effect.status {
            Some(status) => Err(injected(status)),
            None => Ok(start.elapsed()),
        }
    }

    /// Every output that is no cache, with what the NEFF says about it.
    fn results<'b>(
        &self,
        ranks: &'b [Arc<Bound>],
    ) -> impl Iterator<Item = (usize, &Binding, &'b Tensor)> {
        ranks.iter().flat_map(|bound| {
            let outputs = self.neff.io.outputs.iter().enumerate();
            let results = outputs.filter(|(_, output)| output.alias.is_none());
            results.map(|(index, output)| (index, output, bound.outputs[index].as_ref()))
        })
    }

    /// Time passes; outputs hold something that looks like results.
    fn pretend(&self, ranks: &[Arc<Bound>], latency: Duration) -> Result<(), Failure> {
        if !latency.is_zero() {
            std::thread::sleep(latency);
        }
        let outputs = &self.neff.io.outputs;
        let plausible = self.work.plausible.get_or_init(|| {
            let bytes = outputs.iter().map(|output| match output.alias {
                Some(_) => Arc::default(),
                None => Arc::new(plausible(output)),
            });
            bytes.collect()
        });
        for (index, _, tensor) in self.results(ranks) {
            tensor.put_bytes(&plausible[index])?;
        }
        Ok(())
    }

    /// XLA computes the module once, for all ranks.
    fn compute(&self, ranks: &[Arc<Bound>]) -> Result<(), Failure> {
        let devices = self.devices.get_or_init(|| Devices::open(self.settings));
        let devices = devices.as_ref().map_err(Clone::clone)?;
        let program = self.work.program.get_or_init(|| {
            let count = u32::try_from(ranks.len()).unwrap_or(u32::MAX);
            devices.program(self.neff, count)
        });
        let program = program.as_ref().map_err(Clone::clone)?;
        let mut arrays = Vec::new();
        for (rank, bound) in (0..).zip(ranks) {
            arrays.push(self.inputs(devices, rank, bound)?);
        }
        let borrowed: Vec<Vec<&Buffer>> = arrays
            .iter()
            .map(|arrays| arrays.iter().map(Arc::as_ref).collect())
            .collect();
        match program.run(&borrowed) {
            Ok(results) => self.keep(ranks, results),
            Err(error) => {
                self.take_back(ranks, arrays)?;
                let error = failure(error);
                Err(refuse!(EXEC_COMPLETED_WITH_ERR, "{error}"))
            }
        }
    }

    fn form(binding: &Binding, rank: u32) -> Result<Form, Failure> {
        let element = match binding.alias {
            Some(_) => Some(caches::element(binding.element)),
            None => pjrt::Element::from_hlo(binding.element.number()),
        };
        let element = element
            .ok_or_else(|| refuse!(FAILURE, "XLA's arrays have no {:?}", binding.element))?;
        Ok(Form {
            element,
            shape: binding.shape.clone(),
            rank,
        })
    }

    fn inputs(
        &self,
        devices: &Devices,
        rank: u32,
        bound: &Bound,
    ) -> Result<Vec<Arc<Buffer>>, Failure> {
        let inputs = self.neff.io.inputs.iter().zip(&bound.inputs);
        let arrays = inputs.map(|(input, tensor)| {
            tensor.array(devices, &Self::form(input, rank)?, input.alias.is_some())
        });
        arrays.collect()
    }

    fn keep(&self, ranks: &[Arc<Bound>], results: Vec<Vec<Buffer>>) -> Result<(), Failure> {
        for ((rank, bound), results) in (0..).zip(ranks).zip(results) {
            if results.len() != bound.outputs.len() {
                let (given, wanted) = (results.len(), bound.outputs.len());
                return Err(refuse!(FAILURE, "XLA gave {given} results, not {wanted}"));
            }
            let outputs = self.neff.io.outputs.iter().zip(&bound.outputs);
            for ((output, tensor), array) in outputs.zip(results) {
                tensor.put(Arc::new(array), &Self::form(output, rank)?)?;
            }
        }
        Ok(())
    }

    /// After a run that failed: caches that were not given away after all stay what they were.
    fn take_back(
        &self,
        ranks: &[Arc<Bound>],
        arrays: Vec<Vec<Arc<Buffer>>>,
    ) -> Result<(), Failure> {
        for ((rank, bound), arrays) in (0..).zip(ranks).zip(arrays) {
            let inputs = self.neff.io.inputs.iter().zip(&bound.inputs);
            for ((input, tensor), array) in inputs.zip(arrays) {
                if input.alias.is_some() && !array.is_deleted().map_err(failure)? {
                    tensor.put(array, &Self::form(input, rank)?)?;
                }
            }
        }
        self.spoil(ranks)
    }

    fn spoil(&self, ranks: &[Arc<Bound>]) -> Result<(), Failure> {
        self.results(ranks)
            .try_for_each(|(_, _, tensor)| tensor.spoil())
    }

    /// All ones are no number in every float.
    fn spoil_floats(&self, ranks: &[Arc<Bound>]) -> Result<(), Failure> {
        let mut results = self.results(ranks);
        results.try_for_each(|(_, output, tensor)| match is_float(output.element) {
            true => tensor.spoil(),
            false => Ok(()),
        })
    }

    fn find_nan(&self, ranks: &[Arc<Bound>]) -> Result<(), Failure> {
        for (_, output, tensor) in self.results(ranks) {
            if is_float(output.element) && has_nan(output.element, &tensor.to_host()?) {
                return Err(refuse!(
                    EXEC_COMPLETED_WITH_NUM_ERR,
                    "output {} of {} is not a number",
                    output.name,
                    self.neff.header.name
                ));
            }
        }
        Ok(())
    }
}

/// What a fault does before or instead of the call. Its status is for the caller to return.
pub(crate) fn suffer(effect: &Effect) -> Result<(), Failure> {
    if effect.die {
        return Err(misuse!("the faults say: die"));
    }
    if effect.hang {
        loop {
            std::thread::park();
        }
    }
    if !effect.stall.is_zero() {
        std::thread::sleep(effect.stall);
    }
    Ok(())
}

/// The failure that the faults ask for.
pub(crate) fn injected(status: Status) -> Failure {
    Failure::Status(status, "the faults say so".to_owned())
}

fn is_float(element: Element) -> bool {
    matches!(element, Element::F32 | Element::Bf16 | Element::F8e4m3fn)
}

fn has_nan(element: Element, bytes: &[u8]) -> bool {
    match element {
        Element::F32 => bytes
            .as_chunks()
            .0
            .iter()
            .any(|four| f32::from_le_bytes(*four).is_nan()),
        Element::Bf16 => {
            let mut halves = bytes
                .as_chunks()
                .0
                .iter()
                .map(|two| u16::from_le_bytes(*two));
            halves.any(|half| half & 0x7fff > 0x7f80)
        }
        Element::F8e4m3fn => bytes.iter().any(|byte| byte & 0x7f == 0x7f),
        _ => false,
    }
}

/// Bytes that look like a result: candidates are ids without repetition, log-probabilities that go
/// down and a normalizer ([`graph::Content::Candidates`]); all else is zero.
fn plausible(output: &Binding) -> Vec<u8> {
    let zeros = || vec![0; usize::try_from(output.bytes()).unwrap_or_default()];
    let [entries, width] = output.shape[..] else {
        return zeros();
    };
    let wide = width >= 4 && width % 2 == 0 && output.element == Element::F32;
    if output.base() != "candidates" || !wide {
        return zeros();
    }
    let count = usize::try_from(width / 2 - 1).unwrap_or_default();
    let others = (0..).filter(|id| *id != LIKELY);
    let ids = std::iter::once(LIKELY).chain(others).take(count);
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let ids = ids.map(|id| id as f32);
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let logprobs = (0..count).map(|at| -0.5 - at as f32);
    let entry: Vec<f32> = ids.chain(logprobs).chain([1.0, -1.0]).collect();
    let bytes: Vec<u8> = entry
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    bytes.repeat(usize::try_from(entries).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_is_found_in_each_float() {
        assert!(has_nan(Element::F32, &f32::NAN.to_le_bytes()));
        assert!(!has_nan(Element::F32, &f32::INFINITY.to_le_bytes()));
        assert!(has_nan(Element::Bf16, &[0, 0, 0xc0, 0xff]));
        assert!(!has_nan(Element::Bf16, &[0x80, 0x7f]));
        assert!(has_nan(Element::F8e4m3fn, &[0, 0xff]));
        assert!(!has_nan(Element::F8e4m3fn, &[0x7e]));
        for element in [Element::F32, Element::Bf16, Element::F8e4m3fn] {
            assert!(has_nan(element, &[crate::tensor::GARBAGE; 4]));
        }
    }

    #[test]
    fn plausible_candidates_are_what_a_step_gives() {
        let output = Binding {
            name: "candidates".to_owned(),
            shape: vec![2, 10],
            element: Element::F32,
            alias: None,
        };
        let bytes = plausible(&output);
        let numbers = bytes
            .as_chunks()
            .0
            .iter()
            .map(|four| f32::from_le_bytes(*four));
        let numbers: Vec<_> = numbers.collect();
        assert_eq!(numbers[..4], [97.0, 0.0, 1.0, 2.0]);
        assert_eq!(numbers[4..10], [-0.5, -1.5, -2.5, -3.5, 1.0, -1.0]);
        assert_eq!(numbers[10..], numbers[..10]);
    }
}
