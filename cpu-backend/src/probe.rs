//! What this host has: its processor, the cores that the process may use, the memory that is free.

use std::fs;
use std::num::NonZero;
use std::thread;

use engine::Device;

/// The host's own processor, or `None` where the operating system does not tell how much memory is
/// free.
pub fn probe() -> Option<Device> {
    Some(Device {
        name: name(),
        memory: free_memory()?,
        cores: cores(),
    })
}

/// What the kernels are called that this host runs: `AVX2`, or `scalar`, which is slow.
pub fn kernels() -> &'static str {
    crate::kernels::detect().name()
}

/// How many cores the process may use: affinity and cgroup quota count.
pub(crate) fn cores() -> u32 {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    u32::try_from(cores).unwrap_or(u32::MAX)
}

/// Bytes that the process may still take: what the kernel can free at once, at most what its cgroup
/// leaves.
pub(crate) fn free_memory() -> Option<u64> {
    let host = available(&fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(cgroup_left().map_or(host, |left| left.min(host)))
}

fn name() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model
        .map_or(std::env::consts::ARCH, |(_, name)| name)
        .to_owned()
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// What the memory limit of this process's cgroup (version 2) leaves, if it has one.
fn cgroup_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let read = |file: &str| {
        let path = format!("/sys/fs/cgroup/{group}/{file}");
        fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
    };
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_in_bytes() {
        let meminfo = "MemTotal:  100 kB\nMemFree:  20 kB\nMemAvailable:     50 kB\n";
        assert_eq!(available(meminfo), Some(51_200));
        assert_eq!(available("MemTotal: 100 kB\n"), None);
    }

    #[test]
    fn this_host_serves() {
        let device = probe().unwrap();
        assert!(device.cores >= 1 && device.memory > 0 && !device.name.is_empty());
    }
}
