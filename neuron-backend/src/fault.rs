//! A status of the runtime as what the engine does next, and as what the host should do: one table,
//! after neuron.md 6.5 (AWS's troubleshooting guide).
//!
//! What a status means is said in `nrt/status.rs`, and comes first in the cause; here is what to do.

use engine::{Cause, Fault};

use crate::nrt::{NrtError, Status};

/// What whoever runs the machine should do about a fault, from the mildest to the gravest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Advice {
    /// Nothing: the device is as good as before.
    Nothing,
    /// Start the process again: the device is well once nobody has its cores.
    RestartProcess,
    /// Reload the driver with nothing using it, or reboot.
    ReloadDriver,
    /// Stop and start the instance, or end it and take another: this hardware is broken.
    ReplaceInstance,
}

impl Advice {
    /// All of them, the mildest first.
    pub const ALL: [Self; 4] = [
        Self::Nothing,
        Self::RestartProcess,
        Self::ReloadDriver,
        Self::ReplaceInstance,
    ];

    /// A word for it, as in logs, metrics and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::RestartProcess => "restart-process",
            Self::ReloadDriver => "reload-driver",
            Self::ReplaceInstance => "replace-instance",
        }
    }

    /// What to do, for a reader who has to do it.
    pub fn what_to_do(self) -> &'static str {
        match self {
            Self::Nothing => "nothing needs to be done to the device",
            Self::RestartProcess => {
                "restart the process: systemd does it if the server runs as a service; if it comes \
                 again, replace the instance"
            }
            Self::ReloadDriver => {
                "stop whatever uses the device, run `rmmod neuron && modprobe neuron` or reboot, and \
                 start again: the repair lasts"
            }
            Self::ReplaceInstance => {
                "take the instance out of service and replace it (stop and start it, or terminate \
                 it): a restart of the process or a reboot stays on the same hardware"
            }
        }
    }
}

/// What the engine does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Reject,
    Retry,
    Restart,
}

/// One row of the table.
struct Treatment {
    status: Status,
    next: Next,
    advice: Advice,
    /// What to do where the advice alone does not say it.
    hint: &'static str,
}

const fn row(status: Status, next: Next, advice: Advice, hint: &'static str) -> Treatment {
    Treatment {
        status,
        next,
        advice,
        hint,
    }
}

/// What is done about a status. Whatever is not here, newer numbers included, is [`UNLISTED`].
const TABLE: &[Treatment] = &[
    row(
        Status::EXEC_BAD_INPUT,
        Next::Reject,
        Advice::Nothing,
        "the requests of this step fail: a bug if it comes again, report it with the bundle's manifest",
    ),
    row(
        Status::EXEC_COMPLETED_WITH_NUM_ERR,
        Next::Reject,
        Advice::Nothing,
        "the requests of this step fail: if it comes again, check the weights, and try --dtype bf16 \
         if they are narrower",
    ),
    row(
        Status::EXEC_OOB,
        Next::Reject,
        Advice::Nothing,
        "the requests of this step fail: a bug in page tables or slots, report it with the log",
    ),
    row(
        Status::QUEUE_FULL,
        Next::Retry,
        Advice::Nothing,
        "the step is tried again",
    ),
    row(
        Status::EXEC_NC_BUSY,
        Next::Retry,
        Advice::Nothing,
        "the step is tried again: if it stays, `neuron-ls` shows who else uses the core",
    ),
    row(
        Status::RESOURCE,
        Next::Restart,
        Advice::RestartProcess,
        "if it comes again, prepare the model with fewer KV pages (--kv-pages) or more ranks (--tp): \
         the runtime's table of what fills the memory is in /tmp/neuron_mem_table_device_*",
    ),
    row(
        Status::FAIL_HOST_MEM_ALLOC,
        Next::Restart,
        Advice::RestartProcess,
        "the driver needs unbroken blocks of 4 MiB: see `free -m`, and drop the page cache \
         (sysctl vm.drop_caches=1) before starting again",
    ),
    row(Status::TIMEOUT, Next::Restart, Advice::RestartProcess, ""),
    row(Status::HW_ERROR, Next::Restart, Advice::ReplaceInstance, ""),
    row(
        Status::UNINITIALIZED,
        Next::Restart,
        Advice::RestartProcess,
        "a bug in the order of calls: report it",
    ),
    row(
        Status::CLOSED,
        Next::Restart,
        Advice::RestartProcess,
        "a bug in the order of calls: report it",
    ),
    row(
        Status::EXEC_UNIT_UNRECOVERABLE,
        Next::Restart,
        Advice::RestartProcess,
        "",
    ),
    row(
        Status::EXEC_COMPLETED_WITH_ERR,
        Next::Restart,
        Advice::RestartProcess,
        "if the kernel's log (dmesg) has NEURON_HW_ERR=SRAM_UNCORRECTABLE_ERROR, replace the \
         instance at once",
    ),
    row(
        Status::EXEC_HW_ERR_COLLECTIVES,
        Next::Restart,
        Advice::RestartProcess,
        "",
    ),
    row(
        Status::EXEC_HW_ERR_HBM_UE,
        Next::Restart,
        Advice::ReplaceInstance,
        "",
    ),
    row(
        Status::EXEC_HW_ERR_NC_UE,
        Next::Restart,
        Advice::ReplaceInstance,
        "",
    ),
    row(
        Status::EXEC_HW_ERR_DMA_ABORT,
        Next::Restart,
        Advice::ReplaceInstance,
        "",
    ),
    row(
        Status::EXEC_SW_NQ_OVERFLOW,
        Next::Restart,
        Advice::RestartProcess,
        "set NEURON_RT_ENABLE_DGE_NOTIFICATIONS=0 in the environment of the server before that",
    ),
    row(
        Status::EXEC_HW_ERR_REPAIRABLE_HBM_UE,
        Next::Restart,
        Advice::ReloadDriver,
        "",
    ),
    row(
        Status::NETWORK_PROXY_FAILURE,
        Next::Restart,
        Advice::RestartProcess,
        "all ranks at once; reboot if it stays",
    ),
];

/// What is done about every other status: nobody knows what state the device is in.
const UNLISTED: Treatment = row(
    Status::FAILURE,
    Next::Restart,
    Advice::RestartProcess,
    "the runtime's own log says more (NEURON_RT_LOG_LEVEL=INFO)",
);

fn treatment(status: Status) -> &'static Treatment {
    let listed = TABLE.iter().find(|row| row.status == status);
    listed.unwrap_or(&UNLISTED)
}

/// What the host should do about a status that an execution came to.
pub fn advice(status: Status) -> Advice {
    treatment(status).advice
}

/// What the engine does about a call that failed while the model ran.
pub(crate) fn of(error: &NrtError) -> Fault {
    let cause = cause(error);
    match treatment(error.status).next {
        Next::Reject => Fault::Reject(cause),
        Next::Retry => Fault::Retry(cause),
        Next::Restart => Fault::Restart(cause),
    }
}

/// What went wrong, and what to do about it.
pub(crate) fn cause(error: &NrtError) -> Cause {
    Cause(format!("{error}. {}", to_do(error.status)))
}

/// Whether a call that failed may be made again at once.
pub(crate) fn passes(error: &NrtError) -> bool {
    treatment(error.status).next == Next::Retry
}

/// What to do about a status, for a reader who has to do it.
pub(crate) fn to_do(status: Status) -> String {
    let Treatment { advice, hint, .. } = treatment(status);
    match (*advice, *hint) {
        (Advice::Nothing, hint) => format!("To do: {hint}"),
        (advice, "") => format!("To do: {}", advice.what_to_do()),
        (advice, hint) => format!("To do: {}; {hint}", advice.what_to_do()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(number: u32) -> Fault {
        of(&NrtError {
            operation: "nrt_execute",
            status: Status(number),
            detail: "decode-4x8 on core 3".to_owned(),
        })
    }

    #[test]
    fn what_is_wrong_with_the_inputs_is_rejected() {
        for number in [1002, 1003, 1006] {
            let fault = fault(number);
            assert!(matches!(fault, Fault::Reject(_)), "{number}: {fault}");
            assert_eq!(advice(Status(number)), Advice::Nothing);
        }
    }

    #[test]
    fn what_passes_is_tried_again() {
        for number in [7, 1005] {
            let fault = fault(number);
            assert!(matches!(fault, Fault::Retry(_)), "{number}: {fault}");
            assert_eq!(advice(Status(number)), Advice::Nothing);
        }
    }

    #[test]
    fn everything_else_loses_the_device_and_so_do_numbers_that_nobody_knows() {
        let lost = [
            1, 2, 3, 4, 5, 6, 9, 10, 11, 13, 14, 15, 101, 1004, 1100, 1200, 1201, 1202, 1203, 1204,
            1205, 1206, 4711,
        ];
        for number in lost {
            let fault = fault(number);
            assert!(matches!(fault, Fault::Restart(_)), "{number}: {fault}");
            assert_ne!(advice(Status(number)), Advice::Nothing, "{number}");
        }
    }

    #[test]
    fn broken_hardware_is_replaced_and_repairable_memory_is_not() {
        for number in [6, 1201, 1202, 1203] {
            assert_eq!(advice(Status(number)), Advice::ReplaceInstance, "{number}");
        }
        assert_eq!(advice(Status(1205)), Advice::ReloadDriver);
        for number in [4, 5, 101, 1200, 1204, 1206] {
            assert_eq!(advice(Status(number)), Advice::RestartProcess, "{number}");
        }
    }

    #[test]
    fn a_cause_names_the_call_the_status_and_what_to_do() {
        let check = |number, parts: &[&str]| {
            let text = fault(number).to_string();
            for part in parts {
                assert!(text.contains(part), "{text}");
            }
        };
        let place = "nrt_execute failed (decode-4x8 on core 3)";
        check(1201, &[place, "NRT_EXEC_HW_ERR_HBM_UE (1201)", "terminate"]);
        check(1205, &[place, "(1205)", "modprobe neuron"]);
        check(1204, &["NEURON_RT_ENABLE_DGE_NOTIFICATIONS=0", "restart"]);
        check(1006, &["NRT_EXEC_OOB (1006)", "page tables"]);
        check(5, &["NRT_TIMEOUT (5)", "restart the process"]);
        check(4711, &["4711", "restart the process", "log"]);
    }

    #[test]
    fn no_status_is_treated_in_two_ways() {
        for (index, row) in TABLE.iter().enumerate() {
            let first = TABLE.iter().position(|other| other.status == row.status);
            assert_eq!(first, Some(index), "{:?}", row.status);
        }
    }
}
