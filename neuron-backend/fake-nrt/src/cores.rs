//! Which cores are this process': the list that the environment gives, and the locks that keep
//! other processes off them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;

use crate::settings::Settings;
use crate::status::{Failure, refuse};
use crate::topology::Topology;

/// The logical cores that the environment gives this process, in the machine's numbers; without
/// `NEURON_RT_VISIBLE_CORES` those from 0 on.
///
/// # Errors
/// The list has a gap, goes down, repeats a core, or names one that is not there.
pub fn visible(settings: &Settings) -> Result<Range<u32>, Failure> {
    let all = settings.topology.cores();
    if let Some(list) = &settings.visible {
        return parse(list, all);
    }
    match settings.cores {
        None => Ok(0..all),
        Some(count) if (1..=all).contains(&count) => Ok(0..count),
        Some(count) => Err(refuse!(
            INVALID,
            "NEURON_RT_NUM_CORES={count}: there are {all} logical cores"
        )),
    }
}

/// Reads a list such as `4-7` or `0,1,2-3`.
fn parse(list: &str, all: u32) -> Result<Range<u32>, Failure> {
    let wrong = |why: &str| refuse!(INVALID, "NEURON_RT_VISIBLE_CORES={list}: {why}");
    let mut cores: Option<Range<u32>> = None;
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>();
        let (Ok(first), Ok(last)) = (number(first), number(last)) else {
            return Err(wrong("numbers and ranges, such as 0-3 or 0,1"));
        };
        if last < first || cores.as_ref().is_some_and(|cores| cores.end != first) {
            return Err(wrong("the list must go up without a gap"));
        }
        if last >= all {
            return Err(wrong(&format!("there are {all} logical cores")));
        }
        let start = cores.map_or(first, |cores| cores.start);
        cores = Some(start..last + 1);
    }
    cores.ok_or_else(|| wrong("it is empty"))
}

/// Cores that no other process can have until this one ends. The real driver gives them back no
/// sooner either (neuron.md 1.5).
#[derive(Debug)]
pub struct Claim {
    /// The logical cores, in the machine's numbers.
    pub cores: Range<u32>,
    _locks: Vec<File>,
}

impl Claim {
    /// Takes the cores that the environment gives this process. With `NEURON_RT_NUM_CORES` alone
    /// these are the first so many in a row that are free.
    ///
    /// # Errors
    /// Another process has one of them, or the directory of locks cannot be written.
    pub fn take(settings: &Settings) -> Result<Self, Failure> {
        let wanted = visible(settings)?;
        let any = settings.visible.is_none() && settings.cores.is_some();
        let last = if any {
            settings.topology.cores() - wanted.end
        } else {
            0
        };
        let mut refused = None;
        for shift in 0..=last {
            let cores = wanted.start + shift..wanted.end + shift;
            match Self::take_these(settings, cores) {
                Ok(claim) => return Ok(claim),
                Err(failure) => refused = refused.or(Some(failure)),
            }
        }
        Err(refused.unwrap_or_else(|| refuse!(FAILURE, "no cores were asked for")))
    }

    fn take_these(settings: &Settings, cores: Range<u32>) -> Result<Self, Failure> {
        let directory = &settings.directory;
        let lnc = settings.topology.lnc;
        fs::create_dir_all(directory)
            .map_err(|error| refuse!(FAILURE, "FAKE_NRT_DIR {}: {error}", directory.display()))?;
        let physical = cores.start * lnc..cores.end * lnc;
        let locks = physical.map(|core| lock(directory, &settings.topology, core));
        Ok(Self {
            cores,
            _locks: locks.collect::<Result<_, _>>()?,
        })
    }
}

/// Locks a physical core: by `flock`, which ends with the process however it ends.
fn lock(directory: &Path, topology: &Topology, core: u32) -> Result<File, Failure> {
    let path = directory.join(format!("core-{core}.lock"));
    let failed = |error| refuse!(FAILURE, "the lock {}: {error}", path.display());
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(failed(error)),
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // What it holds is only for the message.
            let _ = file.read_to_string(&mut owner);
            let logical = core / topology.lnc;
            return Err(refuse!(
                FAILURE,
                "Logical Neuron Core(s) not available - requested: {logical}, held by process {}",
                owner.trim()
            ));
        }
    }
    file.set_len(0).map_err(failed)?;
    let written = writeln!(file, "{}", std::process::id());
    written.map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(directory: &Path, variables: &[(&str, &str)]) -> Settings {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let directory = directory.to_str().unwrap().to_owned();
        let directory = ("FAKE_NRT_DIR".to_owned(), directory);
        Settings::read(variables.iter().map(own).chain([directory])).unwrap()
    }

    #[test]
    fn lists_go_up_without_a_gap() {
        assert_eq!(parse("0-3", 4).unwrap(), 0..4);
        assert_eq!(parse("2", 4).unwrap(), 2..3);
        assert_eq!(parse("0,1,2-3", 4).unwrap(), 0..4);
        for wrong in ["0,2", "1,0", "3-2", "0,0", "4", "0-4", "", "a", "0-", "-1"] {
            assert!(parse(wrong, 4).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_core_is_claimed_once() {
        let directory = tempfile::tempdir().unwrap();
        let claim =
            |variables: &[(&str, &str)]| Claim::take(&settings(directory.path(), variables));
        let first = claim(&[("NEURON_RT_VISIBLE_CORES", "1-2")]).unwrap();
        assert_eq!(first.cores, 1..3);
        let error = claim(&[("NEURON_RT_VISIBLE_CORES", "2-3")]).unwrap_err();
        let error = error.to_string();
        let process = std::process::id().to_string();
        assert!(
            error.contains("not available") && error.contains(&process),
            "{error}"
        );
        drop(first);
        claim(&[("NEURON_RT_VISIBLE_CORES", "2-3")]).unwrap();
    }

    #[test]
    fn a_number_of_cores_takes_the_first_that_are_free() {
        let directory = tempfile::tempdir().unwrap();
        let two = settings(directory.path(), &[("NEURON_RT_NUM_CORES", "2")]);
        let first = Claim::take(&two).unwrap();
        let second = Claim::take(&two).unwrap();
        assert_eq!((first.cores, second.cores), (0..2, 2..4));
    }

    #[test]
    fn halves_and_wholes_of_a_core_exclude_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let halves = [
            ("NEURON_RT_VISIBLE_CORES", "2"),
            ("NEURON_LOGICAL_NC_CONFIG", "1"),
        ];
        let _half = Claim::take(&settings(directory.path(), &halves)).unwrap();
        let whole = [("NEURON_RT_VISIBLE_CORES", "1")];
        assert!(Claim::take(&settings(directory.path(), &whole)).is_err());
    }
}
