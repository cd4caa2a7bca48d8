//! Who used the processor while something was measured: a neighbour that computes makes servers
//! with two threads several times as slow, and no figure shows it by itself.

use std::fs;

use anyhow::{Context, Result};

/// Processor time until now, in the kernel's ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// What all processors could have given.
    could: u64,
    /// What was used of it, by anyone, on this machine or on its host.
    used: u64,
    /// What the measured server and we, with the client we ran, used of that.
    measured: u64,
}

impl Times {
    /// Reads the clocks; `server` is the process that is measured.
    pub(super) fn now(server: u32) -> Result<Times> {
        let stat = read("/proc/stat")?;
        let (could, used) = machine(&stat).context("no line of all processors in /proc/stat")?;
        let server = process(&read(&format!("/proc/{server}/stat"))?).context("no such times")?;
        let ours = process(&read("/proc/self/stat")?).context("no such times")?;
        Ok(Times {
            could,
            used,
            // The server is our child too, but counts as such only once it has ended.
            measured: server.own + ours.own + ours.of_children,
        })
    }

    /// The share of the machine that others took since `earlier`, from 0 to 1.
    pub(super) fn share_of_others_since(self, earlier: Times) -> f64 {
        let others = (self.used - earlier.used).saturating_sub(self.measured - earlier.measured);
        others as f64 / (self.could - earlier.could).max(1) as f64
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

/// What could be used and what was, from `/proc/stat`: user, nice, system, idle, waiting,
/// interrupts twice, stolen; guests are part of user.
fn machine(stat: &str) -> Option<(u64, u64)> {
    let words = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace();
    let ticks: Vec<u64> = words.take(8).filter_map(|word| word.parse().ok()).collect();
    let could = ticks.iter().sum();
    Some((could, could - ticks.get(3)? - ticks.get(4)?))
}

struct ProcessTimes {
    own: u64,
    of_children: u64,
}

/// Fields 14 to 17 of `/proc/PID/stat`, counted after the name, which may hold anything.
fn process(stat: &str) -> Option<ProcessTimes> {
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(4)
        .filter_map(|word| word.parse().ok())
        .collect();
    let [user, system, childrens_user, childrens_system] = ticks.try_into().ok()?;
    Some(ProcessTimes {
        own: user + system,
        of_children: childrens_user + childrens_system,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_could_give_what_was_used_and_what_was_idle() {
        let stat = "cpu  10 1 5 100 4 1 1 2 3 0\ncpu0 5 0 0 0 0 0 0 0 0 0\n";
        assert_eq!(machine(stat), Some((124, 20)));
    }

    #[test]
    fn times_of_a_process_stand_after_its_name() {
        let stat = "7 (a) b 1) S 1 7 7 0 -1 4194560 1 2 3 4 50 6 70 8 20 0 1 0";
        let times = process(stat).unwrap();
        assert_eq!((times.own, times.of_children), (56, 78));
    }

    #[test]
    fn what_nobody_measured_is_of_others() {
        let at = |could, used, measured| Times {
            could,
            used,
            measured,
        };
        let share = at(300, 180, 150).share_of_others_since(at(100, 80, 70));
        assert_eq!(share, 0.1);
    }
}
