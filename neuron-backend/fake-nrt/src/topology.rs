//! What machine the library pretends to be on: chips, cores, banks of memory.

use crate::status::{Failure, refuse};

/// Names of `nrt_instance_info_t.size` (neuron.md 1.3).
mod size {
    pub(super) const XLARGE: u32 = 0;
    pub(super) const XLARGE_2: u32 = 1;
    pub(super) const XLARGE_8: u32 = 4;
    pub(super) const XLARGE_24: u32 = 5;
    pub(super) const XLARGE_32: u32 = 6;
    pub(super) const XLARGE_48: u32 = 7;
    pub(super) const XLARGE_3: u32 = 8;
}

const GIB: u64 = 1 << 30;

/// A chip (neuron.md 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chip {
    /// What `neuronx-cc --target` calls it.
    pub target: &'static str,
    /// What sysfs calls its cores.
    pub architecture: &'static str,
    /// What sysfs calls it.
    pub device: &'static str,
    /// Physical cores.
    pub cores: u32,
    /// Physical cores of a logical one unless told otherwise.
    pub lnc: u32,
    /// Banks of memory; each serves an equal part of the cores.
    pub banks: u32,
    /// Bytes of a bank.
    pub bank_bytes: u64,
}

const INFERENTIA2: Chip = Chip {
    target: "inf2",
    architecture: "NCv2",
    device: "Inferentia2",
    cores: 2,
    lnc: 1,
    banks: 2,
    bank_bytes: 16 * GIB,
};

const TRAINIUM1: Chip = Chip {
    target: "trn1",
    device: "Trainium1",
    ..INFERENTIA2
};

const TRAINIUM2: Chip = Chip {
    target: "trn2",
    architecture: "NCv3",
    device: "Trainium2",
    cores: 8,
    lnc: 2,
    banks: 4,
    bank_bytes: 24 * GIB,
};

const TRAINIUM3: Chip = Chip {
    target: "trn3",
    architecture: "NCv4",
    device: "Trainium3",
    bank_bytes: 36 * GIB,
    ..TRAINIUM2
};

/// A type of EC2 instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instance {
    /// As EC2 calls it.
    pub name: &'static str,
    /// Its `nrt_instance_info_t.family`.
    pub family: u32,
    /// Its `nrt_instance_info_t.size`.
    pub size: u32,
    /// How many chips it has.
    pub chips: u32,
    /// What chips.
    pub chip: Chip,
}

const fn instance(name: &'static str, family: u32, size: u32, chips: u32, chip: Chip) -> Instance {
    Instance {
        name,
        family,
        size,
        chips,
        chip,
    }
}

/// All instances with chips that we serve. EC2 has no type with Trainium3 yet: those two are what
/// one would look like.
const INSTANCES: [Instance; 12] = [
    instance("inf2.xlarge", 4, size::XLARGE, 1, INFERENTIA2),
    instance("inf2.8xlarge", 4, size::XLARGE_8, 1, INFERENTIA2),
    instance("inf2.24xlarge", 4, size::XLARGE_24, 6, INFERENTIA2),
    instance("inf2.48xlarge", 4, size::XLARGE_48, 12, INFERENTIA2),
    instance("trn1.2xlarge", 2, size::XLARGE_2, 1, TRAINIUM1),
    instance("trn1.32xlarge", 2, size::XLARGE_32, 16, TRAINIUM1),
    instance("trn1n.32xlarge", 3, size::XLARGE_32, 16, TRAINIUM1),
    instance("trn2.3xlarge", 5, size::XLARGE_3, 1, TRAINIUM2),
    instance("trn2.48xlarge", 5, size::XLARGE_48, 16, TRAINIUM2),
    instance("trn2u.48xlarge", 9, size::XLARGE_48, 16, TRAINIUM2),
    instance("trn3.3xlarge", 14, size::XLARGE_3, 1, TRAINIUM3),
    instance("trn3.48xlarge", 14, size::XLARGE_48, 16, TRAINIUM3),
];

/// A machine, cut into logical cores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Topology {
    /// What it is.
    pub instance: Instance,
    /// Physical cores of a logical one.
    pub lnc: u32,
    /// Bytes of a bank.
    pub bank_bytes: u64,
}

impl Topology {
    /// The instance called `name`, with logical cores of `lnc` physical ones (the chip's own number
    /// if `None`) and banks of `bank_bytes` (the chip's own if `None`).
    ///
    /// # Errors
    /// No instance is called so, or its chips have no logical cores of that size.
    pub fn new(name: &str, lnc: Option<u32>, bank_bytes: Option<u64>) -> Result<Self, Failure> {
        let instance = INSTANCES.into_iter().find(|one| one.name == name);
        let instance = instance.ok_or_else(|| {
            let known = INSTANCES.map(|one| one.name).join(", ");
            refuse!(FAILURE, "FAKE_NRT_INSTANCE={name}: known are {known}")
        })?;
        let chip = instance.chip;
        let lnc = lnc.unwrap_or(chip.lnc);
        if lnc == 0 || lnc > chip.lnc {
            let device = chip.device;
            return Err(refuse!(
                INVALID,
                "NEURON_LOGICAL_NC_CONFIG={lnc}: {device} takes 1 to {}",
                chip.lnc
            ));
        }
        Ok(Self {
            instance,
            lnc,
            bank_bytes: bank_bytes.unwrap_or(chip.bank_bytes),
        })
    }

    /// Logical cores of a chip.
    pub fn chip_cores(&self) -> u32 {
        self.instance.chip.cores / self.lnc
    }

    /// Logical cores of the machine.
    pub fn cores(&self) -> u32 {
        self.chip_cores() * self.instance.chips
    }

    /// Banks of the machine.
    pub fn banks(&self) -> u32 {
        self.instance.chip.banks * self.instance.chips
    }

    /// The bank that serves a logical core of the machine.
    pub fn bank(&self, core: u32) -> u32 {
        let chip = self.instance.chip;
        core * self.lnc / (chip.cores / chip.banks)
    }

    /// The chip of a logical core of the machine.
    pub fn device(&self, core: u32) -> u32 {
        core / self.chip_cores()
    }

    /// Whether a module compiled for `target` runs here.
    pub fn runs(&self, target: &str) -> bool {
        let own = self.instance.chip.target;
        // `trn1n` differs from `trn1` in its network only.
        own == target || (self.instance.family == 3 && target == "trn1n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(name: &str, lnc: Option<u32>) -> Topology {
        Topology::new(name, lnc, None).unwrap()
    }

    #[test]
    fn instances_have_the_cores_of_their_pages() {
        let cores = |name| topology(name, None).cores();
        assert_eq!(cores("inf2.xlarge"), 2);
        assert_eq!(cores("inf2.48xlarge"), 24);
        assert_eq!(cores("trn1.32xlarge"), 32);
        assert_eq!(cores("trn2.3xlarge"), 4);
        assert_eq!(cores("trn2.48xlarge"), 64);
        assert_eq!(topology("trn2.48xlarge", Some(1)).cores(), 128);
    }

    #[test]
    fn halves_of_a_logical_core_share_a_bank() {
        let whole = topology("trn2.3xlarge", None);
        assert_eq!([0, 1, 2, 3].map(|core| whole.bank(core)), [0, 1, 2, 3]);
        let halves = topology("trn2.3xlarge", Some(1));
        assert_eq!([0, 1, 2, 7].map(|core| halves.bank(core)), [0, 0, 1, 3]);
        assert_eq!(topology("trn1.2xlarge", None).bank(1), 1);
    }

    #[test]
    fn what_no_machine_is_like_is_refused() {
        assert!(Topology::new("p5.48xlarge", None, None).is_err());
        assert!(Topology::new("inf2.xlarge", Some(2), None).is_err());
        assert!(Topology::new("trn2.3xlarge", Some(3), None).is_err());
    }

    #[test]
    fn modules_run_on_their_target() {
        assert!(topology("inf2.xlarge", None).runs("inf2"));
        assert!(!topology("inf2.xlarge", None).runs("trn1"));
        assert!(topology("trn1n.32xlarge", None).runs("trn1n"));
        assert!(!topology("trn1.32xlarge", None).runs("trn1n"));
    }
}
