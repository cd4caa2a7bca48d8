//! What a decode step costs the host beside the device: 64 rows through [`engine::Backend`], down to
//! a libnrt that computes nothing and takes no time.
//!
//! `APPLIANCE_LIBNRT` names the stand-in, with `fake-neuronx-cc` beside it; without it nothing is
//! measured. `cargo xtask bench --parts neuron` sets it, and reads what `--json FILE` writes.
//!
//! There is one runtime a process, and it reads its environment as it starts, so each measurement is
//! a process of its own: this program again, as `measure DIRECTORY RANKS`. Those without a journal
//! tell how long a step takes; one with a journal tells how much of that is the stand-in's device,
//! because writing a journal takes time as well.

mod measure;
mod model;

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Cores that compute together: one alone, a chip's share, a whole instance.
const RANKS: [u32; 3] = [1, 8, 32];

/// The most microseconds of the host's that a step of 32 ranks may take.
const MOST: f64 = 300.0;

/// How often each is measured, unless the command line says otherwise.
const ROUNDS: usize = 5;

/// What one process measured with rows of one length. Times are microseconds a step.
#[derive(Clone, Serialize, Deserialize, Debug)]
struct Measured {
    /// Positions that each row reads.
    context: u32,
    /// Submitted and collected before the next, the median.
    alone: f64,
    /// Of that, until `submit` returned.
    submit: f64,
    /// From one to the next where the next is submitted before one is collected, the median.
    in_turn: f64,
    /// Processor time of the thread that submits and collects, in turn.
    engine: f64,
    /// Processor time of all ranks together, the stand-in's work included, in turn.
    ranks: f64,
    /// Only with a journal.
    device: Option<Device>,
}

/// What the stand-in says. Times are microseconds a step.
#[derive(Clone, Copy, Serialize, Deserialize, Debug)]
struct Device {
    /// How long its device ran, the medians: with steps alone, and in turn.
    alone: f64,
    in_turn: f64,
    /// How long no rank was in `nrt_execute`, with steps alone.
    outside: f64,
}

/// Figures of all rounds: what the host takes beside the device.
#[derive(Serialize, Debug)]
struct Row {
    ranks: u32,
    context: u32,
    alone: Spread,
    in_turn: Spread,
    outside: f64,
    submit: Spread,
    engine: Spread,
    all_ranks: Spread,
    device: Device,
}

/// Median, least and greatest.
#[derive(Clone, Copy, Serialize, Debug)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "measure") {
        let [_, directory, ranks] = arguments.as_slice() else {
            return Err("measure DIRECTORY RANKS".into());
        };
        return measure::measure(Path::new(directory), ranks);
    }
    let Some(libnrt) = env::var_os("APPLIANCE_LIBNRT").map(PathBuf::from) else {
        println!("skipped: APPLIANCE_LIBNRT names no stand-in for libnrt");
        return Ok(());
    };
    let after = |flag: &str| {
        let place = arguments.iter().position(|word| word == flag)?;
        arguments.get(place + 1)
    };
    let rounds = after("--rounds").and_then(|count| count.to_str()?.parse().ok());
    let rows = rows(&libnrt, rounds.unwrap_or(ROUNDS))?;
    print(&rows);
    if let Some(file) = after("--json") {
        fs::write(file, serde_json::to_string_pretty(&rows)? + "\n")?;
    }
    Ok(())
}

fn rows(libnrt: &Path, rounds: usize) -> Result<Vec<Row>, Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let decoder = model::write(directory.path())?;
    let mut rows = Vec::new();
    for ranks in RANKS {
        let compiler = libnrt.with_file_name("fake-neuronx-cc");
        model::prepare(directory.path(), &decoder, ranks, &compiler)?;
        let mut all = Vec::new();
        for _ in 0..rounds {
            all.push(process(directory.path(), ranks, None)?);
        }
        let journal = directory.path().join(format!("journal-{ranks}"));
        let noted = process(directory.path(), ranks, Some(&journal))?;
        for (place, noted) in noted.iter().enumerate() {
            let rounds: Vec<_> = all.iter().map(|round| &round[place]).collect();
            let device = noted.device.ok_or("the journal says nothing")?;
            rows.push(row(ranks, &rounds, device));
        }
    }
    Ok(rows)
}

/// Measures in a process of its own.
fn process(
    directory: &Path,
    ranks: u32,
    journal: Option<&Path>,
) -> Result<Vec<Measured>, Box<dyn Error>> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("measure").arg(directory).arg(ranks.to_string());
    command.env("FAKE_NRT_INSTANCE", model::INSTANCE);
    command.env("FAKE_NRT_LATENCY_US", "0");
    command.env("FAKE_NRT_DIR", directory.join("machine"));
    command.envs(journal.map(|path| ("FAKE_NRT_JOURNAL", path)));
    command.stderr(std::process::Stdio::inherit());
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("measuring {ranks} ranks: {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn row(ranks: u32, rounds: &[&Measured], device: Device) -> Row {
    let spread = |of: fn(&Measured) -> f64, less: f64| {
        let mut values: Vec<_> = rounds.iter().map(|round| of(round) - less).collect();
        values.sort_by(f64::total_cmp);
        Spread {
            median: values[values.len() / 2],
            min: values[0],
            max: values[values.len() - 1],
        }
    };
    Row {
        ranks,
        context: rounds[0].context,
        alone: spread(|round| round.alone, device.alone),
        in_turn: spread(|round| round.in_turn, device.in_turn),
        outside: device.outside,
        submit: spread(|round| round.submit, 0.0),
        engine: spread(|round| round.engine, 0.0),
        all_ranks: spread(|round| round.ranks, 0.0),
        device,
    }
}

fn print(rows: &[Row]) {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "host's time a decode step of {} rows beside the device, microseconds (medians; least to \
         greatest), {processors} processors",
        model::ROWS
    );
    println!(
        "{:>5}{:>9}{:>24}{:>24}{:>9}{:>24}{:>24}{:>9}",
        "ranks",
        "context",
        "alone",
        "in turn",
        "outside",
        "engine's CPU",
        "all ranks' CPU",
        "device"
    );
    let text = |spread: Spread| {
        let Spread { median, min, max } = spread;
        format!("{median:.0} ({min:.0} to {max:.0})")
    };
    for row in rows {
        println!(
            "{:>5}{:>9}{:>24}{:>24}{:>9.0}{:>24}{:>24}{:>9.0}",
            row.ranks,
            row.context,
            text(row.alone),
            text(row.in_turn),
            row.outside,
            text(row.engine),
            text(row.all_ranks),
            row.device.alone,
        );
    }
    for (what, of) in [
        ("alone", (|row| row.alone) as fn(&Row) -> Spread),
        ("in turn", |row| row.in_turn),
    ] {
        let worst = rows.iter().map(|row| of(row).median).fold(0.0, f64::max);
        let verdict = if worst <= MOST {
            "within"
        } else {
            "NOT within"
        };
        println!("worst {what} {worst:.0}: {verdict} the target of {MOST:.0}");
    }
}
