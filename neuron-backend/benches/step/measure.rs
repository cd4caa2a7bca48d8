//! One process: opens the model on the stand-in and runs steps.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::model::{Decoder, Weights};
use engine::{Backend, Candidates, PageId, Row, Step, TokenId, Want};
use neuron_backend::artifact::Store;
use neuron_backend::{Neuron, OpenError, Opening, open};
use serde_json::Value;

use crate::model::{self, CONTEXTS, PAGE_TOKENS, ROWS};
use crate::{Device, Measured};

/// Steps before those that count, and steps that do.
const WARM: usize = 100;
const STEPS: usize = 2000;

/// The time from here to there, in microseconds since 1970.
#[derive(Clone, Copy)]
struct Span(u64, u64);

/// Opens the model on so many ranks, and writes what was measured to standard output.
pub(crate) fn measure(directory: &Path, ranks: &OsStr) -> Result<(), Box<dyn Error>> {
    let ranks = ranks.to_str().unwrap_or_default().parse()?;
    let decoder = Decoder::open(directory)?;
    let weights = Weights::open(directory, &decoder)?;
    let opened = open(&Opening {
        source: "the bench",
        decoder: &decoder,
        weights: &weights,
        store: &Store::new(model::bundles(directory, ranks)),
        format: None,
        kv: None,
        demand: &model::demand(),
        replicas: 1,
        patience: Duration::from_secs(120),
    });
    let mut neuron = match opened {
        Ok(mut replicas) => replicas.remove(0),
        Err(error) => return Err(again(&error)),
    };
    let mut all = Vec::new();
    for context in CONTEXTS {
        all.push(steps(&mut neuron, context)?);
    }
    drop(neuron);
    let journal = match env::var_os("FAKE_NRT_JOURNAL") {
        Some(path) => fs::read_to_string(path)?,
        None => String::new(),
    };
    let calls = Calls::of(&journal);
    let measured = all.into_iter().map(|(measured, alone, in_turn)| Measured {
        device: calls.device(alone, in_turn),
        ..measured
    });
    println!("{}", serde_json::to_string(&measured.collect::<Vec<_>>())?);
    Ok(())
}

/// Starts this program again if it is the environment that is wrong.
fn again(error: &OpenError) -> Box<dyn Error> {
    let (Some(variables), Ok(this)) = (error.environment(), env::current_exe()) else {
        return error.to_string().into();
    };
    let mut command = Command::new(this);
    command.args(env::args_os().skip(1));
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.exec().into()
}

/// Rows that decode at the end of a context, each on pages of its own.
struct Rows {
    tokens: Vec<TokenId>,
    pages: Vec<PageId>,
    rows: Vec<Row>,
}

impl Rows {
    fn at_the_end_of(context: u32) -> Self {
        let pages = context / PAGE_TOKENS;
        let row = |row| Row {
            tokens: row..row + 1,
            pages: row * pages..(row + 1) * pages,
            position: context - 1,
            mask: None,
            want: Want::Candidates { width: 64 },
        };
        Self {
            tokens: (0..ROWS).map(TokenId).collect(),
            pages: (0..ROWS * pages).map(PageId).collect(),
            rows: (0..ROWS).map(row).collect(),
        }
    }

    fn step(&self) -> Step<'_> {
        Step {
            copies: &[],
            tokens: &self.tokens,
            pages: &self.pages,
            masks: &[],
            rows: &self.rows,
        }
    }
}

/// Runs steps alone, and then in turn.
fn steps(neuron: &mut Neuron, context: u32) -> Result<(Measured, Span, Span), Box<dyn Error>> {
    let rows = Rows::at_the_end_of(context);
    let mut out = Candidates::default();
    let (mut submits, mut wholes) = (Vec::new(), Vec::new());
    let mut start = now();
    for step in 0..WARM + STEPS {
        if step == WARM {
            submits.clear();
            wholes.clear();
            start = now();
        }
        let begun = Instant::now();
        let ticket = neuron.submit(&rows.step())?;
        submits.push(begun.elapsed());
        neuron.collect(ticket, &mut out)?;
        wholes.push(begun.elapsed());
    }
    let alone = Span(start, now());
    if out.len() != ROWS as usize {
        return Err(format!("{} answers for {ROWS} rows", out.len()).into());
    }
    let mut flying = neuron.submit(&rows.step())?;
    let mut steps = Vec::new();
    let mut begun = (now(), Processor::now()?);
    let mut landed = Instant::now();
    for step in 0..WARM + STEPS {
        if step == WARM {
            steps.clear();
            begun = (now(), Processor::now()?);
            landed = Instant::now();
        }
        let next = neuron.submit(&rows.step())?;
        neuron.collect(std::mem::replace(&mut flying, next), &mut out)?;
        steps.push(landed.elapsed());
        landed = Instant::now();
    }
    let (in_turn, used) = (Span(begun.0, now()), Processor::now()?);
    neuron.collect(flying, &mut out)?;
    let a_step = |nanoseconds: u64| nanoseconds as f64 / 1e3 / STEPS as f64;
    let measured = Measured {
        context,
        alone: median(wholes.iter().map(Duration::as_secs_f64)) * 1e6,
        submit: median(submits.iter().map(Duration::as_secs_f64)) * 1e6,
        in_turn: median(steps.iter().map(Duration::as_secs_f64)) * 1e6,
        engine: a_step(used.engine - begun.1.engine),
        ranks: a_step(used.ranks - begun.1.ranks),
        device: None,
    };
    Ok((measured, alone, in_turn))
}

/// Microseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Processor time until now, in nanoseconds.
#[derive(Clone, Copy)]
struct Processor {
    /// Of this thread.
    engine: u64,
    /// Of the threads of all ranks.
    ranks: u64,
}

impl Processor {
    /// Reads it from the kernel (`schedstat`, the first field).
    fn now() -> Result<Self, Box<dyn Error>> {
        let used = |thread: &Path| -> Result<u64, Box<dyn Error>> {
            let stat = fs::read_to_string(thread.join("schedstat"))?;
            let first = stat.split_whitespace().next().unwrap_or_default();
            Ok(first.parse()?)
        };
        let mut ranks = 0;
        for thread in fs::read_dir("/proc/self/task")? {
            let thread = thread?.path();
            if fs::read_to_string(thread.join("comm"))?.starts_with("rank-") {
                ranks += used(&thread)?;
            }
        }
        let engine = used(Path::new("/proc/thread-self"))?;
        Ok(Self { engine, ranks })
    }
}

/// Executions in a journal: when each began and ended, on which core, and how long the device ran.
struct Calls(Vec<(Span, u64, f64)>);

impl Calls {
    fn of(journal: &str) -> Self {
        let call = |line: &str| {
            let call: Value = serde_json::from_str(line).ok()?;
            let number = |name: &str| call.get(name)?.as_u64();
            let (start, took) = (number("start_us")?, number("took_us")?);
            let device = call.get("device_us")?.as_f64()?;
            Some((Span(start, start + took), number("core")?, device))
        };
        Self(journal.lines().filter_map(call).collect())
    }

    fn device(&self, alone: Span, in_turn: Span) -> Option<Device> {
        if self.0.is_empty() {
            return None;
        }
        let within = |span: Span| {
            let calls = self.0.iter();
            calls.filter(move |(call, ..)| call.0 >= span.0 && call.1 <= span.1)
        };
        let device = |span| {
            let first = within(span).filter(|(_, core, _)| *core == 0);
            median(first.map(|(.., device)| *device))
        };
        let mut busy: Vec<_> = within(alone).map(|(call, ..)| *call).collect();
        busy.sort_unstable_by_key(|call| call.0);
        let (mut inside, mut reached) = (0, 0);
        for Span(start, end) in busy {
            inside += end.saturating_sub(start.max(reached));
            reached = reached.max(end);
        }
        let outside = (alone.1 - alone.0).saturating_sub(inside);
        Some(Device {
            alone: device(alone),
            in_turn: device(in_turn),
            outside: outside as f64 / STEPS as f64,
        })
    }
}
