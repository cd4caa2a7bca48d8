//! Tensors: names for a part of a storage. A storage's bytes are wherever they were last needed, on
//! the host or on a device of XLA, and unwritten ones are all ones, which is no number in any float:
//! the real memory holds what the last process left there.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pjrt::Buffer;

use crate::handles::Handle;
use crate::memory::Charge;
use crate::status::{Failure, misuse, refuse};
use crate::xla::{Devices, Form, failure};

/// What unwritten memory holds.
pub(crate) const GARBAGE: u8 = 0xff;

/// Storages beyond this many bytes keep nothing if nothing is computed.
const KEPT: u64 = 64 << 10;

/// Where the bytes of a storage are.
#[derive(Clone, Debug)]
enum Content {
    /// Every byte is this.
    Fill(u8),
    /// On the host.
    Host(Arc<Vec<u8>>),
    /// On a device.
    Device(Arc<Buffer>, Form),
}

/// Memory of a core that tensors name parts of.
#[derive(Debug)]
pub(crate) struct Storage {
    /// The core, as the process numbers them; `None` on the host.
    pub(crate) core: Option<u32>,
    /// Where it pretends to be.
    pub(crate) address: u64,
    size: u64,
    /// Nothing is computed: what is written goes nowhere.
    hollow: bool,
    state: Mutex<State>,
    _charge: Option<Charge>,
}

#[derive(Debug)]
struct State {
    content: Content,
    /// Executions that read it and that write it.
    readers: u32,
    writers: u32,
}

/// What a storage is made of.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) core: Option<u32>,
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) charge: Option<Charge>,
    /// Whether anything is computed.
    pub(crate) computed: bool,
}

impl Storage {
    pub(crate) fn new(room: Room) -> Self {
        let hollow = !room.computed && room.size > KEPT;
        Self {
            core: room.core,
            address: room.address,
            size: room.size,
            hollow,
            state: Mutex::new(State {
                content: Content::Fill(if hollow { 0 } else { GARBAGE }),
                readers: 0,
                writers: 0,
            }),
            _charge: room.charge,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Its bytes on the host, to be changed there.
    fn host(&mut self, size: usize) -> Result<&mut Vec<u8>, Failure> {
        match &self.content {
            Content::Host(_) => {}
            Content::Fill(byte) => self.content = Content::Host(Arc::new(vec![*byte; size])),
            Content::Device(buffer, _) => {
                let mut bytes = vec![0; size];
                buffer.to_host(&mut bytes).map_err(failure)?;
                self.content = Content::Host(Arc::new(bytes));
            }
        }
        match &mut self.content {
            Content::Host(bytes) => Ok(Arc::make_mut(bytes)),
            _ => Err(refuse!(FAILURE, "the bytes are not on the host")),
        }
    }
}

/// A tensor.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) handle: Handle,
    pub(crate) name: String,
    pub(crate) storage: Arc<Storage>,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    /// Sets that it is in.
    pub(crate) sets: AtomicU32,
}

impl Tensor {
    /// A part of a storage.
    pub(crate) fn new(
        handle: Handle,
        name: &str,
        storage: Arc<Storage>,
        offset: u64,
        size: u64,
    ) -> Self {
        Self {
            handle,
            name: name.to_owned(),
            storage,
            offset,
            size,
            sets: AtomicU32::new(0),
        }
    }

    /// Whether both name the same bytes.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.overlaps(other) && (self.offset, self.size) == (other.offset, other.size)
    }

    /// Whether they have bytes in common.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
            && self.offset < other.offset + other.size
            && other.offset < self.offset + self.size
    }

    fn is_whole(&self) -> bool {
        self.size == self.storage.size
    }

    /// Where in the storage a part of this tensor is.
    fn range(&self, offset: u64, size: u64) -> Result<std::ops::Range<usize>, Failure> {
        let within = offset.checked_add(size).is_some_and(|end| end <= self.size);
        let start = usize::try_from(self.offset.saturating_add(offset));
        match (within, start, usize::try_from(size)) {
            (true, Ok(start), Ok(size)) => Ok(start..start + size),
            _ => Err(refuse!(
                INVALID,
                "{size} bytes from {offset} on of tensor {:?}, which has {}",
                self.name,
                self.size
            )),
        }
    }

    fn bytes(&self) -> usize {
        usize::try_from(self.storage.size).unwrap_or(usize::MAX)
    }

    /// Refuses what races with an execution.
    fn check_idle(&self, state: &State, writes: bool, races: bool) -> Result<(), Failure> {
        let racing = state.writers > 0 || (writes && state.readers > 0);
        if races || !racing {
            return Ok(());
        }
        let name = &self.name;
        Err(misuse!(
            "{} of tensor {name:?} while an execution that {} it is under way: the device does not \
             order them (neuron.md 1.4); wait for the execution or use another tensor",
            if writes { "write" } else { "read" },
            if state.writers > 0 { "writes" } else { "reads" },
        ))
    }

    /// Copies bytes out.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8], races: bool) -> Result<(), Failure> {
        let range = self.range(offset, into.len() as u64)?;
        let mut state = self.storage.state();
        self.check_idle(&state, false, races)?;
        match &state.content {
            Content::Fill(byte) => into.fill(*byte),
            Content::Host(bytes) => into.copy_from_slice(&bytes[range]),
            Content::Device(buffer, _) if into.len() == self.bytes() => {
                buffer.to_host(into).map_err(failure)?;
            }
            Content::Device(..) => into.copy_from_slice(&state.host(self.bytes())?[range]),
        }
        Ok(())
    }

    /// Copies bytes in.
    pub(crate) fn write(&self, offset: u64, from: &[u8], races: bool) -> Result<(), Failure> {
        let range = self.range(offset, from.len() as u64)?;
        let mut state = self.storage.state();
        self.check_idle(&state, true, races)?;
        if self.storage.hollow {
            return Ok(());
        }
        if from.len() == self.bytes() {
            // An execution may hold the bytes before.
            if let Content::Host(bytes) = &mut state.content
                && let Some(bytes) = Arc::get_mut(bytes)
            {
                bytes.copy_from_slice(from);
            } else {
                state.content = Content::Host(Arc::new(from.to_vec()));
            }
        } else {
            state.host(self.bytes())?[range].copy_from_slice(from);
        }
        Ok(())
    }

    /// Sets bytes.
    pub(crate) fn fill(
        &self,
        offset: u64,
        byte: u8,
        size: u64,
        races: bool,
    ) -> Result<(), Failure> {
        let range = self.range(offset, size)?;
        let mut state = self.storage.state();
        self.check_idle(&state, true, races)?;
        if range.len() == self.bytes() {
            state.content = Content::Fill(byte);
        } else if !self.storage.hollow {
            state.host(self.bytes())?[range].fill(byte);
        }
        Ok(())
    }

    /// Its bytes.
    pub(crate) fn to_host(&self) -> Result<Vec<u8>, Failure> {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        let mut bytes = vec![0; size];
        self.read(0, &mut bytes, true)?;
        Ok(bytes)
    }

    /// Its array on a device, for an execution. What the execution gives away is taken out, so that
    /// garbage is left unless [`Tensor::put`] gives it a new array.
    pub(crate) fn array(
        &self,
        devices: &Devices,
        form: &Form,
        give: bool,
    ) -> Result<Arc<Buffer>, Failure> {
        let range = self.range(0, self.size)?;
        let mut state = self.storage.state();
        let array = match &state.content {
            Content::Device(buffer, have) if self.is_whole() && have == form => Arc::clone(buffer),
            Content::Fill(byte) => {
                let bytes = vec![*byte; range.len()];
                Arc::new(devices.upload(form, &bytes)?)
            }
            _ => {
                let bytes = &state.host(self.bytes())?[range];
                Arc::new(devices.upload(form, bytes)?)
            }
        };
        if self.is_whole() {
            state.content = if give {
                Content::Fill(GARBAGE)
            } else {
                Content::Device(Arc::clone(&array), form.clone())
            };
        }
        Ok(array)
    }

    /// Makes `array` its content.
    pub(crate) fn put(&self, array: Arc<Buffer>, form: &Form) -> Result<(), Failure> {
        if self.is_whole() {
            self.storage.state().content = Content::Device(array, form.clone());
            return Ok(());
        }
        let range = self.range(0, self.size)?;
        let mut bytes = vec![0; range.len()];
        array.to_host(&mut bytes).map_err(failure)?;
        let mut state = self.storage.state();
        state.host(self.bytes())?[range].copy_from_slice(&bytes);
        Ok(())
    }

    /// Makes bytes that others may have too its content.
    pub(crate) fn put_bytes(&self, bytes: &Arc<Vec<u8>>) -> Result<(), Failure> {
        if self.is_whole() {
            let mut state = self.storage.state();
            state.content = Content::Host(Arc::clone(bytes));
            return Ok(());
        }
        self.write(0, bytes, true)
    }

    /// Leaves garbage.
    pub(crate) fn spoil(&self) -> Result<(), Failure> {
        self.fill(0, GARBAGE, self.size, true)
    }

    /// Notes that an execution uses it.
    pub(crate) fn begin(&self, writes: bool) {
        let mut state = self.storage.state();
        let count = if writes {
            &mut state.writers
        } else {
            &mut state.readers
        };
        *count += 1;
    }

    /// Notes that an execution no longer uses it.
    pub(crate) fn end(&self, writes: bool) {
        let mut state = self.storage.state();
        let count = if writes {
            &mut state.writers
        } else {
            &mut state.readers
        };
        *count = count.saturating_sub(1);
    }

    /// Whether no set has it.
    pub(crate) fn is_free(&self) -> bool {
        self.sets.load(Ordering::Acquire) == 0
    }
}
