//! What the devices are that modules are compiled for: one table of their facts.
//!
//! The numbers are those of `neuron.md` 4.1 (AWS's architecture pages, and per-core memory from the
//! table of AWS's own XLA plugin), of section 3 for number formats and of 4.2 for the part of the
//! memory that tensors may take. None was measured by us.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A generation of AWS's accelerators.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Inferentia2: two NeuronCores-v2 a chip.
    Inf2,
    /// Trainium1: two NeuronCores-v2 a chip.
    Trn1,
    /// Trainium2: eight NeuronCores-v3 a chip, two of which make a logical core unless told
    /// otherwise.
    Trn2,
    /// Trainium3: eight NeuronCores-v4 a chip, two of which make a logical core unless told
    /// otherwise.
    Trn3,
}

/// The facts of a target. Bytes are bytes, not GiB; rates are a second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Facts {
    /// What `neuronx-cc --target` and we call it.
    pub name: &'static str,
    /// The largest finite number of the E4M3 that its matrix engine knows: 240 with infinities
    /// (NeuronCore-v2, v3), 448 without (v4, as OCP has it).
    pub fp8_max: u32,
    /// Whether `neuronx-cc` takes F8E4M3FN only with `--experimental-unsafe-fp8e4m3fn-as-fp8e4m3`.
    pub fp8_flag: bool,
    /// Whether it multiplies FP8 twice as fast as BF16; elsewhere FP8 saves memory only.
    pub fp8_fast: bool,
    /// Whether it refuses products of integer matrices (`NCC_EVRF035`).
    pub refuses_integer_dot: bool,
    /// Physical cores of a chip.
    pub cores: u32,
    /// Physical cores that may make one logical core (`--logical-nc-config`); the last is what the
    /// compiler takes by itself.
    pub logical: &'static [u32],
    /// Memory of a chip.
    pub chip_memory: u64,
    /// Bandwidth of a chip's memory.
    pub chip_bandwidth: u64,
    /// Products and sums of BF16 of a chip, counted as two operations each.
    pub chip_flops: u64,
    /// On-chip memory (SBUF) of a physical core.
    pub on_chip: u64,
    /// Hundredths of a logical core's memory that tensors (weights, KV, inputs and outputs) may
    /// take: the rest is for code, DMA rings, scratchpad, collectives and the runtime.
    pub tensors_percent: u64,
}

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

const INF2: Facts = Facts {
    name: "inf2",
    fp8_max: 240,
    fp8_flag: true,
    fp8_fast: false,
    refuses_integer_dot: false,
    cores: 2,
    logical: &[1],
    chip_memory: 32 * GIB,
    chip_bandwidth: 820 * GIB,
    chip_flops: 190_000_000_000_000,
    on_chip: 24 * MIB,
    tensors_percent: 80,
};

const TRN1: Facts = Facts {
    name: "trn1",
    ..INF2
};

const TRN2: Facts = Facts {
    name: "trn2",
    fp8_max: 240,
    fp8_flag: true,
    fp8_fast: true,
    refuses_integer_dot: true,
    cores: 8,
    logical: &[1, 2],
    chip_memory: 96 * GIB,
    chip_bandwidth: 2_900_000_000_000,
    chip_flops: 667_000_000_000_000,
    on_chip: 28 * MIB,
    tensors_percent: 85,
};

const TRN3: Facts = Facts {
    name: "trn3",
    fp8_max: 448,
    fp8_flag: false,
    fp8_fast: true,
    refuses_integer_dot: true,
    cores: 8,
    logical: &[1, 2],
    chip_memory: 144 * GIB,
    chip_bandwidth: 4_900_000_000_000,
    chip_flops: 671_000_000_000_000,
    on_chip: 32 * MIB,
    tensors_percent: 85,
};

impl Target {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::Inf2, Self::Trn1, Self::Trn2, Self::Trn3];

    /// What is known of it.
    pub fn facts(self) -> &'static Facts {
        match self {
            Self::Inf2 => &INF2,
            Self::Trn1 => &TRN1,
            Self::Trn2 => &TRN2,
            Self::Trn3 => &TRN3,
        }
    }

    /// Its name, as `neuronx-cc --target` takes it.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// Physical cores of a logical core unless told otherwise.
    pub fn default_logical(self) -> u32 {
        self.facts().logical.last().copied().unwrap_or(1)
    }
}

impl Facts {
    /// Logical cores of a chip when `logical` physical ones make each.
    pub fn logical_cores(&self, logical: u32) -> u32 {
        self.cores / logical.max(1)
    }

    /// Memory of a logical core of `logical` physical ones: an equal part of the chip's. On
    /// Trainium2 and 3 two physical cores share a bank, so that this is 24 and 36 GiB by default.
    pub fn memory(&self, logical: u32) -> u64 {
        self.chip_memory / u64::from(self.logical_cores(logical).max(1))
    }

    /// Of [`Facts::memory`], what tensors may take.
    pub fn tensor_memory(&self, logical: u32) -> u64 {
        self.memory(logical) / 100 * self.tensors_percent
    }

    /// Memory bandwidth of a logical core: an equal part of the chip's.
    pub fn bandwidth(&self, logical: u32) -> u64 {
        self.chip_bandwidth / u64::from(self.logical_cores(logical).max(1))
    }

    /// BF16 operations of a logical core a second: an equal part of the chip's.
    pub fn flops(&self, logical: u32) -> u64 {
        self.chip_flops / u64::from(self.logical_cores(logical).max(1))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no target's.
#[derive(Debug, thiserror::Error)]
#[error("no target is called {name:?}: inf2, trn1, trn2 and trn3 are")]
pub struct UnknownTarget {
    /// The name.
    pub name: String,
}

impl FromStr for Target {
    type Err = UnknownTarget;

    fn from_str(name: &str) -> Result<Self, UnknownTarget> {
        Self::ALL
            .into_iter()
            .find(|target| target.name() == name)
            .ok_or_else(|| UnknownTarget {
                name: name.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for target in Target::ALL {
            assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
        let error = "trn9".parse::<Target>().unwrap_err().to_string();
        assert!(error.contains("trn9") && error.contains("trn2"), "{error}");
    }

    #[test]
    fn a_logical_core_has_its_part_of_the_chip() {
        let memory = |target: Target| target.facts().memory(target.default_logical());
        assert_eq!(Target::ALL.map(memory), [16, 16, 24, 36].map(|n| n * GIB));
        let trn2 = Target::Trn2.facts();
        assert_eq!((trn2.logical_cores(2), trn2.logical_cores(1)), (4, 8));
        assert_eq!(trn2.memory(1), 12 * GIB);
        assert_eq!(trn2.tensor_memory(2), 24 * GIB / 100 * 85);
        assert_eq!(trn2.bandwidth(2), 725_000_000_000);
    }
}
