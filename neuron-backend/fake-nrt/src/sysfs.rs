//! A tree like the driver's in sysfs (neuron.md 6.4) in any directory, with counters that a test can
//! change, and lines like those that the driver writes to the kernel's log (neuron.md 6.5).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::memory::Kind;
use crate::status::Status;
use crate::topology::Topology;

/// Counters of `stats/hardware` of a chip.
pub const HARDWARE: [&str; 5] = [
    "mem_ecc_uncorrected",
    "mem_ecc_repairable_uncorrected",
    "sram_ecc_uncorrected",
    "mem_ecc_corrected",
    "sram_ecc_corrected",
];

/// Kinds of memory under `stats/memory_usage/device_mem` of a core.
pub const DEVICE_MEMORY: [&str; 11] = [
    "collectives",
    "constants",
    "dma_rings",
    "driver_memory",
    "model_code",
    "model_shared_scratchpad",
    "nonshared_scratchpad",
    "notifications",
    "runtime_memory",
    "tensors",
    "uncategorized",
];

/// Counters under `stats/other_info` of a core.
pub const OTHER: [&str; 6] = [
    "flop_count",
    "inference_count",
    "model_load_count",
    "nc_time_in_use",
    "reset_fail_count",
    "reset_req_count",
];

/// The tree: `DIRECTORY/neuron0/..`, `DIRECTORY/neuron1/..`.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
    topology: Topology,
}

/// Makes the tree of a machine in `directory`, all counters zero.
///
/// # Errors
/// The directory cannot be written.
pub fn write(directory: &Path, topology: &Topology) -> io::Result<Sysfs> {
    let tree = Sysfs {
        root: directory.to_owned(),
        topology: *topology,
    };
    for device in 0..topology.instance.chips {
        tree.write_device(device)?;
        for core in 0..topology.chip_cores() {
            tree.write_core(device, core)?;
        }
    }
    Ok(tree)
}

impl Sysfs {
    /// Where it is: what stands for `/sys/devices/virtual/neuron_device`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn device(&self, device: u32) -> PathBuf {
        self.root.join(format!("neuron{device}"))
    }

    /// The directory of a core, counted within its chip.
    fn core(&self, device: u32, core: u32) -> PathBuf {
        self.device(device).join(format!("neuron_core{core}"))
    }

    fn write_device(&self, device: u32) -> io::Result<()> {
        let chips = self.topology.instance.chips;
        // Neighbours on a ring: what else there is to connect does not matter here.
        let next = (device + 1) % chips;
        let before = (device + chips - 1) % chips;
        let connected = match chips {
            1 => String::new(),
            2 => next.to_string(),
            _ => format!("{before}, {next}"),
        };
        let at = self.device(device);
        put(
            &at.join("core_count"),
            &self.topology.chip_cores().to_string(),
        )?;
        put(&at.join("connected_devices"), &connected)?;
        put(&at.join("reset"), "0")?;
        put(&at.join("info/serial_number"), &format!("fake{device:012}"))?;
        put(&at.join("info/notify_delay"), "0")?;
        self.write_architecture(&at)?;
        for counter in HARDWARE {
            put(&at.join("stats/hardware").join(counter), "0")?;
        }
        put(&at.join("stats/power/utilization"), "0")?;
        for (field, value) in [("present", "0"), ("total", "0"), ("peak", "0")] {
            put(&at.join("stats/memory_usage/host_mem").join(field), value)?;
        }
        Ok(())
    }

    fn write_architecture(&self, at: &Path) -> io::Result<()> {
        let instance = &self.topology.instance;
        let at = at.join("info/architecture");
        put(&at.join("arch_type"), instance.chip.architecture)?;
        put(&at.join("device_name"), instance.chip.device)?;
        put(&at.join("instance_type"), instance.name)
    }

    fn write_core(&self, device: u32, core: u32) -> io::Result<()> {
        let at = self.core(device, core);
        self.write_architecture(&at)?;
        for status in Status::all().filter_map(status_name) {
            put(&at.join("stats/status").join(&status).join("total"), "0")?;
            put(&at.join("stats/status").join(&status).join("present"), "0")?;
        }
        for kind in DEVICE_MEMORY {
            for field in ["total", "present", "peak"] {
                let kind = at.join("stats/memory_usage/device_mem").join(kind);
                put(&kind.join(field), "0")?;
            }
        }
        for counter in OTHER {
            put(&at.join("stats/other_info").join(counter), "0")?;
        }
        Ok(())
    }

    /// Sets a counter of `stats/hardware` of a chip, one of [`HARDWARE`].
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_hardware(&self, device: u32, counter: &str, value: u64) -> io::Result<()> {
        change(
            &self.device(device).join("stats/hardware").join(counter),
            value,
        )
    }

    /// Sets how often calls on a core (counted within its chip) came to `status`.
    ///
    /// # Errors
    /// It cannot be written, or there is no such status.
    pub fn set_status(&self, device: u32, core: u32, status: Status, total: u64) -> io::Result<()> {
        let name = status_name(status).ok_or(io::ErrorKind::NotFound)?;
        let at = self.core(device, core).join("stats/status").join(name);
        change(&at.join("total"), total)?;
        change(&at.join("present"), total)
    }

    /// Sets what memory of one kind a core uses now.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_memory(&self, device: u32, core: u32, kind: Kind, bytes: u64) -> io::Result<()> {
        let at = self
            .core(device, core)
            .join("stats/memory_usage/device_mem");
        for field in ["present", "total", "peak"] {
            change(&at.join(kind.name()).join(field), bytes)?;
        }
        Ok(())
    }

    /// Sets a counter of a core, one of [`OTHER`].
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_other(&self, device: u32, core: u32, counter: &str, value: u64) -> io::Result<()> {
        change(
            &self
                .core(device, core)
                .join("stats/other_info")
                .join(counter),
            value,
        )
    }
}

/// What sysfs calls a status: `success`, `exec_bad_input`, ..
fn status_name(status: Status) -> Option<String> {
    status.name().map(str::to_lowercase)
}

fn put(path: &Path, value: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, format!("{value}\n"))
}

/// Changes a file that is there: whoever reads it sees the old or the new value, whole.
fn change(path: &Path, value: u64) -> io::Result<()> {
    if !path.is_file() {
        let what = format!("sysfs has no {}", path.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    let part = path.with_extension("part");
    fs::write(&part, format!("{value}\n"))?;
    fs::rename(part, path)
}

/// A line of the kernel's log for an error of the hardware, such as `SRAM_UNCORRECTABLE_ERROR` that
/// wants `TERMINATE_INSTANCE`.
pub fn kernel_line(error: &str, device: u32, core: u32, action: &str) -> String {
    format!(
        "neuron: NEURON_HW_ERR={error} instance-id=i-0fake00000000000 nd-id={device} nc-id={core} \
         serial-num=fake{device:012} action={action}"
    )
}

/// Errors and actions that such lines may say. Only the first pair is documented (neuron.md 6.5);
/// the others follow its form and the table of what to do.
pub const KERNEL_ERRORS: [(&str, &str); 4] = [
    ("SRAM_UNCORRECTABLE_ERROR", "TERMINATE_INSTANCE"),
    ("HBM_UNCORRECTABLE_ERROR", "TERMINATE_INSTANCE"),
    ("REPAIRABLE_HBM_UNCORRECTABLE_ERROR", "RELOAD_NEURON_DRIVER"),
    ("DMA_ERROR", "TERMINATE_INSTANCE"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_has_the_cores_of_the_machine() {
        let directory = tempfile::tempdir().unwrap();
        let topology = Topology::new("trn1.32xlarge", None, None).unwrap();
        let tree = write(directory.path(), &topology).unwrap();
        let read = |path: &str| fs::read_to_string(tree.root().join(path)).unwrap();
        assert_eq!(read("neuron0/core_count"), "2\n");
        assert_eq!(read("neuron0/connected_devices"), "15, 1\n");
        assert_eq!(
            read("neuron15/info/architecture/device_name"),
            "Trainium1\n"
        );
        assert_eq!(
            read("neuron15/neuron_core1/stats/status/exec_oob/total"),
            "0\n"
        );
        assert!(!tree.root().join("neuron16").exists());
        assert!(!tree.root().join("neuron0/neuron_core2").exists());
    }

    #[test]
    fn counters_change_and_none_are_invented() {
        let directory = tempfile::tempdir().unwrap();
        let topology = Topology::new("trn2.3xlarge", None, None).unwrap();
        let tree = write(directory.path(), &topology).unwrap();
        tree.set_status(0, 3, Status::TIMEOUT, 7).unwrap();
        tree.set_hardware(0, "mem_ecc_uncorrected", 1).unwrap();
        tree.set_memory(0, 1, Kind::Tensor, 4096).unwrap();
        let read = |path: &str| fs::read_to_string(tree.root().join(path)).unwrap();
        assert_eq!(
            read("neuron0/neuron_core3/stats/status/timeout/total"),
            "7\n"
        );
        assert_eq!(read("neuron0/stats/hardware/mem_ecc_uncorrected"), "1\n");
        let tensors = "neuron0/neuron_core1/stats/memory_usage/device_mem/tensors/present";
        assert_eq!(read(tensors), "4096\n");
        assert!(tree.set_hardware(1, "mem_ecc_uncorrected", 1).is_err());
        assert!(tree.set_other(0, 0, "luck", 1).is_err());
    }

    #[test]
    fn kernel_lines_say_what_to_do() {
        let line = kernel_line("SRAM_UNCORRECTABLE_ERROR", 3, 1, "TERMINATE_INSTANCE");
        assert!(line.contains("nd-id=3 nc-id=1"), "{line}");
        assert!(line.ends_with("action=TERMINATE_INSTANCE"), "{line}");
    }
}
