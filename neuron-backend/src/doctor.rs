//! What a real device is asked first: twelve questions, in the order in which everything else depends
//! on them, that no stand-in can answer (neuron.md 7.3).
//!
//! Whatever touches the device runs in a process of its own, started by the caller's word and killed
//! when it takes too long: a call of the runtime that hangs cannot be cancelled, and the next question
//! needs the cores. Such a process is told its check and a plan, and leaves what it found in a file.

mod bench;
mod bundles;
mod checks;
mod neffs;
mod samples;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use bench::Plan;
pub use bench::Seen;
use neffs::{Neffs, Place};

use crate::compile::Settings;
use crate::fault::Advice;
use crate::klog;
use crate::neff::Header;
use crate::probe::{Here, here};
use crate::sysfs::{self, Tree};
use crate::threads;

/// The variable that tells a check where to say that it executes.
const HOLDING: &str = "_APPLIANCE_DOCTOR_HOLDING";

/// How often a process is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// How long cores may stay taken after their process was killed.
const RELEASE: Duration = Duration::from_secs(60);

/// Lines of a process that died that are shown.
const TAIL: usize = 12;

/// What the names of the runtime's tables of a full memory begin with (neuron.md 4.2).
const TABLES: &str = "/tmp/neuron_mem_table";

/// Where the kernel says which driver is loaded.
const DRIVER: &str = "/sys/module/neuron/version";

/// What is to be examined, and how.
#[derive(Debug)]
pub struct Request {
    /// Starts this program for the check of this name: [`answer`] is to be called with what follows.
    pub process: fn(&str, &Path) -> io::Result<Command>,
    /// How modules are compiled.
    pub compiler: Settings,
    /// Where compiled modules are kept; bundles in it are measured.
    pub artifacts: PathBuf,
    /// How many cores to examine; `None` takes all that this process may have.
    pub cores: Option<u32>,
    /// How long the soak takes.
    pub soak: Duration,
    /// How long anything else may take before it counts as hung.
    pub patience: Duration,
}

/// How a step went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is as it should be.
    Held,
    /// It is not.
    Failed,
    /// It could not be asked.
    Skipped,
}

/// A question and its answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Its place in the list, from 1.
    pub number: u32,
    /// What it is about.
    pub name: String,
    /// How it went.
    pub outcome: Outcome,
    /// How long it took.
    pub seconds: f64,
    /// What was seen: values by name.
    pub seen: Seen,
    /// What is wrong, or why it was skipped.
    pub why: Option<String>,
    /// What to do about it.
    pub to_do: Option<String>,
}

/// All questions and answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The version of this program.
    pub version: String,
    /// The device.
    pub device: Option<String>,
    /// Steps that held, failed and were skipped.
    pub held: u32,
    /// Steps that failed.
    pub failed: u32,
    /// Steps that were skipped.
    pub skipped: u32,
    /// One by one.
    pub steps: Vec<Step>,
}

/// A question as it is asked.
struct Question {
    name: &'static str,
    /// Samples that it needs: without them it is skipped.
    needs: &'static [&'static str],
    ask: fn(&mut Examination<'_>, &mut Seen) -> Result<(), Trouble>,
    /// What to do if the answer is no.
    to_do: &'static str,
}

/// Why a question has no good answer.
#[derive(Debug)]
enum Trouble {
    /// The answer is no.
    Wrong(String),
    /// It could not be asked.
    Unasked(String),
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Wrong(why)
    }
}

const QUESTIONS: [Question; 12] = [
    Question {
        name: "the runtime starts and knows the device",
        needs: &[],
        ask: |examination, seen| examination.runtime(seen),
        to_do: "check the driver (modinfo neuron, ls -l /dev/neuron*), that driver and runtime are of \
                one SDK, and that nobody else has the cores (neuron-ls)",
    },
    Question {
        name: "NEFFs list the names and sizes that were compiled",
        needs: &["add"],
        ask: |examination, seen| examination.names(seen),
        to_do: "report the list below: names in a form that is not understood are bound wrongly or not \
                at all",
    },
    Question {
        name: "sums and products are right",
        needs: &["add", "product"],
        ask: |examination, seen| examination.check("arithmetic", seen),
        to_do: "run it again; if it stays, replace the instance; if it stays there, report it with the \
                compiler's version",
    },
    Question {
        name: "tensors are changed in place",
        needs: &["in-place"],
        ask: |examination, seen| examination.check("in-place", seen),
        to_do: "do not serve: the KV cache depends on it. Report it with the versions of compiler and \
                runtime",
    },
    Question {
        name: "pages are gathered and slots scattered, padding included",
        needs: &["pages"],
        ask: |examination, seen| examination.check("pages", seen),
        to_do: "do not serve: the KV cache depends on it. `neuron-explorer capture` on the NEFF named \
                below shows its DMA",
    },
    Question {
        name: "the greatest of 16,384 come in order",
        needs: &["largest-256", "largest-1"],
        ask: |examination, seen| examination.check("largest", seen),
        to_do: "do not serve: candidates depend on it. Report the shapes below",
    },
    Question {
        name: "ranks in one process sum with each other, also from NEFFs that were loaded before",
        needs: &["sum-2"],
        ask: |examination, seen| examination.ranks(seen),
        to_do: "prepare with --tp 1 if the model fits; if two groups in one process failed, serve with \
                --replicas 1. Report it with the runtime's log (NEURON_RT_LOG_LEVEL=INFO)",
    },
    Question {
        name: "FP8 weights are what their codes say",
        needs: &["fp8"],
        ask: |examination, seen| examination.check("fp8", seen),
        to_do: "prepare with --dtype bf16 or int8 instead of fp8",
    },
    Question {
        name: "memory is taken as estimated",
        needs: &[],
        ask: |examination, seen| examination.check("memory", seen),
        to_do: "prepare with fewer KV pages (--kv-pages) than the plan says, and report the numbers",
    },
    Question {
        name: "it recovers from kill -9, a full memory and wrong NEFFs",
        needs: &["add", "product"],
        ask: |examination, seen| examination.recovery(seen),
        to_do: "if cores stay taken, reload the driver (rmmod neuron && modprobe neuron) after a crash",
    },
    Question {
        name: "it computes for a while without an error",
        needs: &["in-place"],
        ask: |examination, seen| examination.soak(seen),
        to_do: "replace the instance if memory errors were counted; else run it again with a longer \
                --soak",
    },
    Question {
        name: "the runtime leaves processors to the server",
        needs: &[],
        ask: |examination, seen| examination.check("threads", seen),
        to_do: "take a larger instance, or fewer cores with --cores",
    },
];

/// What happens, as it happens.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    /// So many modules are being compiled, which takes minutes.
    Compiling(usize),
    /// A step is over.
    Over(&'a Step),
}

/// Examines the device; `tell` hears of each step as it is over.
pub fn examine(request: &Request, tell: &mut dyn FnMut(News<'_>)) -> Report {
    let mut examination = Examination {
        request,
        here: Err("nobody has looked".to_owned()),
        cores: 0..0,
        neffs: Neffs::default(),
        uncompiled: None,
        scratch: Scratch::default(),
    };
    let mut steps: Vec<Step> = Vec::new();
    for (number, question) in (1..).zip(&QUESTIONS) {
        let step = examination.step(number, question, &steps);
        tell(News::Over(&step));
        steps.push(step);
        if number == 1 {
            examination.compile(tell);
        }
    }
    Report::of(examination.here.as_ref().ok().map(device), steps)
}

impl Report {
    /// What these steps on this device come to.
    pub fn of(device: Option<String>, steps: Vec<Step>) -> Self {
        let count = |outcome| {
            let steps = steps.iter().filter(|step| step.outcome == outcome).count();
            u32::try_from(steps).unwrap_or(u32::MAX)
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device,
            held: count(Outcome::Held),
            failed: count(Outcome::Failed),
            skipped: count(Outcome::Skipped),
            steps,
        }
    }
}

fn device(here: &Here) -> String {
    format!("{} of {} logical cores", here.target, here.cores)
}

/// Compiles the modules for a device that need not be here, and gives their files.
///
/// # Errors
/// Which of them the compiler does not take, or why it does not run.
pub fn compile_for(
    target: graph::Target,
    lnc: Option<u32>,
    cores: u32,
    artifacts: &Path,
    compiler: &Settings,
) -> Result<Vec<PathBuf>, String> {
    let place = Place {
        target,
        lnc: lnc.unwrap_or_else(|| target.default_logical()),
        cores,
    };
    let neffs = neffs::make(artifacts, place, compiler, &mut |_| {})?;
    let failed = neffs
        .failed
        .iter()
        .map(|(name, why)| format!("{name}: {why}"));
    match failed.collect::<Vec<_>>() {
        failed if failed.is_empty() => Ok(neffs.paths.into_values().chain(neffs.foreign).collect()),
        failed => Err(failed.join("\n")),
    }
}

/// What a check found, as it leaves it for whoever started it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Finding {
    seen: Seen,
    why: Option<String>,
}

/// Runs the check of this name by the plan in this file, in a process that [`Request::process`]
/// started, and leaves beside the plan what it found.
///
/// # Errors
/// There is no such check or plan, or the finding cannot be written.
pub fn answer(name: &str, plan: &Path) -> Result<(), String> {
    let check = checks::named(name).ok_or_else(|| format!("there is no check {name}"))?;
    let parsed = serde_json::from_slice(&bench::read(plan)?);
    let parsed: Plan = parsed.map_err(|error| format!("{}: {error}", plan.display()))?;
    let mut seen = Seen::default();
    let why = check(&parsed, &mut seen).err();
    let finding = serde_json::to_vec(&Finding { seen, why }).map_err(bench::told)?;
    let path = plan.with_file_name(format!("{name}.json"));
    crate::artifact::write_whole(&path, &finding).map_err(bench::told)
}

/// A directory for what processes say, gone with the examination.
#[derive(Default, Debug)]
struct Scratch(Option<PathBuf>);

impl Scratch {
    fn path(&mut self) -> io::Result<PathBuf> {
        if let Some(path) = &self.0 {
            return Ok(path.clone());
        }
        let path = own_directory(&std::env::temp_dir())?;
        self.0 = Some(path.clone());
        Ok(path)
    }
}

/// A new directory that nobody else can look into or has made before.
fn own_directory(within: &Path) -> io::Result<PathBuf> {
    /// Names that are tried: of processes that had this one's number and were killed.
    const TRIES: u32 = 100;
    let mut made = Err(io::Error::from(io::ErrorKind::AlreadyExists));
    for number in 0..TRIES {
        let name = format!("appliance-doctor-{}-{number}", std::process::id());
        let path = within.join(name);
        made = DirBuilder::new().mode(0o700).create(&path).map(|()| path);
        match &made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            _ => break,
        }
    }
    made
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // What cannot be removed bothers nobody.
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// The examination as it goes on.
struct Examination<'a> {
    request: &'a Request,
    here: Result<Here, String>,
    /// Logical cores of the instance to examine.
    cores: Range<u32>,
    neffs: Neffs,
    /// Why nothing could be compiled.
    uncompiled: Option<String>,
    scratch: Scratch,
}

impl Examination<'_> {
    fn step(&mut self, number: u32, question: &Question, before: &[Step]) -> Step {
        let begun = Instant::now();
        let mut seen = Seen::default();
        let answer = match self.missing(question, before) {
            Some(trouble) => Err(trouble),
            None => (question.ask)(self, &mut seen),
        };
        let (outcome, why, to_do) = match answer {
            Ok(()) => (Outcome::Held, None, None),
            Err(Trouble::Unasked(why)) => (Outcome::Skipped, Some(why), None),
            Err(Trouble::Wrong(why)) => {
                (Outcome::Failed, Some(why), Some(question.to_do.to_owned()))
            }
        };
        Step {
            number,
            name: question.name.to_owned(),
            outcome,
            seconds: (begun.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            seen,
            why,
            to_do,
        }
    }

    /// Why a question cannot be asked, if it cannot. A module that the compiler refuses is an answer.
    fn missing(&self, question: &Question, before: &[Step]) -> Option<Trouble> {
        let first = before.first()?;
        if first.outcome != Outcome::Held {
            let why = "there is no device that works: see step 1".to_owned();
            return Some(Trouble::Unasked(why));
        }
        // With one core there are no ranks, and the question says so itself.
        let is_alone = self.cores.len() < 2;
        let missing = question.needs.iter().find(|name| {
            !(self.neffs.paths.contains_key(**name) || is_alone && **name == "sum-2")
        })?;
        Some(match (self.neffs.failed.get(*missing), &self.uncompiled) {
            (Some(why), _) => Trouble::Wrong(why.clone()),
            (None, Some(why)) => {
                let told = before.iter().find(|step| step.why.as_ref() == Some(why));
                let again = |step: &Step| format!("there are no modules: see step {}", step.number);
                Trouble::Unasked(told.map_or_else(|| why.clone(), again))
            }
            (None, None) => Trouble::Unasked(format!("there is no module {missing}")),
        })
    }

    /// Finds or makes the samples' NEFFs; why one is not there is said by the steps that need it.
    fn compile(&mut self, tell: &mut dyn FnMut(News<'_>)) {
        let Ok(here) = &self.here else { return };
        let place = Place {
            target: here.target,
            lnc: here.lnc,
            cores: self.cores.end - self.cores.start,
        };
        let Request {
            artifacts,
            compiler,
            ..
        } = self.request;
        let mut begin = |count| tell(News::Compiling(count));
        match neffs::make(artifacts, place, compiler, &mut begin) {
            Ok(neffs) => self.neffs = neffs,
            Err(why) => {
                self.uncompiled = Some(format!(
                    "{why}. Or compile the modules where the compiler is, with appliance doctor \
                     --compile-for {} --cores {}, and name their directory here by --artifacts",
                    place.target, place.cores
                ));
            }
        }
    }

    /// The plan for a check.
    fn plan(&self) -> Result<Plan, Trouble> {
        let here = self
            .here
            .as_ref()
            .map_err(|why| Trouble::Unasked(why.clone()))?;
        Ok(Plan {
            target: here.target,
            lnc: here.lnc,
            cores: self.cores.clone(),
            neffs: self.neffs.paths.clone(),
            foreign: self.neffs.foreign.clone(),
            bundles: bundles::in_store(&self.request.artifacts),
            soak: self.request.soak,
            patience: self.request.patience,
        })
    }

    /// Runs a check in a process of its own, and takes over what it has seen.
    fn check(&mut self, name: &str, seen: &mut Seen) -> Result<(), Trouble> {
        self.check_within(name, seen, self.request.patience)
    }

    fn check_within(
        &mut self,
        name: &str,
        seen: &mut Seen,
        limit: Duration,
    ) -> Result<(), Trouble> {
        let mut process = self.start(name, &[])?;
        let ended = process.wait(limit)?;
        process.verdict(ended, limit, seen)
    }

    fn start(&mut self, name: &str, more: &[(&str, OsString)]) -> Result<Process, Trouble> {
        let plan = self.plan()?;
        let directory = self.scratch.path().map_err(bench::told)?;
        let started = || -> io::Result<Process> {
            let path = directory.join("plan.json");
            fs::write(&path, serde_json::to_vec(&plan)?)?;
            let finding = directory.join(format!("{name}.json"));
            if finding.exists() {
                fs::remove_file(&finding)?;
            }
            let said = directory.join(format!("{name}.log"));
            let output = File::create(&said)?;
            let child = (self.request.process)(name, &path)?
                .envs(plan.settings().environment())
                .envs(more.iter().map(|(name, value)| (name, value)))
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output)
                .spawn()?;
            Ok(Process {
                child,
                doing: String::new(),
                finding,
                said,
            })
        };
        started().map_err(|error| Trouble::Wrong(format!("cannot start a process: {error}")))
    }

    /// Step 1: what is here, and that it starts.
    fn runtime(&mut self, seen: &mut Seen) -> Result<(), Trouble> {
        self.here = here();
        let here = self.here.as_ref().map_err(Clone::clone)?;
        self.cores = visible(here, self.request.cores)?;
        seen.note("library", here.library.clone());
        seen.note("runtime", here.version.to_string());
        seen.note("target", here.target.name());
        seen.note("architecture", here.instance.architecture.clone());
        seen.note("revision", here.instance.revision.clone());
        seen.note(
            "family_and_size",
            json!([here.instance.family, here.instance.size]),
        );
        seen.note("logical_cores", here.cores);
        seen.note("physical_cores_of_each", here.lnc);
        seen.note("examined", json!([self.cores.start, self.cores.end - 1]));
        let driver = fs::read_to_string(DRIVER).ok();
        seen.note("driver", driver.as_deref().map(str::trim));
        note_chips(seen);
        let (errors, advice) = checks::kernel_errors(&klog::path());
        seen.note("kernel_errors", json!(errors));
        self.check("runtime", seen)?;
        match advice {
            Advice::ReplaceInstance => Err(Trouble::Wrong(format!(
                "since it was booted the kernel has said that hardware failed ({}): {}",
                errors.join(", "),
                advice.what_to_do()
            ))),
            _ => Ok(()),
        }
    }

    /// Step 2, with what compiled the modules.
    fn names(&mut self, seen: &mut Seen) -> Result<(), Trouble> {
        let first = self.neffs.paths.values().next();
        let header = first.and_then(|path| Header::read(path).ok());
        if let Some(header) = header {
            seen.note("compiler", header.build);
            seen.note("format", json!([header.version.0, header.version.1]));
        }
        seen.note("compiled_now", json!(self.neffs.compiled));
        self.check("names", seen)
    }

    /// Step 7: two ranks, all ranks, each twice so that the second loads what another process loaded before,
    /// and two groups at the same time.
    fn ranks(&mut self, seen: &mut Seen) -> Result<(), Trouble> {
        let cores = self.cores.len();
        if cores < 2 {
            let why = "there is one logical core: nothing to sum with".to_owned();
            return Err(Trouble::Unasked(why));
        }
        let mut asked = vec![("pair", "two ranks"), ("pair", "two ranks, loaded again")];
        if cores > 2 {
            asked.push(("everybody", "all ranks"));
            asked.push(("everybody", "all ranks, loaded again"));
        }
        if cores > 3 {
            asked.push(("two-pairs", "two groups in one process"));
        }
        let mut wrong = Vec::new();
        for (check, what) in asked {
            let mut found = Seen::default();
            if let Err(Trouble::Wrong(why) | Trouble::Unasked(why)) = self.check(check, &mut found)
            {
                found.note("why", why.clone());
                wrong.push(format!("{what}: {why}"));
            }
            seen.note(what, Value::Object(found.0));
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(Trouble::Wrong(wrong.join("; "))),
        }
    }

    /// Step 10: kills a process that computes, takes its cores, and tries what must be refused.
    fn recovery(&mut self, seen: &mut Seen) -> Result<(), Trouble> {
        let holding = self.scratch.path().map_err(|error| error.to_string())?;
        let holding = holding.join("holding");
        let mut process = self.start("hold", &[(HOLDING, holding.clone().into())])?;
        let begun = Instant::now();
        while !holding.exists() {
            if let Some(status) = process.child.try_wait().map_err(bench::told)? {
                let limit = self.request.patience;
                process.verdict(Some(status), limit, seen)?;
                return Err(Trouble::Wrong("it ended without being killed".to_owned()));
            }
            if begun.elapsed() > self.request.patience {
                process.kill()?;
                return Err(Trouble::Wrong("it does not begin to execute".to_owned()));
            }
            std::thread::sleep(GLANCE);
        }
        // Once more, so that it is in the middle of one.
        std::thread::sleep(GLANCE * 5);
        process.kill()?;
        let begun = Instant::now();
        loop {
            let mut found = Seen::default();
            match self.check("runtime", &mut found) {
                Ok(()) => break,
                Err(trouble) if begun.elapsed() > RELEASE => return Err(trouble),
                Err(_) => std::thread::sleep(GLANCE * 10),
            }
        }
        let released = (begun.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        seen.note("seconds_until_it_starts_after_kill", released);
        self.check("refusals", seen)?;
        seen.note("memory_tables", json!(memory_tables()));
        Ok(())
    }

    /// Step 11, which has a time of its own.
    fn soak(&mut self, seen: &mut Seen) -> Result<(), Trouble> {
        let limit = self.request.soak + self.request.patience;
        self.check_within("soak", seen, limit)
    }
}

/// A process that runs a check. It is killed when nobody waits for it any more.
struct Process {
    child: std::process::Child,
    /// What its threads did as it was killed for taking too long.
    doing: String,
    finding: PathBuf,
    said: PathBuf,
}

impl Process {
    /// How it ended; nothing if it had to be killed.
    fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>, Trouble> {
        let begun = Instant::now();
        loop {
            let ended = self.child.try_wait().map_err(bench::told)?;
            if ended.is_some() {
                return Ok(ended);
            }
            if begun.elapsed() > limit {
                self.doing = threads::describe_process(self.child.id());
                self.kill()?;
                return Ok(None);
            }
            std::thread::sleep(GLANCE);
        }
    }

    fn kill(&mut self) -> Result<(), Trouble> {
        self.child.kill().map_err(bench::told)?;
        self.child.wait().map_err(bench::told)?;
        Ok(())
    }

    /// What one that has ended found, if it left word of it.
    fn verdict(
        &self,
        ended: Option<ExitStatus>,
        limit: Duration,
        seen: &mut Seen,
    ) -> Result<(), Trouble> {
        let finding = fs::read(&self.finding).ok();
        let finding = finding.and_then(|bytes| serde_json::from_slice::<Finding>(&bytes).ok());
        let Some(Finding { seen: found, why }) = finding else {
            return Err(Trouble::Wrong(self.epitaph(ended, limit)));
        };
        seen.0.extend(found.0);
        match (why, ended) {
            (Some(why), _) => Err(Trouble::Wrong(why)),
            (None, Some(status)) if status.success() => Ok(()),
            // It found all well, and then the runtime did not let it go.
            (None, ended) => Err(Trouble::Wrong(self.epitaph(ended, limit))),
        }
    }

    /// What can be said of one that left no finding.
    fn epitaph(&self, ended: Option<ExitStatus>, limit: Duration) -> String {
        let ended = match ended {
            Some(status) => format!("the process that asked it died ({status})"),
            None => format!(
                "no answer in {limit:?}; the process that asked it was killed. Its threads: {}",
                self.doing
            ),
        };
        let said = fs::read(&self.said).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        match tail {
            [] => ended,
            tail => format!("{ended}. The last that it wrote:\n{}", tail.join("\n")),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may have ended meanwhile.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The cores to examine: those that the environment shows this process, or the first of them.
fn visible(here: &Here, asked: Option<u32>) -> Result<Range<u32>, String> {
    let shown = std::env::var("NEURON_RT_VISIBLE_CORES").unwrap_or_default();
    let first = shown.split(['-', ',']).next().unwrap_or_default();
    let first = first.trim().parse::<u32>().unwrap_or(0);
    let count = asked.unwrap_or(here.visible);
    match count {
        0 => Err("--cores 0: there is nothing to examine".to_owned()),
        count if count > here.visible => Err(format!(
            "--cores {count}: this process may have {} of the {} logical cores of this instance",
            here.visible, here.cores
        )),
        count => Ok(first..first + count),
    }
}

/// What the driver shows of its chips.
fn note_chips(seen: &mut Seen) {
    let root = sysfs::root();
    let Ok(mut tree) = Tree::open(&root) else {
        seen.note("chips", format!("{} cannot be read", root.display()));
        return;
    };
    let chips = tree.read().chips;
    let chips = chips.into_iter().map(|(number, chip)| {
        json!({
            "device": number, "name": chip.name, "serial": chip.serial, "cores": chip.cores.len(),
            "hardware": chip.hardware,
        })
    });
    seen.note("chips", chips.collect::<Vec<_>>());
}

/// Tables of memory that the runtime left behind.
fn memory_tables() -> Vec<String> {
    let path = Path::new(TABLES);
    let (Some(directory), Some(start)) = (path.parent(), path.file_name()) else {
        return Vec::new();
    };
    let start = start.to_string_lossy();
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let tables = names.filter(|name| name.starts_with(&*start));
    let mut tables: Vec<_> = tables.take(100).collect();
    tables.sort();
    tables
}
