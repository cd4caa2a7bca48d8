//! Where it stands what a model should answer, in this order: beside what was compiled for it, in its own
//! directory, in the state directory; and where it is made if it stands nowhere.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::{Backend, Delivery, Engine, Event, Finish, Limits, Scored};
use model::{Decoder, Weights};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::answers::{self, TOKENS};
use super::record::{self, Record, RecordError};
use super::{Golden, SelfTestError, Tolerance};
use crate::config::{Precision, SelfTest};
use crate::drivers;
use crate::source::{FileVersion, Found};
use crate::state::StateDir;
use crate::text::Tokenizer;

/// The file in a model's own directory.
const OF_MODEL: &str = "appliance-golden.json";

/// The directory of answers, in the state directory and beside compiled modules.
pub(crate) const DIRECTORY: &str = "golden";

/// The largest checkpoint that the processor answers for while an instance starts: a few seconds, and
/// memory that the host has. Larger ones are answered for by `appliance prepare`.
const BESIDE_A_DEVICE: u64 = 4 << 30;

/// Answers kept in the state directory; the oldest go.
const KEPT: usize = 32;

/// A model that is being opened.
#[derive(Clone, Copy, Debug)]
pub struct Opened<'a> {
    /// What it is to pass.
    pub self_test: SelfTest,
    /// The number format of its weights.
    pub precision: Precision,
    /// Where it came from.
    pub source: &'a str,
    /// Its files.
    pub found: &'a Found,
    /// What is in it.
    pub decoder: &'a Decoder,
    /// Its weights.
    pub weights: &'a Weights,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Where modules compiled ahead are.
    pub artifacts: Option<&'a Path>,
    /// Where what must outlive a restart is kept.
    pub(crate) state: Option<&'a StateDir>,
    /// The most tokens of a sequence, as it is served.
    pub context: u32,
    /// Whether it runs on the processor, which answers for all other devices.
    pub on_processor: bool,
}

/// What the model is held to. Not for the event loop: it may have the processor compute for a while.
pub fn find(opened: &Opened<'_>) -> Golden {
    if opened.self_test == SelfTest::Token {
        return Golden::AnyToken;
    }
    let prepared = (opened.artifacts).and_then(|store| {
        Some(
            store
                .join(DIRECTORY)
                .join(key_of_prepared(opened.source, opened.found).ok()?),
        )
    });
    let of_model = opened.found.directory().join(OF_MODEL);
    for file in prepared.iter().chain([&of_model]) {
        if let Some(golden) = known(opened, file) {
            return golden;
        }
    }
    let Some(state) = opened.state else {
        return Golden::Unknown(
            "there is no state directory to keep answers in: set state-dir".to_owned(),
        );
    };
    let directory = state.file(DIRECTORY);
    let file = match key_of_state(opened) {
        Ok(key) => directory.join(key),
        Err(error) => return Golden::Unknown(format!("its files cannot be looked at: {error}")),
    };
    if let Some(golden) = known(opened, &file) {
        return golden;
    }
    forget_oldest(&directory);
    match opened.on_processor {
        true => Golden::FromNowOn(file),
        false => computed(opened, &file),
    }
}

/// The answers in `file`, if it is there and of this model.
fn known(opened: &Opened<'_>, file: &Path) -> Option<Golden> {
    match Record::read(file) {
        Ok(record) if record.is_for(opened.context, opened.decoder.vocabulary) => {
            Some(Golden::Known {
                record,
                tolerance: Tolerance::of(opened.precision),
                file: file.to_owned(),
            })
        }
        Ok(_) => {
            tracing::warn!(file = %file.display(), "these golden answers are of another model: not used");
            None
        }
        Err(RecordError::File(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(file = %file.display(), "golden answers that cannot be used: {error}");
            None
        }
    }
}

/// Answers of the processor, made now for the device that serves and kept in `file`.
fn computed(opened: &Opened<'_>, file: &Path) -> Golden {
    let files = opened.found.versions().unwrap_or_default();
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    if bytes > BESIDE_A_DEVICE {
        return Golden::Unknown(format!(
            "with {} GiB the model is too large to be computed on the processor while an instance starts; \
             appliance prepare makes the answers ahead, or copy {OF_MODEL} into its directory",
            bytes >> 30
        ));
    }
    match answered(opened.decoder, opened.weights, opened.tokenizer) {
        Ok(record) => {
            if let Err(error) = record.keep(file) {
                tracing::warn!(file = %file.display(), "golden answers are made again at each start: {error}");
            }
            Golden::Known {
                record,
                tolerance: Tolerance::of(opened.precision),
                file: file.to_owned(),
            }
        }
        Err(error) => Golden::Unknown(format!("the processor cannot compute them: {error}")),
    }
}

/// Has the processor answer for a model that was compiled ahead, and keeps the answers in the directory of
/// what was compiled. Returns the file.
///
/// # Errors
/// It cannot be computed here, or not kept.
pub fn keep_prepared(
    artifacts: &Path,
    source: &str,
    found: &Found,
    decoder: &Decoder,
) -> anyhow::Result<PathBuf> {
    let file = artifacts
        .join(DIRECTORY)
        .join(key_of_prepared(source, found)?);
    let weights = found.weights(decoder)?;
    let tokenizer = Tokenizer::open(found.directory())?;
    answered(decoder, &weights, &tokenizer)?.keep(&file)?;
    Ok(file)
}

/// What the processor answers.
fn answered(
    decoder: &Decoder,
    weights: &Weights,
    tokenizer: &Tokenizer,
) -> Result<Record, SelfTestError> {
    let silent = |why: String| SelfTestError::Silent(why);
    let ids = record::encoded(tokenizer)?;
    let prompts = record::beginnings(&ids, decoder.context);
    let tokens = prompts
        .iter()
        .map(|prompt| prompt.len() as u64 + u64::from(TOKENS));
    let (rows, longest) = (prompts.len() as u64, tokens.max().unwrap_or(1));
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let limits = Limits {
        queued_requests: small(rows),
        queued_tokens: rows * longest,
        running: small(rows),
        context: small(longest),
        step_tokens: 512,
        step_time: Duration::from_secs(60),
    };
    let demand = engine::Demand {
        context: limits.context,
        rows: limits.running,
        step_tokens: limits.step_tokens,
        kv_tokens: Some(2 * rows * longest + 1024),
        cores: None,
    };
    let device =
        drivers::reference(decoder, weights, &demand).map_err(|error| silent(error.to_string()))?;
    let answers = run(device, limits, &prompts).map_err(silent)?;
    Ok(Record::made("the processor", ids, prompts, &answers))
}

/// Turns an engine on `device` until it has answered.
fn run(
    device: Box<dyn Backend>,
    limits: Limits,
    prompts: &[Vec<u32>],
) -> Result<Vec<Vec<Scored>>, String> {
    let mut engine = Engine::new(device, limits, [0; 16]);
    let mut requests = Vec::new();
    for prompt in prompts {
        let admitted = engine.admit(answers::request(prompt, TOKENS, Some(1)), Duration::ZERO);
        requests.push(admitted.map_err(|refused| refused.to_string())?);
    }
    let mut answers = vec![Vec::new(); prompts.len()];
    let (mut open, mut out) = (prompts.len(), Vec::new());
    let mut now = Duration::ZERO;
    while open > 0 {
        // Time is nothing that anybody waits for here.
        now += Duration::from_millis(1);
        engine
            .turn(now, &mut out)
            .map_err(|lost| lost.to_string())?;
        for Delivery { request, event, .. } in out.drain(..) {
            let which = requests.iter().position(|other| *other == request);
            match event {
                Event::Token(scored) => answers[which.unwrap_or_default()].push(scored),
                Event::Finished(Finish::Failed(why)) => return Err(why),
                Event::Finished(_) => open -= 1,
                Event::Started { .. } | Event::Prompt(_) => {}
            }
        }
    }
    Ok(answers)
}

/// The name of the file of answers beside compiled modules: of the model by where it came from and how its
/// files look, so that answers are found again on another machine.
///
/// # Errors
/// Its files cannot be read.
pub fn key_of_prepared(source: &str, found: &Found) -> io::Result<String> {
    let files = found.versions()?.into_iter();
    let files: Vec<_> = files
        .map(|FileVersion { name, size, .. }| (name, size))
        .collect();
    Ok(name_of(&json!([source, config(found)?, files])))
}

/// The name of the file of answers in the state directory. Files that were written anew count as another
/// model: whoever changes a model on purpose writes its files.
fn key_of_state(opened: &Opened<'_>) -> io::Result<String> {
    let precision = match opened.on_processor {
        true => opened.precision.name(),
        false => "device",
    };
    let files = opened.found.versions()?.into_iter();
    let files: Vec<_> = files
        .map(
            |FileVersion {
                 name,
                 size,
                 version,
             }| (name, size, version),
        )
        .collect();
    Ok(name_of(&json!([
        opened.source,
        precision,
        config(opened.found)?,
        files
    ])))
}

/// A digest of what is in the model.
fn config(found: &Found) -> io::Result<String> {
    let config = fs::read(found.directory().join("config.json"))?;
    Ok(hexadecimal(&Sha256::digest(config)))
}

fn name_of(what: &serde_json::Value) -> String {
    let digest = hexadecimal(&Sha256::digest(what.to_string()));
    format!("{}.json", &digest[..32])
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// Leaves room for one more file in `directory`.
fn forget_oldest(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((fs::metadata(&path).ok()?.modified().ok()?, path))
        })
        .collect();
    files.sort();
    let surplus = files.len().saturating_sub(KEPT - 1);
    for (_, path) in files.into_iter().take(surplus) {
        // Whoever cannot remove a file here cannot write one either, and says so then.
        fs::remove_file(path).ok();
    }
}
