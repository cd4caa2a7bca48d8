//! The machine that was measured on, in the words of its kernel.

use std::{fmt, fs, thread};

use serde::Serialize;

/// What the figures depend on.
#[derive(Serialize, Debug)]
pub(super) struct Machine {
    processor: String,
    cores: usize,
    /// Instructions for matrices that the processor has, of those that servers use.
    instructions: Vec<&'static str>,
    memory_gib: u64,
    kernel: String,
}

/// Names in `/proc/cpuinfo` of instructions that decide how fast a model runs.
const INSTRUCTIONS: &[&str] = &[
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "bf16",
    "i8mm",
    "sve",
];

impl Machine {
    /// The one we run on; what its kernel does not tell is left empty.
    pub(super) fn this() -> Machine {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let flags = field(&cpu, "flags").or(field(&cpu, "Features"));
        let flags = flags.unwrap_or_default();
        let has = |name: &&&str| flags.split(' ').any(|flag| flag == **name);
        let kib = field(&memory, "MemTotal").and_then(|text| text.split(' ').next()?.parse().ok());
        Machine {
            processor: field(&cpu, "model name").unwrap_or_default().to_owned(),
            cores: thread::available_parallelism().map_or(0, usize::from),
            instructions: INSTRUCTIONS.iter().filter(has).copied().collect(),
            memory_gib: kib.unwrap_or(0u64) >> 20,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// The value of the first `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} cores ({}), {} GiB, Linux {}",
            self.processor,
            self.cores,
            self.instructions.join(" "),
            self.memory_gib,
            self.kernel
        )
    }
}
