//! `appliance prepare`: compiles a model ahead of time, so that a later `serve` need not.
//!
//! Beside `drivers.rs` this verb and `graph` know a device by name: what is compiled ahead of time is
//! compiled for one.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use engine::Demand;
use indicatif::{ProgressBar, ProgressStyle};
use model::Decoder;
use neuron_backend::artifact::{Identity, Store};
use neuron_backend::compile::{Extra, PROGRAM, Settings};
use neuron_backend::plan::Wish;
use neuron_backend::{Activations, Event, KvFormat, Request, Target, WeightFormat};

use crate::artifacts::Artifacts;
use crate::config::{Backend, ByteSize, KvPrecision, LoadFlags, Precision, Resolved, Value as _};
use crate::golden;
use crate::source::{Found, Means};

const EXAMPLES: &str = "\
Examples:
  appliance prepare --backend neuron --model hf://Qwen/Qwen3-8B --target trn2 --tp 4 \\
      --max-context 8192 --artifacts ./compiled
  appliance prepare --backend neuron --model s3://bucket/models/qwen3 --target trn2 --tp 4 \\
      --artifacts s3://bucket/compiled
  appliance prepare --backend neuron --model ./model --target inf2 --tp 2 --dtype fp8 --plan
  appliance prepare --backend neuron --model ./model --target trn1 --tp 2 \\
      --decode-rows 1,8,32 --extra-args 'decode-32x=-O1' --jobs 2

It runs AWS's neuronx-cc, on any x86-64 host: no device is needed. What is compiled already is not
compiled again, so a run that broke off goes on where it stopped when it is started again.
Settings that are not given as flags come from the environment and the configuration file, as for
serve.";

/// Compiles a model ahead of time, for devices that need it, and prints how to serve it.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES, args_override_self = true)]
pub struct Prepare {
    #[command(flatten)]
    wanted: Wanted,
    /// Show what would be compiled and what memory it takes, then stop
    #[arg(long)]
    plan: bool,
    /// The compiler: a path, or a name that is looked for on PATH
    #[arg(long, value_name = "PROGRAM", default_value = PROGRAM)]
    compiler: OsString,
    /// More arguments for the compiler: for all modules, or as MODULES=ARGS for those whose names begin so;
    /// they take the place of ours that set the same; may be repeated
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true, value_parser = extra)]
    extra_args: Vec<Extra>,
    /// How many compilers run at once [default: as many as memory and cores allow]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// Memory that all compilers may take together [default: what is available]
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    compiler_memory: Option<u64>,
    /// How long the compiler may take for one module
    #[arg(long, value_name = "DURATION", default_value = "2h", value_parser = duration)]
    time_limit: Duration,
}

/// Which modules: the flags that `prepare` and `graph` share. Those that say how a model is served
/// are the settings of `serve`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Wanted {
    #[command(flatten)]
    load: LoadFlags,
    /// The devices to compile for: inf2, trn1, trn2 or trn3
    #[arg(long, value_name = "inf2|trn1|trn2|trn3")]
    target: Target,
    /// Cores that compute together, each with a part of the model
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    tp: u32,
    /// Physical cores that make a logical one [default: 1 on inf2 and trn1, 2 on trn2 and trn3]
    #[arg(long, value_name = "NUMBER")]
    lnc: Option<u32>,
    /// What activations are held in: bf16, or f32, which is slow and for comparing
    #[arg(long, value_name = "FORMAT", default_value = "bf16", value_parser = activations)]
    activations: Activations,
    /// The most likely tokens that the device gives for each, to sample from: 1 to 256 [default: 64]
    #[arg(long, value_name = "NUMBER")]
    candidates: Option<u32>,
    /// Tokens of a KV page: a power of two [default: 32 or more, so that a page is worth moving]
    #[arg(long, value_name = "NUMBER")]
    page_tokens: Option<u32>,
    /// KV pages [default: as kv-tokens says, else what all rows of full length fill or memory holds]
    #[arg(long, value_name = "NUMBER")]
    kv_pages: Option<u32>,
    /// Rows of decode modules, such as 1,8,32 [default: by fours up to max-running]
    #[arg(long, value_name = "NUMBERS")]
    decode_rows: Option<Sizes>,
    /// Tokens of prefill modules, such as 128,1024 [default: 128, 512 and 2048, as far as step-tokens]
    #[arg(long, value_name = "NUMBERS")]
    prefill_tokens: Option<Sizes>,
    /// KV pages that modules read, such as 32,256 [default: by fours down from those of max-context]
    #[arg(long, value_name = "NUMBERS")]
    context_pages: Option<Sizes>,
    /// Compile a module that gives embeddings too
    #[arg(long)]
    embeddings: bool,
}

/// Sizes of modules, written `1,8,32`.
#[derive(Clone, Debug)]
struct Sizes(Vec<u32>);

impl std::str::FromStr for Sizes {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let sizes: Result<Vec<u32>, _> = text.split(',').map(str::parse).collect();
        sizes
            .map(Self)
            .or(Err("it is a list of numbers, such as 1,8,32"))
    }
}

/// A model and what is wanted of it.
#[derive(Debug)]
pub(crate) struct Prospect {
    pub(crate) settings: Resolved,
    pub(crate) found: Found,
    pub(crate) decoder: Decoder,
    pub(crate) wish: Wish,
}

impl Prepare {
    /// Compiles, with a progress bar on a terminal.
    pub fn run(&self) -> anyhow::Result<()> {
        let prospect = self.wanted.prospect()?;
        let Prospect {
            settings,
            found,
            decoder,
            wish,
        } = prospect;
        if self.plan {
            print!("{}", neuron_backend::survey(&decoder, &wish)?);
            return Ok(());
        }
        let artifacts = artifacts(&settings)?;
        let source = settings.source()?.to_string();
        let directory = found.directory();
        let identity = Identity::of(source.clone(), directory)
            .with_context(|| format!("cannot read the model in {}", directory.display()))?;
        let stop = stop_on_signal()?;
        let request = Request {
            decoder: &decoder,
            identity,
            command: self.wanted.command(&source, &wish, &artifacts),
            wish,
            settings: self.settings(),
            store: Store::new(artifacts.directory()?),
            stop: &stop,
        };
        let mut progress = Progress::new()?;
        let bundle = neuron_backend::prepare(&request, &mut |event| progress.show(&event))?;
        progress.bar.finish_and_clear();
        println!("bundle: {}", bundle.directory().display());
        match golden::keep_prepared(request.store.root(), &source, &found, &decoder) {
            Ok(file) => {
                artifacts.keep_golden(&file)?;
                println!("golden answers for the self-test: {}", file.display());
            }
            Err(error) => eprintln!(
                "no golden answers for the self-test ({error:#}): what the device computes will not be proven; \
                 prepare on a host with memory for the whole model to have them"
            ),
        }
        artifacts.keep(&bundle)?;
        println!(
            "to serve it: appliance serve --model {} --backend neuron --artifacts {}",
            word(&source),
            word(&artifacts.to_string())
        );
        Ok(())
    }

    fn settings(&self) -> Settings {
        Settings {
            program: self.compiler.clone(),
            extra: self.extra_args.clone(),
            jobs: self.jobs,
            memory: self.compiler_memory,
            time_limit: self.time_limit,
        }
    }
}

impl Wanted {
    /// Finds the model and says what is wanted of it.
    pub(crate) fn prospect(&self) -> anyhow::Result<Prospect> {
        let settings = self.load.resolved()?;
        if !matches!(settings.backend, Backend::Auto | Backend::Neuron) {
            let name = settings.backend.name();
            bail!("--backend {name}: only the neuron backend is prepared for ahead of time");
        }
        let found = settings.source()?.find(&Means::of(&settings))?;
        let decoder = Decoder::open(found.directory())?;
        let wish = self.wish(&settings, &decoder)?;
        Ok(Prospect {
            settings,
            found,
            decoder,
            wish,
        })
    }

    fn wish(&self, settings: &Resolved, decoder: &Decoder) -> anyhow::Result<Wish> {
        let weights = match settings.dtype {
            Precision::Auto | Precision::Bf16 => WeightFormat::Bf16,
            Precision::Fp8 => WeightFormat::Fp8,
            Precision::Int8 => WeightFormat::Int8,
            Precision::F32 => bail!("--dtype f32: the neuron backend has bf16, fp8 and int8"),
        };
        let most = decoder.context;
        let context = settings.max_context.map_or(most, |context| context.get());
        if context > most {
            bail!("--max-context {context}: the model has been made for {most} positions");
        }
        Ok(Wish {
            target: self.target,
            lnc: self.lnc,
            ranks: self.tp,
            weights,
            activations: self.activations,
            kv: match settings.kv_dtype {
                KvPrecision::Auto | KvPrecision::Bf16 => KvFormat::Bf16,
                KvPrecision::Fp8 => KvFormat::Fp8,
                KvPrecision::F32 => KvFormat::F32,
            },
            demand: Demand {
                context,
                rows: settings.max_running.get(),
                step_tokens: settings.step_tokens.get(),
                kv_tokens: settings.kv_tokens,
                cores: None,
            },
            candidates: self.candidates,
            page_tokens: self.page_tokens,
            kv_pages: self.kv_pages,
            decode_rows: self.decode_rows.clone().map(|Sizes(sizes)| sizes),
            prefill_tokens: self.prefill_tokens.clone().map(|Sizes(sizes)| sizes),
            context_pages: self.context_pages.clone().map(|Sizes(sizes)| sizes),
            embeddings: self.embeddings,
        })
    }

    /// The command line that asks for the same, wherever its settings came from.
    fn command(&self, source: &str, wish: &Wish, artifacts: &Artifacts) -> String {
        let number = |name: &str, value: Option<u64>| {
            value.map_or(String::new(), |value| format!(" --{name} {value}"))
        };
        let sizes = |name: &str, sizes: &Option<Vec<u32>>| {
            let listed = |sizes: &Vec<u32>| sizes.iter().map(u32::to_string).collect::<Vec<_>>();
            let text = |sizes| format!(" --{name} {}", listed(sizes).join(","));
            sizes.as_ref().map_or(String::new(), text)
        };
        let parts = [
            format!(
                "appliance prepare --backend neuron --model {} --target {}",
                word(source),
                wish.target
            ),
            number("tp", Some(wish.ranks.into())),
            number("lnc", wish.lnc.map(u64::from)),
            format!(" --dtype {}", weight_word(wish.weights)),
            format!(" --kv-dtype {}", wish.kv.name()),
            match wish.activations {
                Activations::Bf16 => String::new(),
                Activations::F32 => " --activations f32".to_owned(),
            },
            number("max-context", Some(wish.demand.context.into())),
            number("max-running", Some(wish.demand.rows.into())),
            number("step-tokens", Some(wish.demand.step_tokens.into())),
            number("kv-tokens", wish.demand.kv_tokens),
            number("kv-pages", wish.kv_pages.map(u64::from)),
            number("page-tokens", wish.page_tokens.map(u64::from)),
            number("candidates", wish.candidates.map(u64::from)),
            sizes("decode-rows", &wish.decode_rows),
            sizes("prefill-tokens", &wish.prefill_tokens),
            sizes("context-pages", &wish.context_pages),
            if wish.embeddings { " --embeddings" } else { "" }.to_owned(),
            format!(" --artifacts {}", word(&artifacts.to_string())),
        ];
        parts.concat()
    }
}

/// Where what is compiled is kept: `artifacts`, else a directory of the user's.
fn artifacts(settings: &Resolved) -> anyhow::Result<Artifacts> {
    match &settings.artifacts {
        Some(artifacts) => Ok(artifacts.clone()),
        None => Ok(Artifacts::of_user()?),
    }
}

/// What is set once SIGINT or SIGTERM has come.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};

    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _within = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            stopped.store(true, Ordering::Relaxed);
        })?;
    Ok(stop)
}

/// What is shown while compilers run: a bar on a terminal, and lines that stay.
struct Progress {
    bar: ProgressBar,
    running: Vec<String>,
}

impl Progress {
    fn new() -> anyhow::Result<Self> {
        let style = "compiling {bar:30} {pos} of {len} modules, {elapsed}  {wide_msg}";
        let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template(style)?);
        bar.enable_steady_tick(Duration::from_secs(1));
        Ok(Self {
            bar,
            running: Vec::new(),
        })
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Planned(summary) => {
                self.bar.suspend(|| println!("{summary}"));
                self.bar.set_length(summary.modules.len() as u64);
            }
            Event::Waiting => self.say("waiting for another appliance that prepares here"),
            Event::Compiler(version) => self.say(&format!("neuronx-cc {version}")),
            Event::Kept(module) => self.over(module, "was compiled before"),
            Event::Started(module) => {
                self.running.push((*module).to_owned());
                self.bar.set_message(self.running.join(", "));
            }
            Event::Again { module, why } => {
                self.ended(module);
                self.say(&format!("{module}: {why}"));
            }
            Event::Compiled { module, compiled } => {
                let (seconds, mib) = (compiled.seconds, compiled.peak_memory >> 20);
                let kib = compiled.neff_bytes >> 10;
                self.over(
                    module,
                    &format!("compiled in {seconds:.1} s with {mib} MiB to a NEFF of {kib} KiB"),
                );
            }
            Event::Failed { module, error } => {
                self.ended(module);
                self.say(&format!("{module}: {error}"));
            }
        }
    }

    /// A module is there.
    fn over(&mut self, module: &str, how: &str) {
        self.ended(module);
        self.bar.inc(1);
        self.say(&format!("{module}: {how}"));
    }

    fn ended(&mut self, module: &str) {
        self.running.retain(|running| running != module);
        self.bar.set_message(self.running.join(", "));
    }

    /// A line that stays, above the bar or where there is none.
    fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }
}

/// `text` as a shell takes it for one word.
fn word(text: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:@,=+~".contains(letter);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

fn weight_word(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::Bf16 => "bf16",
        WeightFormat::Fp8 => "fp8",
        WeightFormat::Int8 => "int8",
    }
}

fn activations(text: &str) -> Result<Activations, &'static str> {
    match text {
        "bf16" => Ok(Activations::Bf16),
        "f32" => Ok(Activations::F32),
        _ => Err("it is bf16 or f32"),
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    Duration::parse(text).ok_or_else(|| format!("it is {}", Duration::FORM.allowed))
}

fn byte_size(text: &str) -> Result<u64, String> {
    let ByteSize(bytes) =
        ByteSize::parse(text).ok_or_else(|| format!("it is {}", ByteSize::FORM.allowed))?;
    Ok(bytes)
}

/// `MODULES=ARGS`, or ARGS for all.
fn extra(text: &str) -> Result<Extra, &'static str> {
    let (modules, arguments) = match text.split_once('=') {
        Some((modules, arguments)) if !modules.starts_with('-') => (modules, arguments),
        _ => ("", text),
    };
    let arguments = words(arguments).ok_or("a quote is not closed")?;
    if !arguments
        .first()
        .is_some_and(|first| first.starts_with('-'))
    {
        return Err(
            "they are ARGS or MODULES=ARGS, and arguments begin with -, as in decode-64x=-O1",
        );
    }
    Ok(Extra {
        modules: modules.to_owned(),
        arguments,
    })
}

/// Splits as a shell does, with quotes of both kinds; `None` if one is not closed.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    let (mut quote, mut within) = (None, false);
    for letter in text.chars() {
        if quote == Some(letter) {
            quote = None;
        } else if quote.is_none() && letter.is_whitespace() {
            within = false;
        } else {
            if !std::mem::replace(&mut within, true) {
                words.push(String::new());
            }
            match (quote, letter) {
                (None, '\'' | '"') => quote = Some(letter),
                _ => words.last_mut()?.push(letter),
            }
        }
    }
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_arguments_are_for_all_modules_or_for_some() {
        let check = |text: &str, modules: &str, arguments: &[&str]| {
            let extra = extra(text).unwrap();
            assert_eq!(
                (extra.modules.as_str(), &extra.arguments[..]),
                (
                    modules,
                    &arguments
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()[..]
                )
            );
        };
        check("-O1", "", &["-O1"]);
        check("--auto-cast=none  -O1", "", &["--auto-cast=none", "-O1"]);
        check("decode-64x=-O1", "decode-64x", &["-O1"]);
        check(
            "prefill-='--internal-hlo2tensorizer-options=--a --b' -O2",
            "prefill-",
            &["--internal-hlo2tensorizer-options=--a --b", "-O2"],
        );
        check("-x=\"a b\"''", "", &["-x=a b"]);
        assert!(extra("'-O1").is_err());
        assert!(extra("decode").is_err());
        assert!(extra("").is_err());
    }

    #[test]
    fn a_word_is_one_word_for_a_shell() {
        assert_eq!(word("hf://a/b@c"), "hf://a/b@c");
        assert_eq!(word("my model"), "'my model'");
        assert_eq!(word("it's"), r"'it'\''s'");
    }
}
