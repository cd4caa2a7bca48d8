//! What the stand-in's device did, from the journal that it writes: a line of JSON for each call.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::report::Spread;

/// A call. Times are microseconds.
#[derive(Clone, Deserialize, Debug)]
struct Call {
    call: String,
    status: u32,
    start_us: u64,
    took_us: u64,
    /// How long the device ran.
    device_us: Option<u64>,
    #[serde(default)]
    model: String,
}

/// The executions of one core that succeeded, in their order.
#[derive(Debug)]
pub(super) struct Executions(Vec<Call>);

/// What the device did while all streams decoded. Times are microseconds.
#[derive(Serialize, Debug)]
pub(super) struct Steady {
    /// Steps that were looked at.
    steps: usize,
    /// The part of the time that the device ran.
    pub(super) busy: f64,
    /// From the end of one execution to the begin of the next.
    pub(super) gap: Spread,
    /// How long the device ran for one.
    pub(super) device: Spread,
}

impl Executions {
    /// Reads a journal.
    pub(super) fn read(journal: &Path) -> Result<Executions> {
        let text = fs::read_to_string(journal)
            .with_context(|| format!("cannot read {}", journal.display()))?;
        // The last line may be half written.
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let calls: Result<Vec<Call>, _> = lines.map(serde_json::from_str).collect();
        let mut calls = calls.context("the journal is none")?;
        calls.retain(|call| call.call == "execute" && call.status == 0);
        calls.sort_by_key(|call| call.start_us);
        Ok(Executions(calls))
    }

    /// What follows the last prompt, but for the last tenth, in which the first streams end.
    pub(super) fn steady(&self) -> Option<Steady> {
        let prompt = |call: &Call| !call.model.starts_with("decode");
        let after = self.0.iter().rposition(prompt).map_or(0, |last| last + 1);
        let decoding = &self.0[after..];
        let steady = &decoding[..decoding.len() - decoding.len().div_ceil(10)];
        let (first, last) = (steady.first()?, steady.last()?);
        let time = last.start_us + last.took_us - first.start_us;
        let devices = || steady.iter().filter_map(|call| call.device_us);
        let gaps = steady.windows(2).map(|pair| {
            pair[1]
                .start_us
                .saturating_sub(pair[0].start_us + pair[0].took_us)
        });
        Some(Steady {
            steps: steady.len(),
            busy: devices().sum::<u64>() as f64 / time.max(1) as f64,
            gap: spread(gaps),
            device: spread(devices()),
        })
    }
}

/// The values at their ranks; zeros where there is none.
fn spread(values: impl Iterator<Item = u64>) -> Spread {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    let at = |percent: usize| {
        let rank = (values.len() * percent).div_ceil(100);
        values.get(rank.saturating_sub(1)).copied().unwrap_or(0) as f64
    };
    Spread {
        p50: at(50),
        p95: at(95),
        max: at(100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(lines: &[(&str, u64, u64)]) -> Executions {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut text =
            String::from("{\"call\":\"init\",\"start_us\":0,\"took_us\":9,\"status\":0}\n");
        for (model, start, took) in lines {
            text += &format!(
                "{{\"call\":\"execute\",\"start_us\":{start},\"took_us\":{took},\"device_us\":{},\
                 \"status\":0,\"core\":0,\"model\":\"{model}\"}}\n",
                took - 1
            );
        }
        text += "{\"call\":\"exe";
        fs::write(&path, text).unwrap();
        Executions::read(&path).unwrap()
    }

    #[test]
    fn the_steady_part_is_what_decodes_after_the_last_prompt_but_for_its_end() {
        let mut lines = vec![("decode-64x32", 0, 11), ("prefill-1x128x0", 100, 11)];
        lines.extend((0..20).map(|step| ("decode-64x32", 200 + step * 20, 11)));
        let steady = journal(&lines).steady().unwrap();
        assert_eq!(steady.steps, 18);
        assert_eq!(
            (steady.gap.p50, steady.gap.max, steady.device.p50),
            (9.0, 9.0, 10.0)
        );
        let busy = 180.0 / 351.0;
        assert!((steady.busy - busy).abs() < 1e-9, "{}", steady.busy);
    }

    #[test]
    fn without_steps_there_is_no_steady_part() {
        assert!(journal(&[("prefill-1x128x0", 0, 5)]).steady().is_none());
    }
}
