//! What a call of libnrt comes to: the numbers of `nrt_status.h`, and why.

use std::ffi::CStr;
use std::fmt;

/// A status of libnrt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Status(pub u32);

/// Number, constant's name, what the runtime calls it (`nrt_get_status_as_str`).
const NAMES: [(Status, &str, &CStr); 28] = [
    (Status::SUCCESS, "SUCCESS", c"Success"),
    (Status::FAILURE, "FAILURE", c"Failure"),
    (Status::INVALID, "INVALID", c"Invalid"),
    (Status::INVALID_HANDLE, "INVALID_HANDLE", c"Invalid Handle"),
    (Status::RESOURCE, "RESOURCE", c"Allocation Failure"),
    (Status::TIMEOUT, "TIMEOUT", c"Timeout"),
    (Status::HW_ERROR, "HW_ERROR", c"Hardware Error"),
    (Status::QUEUE_FULL, "QUEUE_FULL", c"Queue Full"),
    (
        Status::LOAD_NOT_ENOUGH_NC,
        "LOAD_NOT_ENOUGH_NC",
        c"Not Enough NeuronCores",
    ),
    (
        Status::UNSUPPORTED_NEFF_VERSION,
        "UNSUPPORTED_NEFF_VERSION",
        c"Unsupported NEFF Version",
    ),
    (
        Status::FAIL_HOST_MEM_ALLOC,
        "FAIL_HOST_MEM_ALLOC",
        c"Host Memory Allocation Failure",
    ),
    (Status::UNINITIALIZED, "UNINITIALIZED", c"Uninitialized"),
    (Status::CLOSED, "CLOSED", c"Closed"),
    (Status::QUEUE_EMPTY, "QUEUE_EMPTY", c"Queue Empty"),
    (
        Status::EXEC_UNIT_UNRECOVERABLE,
        "EXEC_UNIT_UNRECOVERABLE",
        c"Execution Unit Unrecoverable",
    ),
    (Status::EXEC_BAD_INPUT, "EXEC_BAD_INPUT", c"Bad Input"),
    (
        Status::EXEC_COMPLETED_WITH_NUM_ERR,
        "EXEC_COMPLETED_WITH_NUM_ERR",
        c"Completed with Numerical Errors",
    ),
    (
        Status::EXEC_COMPLETED_WITH_ERR,
        "EXEC_COMPLETED_WITH_ERR",
        c"Completed with Errors",
    ),
    (Status::EXEC_NC_BUSY, "EXEC_NC_BUSY", c"NeuronCore Busy"),
    (Status::EXEC_OOB, "EXEC_OOB", c"Out of Bounds"),
    (Status::COLL_PENDING, "COLL_PENDING", c"Collective Pending"),
    (
        Status::EXEC_HW_ERR_COLLECTIVES,
        "EXEC_HW_ERR_COLLECTIVES",
        c"Collectives Hang",
    ),
    (
        Status::EXEC_HW_ERR_HBM_UE,
        "EXEC_HW_ERR_HBM_UE",
        c"Uncorrectable Error of HBM",
    ),
    (
        Status::EXEC_HW_ERR_NC_UE,
        "EXEC_HW_ERR_NC_UE",
        c"Uncorrectable Error of a NeuronCore",
    ),
    (
        Status::EXEC_HW_ERR_DMA_ABORT,
        "EXEC_HW_ERR_DMA_ABORT",
        c"DMA Abort",
    ),
    (
        Status::EXEC_SW_NQ_OVERFLOW,
        "EXEC_SW_NQ_OVERFLOW",
        c"Notification Queue Overflow",
    ),
    (
        Status::EXEC_HW_ERR_REPAIRABLE_HBM_UE,
        "EXEC_HW_ERR_REPAIRABLE_HBM_UE",
        c"Repairable Uncorrectable Error of HBM",
    ),
    (
        Status::NETWORK_PROXY_FAILURE,
        "NETWORK_PROXY_FAILURE",
        c"Network Proxy Failure",
    ),
];

/// Declares a constant for each status.
macro_rules! statuses {
    ($($name:ident = $number:literal: $text:literal;)*) => {
        impl Status {
            $(#[doc = $text] pub const $name: Self = Self($number);)*
        }
    };
}

statuses! {
    SUCCESS = 0: "All is well.";
    FAILURE = 1: "Something else; the log tells more.";
    INVALID = 2: "An argument, a NEFF or a tensor's place is wrong.";
    INVALID_HANDLE = 3: "A handle that is none.";
    RESOURCE = 4: "No memory left on the device or for its rings.";
    TIMEOUT = 5: "It took longer than the limit.";
    HW_ERROR = 6: "The hardware failed.";
    QUEUE_FULL = 7: "No room in an execution queue.";
    LOAD_NOT_ENOUGH_NC = 9: "The NEFF wants more cores than there are.";
    UNSUPPORTED_NEFF_VERSION = 10: "The NEFF is of a newer compiler, or for another target.";
    FAIL_HOST_MEM_ALLOC = 11: "No memory left on the host.";
    UNINITIALIZED = 13: "Called before `nrt_init`.";
    CLOSED = 14: "Called after `nrt_close`.";
    QUEUE_EMPTY = 15: "Nothing in the queue.";
    EXEC_UNIT_UNRECOVERABLE = 101: "Only a new process can use the core again.";
    EXEC_BAD_INPUT = 1002: "A tensor is missing or of the wrong size.";
    EXEC_COMPLETED_WITH_NUM_ERR = 1003: "A result is not a number.";
    EXEC_COMPLETED_WITH_ERR = 1004: "Finished, but not without errors.";
    EXEC_NC_BUSY = 1005: "Another model or thread has the core.";
    EXEC_OOB = 1006: "A gather or scatter went out of bounds.";
    COLL_PENDING = 1100: "A collective has not finished.";
    EXEC_HW_ERR_COLLECTIVES = 1200: "A collective is stuck.";
    EXEC_HW_ERR_HBM_UE = 1201: "Device memory: uncorrectable error.";
    EXEC_HW_ERR_NC_UE = 1202: "Memory of a core: uncorrectable error.";
    EXEC_HW_ERR_DMA_ABORT = 1203: "A DMA engine gave up.";
    EXEC_SW_NQ_OVERFLOW = 1204: "Notifications were dropped.";
    EXEC_HW_ERR_REPAIRABLE_HBM_UE = 1205: "Device memory: repaired by reloading the driver.";
    NETWORK_PROXY_FAILURE = 1206: "The network between devices failed.";
}

impl Status {
    /// All that libnrt's header lists.
    pub fn all() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|(status, ..)| *status)
    }

    /// Its name without the `NRT_`, if it has one.
    pub fn name(self) -> Option<&'static str> {
        let entry = NAMES.iter().find(|(status, ..)| *status == self);
        entry.map(|(_, name, _)| *name)
    }

    /// What libnrt prints for it.
    pub fn text(self) -> &'static str {
        self.c_text().to_str().unwrap_or_default()
    }

    /// The same for C.
    pub(crate) fn c_text(self) -> &'static CStr {
        let entry = NAMES.iter().find(|(status, ..)| *status == self);
        entry.map_or(c"Unknown Error", |(.., text)| *text)
    }

    /// The status of this name (`TIMEOUT`) or number (`5`).
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse() {
            return Some(Self(number));
        }
        let entry = NAMES.iter().find(|(_, name, _)| *name == text);
        entry.map(|(status, ..)| *status)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{} {name}", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Why a call fails.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The caller gets this status, and the log the reason.
    #[error("{0}: {1}")]
    Status(Status, String),
    /// What the real library would answer with memory corruption or a wrong result. Through the C
    /// interface the process aborts with this message.
    #[error("misuse: {0}")]
    Misuse(String),
}

impl Failure {
    /// The status that the caller gets.
    pub fn status(&self) -> Status {
        match self {
            Self::Status(status, _) => *status,
            Self::Misuse(_) => Status::FAILURE,
        }
    }
}

/// Fails with `status` and a formatted reason.
macro_rules! refuse {
    ($status:ident, $($reason:tt)*) => {
        $crate::status::Failure::Status($crate::status::Status::$status, format!($($reason)*))
    };
}

/// Fails with a formatted reason that ends the process.
macro_rules! misuse {
    ($($reason:tt)*) => {
        $crate::status::Failure::Misuse(format!($($reason)*))
    };
}

pub(crate) use {misuse, refuse};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_found_by_name_and_number() {
        for status in Status::all() {
            let name = status.name().unwrap();
            assert_eq!(Status::parse(name), Some(status));
            assert_eq!(Status::parse(&status.0.to_string()), Some(status));
        }
        assert_eq!(Status::all().count(), 28);
        assert_eq!(Status::parse("NOTHING"), None);
        assert_eq!(Status(77).text(), "Unknown Error");
        assert_eq!(Status::TIMEOUT.to_string(), "5 TIMEOUT");
    }
}
