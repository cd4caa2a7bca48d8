//! The kernel's log, as far as it is about the device: lines in which the driver says that hardware
//! failed, and what to do about it. They come before, or without, a status of the runtime.
//!
//! A line is (AWS's troubleshooting guide)
//!
//! ```text
//! .. NEURON_HW_ERR=SRAM_UNCORRECTABLE_ERROR instance-id=i-0123 hostname=ip-.. nd-id=0 nc-id=0
//!    serial-num=19fc action=TERMINATE_INSTANCE
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::fault::Advice;

/// Where the kernel shows its log, a record a read.
pub const DEFAULT_PATH: &str = "/dev/kmsg";

/// The environment variable that names another file. Empty is the same as unset.
pub const PATH_VARIABLE: &str = "APPLIANCE_KMSG";

/// How every line that matters has it.
const MARK: &str = "NEURON_HW_ERR=";

/// The most bytes of a line that are looked at. The kernel's records are shorter than 8 KiB.
const LONGEST: usize = 8192;

/// The most bytes that are read at once, so that a log that fills faster than it is read keeps nobody.
const MOST: usize = 1 << 20;

/// Where the kernel's log is on this host.
pub fn path() -> PathBuf {
    let named = std::env::var_os(PATH_VARIABLE).filter(|name| !name.is_empty());
    named.map_or_else(|| PathBuf::from(DEFAULT_PATH), PathBuf::from)
}

/// Hardware that failed, in the driver's words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HardwareError {
    /// What failed: `SRAM_UNCORRECTABLE_ERROR`, ..
    pub error: String,
    /// The chip.
    pub chip: Option<u32>,
    /// Its core.
    pub core: Option<u32>,
    /// The chip's serial number.
    pub serial: Option<String>,
    /// What the driver wants done, in its word: `TERMINATE_INSTANCE`, ..
    pub action: Option<String>,
}

impl HardwareError {
    /// What a line of the log says, if it is about failed hardware. Any bytes are a line.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = String::from_utf8_lossy(&line[..line.len().min(LONGEST)]);
        let (_, said) = line.split_once(MARK)?;
        let mut words = said.split_ascii_whitespace();
        let error = words.next().map(word).filter(|error| !error.is_empty())?;
        let mut found = Self {
            error,
            chip: None,
            core: None,
            serial: None,
            action: None,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "nd-id" => found.chip = value.parse().ok(),
                "nc-id" => found.core = value.parse().ok(),
                "serial-num" => found.serial = Some(word(value)),
                "action" => found.action = Some(word(value)),
                _ => {}
            }
        }
        Some(found)
    }

    /// What is to be done: what the driver says, or, where it says nothing that is known, what goes
    /// with the error.
    pub fn advice(&self) -> Advice {
        let action = self.action.as_deref().unwrap_or_default();
        let mentions = |text: &str, part: &str| text.contains(part);
        match action {
            _ if mentions(action, "TERMINATE") || mentions(action, "REPLACE") => {
                Advice::ReplaceInstance
            }
            _ if mentions(action, "RELOAD") || mentions(action, "REBOOT") => Advice::ReloadDriver,
            _ if mentions(&self.error, "REPAIRABLE") => Advice::ReloadDriver,
            _ if mentions(&self.error, "HANG") => Advice::RestartProcess,
            _ => Advice::ReplaceInstance,
        }
    }
}

/// A word of a foreign line: what is printable of it, and not much.
fn word(text: &str) -> String {
    let printable = text.chars().filter(char::is_ascii_graphic);
    printable.take(64).collect()
}

/// The log, read from where it was last.
#[derive(Debug)]
pub struct Log {
    file: File,
    /// The start of a line whose end has not been written.
    begun: Vec<u8>,
}

impl Log {
    /// Opens the log at `path`, for what is written from now on.
    ///
    /// # Errors
    /// It may not be read: the kernel's needs `CAP_SYSLOG`, or `kernel.dmesg_restrict=0`.
    pub fn from_now(path: &Path) -> io::Result<Self> {
        let mut log = Self::from_start(path)?;
        log.file.seek(SeekFrom::End(0))?;
        Ok(log)
    }

    /// Opens the log at `path`, for all that it still has.
    ///
    /// # Errors
    /// As [`from_now`](Self::from_now).
    pub fn from_start(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)?;
        Ok(Self {
            file,
            begun: Vec::new(),
        })
    }

    /// The hardware errors that were written since the last time. Returns at once; what cannot be read
    /// now is read the next time.
    pub fn errors(&mut self) -> Vec<HardwareError> {
        let mut errors = Vec::new();
        let mut buffer = vec![0; LONGEST];
        let mut total = 0;
        while total < MOST {
            match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    total += read;
                    self.take(&buffer[..read], &mut errors);
                }
                // Records were overwritten before they were read: on with the oldest that is left.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => total += 1,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        errors
    }

    /// Takes what was read, of which the last line may lack its end.
    fn take(&mut self, mut bytes: &[u8], errors: &mut Vec<HardwareError>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.keep(&bytes[..end]);
            errors.extend(HardwareError::parse(&self.begun));
            self.begun.clear();
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = LONGEST.saturating_sub(self.begun.len());
        self.begun.extend(&bytes[..bytes.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    const LINE: &str = "3,1234,5678,-;2026-01-01T00:00:00Z NEURON_HW_ERR=SRAM_UNCORRECTABLE_ERROR \
                        instance-id=i-0592 hostname=ip-172-31-61-252 nd-id=3 nc-id=1 \
                        serial-num=19fcda00f5ff6eb9 action=TERMINATE_INSTANCE";

    #[test]
    fn a_line_says_what_failed_where_and_what_to_do() {
        let found = HardwareError::parse(LINE.as_bytes()).unwrap();
        assert_eq!(found.error, "SRAM_UNCORRECTABLE_ERROR");
        assert_eq!((found.chip, found.core), (Some(3), Some(1)));
        assert_eq!(found.serial.as_deref(), Some("19fcda00f5ff6eb9"));
        assert_eq!(found.action.as_deref(), Some("TERMINATE_INSTANCE"));
        assert_eq!(found.advice(), Advice::ReplaceInstance);
    }

    #[test]
    fn what_to_do_comes_from_the_driver_and_else_from_the_error() {
        let check = |line: &str, advice| {
            let found = HardwareError::parse(line.as_bytes()).unwrap();
            assert_eq!(found.advice(), advice, "{line}");
        };
        check(
            "NEURON_HW_ERR=X action=RELOAD_NEURON_DRIVER",
            Advice::ReloadDriver,
        );
        check("NEURON_HW_ERR=REPAIRABLE_HBM_UE", Advice::ReloadDriver);
        check(
            "NEURON_HW_ERR=HBM_UNCORRECTABLE_ERROR affecting",
            Advice::ReplaceInstance,
        );
        check("NEURON_HW_ERR=HANG_ON_COLLECTIVES", Advice::RestartProcess);
        check(
            "NEURON_HW_ERR=DMA_ERROR action=WHAT",
            Advice::ReplaceInstance,
        );
    }

    #[test]
    fn other_lines_and_nonsense_say_nothing() {
        let lines: [&[u8]; 5] = [
            b"",
            b"6,1,2,-;usb 1-1: new device",
            b"NEURON_HW_ERR=",
            b"NEURON_HW_ERR= nd-id=0",
            b"\xff\xfe\x00NEURON_HW_ER",
        ];
        // The fourth takes its first word for the error: it says that something failed.
        let found = lines.map(|line| HardwareError::parse(line).map(|found| found.error));
        assert_eq!(found, [None, None, None, Some("nd-id=0".to_owned()), None]);
        let long = [b"NEURON_HW_ERR=".as_slice(), &[b'A'; 100_000]].concat();
        let found = HardwareError::parse(&long).unwrap();
        assert_eq!(found.error.len(), 64);
    }

    #[test]
    fn only_what_is_new_is_told_and_a_line_in_two_parts_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kmsg");
        fs::write(&path, format!("{LINE}\n")).unwrap();
        let mut log = Log::from_now(&path).unwrap();
        assert_eq!(log.errors(), []);
        assert_eq!(Log::from_start(&path).unwrap().errors().len(), 1);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        let (head, tail) = LINE.split_at(60);
        file.write_all(head.as_bytes()).unwrap();
        assert_eq!(log.errors(), []);
        file.write_all(format!("{tail}\nsomething else\n").as_bytes())
            .unwrap();
        let errors = log.errors();
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].core, Some(1));
        assert_eq!(log.errors(), []);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kmsg");
        fs::write(&path, vec![b'x'; 3 << 20]).unwrap();
        let mut log = Log::from_start(&path).unwrap();
        for _ in 0..4 {
            assert_eq!(log.errors(), []);
        }
        assert_eq!(log.begun.len(), LONGEST);
    }
}
