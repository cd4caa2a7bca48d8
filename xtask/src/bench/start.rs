//! From exec to READY, by what the server does meanwhile, as systemd is told of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is done before systemd hears of anything.
const BEFORE: &str = "until it listens";

/// Starts of one kind, all rounds.
#[derive(Serialize, Debug)]
struct Starts {
    /// `cold`: nothing of the model is in the system's cache, and nothing is remembered of it. `warm`: the start
    /// after that.
    kind: &'static str,
    /// Milliseconds from exec to READY.
    ready: Vec<f64>,
    /// Of those, what each phase took.
    phases: BTreeMap<String, Vec<f64>>,
}

/// Starts the server on `model` again and again, prints what took how long, and saves it.
pub(super) fn measured(rounds: u32, appliance: &Path, model: &Path, saved: &Path) -> Result<()> {
    let mut kinds = ["cold", "warm"].map(|kind| Starts {
        kind,
        ready: Vec::new(),
        phases: BTreeMap::new(),
    });
    for round in 0..rounds {
        let state = saved.join(format!("start-{round}"));
        fs::create_dir_all(&state)?;
        for starts in &mut kinds {
            if starts.kind == "cold" && !forgotten() && round == 0 {
                eprintln!(
                    "only root may empty the system's cache: cold is warm but for the self-test's memory"
                );
            }
            starts.add(&start(appliance, model, &state)?);
        }
    }
    println!("\n{}", table(&kinds));
    let file = saved.join("start.json");
    fs::write(&file, serde_json::to_vec_pretty(&kinds)?)?;
    println!("saved in {}", file.display());
    Ok(())
}

/// Empties the system's cache of files; whether that was allowed.
fn forgotten() -> bool {
    Command::new("sync").status().ok();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// What systemd heard, and when: each phase as it began, then READY.
fn start(appliance: &Path, model: &Path, state: &Path) -> Result<Vec<(String, Duration)>> {
    let socket = state.join("notify");
    fs::remove_file(&socket).ok();
    let systemd = UnixDatagram::bind(&socket)?;
    systemd.set_read_timeout(Some(PATIENCE))?;
    let mut command = Command::new(appliance);
    command
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--cloud",
            "none",
            "--log-level",
            "error",
        ])
        .arg("--state-dir")
        .arg(state)
        .arg("--model")
        .arg(model)
        .env("NOTIFY_SOCKET", &socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let begin = Instant::now();
    let _server = Ended(
        command
            .spawn()
            .context("the release binary does not start")?,
    );
    let mut heard = vec![(BEFORE.to_owned(), Duration::ZERO)];
    let mut datagram = [0; 4096];
    loop {
        let read = systemd
            .recv(&mut datagram)
            .context("the server was not ready in time")?;
        let at = begin.elapsed();
        for line in String::from_utf8_lossy(&datagram[..read]).lines() {
            if line == "READY=1" {
                heard.push((line.to_owned(), at));
                return Ok(heard);
            }
            let phase = line.strip_prefix("STATUS=").map(phase_of);
            let news = phase.filter(|phase| heard.last().is_none_or(|(last, _)| last != phase));
            heard.extend(news.map(|phase| (phase.to_owned(), at)));
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "the server was not ready in time"
        );
    }
}

/// What of a status says what is done, not how far.
fn phase_of(status: &str) -> &str {
    status.split(':').next().unwrap_or(status)
}

/// A process that ends when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Starts {
    fn add(&mut self, heard: &[(String, Duration)]) {
        for pair in heard.windows(2) {
            let [(phase, from), (_, to)] = pair else {
                continue;
            };
            let took = (*to - *from).as_secs_f64() * 1000.0;
            self.phases.entry(phase.clone()).or_default().push(took);
        }
        let ready = heard
            .last()
            .map_or(0.0, |(_, at)| at.as_secs_f64() * 1000.0);
        self.ready.push(ready);
    }
}

fn table(kinds: &[Starts]) -> String {
    let mut phases: Vec<&String> = kinds
        .iter()
        .flat_map(|starts| starts.phases.keys())
        .collect();
    phases.sort();
    phases.dedup();
    let row = |name: &str, values: &dyn Fn(&Starts) -> Option<Vec<f64>>| {
        let cells = kinds
            .iter()
            .map(|starts| values(starts).map_or("-".to_owned(), |all| spread(&all)));
        format!("| {name} | {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let mut table = "| from exec to READY, ms | cold | warm |\n|---|---|---|\n".to_owned();
    for phase in phases {
        table += &row(phase, &|starts| starts.phases.get(phase).cloned());
    }
    table + &row("all", &|starts| Some(starts.ready.clone()))
}

/// The median, with the least and the greatest.
fn spread(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(least), Some(median), Some(most)) => format!("{median:.0} ({least:.0} to {most:.0})"),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_told_from_each_other_and_their_progress_is_not() {
        let heard = |texts: &[(&str, u64)]| {
            let at = |(text, ms): &(&str, u64)| ((*text).to_owned(), Duration::from_millis(*ms));
            texts.iter().map(at).collect::<Vec<_>>()
        };
        assert_eq!(
            phase_of("the weights are being loaded: 3 % of 9 MiB"),
            "the weights are being loaded"
        );
        let mut starts = Starts {
            kind: "cold",
            ready: Vec::new(),
            phases: BTreeMap::new(),
        };
        starts.add(&heard(&[(BEFORE, 0), ("a", 10), ("READY=1", 35)]));
        starts.add(&heard(&[(BEFORE, 0), ("a", 20), ("READY=1", 25)]));
        starts.add(&heard(&[(BEFORE, 0), ("a", 12), ("READY=1", 20)]));
        let table = table(&[starts]);
        assert!(table.contains("| a | 8 (5 to 25) |"), "{table}");
        assert!(table.contains("| all | 25 (20 to 35) |"), "{table}");
    }
}
