//! Which processors the thread of a rank may run on: those near the chip of its core.
//!
//! A chip hangs on one of the host's NUMA nodes, and copies to it are quicker from there. Which
//! chip hangs on which node the driver need not tell: its devices are virtual, and the order of the
//! chips is not that of their PCI addresses. So this asks, in this order: the device's own node, if
//! a driver links it; AWS's table for the large instances; and the PCI devices, if all chips hang
//! on one node. Where nobody knows, or there is one node, threads run anywhere.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use graph::Target;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The devices of the driver, below the root of sysfs.
const DEVICES: &str = "devices/virtual/neuron_device";

/// The PCI devices that the driver has taken.
const PCI: &str = "bus/pci/drivers/neuron-driver";

/// The host's NUMA nodes.
const NODES: &str = "devices/system/node";

/// The NUMA node of each chip of an instance.
struct Table(Target, &'static [u32]);

/// AWS's documentation of the runtime, "Respect the NUMA node layout": trn1.32xlarge,
/// inf2.48xlarge and trn2.48xlarge.
const TABLES: [Table; 3] = [
    Table(
        Target::Trn1,
        &[0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1],
    ),
    Table(Target::Inf2, &[2, 3, 2, 3, 2, 3, 1, 1, 0, 0, 0, 1]),
    Table(
        Target::Trn2,
        &[1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1],
    ),
];

/// For each rank the processors that its thread may run on, if that is known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Places(Vec<Option<Place>>);

/// Processors, ascending.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place(Arc<[usize]>);

impl Places {
    /// Threads run anywhere.
    pub fn anywhere() -> Self {
        Self::default()
    }

    /// Ranks near the chips of `cores`, one rank a core, each chip with `cores_per_chip` logical
    /// cores. `sysfs` is `/sys`, or a copy of it.
    pub fn near(sysfs: &Path, target: Target, cores: Range<u32>, cores_per_chip: u32) -> Self {
        let nodes = nodes(sysfs);
        if nodes < 2 || cores_per_chip == 0 {
            return Self::anywhere();
        }
        let chips = numbered(&sysfs.join(DEVICES), "neuron");
        let table = table(target, chips, nodes);
        let common = common_node(sysfs);
        let place = |core: u32| {
            let chip = core / cores_per_chip;
            let node = own_node(sysfs, chip)
                .or_else(|| table?.get(chip as usize).copied())
                .or(common)?;
            let list = sysfs.join(NODES).join(format!("node{node}/cpulist"));
            let processors = processors(&fs::read_to_string(list).ok()?)?;
            Some(Place(processors.into()))
        };
        Self(cores.map(place).collect())
    }

    pub(super) fn of(&self, rank: usize) -> Option<Place> {
        self.0.get(rank)?.clone()
    }
}

impl Place {
    /// Moves the calling thread here, as far as the process may use these processors. It is never
    /// an error: the work is the same elsewhere.
    pub(super) fn take(&self, rank: usize) {
        if let Err(reason) = self.taken() {
            tracing::debug!("rank {rank} runs on any processor: {reason}");
        }
    }

    fn taken(&self) -> nix::Result<()> {
        let this = Pid::from_raw(0);
        let allowed = sched_getaffinity(this)?;
        let mut here = CpuSet::new();
        let mut any = false;
        for processor in self.0.iter().copied() {
            if allowed.is_set(processor).unwrap_or(false) {
                here.set(processor)?;
                any = true;
            }
        }
        if any {
            sched_setaffinity(this, &here)
        } else {
            Err(nix::Error::EINVAL)
        }
    }
}

/// The node that a driver links to the device.
fn own_node(sysfs: &Path, chip: u32) -> Option<u32> {
    node(
        &sysfs
            .join(DEVICES)
            .join(format!("neuron{chip}/device/numa_node")),
    )
}

/// AWS's table, if this instance is one that it is about.
fn table(target: Target, chips: usize, nodes: usize) -> Option<&'static [u32]> {
    TABLES
        .iter()
        .filter(|Table(of, _)| *of == target)
        .map(|Table(_, chip_nodes)| *chip_nodes)
        .find(|chip_nodes| {
            let most = chip_nodes.iter().max().map_or(0, |node| *node as usize);
            chip_nodes.len() == chips && most < nodes
        })
}

/// The node of all chips, if they share one.
fn common_node(sysfs: &Path) -> Option<u32> {
    let devices = fs::read_dir(sysfs.join(PCI)).ok()?;
    // Beside the devices there are files and links that have no node.
    let nodes = devices.filter_map(|device| node(&device.ok()?.path().join("numa_node")));
    let mut nodes: Vec<_> = nodes.collect();
    nodes.dedup();
    match nodes[..] {
        [node] => Some(node),
        _ => None,
    }
}

/// A file with the number of a node; devices that are on none say -1.
fn node(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// How many NUMA nodes the host has.
fn nodes(sysfs: &Path) -> usize {
    numbered(&sysfs.join(NODES), "node")
}

/// How many entries of a folder are called `name` and a number.
fn numbered(folder: &Path, name: &str) -> usize {
    let is_numbered = |entry: &fs::DirEntry| {
        let file = entry.file_name();
        let number = file.to_str().and_then(|file| file.strip_prefix(name));
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    fs::read_dir(folder).map_or(0, |entries| {
        entries.filter_map(Result::ok).filter(is_numbered).count()
    })
}

/// The processors of a list as the kernel writes it: `0-31,64-95`.
fn processors(list: &str) -> Option<Vec<usize>> {
    let mut processors = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        // More than any host has: the list is not what we think it is.
        if last >= 1 << 16 {
            return None;
        }
        processors.extend(first..=last);
    }
    Some(processors)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A copy of sysfs with as many chips and with nodes of two processors each.
    fn sysfs(chips: u32, nodes: u32) -> TempDir {
        let root = TempDir::new().expect("a folder for a test");
        for chip in 0..chips {
            let device = root.path().join(DEVICES).join(format!("neuron{chip}"));
            fs::create_dir_all(device).expect("a folder in it");
        }
        for node in 0..nodes {
            let first = node * 2;
            let list = format!("{first}-{}\n", first + 1);
            write(&root, &format!("{NODES}/node{node}/cpulist"), &list);
        }
        root
    }

    fn write(root: &TempDir, path: &str, text: &str) {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder in it");
        fs::write(path, text).expect("a file in it");
    }

    fn first_processors(places: &Places) -> Vec<Option<usize>> {
        let first = |place: &Option<Place>| place.as_ref().map(|place| place.0[0]);
        places.0.iter().map(first).collect()
    }

    #[test]
    fn ranks_of_a_large_instance_run_where_aws_says_that_their_chips_are() {
        let root = sysfs(16, 2);
        let places = Places::near(root.path(), Target::Trn1, 0..32, 2);
        let found = first_processors(&places);
        assert_eq!(found[..6], [0, 0, 0, 0, 2, 2].map(Some));
        assert_eq!(found[31], Some(2));
        let places = Places::near(root.path(), Target::Trn2, 12..20, 4);
        assert_eq!(
            first_processors(&places),
            [2, 2, 2, 2, 0, 0, 0, 0].map(Some)
        );
    }

    #[test]
    fn a_driver_that_knows_better_is_believed() {
        let root = sysfs(16, 2);
        write(&root, &format!("{DEVICES}/neuron0/device/numa_node"), "1\n");
        let places = Places::near(root.path(), Target::Trn1, 0..4, 2);
        assert_eq!(first_processors(&places), [2, 2, 0, 0].map(Some));
    }

    #[test]
    fn chips_that_all_hang_on_one_node_need_no_table() {
        let root = sysfs(2, 2);
        for address in ["0000:10:1e.0", "0000:10:1f.0"] {
            write(&root, &format!("{PCI}/{address}/numa_node"), "1\n");
        }
        write(&root, &format!("{PCI}/bind"), "");
        let places = Places::near(root.path(), Target::Inf2, 0..4, 2);
        assert_eq!(first_processors(&places), [Some(2); 4]);
    }

    #[test]
    fn where_nobody_knows_ranks_run_anywhere() {
        let root = sysfs(6, 2);
        let places = Places::near(root.path(), Target::Inf2, 0..2, 2);
        assert_eq!(first_processors(&places), [None, None]);
        let one_node = sysfs(16, 1);
        let places = Places::near(one_node.path(), Target::Trn1, 0..2, 2);
        assert_eq!(places, Places::anywhere());
        let empty = TempDir::new().expect("a folder for a test");
        let places = Places::near(empty.path(), Target::Trn1, 0..2, 2);
        assert_eq!(places, Places::anywhere());
    }

    #[test]
    fn a_thread_runs_where_it_was_put() {
        let allowed = sched_getaffinity(Pid::from_raw(0)).expect("this thread runs somewhere");
        let here = (0..CpuSet::count())
            .find(|processor| allowed.is_set(*processor) == Ok(true))
            .expect("on some processor");
        std::thread::spawn(move || {
            Place([here].into()).take(0);
            let now = sched_getaffinity(Pid::from_raw(0)).expect("it runs somewhere");
            let processors = (0..CpuSet::count()).filter(|one| now.is_set(*one) == Ok(true));
            assert_eq!(processors.collect::<Vec<_>>(), [here]);
            // Processors that there are not change nothing.
            assert!(Place([CpuSet::count() - 1].into()).taken().is_err());
        })
        .join()
        .expect("it was put there");
    }

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(processors("0-2,7\n"), Some(vec![0, 1, 2, 7]));
        assert_eq!(processors("3"), Some(vec![3]));
        assert_eq!(processors(""), None);
        assert_eq!(processors("0-99999999999"), None);
    }
}
