//! `appliance doctor`: whether the device of this host does what a model needs of it.
//!
//! Beside `drivers.rs` this verb, `prepare` and `graph` know a device by name: what is asked of one is
//! not what is asked of another.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use neuron_backend::Target;
use neuron_backend::compile::{PROGRAM, Settings};
use neuron_backend::doctor::{self, News, Outcome, Report, Request, Seen, Step};

use crate::artifacts::Artifacts;
use crate::config::{Backend, Value as _};
use crate::prepare::duration;

const EXAMPLES: &str = "\
Examples:
  appliance doctor
  appliance doctor --backend neuron --json > report.json
  appliance doctor --backend neuron --soak 24h --artifacts ./compiled
  appliance doctor --backend cpu

An accelerator is asked twelve questions with small modules, which neuronx-cc compiles. Where it is
not installed, compile them on any x86-64 host and bring the directory:
  appliance doctor --compile-for trn2 --cores 4 --artifacts ./compiled
  appliance doctor --backend neuron --cores 4 --artifacts ./compiled

It takes all cores that it examines: stop the server before. It ends with 0 if all that could be
asked holds, else with 1.";

/// Examines the device of this host: a report of what holds, what does not, and what to do.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES, args_override_self = true)]
pub struct Doctor {
    /// The device: auto takes the first that is there
    #[arg(long, value_name = "auto|neuron|cpu", default_value = "auto", value_parser = backend)]
    backend: Backend,
    /// Print the report as JSON, and nothing else
    #[arg(long)]
    json: bool,
    /// Where the compiled modules are kept; the memory of bundles in it is measured too [default: that
    /// of prepare]
    #[arg(long, value_name = "DIR")]
    artifacts: Option<PathBuf>,
    /// The compiler: a path, or a name that is looked for on PATH
    #[arg(long, value_name = "PROGRAM", default_value = PROGRAM)]
    compiler: OsString,
    /// How many logical cores to examine [default: all]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    cores: Option<u32>,
    /// How long to compute on end
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    soak: Duration,
    /// How long a step may take before it counts as hung
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    patience: Duration,
    /// Only compile the modules, for devices that need not be here
    #[arg(long, value_name = "inf2|trn1|trn2|trn3", requires = "cores")]
    compile_for: Option<Target>,
    /// With --compile-for: physical cores that make a logical one
    #[arg(long, value_name = "NUMBER", requires = "compile_for")]
    lnc: Option<u32>,
    /// Run one check, as the examination itself does
    #[arg(long, hide = true, requires = "plan")]
    check: Option<String>,
    /// What the check is told
    #[arg(long, hide = true)]
    plan: Option<PathBuf>,
}

fn backend(text: &str) -> Result<Backend, &'static str> {
    match Backend::parse(text) {
        Some(backend @ (Backend::Auto | Backend::Neuron | Backend::Cpu)) => Ok(backend),
        _ => Err("it is auto, neuron or cpu"),
    }
}

impl Doctor {
    /// Examines; whether all that could be asked holds.
    pub fn run(&self) -> anyhow::Result<bool> {
        if let (Some(check), Some(plan)) = (&self.check, &self.plan) {
            doctor::answer(check, plan).map_err(anyhow::Error::msg)?;
            return Ok(true);
        }
        if let Some(target) = self.compile_for {
            return self.compile(target);
        }
        let is_neuron = match self.backend {
            Backend::Auto => neuron_backend::probe().is_ok(),
            chosen => chosen == Backend::Neuron,
        };
        let report = match is_neuron {
            true => self.neuron()?,
            false => self.cpu(),
        };
        match self.json {
            true => say(&format!("{}\n", serde_json::to_string_pretty(&report)?)),
            false => say(&summary(&report)),
        }
        Ok(report.failed == 0)
    }

    fn compile(&self, target: Target) -> anyhow::Result<bool> {
        let Some(cores) = self.cores else {
            bail!("--compile-for {target}: how many cores there will be is said by --cores");
        };
        let allowed = target.facts().logical;
        if let Some(lnc) = self.lnc.filter(|lnc| !allowed.contains(lnc)) {
            bail!("--lnc {lnc}: {target} has logical cores of {allowed:?} physical ones");
        }
        let artifacts = self.artifacts()?;
        let made = doctor::compile_for(target, self.lnc, cores, &artifacts, &self.settings());
        for path in made.map_err(anyhow::Error::msg)? {
            say(&format!("{}\n", path.display()));
        }
        Ok(true)
    }

    fn neuron(&self) -> anyhow::Result<Report> {
        let request = Request {
            process,
            compiler: self.settings(),
            artifacts: self.artifacts()?,
            cores: self.cores,
            soak: self.soak,
            patience: self.patience,
        };
        Ok(doctor::examine(&request, &mut |news| match news {
            News::Compiling(count) => eprintln!("compiling {count} modules, which takes minutes"),
            News::Over(step) => self.tell(step),
        }))
    }

    /// The processor needs no more than to be what the kernels were written for.
    fn cpu(&self) -> Report {
        let mut seen = Seen::default();
        let device = cpu_backend::probe();
        if let Some(device) = &device {
            seen.note("processor", device.name.clone());
            seen.note("cores", device.cores);
            seen.note("free_memory", device.memory);
        }
        seen.note("kernels", cpu_backend::kernels());
        let why = match &device {
            None => Some("the host does not tell how much memory is free"),
            Some(_) if cpu_backend::kernels() == "scalar" => {
                Some("the processor lacks what the fast kernels need: answers come, slowly")
            }
            Some(_) => None,
        };
        let step = Step {
            number: 1,
            name: "the processor runs the fast kernels".to_owned(),
            outcome: match why {
                None => Outcome::Held,
                Some(_) => Outcome::Failed,
            },
            seconds: 0.0,
            seen,
            why: why.map(str::to_owned),
            to_do: why.map(|_| "take an instance with AVX2, such as c7i or c7a".to_owned()),
        };
        self.tell(&step);
        Report::of(device.map(|device| device.name), vec![step])
    }

    /// Says how a step went, as soon as it is known.
    fn tell(&self, step: &Step) {
        let text = line(step);
        match self.json {
            true => eprint!("{text}"),
            false => say(&text),
        }
    }

    fn artifacts(&self) -> anyhow::Result<PathBuf> {
        let path = match &self.artifacts {
            Some(path) => path.clone(),
            None => Artifacts::of_user()?.directory()?,
        };
        std::path::absolute(&path).with_context(|| format!("--artifacts {}", path.display()))
    }

    fn settings(&self) -> Settings {
        Settings {
            program: self.compiler.clone(),
            time_limit: self.patience.max(Duration::from_secs(600)),
            ..Settings::default()
        }
    }
}

/// This program once more, for a check.
fn process(check: &str, plan: &Path) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["doctor", "--check", check, "--plan"]);
    command.arg(plan);
    Ok(command)
}

/// To standard output; whoever reads it may stop early.
fn say(text: &str) {
    // Nobody is left to tell if this cannot be written.
    io::stdout().write_all(text.as_bytes()).ok();
}

/// How a step went, for people.
fn line(step: &Step) -> String {
    let outcome = match step.outcome {
        Outcome::Held => "held   ",
        Outcome::Failed => "FAILED ",
        Outcome::Skipped => "skipped",
    };
    let Step {
        number,
        name,
        seconds,
        seen,
        why,
        to_do,
        ..
    } = step;
    let mut text = format!("{number:2}  {outcome}  {name}  ({seconds:.1} s)\n");
    for (name, value) in seen.values() {
        // What is long is in the report.
        let value = value.to_string();
        let shown: String = value.chars().take(120).collect();
        let rest = if shown.len() < value.len() { " .." } else { "" };
        let _ = writeln!(text, "      {name}: {shown}{rest}");
    }
    for (label, said) in [("why", why), ("to do", to_do)] {
        if let Some(said) = said {
            let _ = writeln!(text, "      {label}: {}", said.replace('\n', "\n        "));
        }
    }
    text
}

/// The end of the report, for people.
fn summary(report: &Report) -> String {
    let device = report.device.as_deref().unwrap_or("no device");
    let Report {
        held,
        failed,
        skipped,
        ..
    } = report;
    format!("{device}: {held} held, {failed} failed, {skipped} skipped\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_says_what_was_seen_and_what_to_do() {
        let mut seen = Seen::default();
        seen.note("worst", 0.5);
        seen.note("list", vec![7; 100]);
        let step = Step {
            number: 3,
            name: "sums are right".to_owned(),
            outcome: Outcome::Failed,
            seconds: 1.25,
            seen,
            why: Some("one\ntwo".to_owned()),
            to_do: Some("replace it".to_owned()),
        };
        let text = line(&step);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], " 3  FAILED   sums are right  (1.2 s)");
        assert_eq!(lines[1], "      worst: 0.5");
        assert!(lines[2].ends_with(" .."), "{text}");
        assert_eq!(
            lines[3..],
            ["      why: one", "        two", "      to do: replace it"]
        );
    }
}
