//! How much memory there is, what a job will take of it, and what each takes.

use std::collections::HashMap;
use std::fs;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Bytes that a job with an HLO module of this size is expected to take at the most.
///
/// Measured by the engine KILN on modules of one model (neuron.md, appendix B); weights are inputs
/// in ours too, so that the size follows from the number of instructions.
pub(super) fn estimate(hlo_bytes: u64) -> u64 {
    match hlo_bytes {
        0..MIB => 14 * GIB,
        bytes if bytes < 2 * MIB => 19 * GIB,
        bytes if 2 * bytes < 7 * MIB => 30 * GIB,
        bytes => bytes.saturating_mul(13 * GIB / (2 * MIB)).max(30 * GIB),
    }
}

/// Bytes that the system can give to new processes; `None` if it does not tell.
pub fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    field(&text, "MemAvailable:")
}

/// Bytes that the processes of each process group hold now.
pub(super) fn by_group() -> HashMap<i32, u64> {
    let mut held = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let is_process = entry.file_name().as_encoded_bytes()[0].is_ascii_digit();
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).ok();
        let group = is_process.then(|| read("stat")).flatten();
        let group = group.as_deref().and_then(group_of);
        // Any of this may be gone by now.
        let (Some(group), Some(status)) = (group, read("status")) else {
            continue;
        };
        *held.entry(group).or_default() += field(&status, "VmRSS:").unwrap_or(0);
    }
    held
}

/// The third field after the command's name, which stands in brackets and may hold brackets.
fn group_of(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(2)?.parse().ok()
}

/// A line `NAME  12 kB` of one of the kernel's files, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_modules_take_more() {
        let gib = |bytes| estimate(bytes) / GIB;
        assert_eq!(
            [0, MIB - 1, MIB, 2 * MIB, 3 * MIB].map(gib),
            [14, 14, 19, 30, 30]
        );
        assert_eq!([4 * MIB, 10 * MIB].map(gib), [30, 65]);
    }

    #[test]
    fn this_process_is_seen() {
        let group = nix::unistd::getpgrp().as_raw();
        assert!(by_group()[&group] > MIB);
        assert!(available().is_some_and(|bytes| bytes > MIB));
        assert_eq!(group_of("1 (a) b) S 7 42 1"), Some(42));
    }
}
