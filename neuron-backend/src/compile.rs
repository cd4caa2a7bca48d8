//! Runs `neuronx-cc`: which arguments, how many at once, and what becomes of each.
//!
//! The compiler takes minutes and tens of gigabytes for a module, litters its working directory,
//! leaves children behind and heeds no gentle signal for minutes (neuron.md 2.1, 2.8). So each job
//! has a directory and a process group of its own, both of which go with it; as many run at once
//! as their memory is estimated to fit; and one that was killed for want of memory is tried again
//! alone.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use graph::{Form, KvFormat, Target, WeightFormat};

use crate::neff::{Header, HeaderError};

mod job;
mod memory;

pub(crate) use job::kill_all_in;
use job::{Ended, Job};
pub use memory::available as available_memory;
use memory::estimate;

/// The compiler's name on PATH.
pub const PROGRAM: &str = "neuronx-cc";

/// What a job reads, in its working directory.
const HLO: &str = "graph.hlo";

/// What it writes there.
const NEFF: &str = "graph.neff";

/// Where it writes more than it says.
const LOG: &str = "log-neuron-cc.txt";

/// How often jobs are looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// How long `neuronx-cc --version` may take: it loads a large Python package, from a cold disk at
/// worst.
const VERSION_LIMIT: Duration = Duration::from_secs(300);

/// How the compiler is run.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// The program: a path, or a name that is looked for on PATH.
    pub program: OsString,
    /// Arguments beyond our own, each for the modules that it names.
    pub extra: Vec<Extra>,
    /// How many to run at once; `None` runs as many as memory and cores allow.
    pub jobs: Option<u32>,
    /// Bytes that all jobs may take together; `None` is what the system has available.
    pub memory: Option<u64>,
    /// How long a job may take.
    pub time_limit: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            program: PROGRAM.into(),
            extra: Vec::new(),
            jobs: None,
            memory: None,
            // An order above what modules of our sizes take (neuron.md 2.8).
            time_limit: Duration::from_secs(2 * 60 * 60),
        }
    }
}

/// Arguments for some modules. One that sets what ours set takes its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extra {
    /// What the names of the modules begin with: `decode-64x` or a whole name; empty for all.
    pub modules: String,
    /// The arguments.
    pub arguments: Vec<String>,
}

/// Why a module was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The compiler is not there.
    #[error(
        "cannot run {program}: {why}; install AWS's package neuronx-cc (any x86-64 host will \
         do), or name it by --compiler PATH"
    )]
    Program {
        /// The program.
        program: String,
        /// Why not.
        why: io::Error,
    },
    /// The compiler does not say which it is.
    #[error("{program} --version gives no version but {said:?}: is it neuronx-cc?")]
    Version {
        /// The program.
        program: String,
        /// What it says instead.
        said: String,
    },
    /// The working directory cannot be used.
    #[error("cannot work in {}: {why}; name a directory with room by --artifacts", path.display())]
    Work {
        /// The directory.
        path: PathBuf,
        /// Why not.
        why: io::Error,
    },
    /// The compiler ended with an error of its own.
    #[error(
        "the compiler failed on {module} ({ended}). The last that it wrote:\n{tail}\nOther flags \
         may get past it: --extra-args '{module}=-O1'"
    )]
    Failed {
        /// The module.
        module: String,
        /// How it ended.
        ended: String,
        /// The last lines that it wrote.
        tail: String,
    },
    /// Memory did not suffice, with no other job beside it.
    #[error(
        "the compiler ran out of memory on {module}, alone on this host: it held {} of {} at \
         the most. Prepare on a host with {} or more, make the bucket smaller, or try \
         --extra-args '{module}=-O1'",
        gib(*peak), gib(*available), gib(*needed)
    )]
    Memory {
        /// The module.
        module: String,
        /// The most it was seen to hold, in bytes.
        peak: u64,
        /// What there was for it.
        available: u64,
        /// What to give it.
        needed: u64,
    },
    /// It took too long.
    #[error(
        "the compiler was not done with {module} after {} s. The last that it wrote:\n{tail}\n\
         Give it longer by --time-limit, or try --extra-args '{module}=-O1'",
        limit.as_secs()
    )]
    Time {
        /// The module.
        module: String,
        /// What it may take.
        limit: Duration,
        /// The last lines that it wrote.
        tail: String,
    },
    /// It said that all is well and wrote no NEFF.
    #[error(
        "the compiler ended well on {module} but wrote no NEFF that can be loaded: {why}. The last that it wrote:\n{tail}"
    )]
    Neff {
        /// The module.
        module: String,
        /// What is wrong with the file.
        why: HeaderError,
        /// The last lines that it wrote.
        tail: String,
    },
    /// The run was to stop.
    #[error("stopped before all modules were compiled; the same command goes on from here")]
    Stopped,
}

/// `14.0 GiB`.
pub(crate) fn gib(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let gib = bytes as f64 / f64::from(1 << 30);
    format!("{gib:.1} GiB")
}

/// The arguments that a module is compiled with, in its working directory.
pub(crate) fn arguments(
    name: &str,
    target: Target,
    lnc: u32,
    form: &Form,
    extra: &[Extra],
) -> Vec<String> {
    let facts = target.facts();
    let is_fp8 = form.weights == WeightFormat::Fp8 || form.kv == KvFormat::Fp8;
    let mut ours = vec![
        "--model-type=transformer",
        "--auto-cast=none",
        "-O2",
        "--verbose=35",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect::<Vec<_>>();
    // Where cores cannot be joined, the flag itself is refused (NCC_EARG001).
    if facts.logical.len() > 1 {
        ours.push(format!("--lnc={lnc}"));
    }
    if is_fp8 && facts.fp8_flag {
        let flag = "--experimental-unsafe-fp8e4m3fn-as-fp8e4m3";
        ours.push(format!("--internal-hlo2tensorizer-options={flag}"));
    }
    for argument in extra
        .iter()
        .filter(|extra| name.starts_with(&extra.modules))
        .flat_map(|extra| &extra.arguments)
    {
        ours.retain(|other| subject(other) != subject(argument));
        ours.push(argument.clone());
    }
    let fixed = [
        "compile",
        HLO,
        "--framework",
        "XLA",
        "--target",
        facts.name,
        "--output",
        NEFF,
        "--logfile",
        LOG,
    ];
    fixed.into_iter().map(str::to_owned).chain(ours).collect()
}

/// What an argument sets: `-O` for `-O2`, else what stands before `=`.
fn subject(argument: &str) -> &str {
    match argument.strip_prefix("-O") {
        Some(_) => "-O",
        None => argument.split('=').next().unwrap_or(argument),
    }
}

/// The version of `program`, by asking it; `work` is a directory that may be written.
///
/// # Errors
/// It cannot be run, or says none.
pub(crate) fn version(
    program: &OsStr,
    work: &Path,
    stop: &AtomicBool,
) -> Result<String, CompileError> {
    let name = || program.to_string_lossy().into_owned();
    let failed = |why| CompileError::Program {
        program: name(),
        why,
    };
    let directory = own_directory(work)?;
    let mut job =
        Job::start(program, &["--version".to_owned()], directory, VERSION_LIMIT).map_err(failed)?;
    while job.ended().map_err(failed)?.is_none() {
        if stop.load(Ordering::Relaxed) {
            return Err(CompileError::Stopped);
        }
        std::thread::sleep(GLANCE);
    }
    let said = job.said();
    let version = said.split_whitespace().find(|word| is_version(word));
    version
        .map(str::to_owned)
        .ok_or_else(|| CompileError::Version {
            program: name(),
            said: said.trim().to_owned(),
        })
}

/// `2.27.5334.0+abc`: the first word that the compiler says of itself begins so, before it goes on
/// to the versions of Python and others.
fn is_version(word: &str) -> bool {
    let begins = |part: &str| part.starts_with(|letter: char| letter.is_ascii_digit());
    word.split('.').count() >= 3 && word.split('.').all(begins)
}

/// A new directory in `work`.
fn own_directory(work: &Path) -> Result<PathBuf, CompileError> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let path = work.join(format!("{}-{number}", std::process::id()));
    match fs::create_dir(&path) {
        Ok(()) => Ok(path),
        Err(why) => Err(CompileError::Work { path, why }),
    }
}

/// A module to compile.
#[derive(Debug)]
pub(crate) struct Task {
    /// Its name, for words.
    pub(crate) name: String,
    /// Its bytes.
    pub(crate) hlo: Vec<u8>,
    /// What [`arguments`] gives.
    pub(crate) arguments: Vec<String>,
}

/// What becomes of a task, told as it happens.
#[derive(Debug)]
pub(crate) enum News {
    /// It runs.
    Started,
    /// It will run once more.
    Again {
        /// Why.
        why: &'static str,
    },
    /// It is compiled.
    Done(Product),
    /// It is not.
    Failed(CompileError),
}

/// A compiled module. Its file goes with it unless it is moved away.
#[derive(Debug)]
pub(crate) struct Product {
    /// The NEFF.
    pub(crate) neff: PathBuf,
    /// How long it took.
    pub(crate) elapsed: Duration,
    /// The most memory that its processes were seen to hold at once, in bytes.
    pub(crate) peak: u64,
    _job: Job,
}

/// Compiles all tasks, in directories within `work`. `tell` hears what becomes of each, by its
/// place among them; when it breaks, the rest is given up. One that fails does not keep the others
/// from being compiled: what is done once need not be done again.
///
/// # Errors
/// No job can be started at all, or `stop` was set. What ran is then killed.
pub(crate) fn compile(
    settings: &Settings,
    work: &Path,
    tasks: &[&Task],
    stop: &AtomicBool,
    tell: &mut dyn FnMut(usize, News) -> ControlFlow<()>,
) -> Result<(), CompileError> {
    let mut farm = Farm::new(settings, work, tasks);
    while !farm.is_done() {
        if stop.load(Ordering::Relaxed) {
            return Err(CompileError::Stopped);
        }
        let mut news = farm.start_what_fits()?;
        news.extend(farm.what_ended()?);
        for (task, news) in news {
            if tell(task, news).is_break() {
                return Ok(());
            }
        }
        std::thread::sleep(GLANCE);
    }
    Ok(())
}

/// All jobs: those that run and those to come.
struct Farm<'a> {
    settings: &'a Settings,
    work: &'a Path,
    tasks: &'a [&'a Task],
    /// Bytes that the jobs that run may be expected to take.
    budget: u64,
    /// How many may run.
    most: usize,
    queue: VecDeque<Attempt>,
    running: Vec<Running>,
    /// When memory was last looked at.
    looked: Option<Instant>,
}

/// A task's turn.
#[derive(Clone, Copy)]
struct Attempt {
    task: usize,
    /// Whether it failed before for no known reason.
    again: bool,
    /// Whether it ran out of memory before: nothing runs beside it.
    alone: bool,
}

struct Running {
    attempt: Attempt,
    job: Job,
    peak: u64,
}

impl<'a> Farm<'a> {
    fn new(settings: &'a Settings, work: &'a Path, tasks: &'a [&'a Task]) -> Self {
        let memory = settings.memory.or_else(available_memory);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (budget, most) = match settings.jobs {
            // Whoever says how many knows better than an estimate.
            Some(jobs) => (u64::MAX, jobs.max(1) as usize),
            None => (memory.unwrap_or(0), cores),
        };
        let attempt = |task| Attempt {
            task,
            again: false,
            alone: false,
        };
        Self {
            settings,
            work,
            tasks,
            budget,
            most,
            queue: (0..tasks.len()).map(attempt).collect(),
            running: Vec::new(),
            looked: None,
        }
    }

    fn is_done(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty()
    }

    /// Starts as many as may run now.
    fn start_what_fits(&mut self) -> Result<Vec<(usize, News)>, CompileError> {
        let mut news = Vec::new();
        while let Some(place) = self.next() {
            let Some(attempt) = self.queue.remove(place) else {
                break;
            };
            let task = &self.tasks[attempt.task];
            let directory = own_directory(self.work)?;
            let path = directory.join(HLO);
            fs::write(&path, &task.hlo).map_err(|why| CompileError::Work { path, why })?;
            let Settings {
                program,
                time_limit,
                ..
            } = self.settings;
            let job = Job::start(program, &task.arguments, directory, *time_limit);
            let job = job.map_err(|why| CompileError::Program {
                program: program.to_string_lossy().into_owned(),
                why,
            })?;
            self.running.push(Running {
                attempt,
                job,
                peak: 0,
            });
            news.push((attempt.task, News::Started));
        }
        Ok(news)
    }

    /// The place in the queue of the first that may start now.
    fn next(&self) -> Option<usize> {
        if self.running.is_empty() {
            // One always runs, whatever is expected of it; those that must be alone come last.
            let together = self.queue.iter().position(|attempt| !attempt.alone);
            return together.or((!self.queue.is_empty()).then_some(0));
        }
        let expected = |attempt: &Attempt| estimate(self.tasks[attempt.task].hlo.len() as u64);
        let used: u64 = self.running.iter().map(|job| expected(&job.attempt)).sum();
        let room = self.budget.saturating_sub(used);
        let is_alone = self.running.iter().any(|job| job.attempt.alone);
        if is_alone || self.running.len() >= self.most {
            return None;
        }
        self.queue
            .iter()
            .position(|attempt| !attempt.alone && expected(attempt) <= room)
    }

    /// What became of those that are over.
    fn what_ended(&mut self) -> Result<Vec<(usize, News)>, CompileError> {
        self.look_at_memory();
        let mut news = Vec::new();
        for mut running in std::mem::take(&mut self.running) {
            let ended = running.job.ended().map_err(|why| CompileError::Work {
                path: running.job.directory().to_owned(),
                why,
            })?;
            match ended {
                None => self.running.push(running),
                Some(ended) => {
                    let task = running.attempt.task;
                    news.push((task, self.judge(running, ended)));
                }
            }
        }
        Ok(news)
    }

    /// Looks at what each job holds: about as often as costs nothing to speak of.
    fn look_at_memory(&mut self) {
        const PAUSE: Duration = Duration::from_millis(250);
        if self.looked.is_some_and(|looked| looked.elapsed() < PAUSE) {
            return;
        }
        let held = memory::by_group();
        for running in &mut self.running {
            let now = held.get(&running.job.group()).copied();
            running.peak = running.peak.max(now.unwrap_or(0));
        }
        self.looked = Some(Instant::now());
    }

    /// What follows from how a job ended; it may have to run again.
    fn judge(&mut self, running: Running, ended: Ended) -> News {
        let Running { attempt, job, peak } = running;
        let module = self.tasks[attempt.task].name.clone();
        let Ended::Status(status) = ended else {
            return News::Failed(CompileError::Time {
                module,
                limit: self.settings.time_limit,
                tail: job.tail(LOG),
            });
        };
        match Verdict::of(status, job.lacked_memory(LOG)) {
            Verdict::Well => finished(module, job, peak),
            Verdict::OutOfMemory if attempt.alone => {
                let expected = estimate(self.tasks[attempt.task].hlo.len() as u64);
                News::Failed(out_of_memory(module, peak, expected))
            }
            Verdict::OutOfMemory => {
                self.queue.push_back(Attempt {
                    alone: true,
                    ..attempt
                });
                let why = "it ran out of memory; it will run alone once the others are done";
                News::Again { why }
            }
            Verdict::Broke if !attempt.again => {
                self.queue.push_back(Attempt {
                    again: true,
                    ..attempt
                });
                let why = "the compiler ended with code 70, which does not always come again";
                News::Again { why }
            }
            Verdict::Broke | Verdict::Refused => News::Failed(CompileError::Failed {
                module,
                ended: job::told(status),
                tail: job.tail(LOG),
            }),
        }
    }
}

/// What the end of a job means (neuron.md 2.1).
enum Verdict {
    Well,
    OutOfMemory,
    /// Code 70: an error of the compiler's own, which in one of 64 runs is none of the module's.
    Broke,
    Refused,
}

impl Verdict {
    fn of(status: ExitStatus, lacked_memory: bool) -> Self {
        match (status.code(), status.signal()) {
            (Some(0), _) => Self::Well,
            // Of itself: the kernel's doing, or a shell's or Python's word for it.
            (_, Some(9)) | (Some(137 | 247), _) => Self::OutOfMemory,
            (Some(70), _) if lacked_memory => Self::OutOfMemory,
            (Some(70), _) => Self::Broke,
            _ => Self::Refused,
        }
    }
}

/// A job that ended well, if it left a NEFF.
fn finished(module: String, job: Job, peak: u64) -> News {
    let neff = job.directory().join(NEFF);
    match Header::read(&neff) {
        Ok(_) => News::Done(Product {
            neff,
            elapsed: job.elapsed(),
            peak,
            _job: job,
        }),
        Err(why) => News::Failed(CompileError::Neff {
            module,
            why,
            tail: job.tail(LOG),
        }),
    }
}

/// What to do about memory: whatever was there was too little, and so was what was expected.
fn out_of_memory(module: String, peak: u64, expected: u64) -> CompileError {
    let available = available_memory().unwrap_or(0);
    CompileError::Memory {
        module,
        peak,
        available,
        needed: expected.max(2 * available.max(peak)),
    }
}

#[cfg(test)]
mod tests;
