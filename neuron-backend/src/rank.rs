//! What one rank has on its core: tensors, modules, and the sets that join them. It lives on the
//! rank's thread.
//!
//! A module's tensors are bound once and for all. The rank's thread writes a launch's inputs, runs
//! it and waits for it, so nothing is ever written that a launch in flight reads, and a step that
//! was handed out while another ran simply comes next.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use graph::{Bucket, Content, Ints, Launch, Layout, Packed, Port};

use crate::fault;
use crate::nrt::{self, Model, NrtError, Runtime, Status, Tensor, TensorInfo, TensorSet, Usage};

/// How often a launch is asked for that the device is too busy for, and how long it is let work in
/// between: a rank that gave up at once would leave the others waiting for it.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(1);

/// How far a rank came with a step.
#[derive(Default, Debug)]
pub(crate) struct Ran {
    /// Launches that have run, whatever came out.
    pub(crate) launches: usize,
    /// What those with answers gave: nothing, on all ranks but the first, as all of them have the same.
    pub(crate) given: Vec<Vec<f32>>,
    /// The first thing that went wrong.
    pub(crate) error: Option<NrtError>,
}

/// A rank of a replica.
#[derive(Debug)]
pub(crate) struct Rank {
    runtime: Runtime,
    /// Its core, counted within the visible ones.
    core: u32,
    place: nrt::Rank,
    modules: Vec<Loaded>,
    /// Weights, rotary tables and caches by name: all modules have the same.
    shared: BTreeMap<String, Rc<Tensor>>,
    /// Scratch.
    bytes: Vec<u8>,
    words: Vec<u32>,
}

/// A module with all that it takes and gives.
#[derive(Debug)]
struct Loaded {
    name: String,
    // Before the tensors in them, and before the model.
    inputs: TensorSet,
    outputs: TensorSet,
    ints: Rc<Tensor>,
    masks: Option<Masks>,
    /// What it gives beside the caches.
    given: Option<Rc<Tensor>>,
    model: Model,
}

#[derive(Debug)]
struct Masks {
    tensor: Rc<Tensor>,
    /// Whether it holds what a launch without masked rows needs.
    is_open: bool,
}

/// Part of a tensor that is written before anything runs.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) port: Arc<str>,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// A module to be loaded. All ranks load the same.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) bucket: Bucket,
    pub(crate) layout: Layout,
    pub(crate) neff: Vec<u8>,
}

/// Whether all modules of a rank have the same tensor for it.
pub(crate) fn is_shared(port: &Port) -> bool {
    !matches!(
        port.content,
        Content::Ints | Content::Masks | Content::Candidates | Content::Embedding
    )
}

impl Rank {
    /// Makes room for what all modules share, with empty caches.
    pub(crate) fn new(
        runtime: &Runtime,
        core: u32,
        place: nrt::Rank,
        ports: &[Port],
    ) -> Result<Self, NrtError> {
        let mut shared = BTreeMap::new();
        for port in ports {
            let tensor = Tensor::allocate(runtime, core, size(port), &port.name)?;
            if matches!(port.content, Content::Keys(_) | Content::Values(_)) {
                // What is masked is multiplied by 0, and must not be infinite.
                tensor.zero()?;
            }
            shared.insert(port.name.clone(), Rc::new(tensor));
        }
        Ok(Self {
            runtime: runtime.clone(),
            core,
            place,
            modules: Vec::new(),
            shared,
            bytes: Vec::new(),
            words: Vec::new(),
        })
    }

    /// Writes what comes, until there is no more.
    pub(crate) fn write(&mut self, pieces: &Receiver<Piece>) -> Result<(), NrtError> {
        for piece in pieces {
            let Some(tensor) = self.shared.get(&*piece.port) else {
                continue;
            };
            tensor.write(index(piece.offset), &piece.bytes)?;
        }
        Ok(())
    }

    /// Loads a module and binds all that it lists. All ranks load the same one at the same time.
    pub(crate) fn load(&mut self, module: &Module) -> Result<(), NrtError> {
        // Copies need no other rank.
        let together = self.place.count > 1 && matches!(module.bucket, Bucket::Step { .. });
        let model = match together {
            true => Model::load_collectives(&self.runtime, &module.neff, self.core, self.place)?,
            false => Model::load(&self.runtime, &module.neff, self.core)?,
        };
        let own = self.own_tensors(module)?;
        let (mut inputs, mut outputs) = (
            TensorSet::new(&self.runtime)?,
            TensorSet::new(&self.runtime)?,
        );
        for info in model.tensors() {
            let bound = match info.usage {
                Usage::Input => self.input(module, info, &own)?,
                Usage::Output => self.output(module, info, &own)?,
            };
            match info.usage {
                Usage::Input => inputs.bind(&info.name, &bound)?,
                Usage::Output => outputs.bind(&info.name, &bound)?,
            }
        }
        let of = |content: Content| own.get(&key(content)).cloned();
        let Some(ints) = of(Content::Ints) else {
            return Err(mismatch(module, "it takes no integers".to_owned()));
        };
        self.modules.push(Loaded {
            name: module.bucket.name(),
            inputs,
            outputs,
            ints,
            masks: of(Content::Masks).map(|tensor| Masks {
                tensor,
                is_open: false,
            }),
            given: of(Content::Candidates).or(of(Content::Embedding)),
            model,
        });
        Ok(())
    }

    /// Tensors that only this module has.
    fn own_tensors(&self, module: &Module) -> Result<BTreeMap<u8, Rc<Tensor>>, NrtError> {
        let Layout {
            inputs, outputs, ..
        } = &module.layout;
        let own = inputs.iter().chain(outputs).filter(|port| !is_shared(port));
        own.map(|port| {
            let name = format!("{}.{}", module.bucket.name(), port.name);
            let tensor = Tensor::allocate(&self.runtime, self.core, size(port), &name)?;
            Ok((key(port.content), Rc::new(tensor)))
        })
        .collect()
    }

    /// The tensor for an input that a module lists, by whichever of its names.
    fn input(
        &self,
        module: &Module,
        info: &TensorInfo,
        own: &BTreeMap<u8, Rc<Tensor>>,
    ) -> Result<Rc<Tensor>, NrtError> {
        let plain = info.name.strip_suffix(".must_alias_input");
        let plain = plain.unwrap_or(&info.name);
        let Some(port) = named(&module.layout.inputs, plain, "input") else {
            let why = format!("it takes {}, which the manifest does not list", info.name);
            return Err(mismatch(module, why));
        };
        self.bound(module, info, port, own)
    }

    /// The tensor for an output that a module lists. One that the manifest does not list is let run
    /// into memory that nobody reads: compilers have been seen to leave such.
    fn output(
        &self,
        module: &Module,
        info: &TensorInfo,
        own: &BTreeMap<u8, Rc<Tensor>>,
    ) -> Result<Rc<Tensor>, NrtError> {
        match named(&module.layout.outputs, &info.name, "output") {
            Some(port) => self.bound(module, info, port, own),
            None => {
                tracing::warn!(
                    module = module.bucket.name(),
                    output = info.name,
                    "unexpected"
                );
                Tensor::allocate(&self.runtime, self.core, info.size, &info.name).map(Rc::new)
            }
        }
    }

    fn bound(
        &self,
        module: &Module,
        info: &TensorInfo,
        port: &Port,
        own: &BTreeMap<u8, Rc<Tensor>>,
    ) -> Result<Rc<Tensor>, NrtError> {
        let tensor = match is_shared(port) {
            true => self.shared.get(&port.name),
            false => own.get(&key(port.content)),
        };
        match tensor {
            Some(tensor) if tensor.size() == info.size => Ok(Rc::clone(tensor)),
            _ => {
                let bytes = port.bytes();
                let why = format!("{} has {} bytes, not {bytes}", info.name, info.size);
                Err(mismatch(module, why))
            }
        }
    }

    /// Runs every module once on rows that are none, so that the first request finds it warm.
    pub(crate) fn warm(&mut self, buckets: &[Bucket]) -> Result<(), NrtError> {
        for (place, bucket) in buckets.iter().enumerate() {
            let places = Ints::of(*bucket);
            let mut ints = vec![0; places.len];
            if matches!(bucket, Bucket::Step { .. }) {
                ints[places.lengths].fill(1);
                ints[places.slots].fill(1);
            }
            self.write_ints(place, &ints)?;
            if let Some(Masks { tensor, .. }) = &self.modules[place].masks {
                tensor.zero()?;
            }
            self.execute(place)?;
        }
        Ok(())
    }

    /// Runs the launches of a step. After one that has run and gave nonsense the others still run: the
    /// other ranks run them too, and each needs all.
    pub(crate) fn run(&mut self, packed: &Packed) -> Ran {
        let mut ran = Ran::default();
        for launch in packed.launches() {
            match self.launch(&launch) {
                Ok(given) => ran.given.push(given),
                Err(error) => {
                    let has_run = error.status.has_run();
                    ran.error.get_or_insert(error);
                    if !has_run {
                        break;
                    }
                }
            }
            ran.launches += 1;
        }
        ran
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<Vec<f32>, NrtError> {
        self.write_ints(launch.bucket, launch.ints)?;
        self.write_masks(launch)?;
        self.execute(launch.bucket)?;
        match (self.place.index, launch.answers) {
            (0, 1..) => self.read(launch.bucket),
            _ => Ok(Vec::new()),
        }
    }

    fn write_ints(&mut self, module: usize, ints: &[i32]) -> Result<(), NrtError> {
        put_words(ints.iter().map(|int| int.to_le_bytes()), &mut self.bytes);
        self.modules[module].ints.write(0, &self.bytes)
    }

    fn write_masks(&mut self, launch: &Launch<'_>) -> Result<(), NrtError> {
        let Some(masks) = &mut self.modules[launch.bucket].masks else {
            return Ok(());
        };
        if masks.is_open && !launch.is_masked {
            return Ok(());
        }
        launch.write_masks(self.place.index, &mut self.words);
        let words = self.words.iter().map(|word| word.to_le_bytes());
        put_words(words, &mut self.bytes);
        masks.is_open = false;
        masks.tensor.write(0, &self.bytes)?;
        masks.is_open = !launch.is_masked;
        Ok(())
    }

    fn execute(&self, module: usize) -> Result<(), NrtError> {
        let Loaded {
            name,
            inputs,
            outputs,
            model,
            ..
        } = &self.modules[module];
        let mut tries = 1;
        loop {
            let Err(status) = model.execute(inputs, outputs) else {
                return Ok(());
            };
            let error = NrtError {
                operation: "nrt_execute",
                status,
                detail: format!("{name} on core {}", self.core),
            };
            if tries == TRIES || !fault::passes(&error) {
                return Err(error);
            }
            tracing::warn!(tries, "{error}");
            thread::sleep(PAUSE * tries);
            tries += 1;
        }
    }

    fn read(&mut self, module: usize) -> Result<Vec<f32>, NrtError> {
        let Some(given) = &self.modules[module].given else {
            return Ok(Vec::new());
        };
        self.bytes.resize(given.size(), 0);
        given.read(0, &mut self.bytes)?;
        let words = self.bytes.as_chunks().0.iter();
        Ok(words.map(|word| f32::from_le_bytes(*word)).collect())
    }
}

/// Sets `bytes` to these words: at the speed of a copy, which a chain of single bytes is far from.
fn put_words(words: impl ExactSizeIterator<Item = [u8; 4]>, bytes: &mut Vec<u8>) {
    bytes.resize(words.len() * 4, 0);
    let places = bytes.as_chunks_mut().0.iter_mut();
    (places.zip(words)).for_each(|(place, word)| *place = word);
}

/// A port by its name in the NEFF, or by its place.
fn named<'a>(ports: &'a [Port], name: &str, side: &str) -> Option<&'a Port> {
    let place = || name.strip_prefix(side)?.parse::<usize>().ok();
    let named = ports.iter().find(|port| port.name == name);
    named.or_else(|| ports.get(place()?))
}

/// Tells apart the tensors that a module has for itself.
fn key(content: Content) -> u8 {
    match content {
        Content::Ints => 0,
        Content::Masks => 1,
        _ => 2,
    }
}

/// A NEFF that does not fit its manifest.
fn mismatch(module: &Module, why: String) -> NrtError {
    NrtError {
        operation: "nrt_get_model_tensor_info",
        status: Status::INVALID,
        detail: format!("{}: {why}: prepare the model again", module.bucket.name()),
    }
}

fn size(port: &Port) -> usize {
    index(port.bytes())
}

/// What a device holds, a host can count.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
