//! `neuronx-cc compile`: a module in, a NEFF out, and what it leaves lying about.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use graph::proto::HloModule;
use nrt::compiled::{Compiled, Maker, Source};
use nrt::neff::{Info, Neff, Reservation};
use pjrt::{Plugin, Value};

use crate::REFUSED;
use crate::arguments::Arguments;
use crate::misbehave::{Mischief, Word};

/// The environment's name of XLA's plugin for the CPU.
const PLUGIN: &str = "APPLIANCE_XLA_CPU";

/// Where the major version of the format stands in a NEFF's header (neuron.md 2.7).
const MAJOR: usize = 24;

/// Compiles as `arguments` say. What goes wrong is told on standard error and in the log.
pub(crate) fn compile(arguments: &Arguments, mischief: &Mischief, version: &str) -> ExitCode {
    let mut log = Log::open(&arguments.log);
    log.write(&format!("INFO: Neuron Compiler version {version}"));
    let code = match produce(arguments, mischief, version, &mut log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed::Told(code)) => code,
        Err(Failed::Because(why)) => {
            log.tell(&format!("ERROR: {why}"));
            ExitCode::from(REFUSED)
        }
    };
    if code == ExitCode::SUCCESS {
        log.tell("\nCompiler status PASS");
    } else {
        log.tell("\nCompiler status ERROR");
    }
    code
}

/// Why there is no NEFF.
enum Failed {
    /// All is said.
    Told(ExitCode),
    /// This is to be said.
    Because(String),
}

impl<E: std::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Because(error.to_string())
    }
}

fn produce(
    arguments: &Arguments,
    mischief: &Mischief,
    version: &str,
    log: &mut Log,
) -> Result<(), Failed> {
    let bytes = fs::read(&arguments.module).map_err(|error| {
        Failed::Because(format!("[Errno 2] {}: {error}", arguments.module.display()))
    })?;
    let module = HloModule::from_bytes(&bytes)
        .map_err(|error| Failed::Because(format!("no HloModuleProto: {error}")))?;
    litter(&module.name)?;
    let words = mischief.of(&module.name);
    let mut held = Vec::new();
    for word in &words {
        if let Some(code) = word.happen(&mut |line| log.tell(line), &mut held) {
            return Err(Failed::Told(code));
        }
    }
    let neff = neff_of(&module, arguments, version, log)?;
    if let Some(neff) = words.iter().try_fold(neff, |neff, word| spoil(neff, word)) {
        fs::write(&arguments.output, neff)?;
    }
    Ok(())
}

/// The NEFF of a module that passes everything.
fn neff_of(
    module: &HloModule,
    arguments: &Arguments,
    version: &str,
    log: &mut Log,
) -> Result<Vec<u8>, Failed> {
    graph::check(module, arguments.compile)?;
    let ranks = ranks(module)?;
    let compiled = match arguments.verify {
        true => verify(module, ranks, log)?,
        false => None,
    };
    let info = Info {
        name: arguments.output.display().to_string(),
        compiler: version.to_owned(),
        target: arguments.compile.target.name().to_owned(),
        lnc: arguments.compile.logical,
        ranks,
        reservation: Reservation::guess(module),
    };
    let peak = info.reservation.scratchpad;
    log.write(&format!("INFO: Peak scratchpad usage: local {peak} bytes"));
    Ok(Neff::write_with(module, &info, compiled.as_ref())?)
}

/// What of a NEFF is written after all.
fn spoil(mut neff: Vec<u8>, word: &Word) -> Option<Vec<u8>> {
    match word {
        Word::Nothing => return None,
        Word::Garbage => neff = b"this is no NEFF\n".repeat(200),
        Word::Truncated => neff.truncate(neff.len() / 2),
        Word::Newer => neff[MAJOR] = u8::MAX,
        _ => {}
    }
    Some(neff)
}

/// Ranks that run the module together: those that its collectives name, or one.
fn ranks(module: &HloModule) -> Result<u32, Failed> {
    let instructions = module
        .computations
        .iter()
        .flat_map(|computation| &computation.instructions);
    let groups = instructions.flat_map(|instruction| &instruction.replica_groups);
    let ranks: BTreeSet<_> = groups.flat_map(|group| &group.replica_ids).collect();
    Ok(u32::try_from(ranks.len())?.max(1))
}

/// Lets XLA look the module over, which it does before it compiles for the CPU. What it makes of the
/// module is for those who load the NEFF on this machine.
fn verify(module: &HloModule, ranks: u32, log: &mut Log) -> Result<Option<Compiled>, Failed> {
    let Some(path) = std::env::var_os(PLUGIN).map(PathBuf::from) else {
        log.tell(&format!(
            "WARNING: XLA is not asked about the module: {PLUGIN} is not set"
        ));
        return Ok(None);
    };
    let plugin = Plugin::open(&path)?;
    let client = plugin.client(&[("cpu_device_count", Value::Integer(ranks.into()))])?;
    let source = Source::of(module, ranks, client.devices())?;
    let program = source
        .compile(&client)
        .map_err(|error| Failed::Because(format!("[NCC_EVRF064] HLO verifier: {error}")))?;
    Ok(Some(Compiled {
        key: source.key(&Maker::of(&path)?),
        program: program.serialize()?,
    }))
}

/// What the real one leaves in its working directory.
fn litter(module: &str) -> std::io::Result<()> {
    let folder = format!("neuronxcc-{}", std::process::id());
    fs::create_dir_all(&folder)?;
    fs::write(Path::new(&folder).join("command.txt"), module)?;
    fs::write("global_metric_store.json", "{}\n")
}

/// The file that it tells more than it says.
struct Log(Option<fs::File>);

impl Log {
    /// Without a log where none can be written.
    fn open(path: &Path) -> Self {
        let file = fs::OpenOptions::new().create(true).append(true).open(path);
        Self(file.ok())
    }

    fn write(&mut self, line: &str) {
        if let Some(file) = &mut self.0 {
            writeln!(file, "{line}").ok();
        }
    }

    /// Writes it, and says it on standard error.
    fn tell(&mut self, line: &str) {
        self.write(line);
        eprintln!("{line}");
    }
}
