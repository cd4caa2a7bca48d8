//! What the driver counts: its tree in sysfs, read without any tool of AWS's.
//!
//! The tree is documented (AWS's sysfs user guide, neuron.md 6.4) and has changed: driver 2.31 moved
//! nodes to other paths. So nothing is looked for at a path. The tree is walked once, every file is
//! recognised by the directories that it is in (`neuron0`, `neuron_core1`, `device_mem`, ..), and what
//! was recognised is read again each time. Files that are absent, unreadable or no number are left
//! out. Nothing is ever written: some counters are reset by a write.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where the driver has its tree.
pub const DEFAULT_ROOT: &str = "/sys/devices/virtual/neuron_device";

/// The environment variable that names another tree. Empty is the same as unset.
pub const ROOT_VARIABLE: &str = "APPLIANCE_NEURON_SYSFS";

/// How deep files are under a device: `neuron_core0/stats/memory_usage/device_mem/tensors/present`
/// is six, and there is room for a move.
const DEPTH: usize = 8;

/// The most files that are read: 16 chips of 8 cores with some 110 files each are 14,000.
const MOST_FILES: usize = 40_000;

/// The most bytes of a file that are read: a page, which is all that sysfs gives.
const MOST_BYTES: u64 = 4096;

/// Where the driver's tree is on this host.
pub fn root() -> PathBuf {
    let named = std::env::var_os(ROOT_VARIABLE).filter(|name| !name.is_empty());
    named.map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from)
}

/// Bytes of memory of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Now.
    pub present: u64,
    /// At the most, since the driver was loaded.
    pub peak: u64,
}

/// How much of its power a chip took in the last minute or so, in percent of what it may.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Power {
    /// At the least.
    pub least: f64,
    /// At the most.
    pub most: f64,
    /// On average.
    pub mean: f64,
}

/// What is counted of a physical core.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Core {
    /// Memory by kind: `tensors`, `dma_rings`, `model_code`, ..
    pub memory: BTreeMap<String, Usage>,
    /// How many calls came to each status since the driver was loaded: `success`, `timeout`, ..
    pub statuses: BTreeMap<String, u64>,
    /// Other counters: `nc_time_in_use`, `inference_count`, `reset_fail_count`, ..
    pub others: BTreeMap<String, u64>,
}

/// What is counted of a chip.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Chip {
    /// What it is called: `Trainium2`, ..
    pub name: Option<String>,
    /// Which one it is.
    pub serial: Option<String>,
    /// Counters of its hardware: `mem_ecc_uncorrected`, `sram_ecc_corrected`, ..
    pub hardware: BTreeMap<String, u64>,
    /// Memory of the host that is held for it.
    pub host_memory: Option<Usage>,
    /// The power that it takes, where it tells.
    pub power: Option<Power>,
    /// Its cores by number, counted within the chip.
    pub cores: BTreeMap<u32, Core>,
}

/// What the tree says at one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Snapshot {
    /// When.
    pub at: Instant,
    /// The chips by number.
    pub chips: BTreeMap<u32, Chip>,
}

/// The number that a core counts its busy time by. The guide does not say its unit; the driver's
/// users take it for microseconds.
const BUSY: &str = "nc_time_in_use";

impl Snapshot {
    /// The part of the time since `before` that each core was in use, from 0 to 1, by chip and core.
    /// Cores that do not count are not in it: runtimes have been seen that never do.
    pub fn busy(&self, before: &Self) -> BTreeMap<(u32, u32), f64> {
        let passed = self.at.saturating_duration_since(before.at).as_secs_f64();
        let cores = self.chips.iter().flat_map(|(chip, counted)| {
            let cores = counted.cores.iter();
            cores.map(move |(core, counted)| ((*chip, *core), counted))
        });
        cores
            .filter_map(|((chip, core), counted)| {
                let now = *counted.others.get(BUSY)?;
                let then = *before
                    .chips
                    .get(&chip)?
                    .cores
                    .get(&core)?
                    .others
                    .get(BUSY)?;
                let counts = now > 0 && passed > 0.0;
                let busy = micros(now.saturating_sub(then)) / passed.max(f64::MIN_POSITIVE);
                counts.then_some(((chip, core), busy.min(1.0)))
            })
            .collect()
    }

    /// Bytes of a kind of memory, summed over all cores.
    pub fn memory(&self, kind: &str) -> u64 {
        let cores = self.chips.values().flat_map(|chip| chip.cores.values());
        let usages = cores.filter_map(|core| core.memory.get(kind));
        usages.map(|usage| usage.present).sum()
    }
}

/// Microseconds as seconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "what passes between two readings is far below 2^53 microseconds"
)]
fn micros(count: u64) -> f64 {
    count as f64 / 1e6
}

/// A file of the tree that was recognised.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Known {
    path: PathBuf,
    chip: u32,
    field: Field,
}

/// What a file says.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Field {
    Name,
    Serial,
    Hardware(String),
    HostPresent,
    HostPeak,
    Power,
    Core(u32, Counter),
}

/// What a file says of a core.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Counter {
    Present(String),
    Peak(String),
    Status(String),
    Other(String),
}

/// The tree, with the files that are worth reading.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
    known: Vec<Known>,
}

impl Tree {
    /// Looks what is at `root`.
    ///
    /// # Errors
    /// There is no such directory: no driver, or one that does not show its tree.
    pub fn open(root: &Path) -> io::Result<Self> {
        let mut tree = Self {
            root: root.to_owned(),
            known: Vec::new(),
        };
        tree.look()?;
        Ok(tree)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn look(&mut self) -> io::Result<()> {
        self.known.clear();
        for entry in fs::read_dir(&self.root)?.flatten() {
            let name = entry.file_name();
            if let Some(chip) = name.to_str().and_then(|name| numbered(name, "neuron")) {
                walk(&entry.path(), &mut Vec::new(), chip, &mut self.known);
            }
        }
        Ok(())
    }

    /// Reads all of it. A tree that has become empty, as when the driver is loaded again, is looked at
    /// anew.
    pub fn read(&mut self) -> Snapshot {
        let snapshot = self.values();
        if !snapshot.chips.is_empty() || self.look().is_err() {
            return snapshot;
        }
        self.values()
    }

    fn values(&self) -> Snapshot {
        let at = Instant::now();
        let mut chips: BTreeMap<u32, Chip> = BTreeMap::new();
        for known in &self.known {
            if let Some(text) = text(&known.path) {
                note(chips.entry(known.chip).or_default(), &known.field, &text);
            }
        }
        Snapshot { at, chips }
    }
}

/// `neuron12` is 12 of `neuron`.
fn numbered(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.parse().ok()
}

/// Finds the files under `directory` that say something known. `names` are the directories from the
/// device down to here.
fn walk(directory: &Path, names: &mut Vec<String>, chip: u32, known: &mut Vec<Known>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if known.len() >= MOST_FILES {
            return;
        }
        // Links lead out of the tree, to the class and to the bus.
        let (Ok(kind), Ok(name)) = (entry.file_type(), entry.file_name().into_string()) else {
            continue;
        };
        names.push(name);
        if kind.is_dir() && names.len() < DEPTH {
            walk(&entry.path(), names, chip, known);
        } else if let Some(field) = kind.is_file().then(|| recognised(names)).flatten() {
            known.push(Known {
                path: entry.path(),
                chip,
                field,
            });
        }
        names.pop();
    }
}

/// What the file with these names, from the device down, says.
fn recognised(names: &[String]) -> Option<Field> {
    let core = names.iter().find_map(|name| numbered(name, "neuron_core"));
    let (file, directories) = names.split_last()?;
    let up = |levels: usize| directories.iter().rev().nth(levels).map(String::as_str);
    let Some(core) = core else {
        return match (up(0), file.as_str()) {
            (Some("architecture"), "device_name") => Some(Field::Name),
            (_, "serial_number") => Some(Field::Serial),
            (Some("host_mem"), "present") => Some(Field::HostPresent),
            (Some("host_mem"), "peak") => Some(Field::HostPeak),
            (Some("power"), "utilization") => Some(Field::Power),
            (_, name) if name.contains("_ecc_") => Some(Field::Hardware(name.to_owned())),
            _ => None,
        };
    };
    let subject = up(0)?.to_owned();
    let counter = match (up(1), file.as_str()) {
        (Some("device_mem"), "present") => Counter::Present(subject),
        (Some("device_mem"), "peak") => Counter::Peak(subject),
        (Some("status"), "total") => Counter::Status(subject),
        (Some("other_info"), "total") => Counter::Other(subject),
        // As the stand-in and the guide's picture have it: the counter is the file.
        (Some(_), name) if subject == "other_info" => Counter::Other(name.to_owned()),
        _ => return None,
    };
    Some(Field::Core(core, counter))
}

/// The text of a small file.
fn text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// Notes what a file says; nothing if it is not what such a file should say.
fn note(chip: &mut Chip, field: &Field, text: &str) {
    let number = || text.parse::<u64>().ok();
    match field {
        Field::Name => chip.name = Some(text.to_owned()),
        Field::Serial => chip.serial = Some(text.to_owned()),
        Field::Power => chip.power = power(text),
        Field::Hardware(name) => {
            if let Some(count) = number() {
                chip.hardware.insert(name.clone(), count);
            }
        }
        Field::HostPresent | Field::HostPeak => {
            if let Some(bytes) = number() {
                let usage = chip.host_memory.get_or_insert_default();
                match field {
                    Field::HostPresent => usage.present = bytes,
                    _ => usage.peak = bytes,
                }
            }
        }
        Field::Core(core, counter) => {
            let core = chip.cores.entry(*core).or_default();
            if let Some(count) = number() {
                note_counter(core, counter, count);
            }
        }
    }
}

fn note_counter(core: &mut Core, counter: &Counter, count: u64) {
    match counter {
        Counter::Present(kind) => core.memory.entry(kind.clone()).or_default().present = count,
        Counter::Peak(kind) => core.memory.entry(kind.clone()).or_default().peak = count,
        Counter::Status(name) => {
            core.statuses.insert(name.clone(), count);
        }
        Counter::Other(name) => {
            core.others.insert(name.clone(), count);
        }
    }
}

/// `POWER_STATUS_VALID,1700000000,10.5,90.0,42.1`: status, when, and percent at the least, at the most
/// and on average.
fn power(text: &str) -> Option<Power> {
    let parts: Vec<_> = text.split(',').map(str::trim).collect();
    let [status, _, least, most, mean] = parts[..] else {
        return None;
    };
    let number = |text: &str| text.parse::<f64>().ok().filter(|value| value.is_finite());
    (status == "POWER_STATUS_VALID").then_some(())?;
    Some(Power {
        least: number(least)?,
        most: number(most)?,
        mean: number(mean)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    /// A tree of two chips as the guide describes it.
    fn tree() -> (tempfile::TempDir, Tree) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        put(root, "neuron0/info/architecture/device_name", "Trainium2");
        put(root, "neuron0/info/serial_number", "19fcda00f5ff6eb9");
        put(root, "neuron0/stats/hardware/mem_ecc_uncorrected", "3");
        let core = "neuron0/neuron_core1/stats";
        let tensors = format!("{core}/memory_usage/device_mem/tensors");
        put(root, &format!("{tensors}/present"), "4096");
        put(root, &format!("{tensors}/peak"), "8192");
        put(root, &format!("{core}/status/exec_bad_input/total"), "2");
        put(root, &format!("{core}/status/exec_bad_input/present"), "1");
        put(
            root,
            &format!("{core}/other_info/nc_time_in_use/total"),
            "500000",
        );
        put(
            root,
            "neuron0/neuron_core1/info/architecture/arch_type",
            "v3",
        );
        put(
            root,
            "neuron11/neuron_core0/stats/status/timeout/total",
            "7",
        );
        put(root, "neuron_other/stats/hardware/mem_ecc_uncorrected", "9");
        let tree = Tree::open(root).unwrap();
        (directory, tree)
    }

    #[test]
    fn what_the_driver_counts_is_read_by_chip_and_core() {
        let (_directory, mut tree) = tree();
        let snapshot = tree.read();
        assert_eq!(snapshot.chips.keys().collect::<Vec<_>>(), [&0, &11]);
        let chip = &snapshot.chips[&0];
        assert_eq!(chip.name.as_deref(), Some("Trainium2"));
        assert_eq!(chip.serial.as_deref(), Some("19fcda00f5ff6eb9"));
        assert_eq!(chip.hardware["mem_ecc_uncorrected"], 3);
        let core = &chip.cores[&1];
        let usage = Usage {
            present: 4096,
            peak: 8192,
        };
        assert_eq!(core.memory["tensors"], usage);
        assert_eq!(core.statuses["exec_bad_input"], 2);
        assert_eq!(snapshot.chips[&11].cores[&0].statuses["timeout"], 7);
        assert_eq!(snapshot.memory("tensors"), 4096);
        assert_eq!(snapshot.memory("nothing"), 0);
    }

    #[test]
    fn a_tree_that_was_moved_about_says_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let rings = "neuron3/cores/neuron_core0/usage/device_mem/dma_rings";
        put(root, &format!("{rings}/present"), "5");
        put(root, "neuron3/health/ecc/sram_ecc_corrected", "6");
        put(
            root,
            "neuron3/neuron_core0/x/other_info/inference_count",
            "8",
        );
        let snapshot = Tree::open(root).unwrap().read();
        let chip = &snapshot.chips[&3];
        assert_eq!(chip.cores[&0].memory["dma_rings"].present, 5);
        assert_eq!(chip.cores[&0].others["inference_count"], 8);
        assert_eq!(chip.hardware["sram_ecc_corrected"], 6);
    }

    #[test]
    fn what_is_absent_or_nonsense_is_left_out() {
        let (directory, mut tree) = tree();
        let root = directory.path();
        put(root, "neuron0/stats/hardware/mem_ecc_uncorrected", "many");
        fs::remove_dir_all(root.join("neuron11")).unwrap();
        let snapshot = tree.read();
        assert!(snapshot.chips[&0].hardware.is_empty());
        assert!(!snapshot.chips.contains_key(&11));
        assert!(Tree::open(&root.join("nowhere")).is_err());
    }

    #[test]
    fn files_without_end_are_read_for_a_page() {
        let (directory, mut tree) = tree();
        let path = "neuron0/stats/hardware/mem_ecc_uncorrected";
        fs::write(directory.path().join(path), vec![b'1'; 1 << 20]).unwrap();
        assert!(tree.read().chips[&0].hardware.is_empty());
    }

    #[test]
    fn a_driver_that_is_loaded_again_is_found_again() {
        let (directory, mut tree) = tree();
        let root = directory.path();
        for chip in ["neuron0", "neuron11"] {
            fs::remove_dir_all(root.join(chip)).unwrap();
        }
        assert!(tree.read().chips.is_empty());
        put(root, "neuron0/stats/hardware/mem_ecc_corrected", "1");
        assert_eq!(tree.read().chips[&0].hardware["mem_ecc_corrected"], 1);
    }

    #[test]
    fn a_core_is_busy_for_the_part_of_the_time_that_it_counted() {
        let (_directory, mut tree) = tree();
        let before = tree.read();
        let mut now = before.clone();
        now.at = before.at + std::time::Duration::from_secs(2);
        let core = now.chips.get_mut(&0).unwrap().cores.get_mut(&1).unwrap();
        core.others.insert(BUSY.to_owned(), 1_000_000);
        assert_eq!(now.busy(&before), BTreeMap::from([((0, 1), 0.25)]));
        // One that never counts is not idle but unknown.
        let core = now.chips.get_mut(&0).unwrap().cores.get_mut(&1).unwrap();
        core.others.insert(BUSY.to_owned(), 0);
        assert!(now.busy(&before).is_empty());
    }

    #[test]
    fn power_is_read_where_it_is_valid() {
        let read = power("POWER_STATUS_VALID,1700000000,10.5,90.0,42.1");
        let mean = read.map(|power| power.mean);
        assert_eq!(mean, Some(42.1));
        for text in [
            "0",
            "",
            "POWER_STATUS_NO_DATA,0,0,0,0",
            "POWER_STATUS_VALID,1,nan,2,3",
        ] {
            assert_eq!(power(text), None, "{text}");
        }
    }
}
