//! XLA's devices: the only file that knows who computes. Ranks run on a device of their own, and so
//! arrays stay where they were computed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use graph::proto::HloModule;
use pjrt::{Buffer, Client, Executable, Plugin, Value};
use sha2::{Digest as _, Sha256};

use crate::compiled::{Maker, Source};
use crate::neff::Neff;
use crate::settings::Settings;
use crate::status::{Failure, refuse};

/// All devices of XLA's plugin for the CPU. They outlive the runtime, and what they have compiled too: a
/// process that opens a model many times waits for XLA once.
#[derive(Debug)]
pub(crate) struct Devices(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    client: Client,
    /// Unless it cannot be told.
    maker: Option<Maker>,
    programs: Mutex<Programs>,
}

/// By digest of the module, and ranks.
type Programs = BTreeMap<(Vec<u8>, u32), Arc<Executable>>;

/// By number of devices.
static OPENED: Mutex<BTreeMap<u32, Arc<Opened>>> = Mutex::new(BTreeMap::new());

/// What is in them is whole whatever panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An array's place and form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Form {
    pub(crate) element: pjrt::Element,
    pub(crate) shape: Vec<u64>,
    /// The rank that has it.
    pub(crate) rank: u32,
}

impl Devices {
    /// Opens the plugin with a device for each core of the machine.
    ///
    /// # Errors
    /// The settings name no plugin, or it does not open.
    pub(crate) fn open(settings: &Settings) -> Result<Self, Failure> {
        let path = settings.plugin.as_ref().ok_or_else(|| {
            refuse!(
                FAILURE,
                "executions go through XLA's plugin for the CPU: set APPLIANCE_XLA_CPU to its path, \
                 or FAKE_NRT_EXECUTE=skip"
            )
        })?;
        let count = settings.topology.cores();
        let mut opened = lock(&OPENED);
        if let Some(opened) = opened.get(&count) {
            return Ok(Self(Arc::clone(opened)));
        }
        let plugin = Plugin::open(path).map_err(failure)?;
        let client = plugin.client(&[("cpu_device_count", Value::Integer(count.into()))]);
        let devices = Arc::new(Opened {
            client: client.map_err(failure)?,
            maker: Maker::of(path).ok(),
            programs: Mutex::default(),
        });
        opened.insert(count, Arc::clone(&devices));
        Ok(Self(devices))
    }

    /// The program of a NEFF for so many ranks: the one that is in it, if it was made here; else
    /// the module is compiled.
    ///
    /// # Errors
    /// It has no module, or XLA refuses it.
    pub(crate) fn program(&self, neff: &Neff, ranks: u32) -> Result<Program, Failure> {
        let key = (Sha256::digest(&neff.module).to_vec(), ranks);
        if let Some(program) = lock(&self.0.programs).get(&key) {
            return Ok(Program(Arc::clone(program)));
        }
        let module = HloModule::from_bytes(&neff.module)
            .map_err(|error| refuse!(INVALID, "the NEFF's module: {error}"))?;
        let client = &self.0.client;
        let source = Source::of(&module, ranks, client.devices()).map_err(failure)?;
        let made = neff.compiled.as_ref().zip(self.0.maker.as_ref());
        let loaded = made.and_then(|(compiled, maker)| source.load(client, maker, compiled));
        let program = match loaded {
            Some(program) => program,
            None => source.compile(client).map_err(failure)?,
        };
        let program = Arc::new(program);
        lock(&self.0.programs).insert(key, Arc::clone(&program));
        Ok(Program(program))
    }

    /// Copies bytes to the device of a rank.
    ///
    /// # Errors
    /// The bytes are not as many as the form says.
    pub(crate) fn upload(&self, form: &Form, bytes: &[u8]) -> Result<Buffer, Failure> {
        let devices = self.0.client.devices();
        let device = devices.get(form.rank as usize).copied();
        let device = device.ok_or_else(|| refuse!(FAILURE, "XLA has no device {}", form.rank))?;
        let dims: Result<Vec<i64>, _> =
            form.shape.iter().map(|size| i64::try_from(*size)).collect();
        let dims = dims.map_err(|error| refuse!(INVALID, "{:?}: {error}", form.shape))?;
        let buffer = self.0.client.buffer(device, form.element, &dims, bytes);
        buffer.map_err(failure)
    }
}

/// A module that is ready to run.
#[derive(Debug)]
pub(crate) struct Program(Arc<Executable>);

impl Program {
    /// Runs it: arrays of each rank in, arrays of each rank out.
    ///
    /// # Errors
    /// The arrays do not fit, or the run failed.
    pub(crate) fn run(&self, arrays: &[Vec<&Buffer>]) -> Result<Vec<Vec<Buffer>>, pjrt::Error> {
        self.0.execute(arrays)
    }
}

/// What XLA says, as a failure of the runtime.
pub(crate) fn failure(error: impl std::fmt::Display) -> Failure {
    refuse!(FAILURE, "XLA: {error}")
}
