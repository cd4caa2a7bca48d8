//! What a call of the runtime came to.

use std::fmt;

use neuron_sys as sys;

/// The number that a function of libnrt returned, success included. Newer runtimes have numbers
/// that are not listed here; they are carried all the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

/// A number, its name, and what it means.
struct Meaning(u32, &'static str, &'static str);

/// Every status that is documented (neuron.md 1.3), and what it means to whoever runs the server
/// (neuron.md 6.5, AWS's troubleshooting guide).
const MEANINGS: &[Meaning] = &[
    Meaning(sys::NRT_SUCCESS, "NRT_SUCCESS", "done"),
    Meaning(
        sys::NRT_FAILURE,
        "NRT_FAILURE",
        "something failed that has no number of its own; the runtime's log says what",
    ),
    Meaning(
        sys::NRT_INVALID,
        "NRT_INVALID",
        "an argument, a NEFF or a tensor does not fit",
    ),
    Meaning(
        sys::NRT_INVALID_HANDLE,
        "NRT_INVALID_HANDLE",
        "a handle is none of the runtime's",
    ),
    Meaning(
        sys::NRT_RESOURCE,
        "NRT_RESOURCE",
        "no memory left for it on the device, for its rings or on the host",
    ),
    Meaning(
        sys::NRT_TIMEOUT,
        "NRT_TIMEOUT",
        "the execution took longer than NEURON_RT_EXEC_TIMEOUT: a core or a collective hangs",
    ),
    Meaning(
        sys::NRT_HW_ERROR,
        "NRT_HW_ERROR",
        "the hardware failed: replace the instance (stop and start, or terminate)",
    ),
    Meaning(
        sys::NRT_QUEUE_FULL,
        "NRT_QUEUE_FULL",
        "too many executions are queued",
    ),
    Meaning(
        sys::NRT_LOAD_NOT_ENOUGH_NC,
        "NRT_LOAD_NOT_ENOUGH_NC",
        "the NEFF needs more cores than this process has",
    ),
    Meaning(
        sys::NRT_UNSUPPORTED_NEFF_VERSION,
        "NRT_UNSUPPORTED_NEFF_VERSION",
        "the NEFF is of a newer compiler, for another target or for another logical core size",
    ),
    Meaning(
        sys::NRT_FAIL_HOST_MEM_ALLOC,
        "NRT_FAIL_HOST_MEM_ALLOC",
        "no memory left on the host",
    ),
    Meaning(
        sys::NRT_UNINITIALIZED,
        "NRT_UNINITIALIZED",
        "called before nrt_init",
    ),
    Meaning(sys::NRT_CLOSED, "NRT_CLOSED", "called after nrt_close"),
    Meaning(
        sys::NRT_QUEUE_EMPTY,
        "NRT_QUEUE_EMPTY",
        "nothing is in the queue",
    ),
    Meaning(
        sys::NRT_EXEC_UNIT_UNRECOVERABLE,
        "NRT_EXEC_UNIT_UNRECOVERABLE",
        "the core can be used again only by a new process",
    ),
    Meaning(
        sys::NRT_EXEC_BAD_INPUT,
        "NRT_EXEC_BAD_INPUT",
        "a tensor is missing or has the wrong size",
    ),
    Meaning(
        sys::NRT_EXEC_COMPLETED_WITH_NUM_ERR,
        "NRT_EXEC_COMPLETED_WITH_NUM_ERR",
        "a result is not a number",
    ),
    Meaning(
        sys::NRT_EXEC_COMPLETED_WITH_ERR,
        "NRT_EXEC_COMPLETED_WITH_ERR",
        "the execution finished with errors: its results are worthless",
    ),
    Meaning(
        sys::NRT_EXEC_NC_BUSY,
        "NRT_EXEC_NC_BUSY",
        "another model or thread has the core",
    ),
    Meaning(
        sys::NRT_EXEC_OOB,
        "NRT_EXEC_OOB",
        "a gather or scatter went out of bounds",
    ),
    Meaning(
        sys::NRT_COLL_PENDING,
        "NRT_COLL_PENDING",
        "a collective has not finished",
    ),
    Meaning(
        sys::NRT_EXEC_HW_ERR_COLLECTIVES,
        "NRT_EXEC_HW_ERR_COLLECTIVES",
        "a collective is stuck, here or on another rank: if it comes again, replace the instance",
    ),
    Meaning(
        sys::NRT_EXEC_HW_ERR_HBM_UE,
        "NRT_EXEC_HW_ERR_HBM_UE",
        "device memory has an uncorrectable error: replace the instance",
    ),
    Meaning(
        sys::NRT_EXEC_HW_ERR_NC_UE,
        "NRT_EXEC_HW_ERR_NC_UE",
        "a core's own memory has an uncorrectable error: replace the instance",
    ),
    Meaning(
        sys::NRT_EXEC_HW_ERR_DMA_ABORT,
        "NRT_EXEC_HW_ERR_DMA_ABORT",
        "a DMA engine gave up: replace the instance",
    ),
    Meaning(
        sys::NRT_EXEC_SW_NQ_OVERFLOW,
        "NRT_EXEC_SW_NQ_OVERFLOW",
        "notifications of the device were dropped: set NEURON_RT_ENABLE_DGE_NOTIFICATIONS=0",
    ),
    Meaning(
        sys::NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE,
        "NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE",
        "device memory has an error that reloading the driver repairs: \
         rmmod neuron; modprobe neuron, or reboot",
    ),
    Meaning(
        sys::NRT_NETWORK_PROXY_FAILURE,
        "NRT_NETWORK_PROXY_FAILURE",
        "the ranks lost each other: start all of them again, and reboot if it stays",
    ),
];

impl Status {
    /// A call that did what it was asked.
    pub const SUCCESS: Self = Self(sys::NRT_SUCCESS);
    /// A failure without a number of its own.
    pub const FAILURE: Self = Self(sys::NRT_FAILURE);
    /// Arguments that do not fit.
    pub const INVALID: Self = Self(sys::NRT_INVALID);
    /// No memory left.
    pub const RESOURCE: Self = Self(sys::NRT_RESOURCE);
    /// An execution that took too long.
    pub const TIMEOUT: Self = Self(sys::NRT_TIMEOUT);
    /// Failed hardware.
    pub const HW_ERROR: Self = Self(sys::NRT_HW_ERROR);
    /// Too many executions queued.
    pub const QUEUE_FULL: Self = Self(sys::NRT_QUEUE_FULL);
    /// A NEFF for more cores than there are.
    pub const LOAD_NOT_ENOUGH_NC: Self = Self(sys::NRT_LOAD_NOT_ENOUGH_NC);
    /// A NEFF that this runtime cannot load.
    pub const UNSUPPORTED_NEFF_VERSION: Self = Self(sys::NRT_UNSUPPORTED_NEFF_VERSION);
    /// No memory left on the host.
    pub const FAIL_HOST_MEM_ALLOC: Self = Self(sys::NRT_FAIL_HOST_MEM_ALLOC);
    /// Called too early.
    pub const UNINITIALIZED: Self = Self(sys::NRT_UNINITIALIZED);
    /// Called too late.
    pub const CLOSED: Self = Self(sys::NRT_CLOSED);
    /// A core that only a new process can use.
    pub const EXEC_UNIT_UNRECOVERABLE: Self = Self(sys::NRT_EXEC_UNIT_UNRECOVERABLE);
    /// A tensor that is missing or of the wrong size.
    pub const EXEC_BAD_INPUT: Self = Self(sys::NRT_EXEC_BAD_INPUT);
    /// A result that is not a number.
    pub const EXEC_COMPLETED_WITH_NUM_ERR: Self = Self(sys::NRT_EXEC_COMPLETED_WITH_NUM_ERR);
    /// An execution that finished with errors.
    pub const EXEC_COMPLETED_WITH_ERR: Self = Self(sys::NRT_EXEC_COMPLETED_WITH_ERR);
    /// A core that another has.
    pub const EXEC_NC_BUSY: Self = Self(sys::NRT_EXEC_NC_BUSY);
    /// A gather or scatter out of bounds.
    pub const EXEC_OOB: Self = Self(sys::NRT_EXEC_OOB);
    /// A stuck collective.
    pub const EXEC_HW_ERR_COLLECTIVES: Self = Self(sys::NRT_EXEC_HW_ERR_COLLECTIVES);
    /// Device memory with an uncorrectable error.
    pub const EXEC_HW_ERR_HBM_UE: Self = Self(sys::NRT_EXEC_HW_ERR_HBM_UE);
    /// A core's memory with an uncorrectable error.
    pub const EXEC_HW_ERR_NC_UE: Self = Self(sys::NRT_EXEC_HW_ERR_NC_UE);
    /// A DMA engine that gave up.
    pub const EXEC_HW_ERR_DMA_ABORT: Self = Self(sys::NRT_EXEC_HW_ERR_DMA_ABORT);
    /// Dropped notifications.
    pub const EXEC_SW_NQ_OVERFLOW: Self = Self(sys::NRT_EXEC_SW_NQ_OVERFLOW);
    /// Device memory with an error that can be repaired.
    pub const EXEC_HW_ERR_REPAIRABLE_HBM_UE: Self = Self(sys::NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE);
    /// Ranks that lost each other.
    pub const NETWORK_PROXY_FAILURE: Self = Self(sys::NRT_NETWORK_PROXY_FAILURE);

    /// The runtime's own name for it; `None` if it is newer than this list.
    pub fn name(self) -> Option<&'static str> {
        self.documented().map(|Meaning(_, name, _)| *name)
    }

    /// What it means to whoever runs the server; `None` if it is newer than this list.
    pub fn meaning(self) -> Option<&'static str> {
        self.documented().map(|Meaning(_, _, meaning)| *meaning)
    }

    /// Whether an execution that came to this ran to its end all the same, on this rank as on others.
    pub(crate) fn has_run(self) -> bool {
        matches!(
            self,
            Self::EXEC_COMPLETED_WITH_NUM_ERR | Self::EXEC_COMPLETED_WITH_ERR | Self::EXEC_OOB
        )
    }

    /// Success as `Ok`.
    pub(crate) fn ok(self) -> Result<(), Self> {
        if self == Self::SUCCESS {
            Ok(())
        } else {
            Err(self)
        }
    }

    fn documented(self) -> Option<&'static Meaning> {
        MEANINGS
            .iter()
            .find(|Meaning(number, ..)| *number == self.0)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.documented() {
            Some(Meaning(number, name, meaning)) => write!(f, "{name} ({number}): {meaning}"),
            None => write!(f, "status {}, which this version does not know", self.0),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Status({})", self.0),
        }
    }
}

impl std::error::Error for Status {}

/// A call that did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{operation} failed{}: {status}", of(detail))]
pub struct NrtError {
    /// The function of libnrt.
    pub operation: &'static str,
    /// What it returned.
    pub status: Status,
    /// What it was called for: names, cores, bytes. May be empty.
    pub detail: String,
}

fn of(detail: &str) -> String {
    if detail.is_empty() {
        String::new()
    } else {
        format!(" ({detail})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_its_name_its_number_and_what_to_do() {
        assert_eq!(
            Status(1201).to_string(),
            "NRT_EXEC_HW_ERR_HBM_UE (1201): device memory has an uncorrectable error: replace the \
             instance"
        );
        assert_eq!(format!("{:?}", Status(5)), "NRT_TIMEOUT");
    }

    #[test]
    fn a_status_newer_than_this_version_is_carried() {
        let status = Status(4711);
        assert_eq!(status.name(), None);
        assert_eq!(
            status.to_string(),
            "status 4711, which this version does not know"
        );
    }

    #[test]
    fn no_number_has_two_meanings() {
        for (index, Meaning(number, name, _)) in MEANINGS.iter().enumerate() {
            let same = |other: &Meaning| other.0 == *number || other.1 == *name;
            assert_eq!(MEANINGS.iter().position(same), Some(index), "{name}");
        }
    }

    #[test]
    fn an_error_says_what_was_called_and_for_what() {
        let error = NrtError {
            operation: "nrt_load",
            status: Status::RESOURCE,
            detail: "core 3".to_owned(),
        };
        let text = error.to_string();
        assert!(
            text.starts_with("nrt_load failed (core 3): NRT_RESOURCE (4): "),
            "{text}"
        );
    }
}
