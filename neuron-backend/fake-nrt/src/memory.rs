//! What each bank of device memory holds (neuron.md 4.2): a table that says no when a bank is full.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::settings::Settings;
use crate::status::{Failure, refuse};
use crate::topology::Topology;

/// Tensors take whole pages of this many bytes.
const PAGE: u64 = 4096;
/// The shared scratchpad grows by this many bytes.
const SCRATCHPAD_PIECE: u64 = 64 << 20;

/// What memory is taken for, with the names that sysfs has (neuron.md 6.4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// The runtime and its microcode.
    Runtime,
    /// Tensors.
    Tensor,
    /// Instructions of a model.
    Code,
    /// DMA rings of a model.
    Rings,
    /// Intermediate results: all models of a core share the largest.
    Scratchpad,
    /// Buffers of collectives.
    Collectives,
}

impl Kind {
    /// Its name in sysfs and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runtime => "runtime_memory",
            Self::Tensor => "tensors",
            Self::Code => "model_code",
            Self::Rings => "dma_rings",
            Self::Scratchpad => "model_shared_scratchpad",
            Self::Collectives => "collectives",
        }
    }
}

/// Something that takes memory.
#[derive(Clone, Debug)]
struct Entry {
    kind: Kind,
    core: u32,
    name: String,
    bytes: u64,
}

/// A bank: what is in it, by a number that goes up.
#[derive(Debug, Default)]
struct Bank {
    entries: BTreeMap<u64, Entry>,
    /// The sum of all but scratchpads.
    plain: u64,
}

impl Bank {
    fn used(&self) -> u64 {
        self.plain + self.scratchpads()
    }

    /// The largest scratchpad of each core.
    fn scratchpads(&self) -> u64 {
        let mut largest: BTreeMap<u32, u64> = BTreeMap::new();
        let scratchpads = self
            .entries
            .values()
            .filter(|entry| entry.kind == Kind::Scratchpad);
        for entry in scratchpads {
            let core = largest.entry(entry.core).or_default();
            *core = entry.bytes.max(*core);
        }
        let rounded = largest
            .values()
            .map(|bytes| bytes.next_multiple_of(SCRATCHPAD_PIECE));
        rounded.sum()
    }

    fn insert(&mut self, id: u64, entry: Entry) {
        if entry.kind != Kind::Scratchpad {
            self.plain += entry.bytes;
        }
        self.entries.insert(id, entry);
    }

    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.entries.remove(&id)
            && entry.kind != Kind::Scratchpad
        {
            self.plain -= entry.bytes;
        }
    }
}

/// The memory of the machine.
#[derive(Debug)]
pub struct Memory {
    topology: Topology,
    directory: PathBuf,
    banks: Mutex<Banks>,
}

#[derive(Debug)]
struct Banks {
    next: u64,
    banks: Vec<Bank>,
}

/// Memory that is taken until this is dropped.
#[derive(Debug)]
pub struct Charge {
    memory: Arc<Memory>,
    bank: usize,
    id: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.memory
            .with(|banks| banks.banks[self.bank].remove(self.id));
    }
}

impl Memory {
    /// All banks, empty.
    pub fn new(settings: &Settings) -> Arc<Self> {
        let banks = (0..settings.topology.banks()).map(|_| Bank::default());
        let banks = Banks {
            next: 0,
            banks: banks.collect(),
        };
        Arc::new(Self {
            topology: settings.topology,
            directory: settings.directory.clone(),
            banks: Mutex::new(banks),
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Banks) -> T) -> T {
        work(&mut self.banks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn bank(&self, core: u32) -> usize {
        self.topology.bank(core) as usize
    }

    /// Takes `bytes` of the bank of a core of the machine.
    ///
    /// # Errors
    /// The bank is full: `RESOURCE`, and the bank's table is written to the directory.
    pub fn take(
        self: &Arc<Self>,
        core: u32,
        kind: Kind,
        name: &str,
        bytes: u64,
    ) -> Result<Charge, Failure> {
        let bank = self.bank(core);
        let bytes = match kind {
            Kind::Tensor => bytes.max(1).next_multiple_of(PAGE),
            _ => bytes,
        };
        let limit = self.topology.bank_bytes;
        let name = name.to_owned();
        let entry = Entry {
            kind,
            core,
            name,
            bytes,
        };
        let taken = self.with(|banks| {
            let (id, used) = (banks.next, banks.banks[bank].used());
            banks.next += 1;
            banks.banks[bank].insert(id, entry.clone());
            if banks.banks[bank].used() <= limit {
                return Ok(id);
            }
            banks.banks[bank].remove(id);
            Err((used, self.table(&banks.banks[bank], bank, &entry)))
        });
        match taken {
            Ok(id) => Ok(Charge {
                memory: Arc::clone(self),
                bank,
                id,
            }),
            Err((used, table)) => Err(self.full(bank, &entry, used, &table)),
        }
    }

    fn full(&self, bank: usize, entry: &Entry, used: u64, table: &str) -> Failure {
        let Entry {
            kind,
            name,
            bytes,
            core,
        } = entry;
        let per_chip = self.topology.instance.chip.banks as usize;
        let (device, hbm) = (bank / per_chip, bank % per_chip);
        let file = format!("neuron_mem_table_device_{device}_hbm_{hbm}.log");
        let path = self.directory.join(file);
        let written = match fs::write(&path, table) {
            Ok(()) => format!("see {}", path.display()),
            Err(error) => format!("no table at {}: {error}", path.display()),
        };
        let limit = self.topology.bank_bytes;
        refuse!(
            RESOURCE,
            "{bytes} bytes of {} for {name:?} on core {core} where {used} of {limit} are taken; \
             {written}",
            kind.name()
        )
    }

    /// What is in a bank, as text.
    fn table(&self, bank: &Bank, number: usize, wanted: &Entry) -> String {
        let mut sums: BTreeMap<Kind, u64> = BTreeMap::new();
        for entry in bank.entries.values() {
            *sums.entry(entry.kind).or_default() += entry.bytes;
        }
        if let Some(sum) = sums.get_mut(&Kind::Scratchpad) {
            *sum = bank.scratchpads();
        }
        let limit = self.topology.bank_bytes;
        let mut table = format!("bank {number}: {} of {limit} bytes\n", bank.used());
        let kind = wanted.kind.name();
        // Writing into a string cannot fail.
        let _ = writeln!(table, "wanted {:>16} {kind} {}", wanted.bytes, wanted.name);
        for (kind, sum) in sums {
            let _ = writeln!(table, "total  {sum:>16} {}", kind.name());
        }
        for Entry {
            kind,
            core,
            name,
            bytes,
        } in bank.entries.values()
        {
            let _ = writeln!(
                table,
                "entry  {bytes:>16} {} core {core} {name}",
                kind.name()
            );
        }
        table
    }

    /// Bytes used and bytes there are, of the bank of a core of the machine.
    pub fn stats(&self, core: u32) -> (u64, u64) {
        let bank = self.bank(core);
        let used = self.with(|banks| banks.banks[bank].used());
        (used, self.topology.bank_bytes)
    }

    /// Bytes of one kind in the bank of a core of the machine.
    pub fn used_for(&self, core: u32, kind: Kind) -> u64 {
        let bank = self.bank(core);
        self.with(|banks| match kind {
            Kind::Scratchpad => banks.banks[bank].scratchpads(),
            _ => {
                let entries = banks.banks[bank].entries.values();
                let same = entries.filter(|entry| entry.kind == kind);
                same.map(|entry| entry.bytes).sum()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory(directory: &std::path::Path, bytes: u64) -> Arc<Memory> {
        let variables = [
            ("FAKE_NRT_DIR", directory.to_str().unwrap().to_owned()),
            ("FAKE_NRT_HBM_BYTES", bytes.to_string()),
        ];
        let own = variables.map(|(name, value)| (name.to_owned(), value));
        Memory::new(&Settings::read(own).unwrap())
    }

    #[test]
    fn what_is_dropped_is_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let memory = memory(directory.path(), MIB);
        let first = memory.take(0, Kind::Tensor, "first", 1).unwrap();
        assert_eq!(memory.stats(0), (PAGE, MIB));
        assert_eq!(memory.stats(1), (0, MIB));
        drop(first);
        assert_eq!(memory.stats(0), (0, MIB));
    }

    #[test]
    fn a_full_bank_refuses_and_writes_its_table() {
        let directory = tempfile::tempdir().unwrap();
        let memory = memory(directory.path(), MIB);
        let _most = memory.take(1, Kind::Tensor, "keys.0", MIB - PAGE).unwrap();
        let failure = memory
            .take(1, Kind::Tensor, "values.0", 2 * PAGE)
            .unwrap_err();
        assert_eq!(failure.status().0, 4);
        let table = directory.path().join("neuron_mem_table_device_0_hbm_1.log");
        let table = fs::read_to_string(table).unwrap();
        assert!(
            table.contains("keys.0") && table.contains("values.0"),
            "{table}"
        );
        let _rest = memory.take(1, Kind::Tensor, "small", PAGE).unwrap();
    }

    #[test]
    fn models_of_a_core_share_the_largest_scratchpad() {
        let directory = tempfile::tempdir().unwrap();
        let memory = memory(directory.path(), 300 * MIB);
        let _small = memory.take(0, Kind::Scratchpad, "a", 10 * MIB).unwrap();
        let large = memory.take(0, Kind::Scratchpad, "b", 65 * MIB).unwrap();
        assert_eq!(memory.stats(0).0, 128 * MIB);
        let _code = memory.take(0, Kind::Code, "a", MIB).unwrap();
        assert_eq!(memory.used_for(0, Kind::Scratchpad), 128 * MIB);
        drop(large);
        assert_eq!(memory.stats(0).0, 65 * MIB);
    }
}
