//! The golden self-test: fixed prompts whose answers are known are run through the path that requests
//! take, each time a model is opened, before it serves. What computes something else than the model
//! says so here, and not to users.
//!
//! What a model should answer comes from where [`find`] looks: whoever knows best, first. Where nobody
//! knows, what can be seen without knowing is checked, and the log says that nothing is proven.

mod answers;
mod compare;
mod places;
mod record;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::answers::TOKENS;
pub use self::compare::{Mismatch, Tolerance};
pub(crate) use self::places::DIRECTORY;
pub use self::places::{Opened, find, keep_prepared, key_of_prepared};
pub use self::record::{Case, Record, RecordError};

use crate::served::Served;

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a model is held to.
#[derive(Clone, Debug)]
pub enum Golden {
    /// These answers.
    Known {
        /// What it should answer.
        record: Record,
        /// How far the device may be from it.
        tolerance: Tolerance,
        /// The file they came from.
        file: PathBuf,
    },
    /// Answers that this device gives now, and that it is held to from the next start on.
    FromNowOn(PathBuf),
    /// Nobody knows them, and why.
    Unknown(String),
    /// One token, whatever it is: for devices that compute nothing.
    AnyToken,
}

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// It answers something else than it should.
    #[error(
        "{mismatch}. What this device computes is not this model. The answers are from {}: if the model \
         was changed on purpose, remove that file; else start again, and replace the instance if that does \
         not help",
        file.display()
    )]
    Wrong {
        /// Where.
        mismatch: Mismatch,
        /// Where the right answer stands.
        file: PathBuf,
    },
    /// It cannot be right, whatever the model is.
    #[error(
        "{0}: what this device computes is no model; replace the instance if another start does not help"
    )]
    Senseless(String),
    /// It does not answer.
    #[error("{0}")]
    Silent(String),
}

/// Has the model answer, and holds it to what it should say.
///
/// # Errors
/// It is not to be served.
pub async fn self_test(served: &Served, golden: &Golden) -> Result<(), SelfTestError> {
    let start = Instant::now();
    let tested = tokio::time::timeout(PATIENCE, tested(served, golden)).await;
    let silent = || SelfTestError::Silent(format!("no answer within {} s", PATIENCE.as_secs()));
    let proof = tested.map_err(|_| silent())??;
    let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(took_ms, "self-test passed: {proof}");
    Ok(())
}

/// What was proven, in words.
async fn tested(served: &Served, golden: &Golden) -> Result<String, SelfTestError> {
    match golden {
        Golden::Known {
            record,
            tolerance,
            file,
        } => {
            let wrong = |mismatch| SelfTestError::Wrong {
                mismatch,
                file: file.clone(),
            };
            record.check_tokenizer(&served.tokenizer).map_err(wrong)?;
            let cases: Vec<_> = record.fitting(served.context).collect();
            let prompts: Vec<_> = cases.iter().map(|case| case.prompt.as_slice()).collect();
            let given = answers::all(served, &prompts, TOKENS).await?;
            let compared = compare::all(&cases, &given, tolerance).map_err(wrong)?;
            let (prompts, made_by, file) = (cases.len(), &record.made_by, file.display());
            Ok(format!(
                "{compared} tokens after {prompts} prompts are those of {made_by} ({file})"
            ))
        }
        Golden::FromNowOn(file) => {
            let record = sane(served).await?;
            let kept = record.keep(file);
            Ok(match kept {
                Ok(()) => format!(
                    "answers make sense, are the same twice, and are kept in {}: later starts are held to \
                     them. That they are the model's is not proven by that",
                    file.display()
                ),
                Err(error) => format!(
                    "answers make sense and are the same twice; that they are the model's is not proven, and \
                     later starts are not held to them: {error}"
                ),
            })
        }
        Golden::Unknown(why) => {
            sane(served).await?;
            tracing::warn!(
                "nobody knows what this model should answer, so that it does is not proven: {why}"
            );
            Ok("answers make sense and are the same twice".to_owned())
        }
        Golden::AnyToken => {
            any_token(served).await?;
            Ok("a token came".to_owned())
        }
    }
}

/// Checks what can be seen without knowing the answers: that they are numbers, not always the same, and
/// the same when asked again.
async fn sane(served: &Served) -> Result<Record, SelfTestError> {
    let prompts = record::prompts(served)?;
    let borrowed: Vec<_> = prompts.iter().map(Vec::as_slice).collect();
    let first = answers::all(served, &borrowed, TOKENS).await?;
    compare::sensible(&first).map_err(SelfTestError::Senseless)?;
    let second = answers::all(served, &borrowed, TOKENS).await?;
    compare::repeated(&first, &second).map_err(SelfTestError::Senseless)?;
    Record::of(served, prompts, &first)
}

/// A token that the device works, through the path that requests take.
///
/// # Errors
/// None came.
pub async fn any_token(served: &Served) -> Result<(), SelfTestError> {
    let prompt = record::first_tokens(served, 1)?;
    answers::all(served, &[&prompt], 1).await.map(drop)
}
