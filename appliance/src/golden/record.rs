//! Prompts and what a model answers to them, as they are kept.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use engine::Scored;
use serde::{Deserialize, Serialize};

use super::SelfTestError;
use super::answers::TOKENS;
use super::compare::Mismatch;
use crate::served::Served;
use crate::text::Tokenizer;

/// Of the file's form. Another one is not read.
const FORMAT: u32 = 1;

/// The largest file that is read: somebody else may have written it.
const MOST_BYTES: u64 = 1 << 20;

/// What the prompts are the beginnings of: as a text goes on, so should a model.
pub(super) const PASSAGE: &str = "\
The lighthouse keeper climbed the stairs every evening at six o'clock, as his father and his grandfather \
had done before him. He counted the steps aloud: one, two, three, four, five, six, seven, eight, nine, \
ten. At the top he cleaned the glass, lit the lamp, and wrote the date and the weather into a large book. \
In 1897 a storm broke two of the windows; in 1903 there was snow in May. \"If the light goes out,\" he \
used to say to the children of the village, \"the ships will not know where the land begins.\" One night \
in November the wind came from the north, and the sea was higher than anybody could remember. He wrote: \
wind 11, rain, visibility poor. Then he put down the pen, because he heard somebody knocking at the door.";

/// How many tokens the prompts have: what fits a small bucket of a device, and what needs a large one or
/// several steps.
const LENGTHS: [usize; 4] = [4, 19, 70, 150];

/// Prompts and answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// Who answered.
    pub made_by: String,
    /// A text and the tokens that it is to the model; empty where the prompts are from elsewhere.
    #[serde(default)]
    text: String,
    #[serde(default)]
    ids: Vec<u32>,
    cases: Vec<Case>,
}

/// A prompt and its answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Case {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens of the answer.
    pub tokens: Vec<u32>,
    /// The log-probability of each.
    pub logprobs: Vec<f32>,
}

impl Case {
    /// What was answered to `prompt`.
    pub(super) fn of(prompt: Vec<u32>, answer: &[Scored]) -> Self {
        let logprobs = answer
            .iter()
            .map(|scored| scored.logprob.unwrap_or(f32::NAN));
        Self {
            prompt,
            tokens: answer.iter().map(|scored| scored.token.0).collect(),
            logprobs: logprobs.collect(),
        }
    }

    fn is_whole(&self) -> bool {
        !self.prompt.is_empty()
            && !self.tokens.is_empty()
            && self.tokens.len() == self.logprobs.len()
            && self.logprobs.iter().all(|logprob| logprob.is_finite())
    }
}

/// Why a file of answers is no use.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read or written.
    #[error("{0}")]
    File(#[from] io::Error),
    /// It is no such file.
    #[error("it is not what a file of golden answers looks like: {0}")]
    Form(String),
}

impl Record {
    /// What the model `served` answered to `prompts`.
    pub(super) fn of(
        served: &Served,
        prompts: Vec<Vec<u32>>,
        answers: &[Vec<Scored>],
    ) -> Result<Self, SelfTestError> {
        let ids = encoded(&served.tokenizer)?;
        Ok(Self::made("this device itself", ids, prompts, answers))
    }

    /// What was answered to `prompts`, which begin as `ids` do, the tokens of the passage.
    pub(super) fn made(
        by: &str,
        ids: Vec<u32>,
        prompts: Vec<Vec<u32>>,
        answers: &[Vec<Scored>],
    ) -> Self {
        let cases = prompts.into_iter().zip(answers);
        Self {
            format: FORMAT,
            made_by: format!("{by} (appliance {})", env!("CARGO_PKG_VERSION")),
            text: PASSAGE.to_owned(),
            ids,
            cases: cases
                .map(|(prompt, answer)| Case::of(prompt, answer))
                .collect(),
        }
    }

    /// Reads a file that [`keep`](Self::keep) or somebody else has written.
    ///
    /// # Errors
    /// It is not there, or is no such file.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let form = |why: &str| RecordError::Form(why.to_owned());
        if fs::metadata(path)?.len() > MOST_BYTES {
            return Err(form("it is too large"));
        }
        let record: Self =
            serde_json::from_slice(&fs::read(path)?).map_err(|error| form(&error.to_string()))?;
        if record.format != FORMAT {
            return Err(form(&format!(
                "its format is {}, not {FORMAT}",
                record.format
            )));
        }
        match !record.cases.is_empty() && record.cases.iter().all(Case::is_whole) {
            true => Ok(record),
            false => Err(form("a prompt or an answer is missing")),
        }
    }

    /// Writes it where it is there whole or not at all.
    ///
    /// # Errors
    /// There is no room, or no permission.
    pub fn keep(&self, path: &Path) -> Result<(), RecordError> {
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let text =
            serde_json::to_vec(self).map_err(|error| RecordError::Form(error.to_string()))?;
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let mut file = fs::File::create(&part)?;
        file.write_all(&text)?;
        file.sync_all()?;
        Ok(fs::rename(part, path)?)
    }

    /// The cases that fit a context of so many tokens.
    pub(super) fn fitting(&self, context: u32) -> impl Iterator<Item = &Case> {
        let fits = move |case: &&Case| case.prompt.len() + case.tokens.len() <= context as usize;
        self.cases.iter().filter(fits)
    }

    /// Whether any case fits a context of so many tokens, in a vocabulary of that size.
    pub(super) fn is_for(&self, context: u32, vocabulary: u32) -> bool {
        let known = |id: &u32| *id < vocabulary;
        let mut ids = self
            .cases
            .iter()
            .flat_map(|case| case.prompt.iter().chain(&case.tokens));
        ids.all(known) && self.fitting(context).next().is_some()
    }

    /// Checks that a text is still the tokens that it was.
    pub(super) fn check_tokenizer(&self, tokenizer: &Tokenizer) -> Result<(), Mismatch> {
        let ids = tokenizer.encode(&self.text, true).unwrap_or_default();
        match self.text.is_empty() || ids.iter().map(|id| id.0).eq(self.ids.iter().copied()) {
            true => Ok(()),
            false => Err(Mismatch::Tokenizer),
        }
    }
}

/// The prompts for a model that is served.
pub(super) fn prompts(served: &Served) -> Result<Vec<Vec<u32>>, SelfTestError> {
    Ok(beginnings(&encoded(&served.tokenizer)?, served.context))
}

/// The first `count` tokens of the passage, or fewer where a model does not know more.
pub(super) fn first_tokens(served: &Served, count: usize) -> Result<Vec<u32>, SelfTestError> {
    let ids = encoded(&served.tokenizer)?;
    Ok(ids.into_iter().take(count).collect())
}

/// The passage as tokens; never none.
pub(super) fn encoded(tokenizer: &Tokenizer) -> Result<Vec<u32>, SelfTestError> {
    let ids = tokenizer.encode(PASSAGE, true);
    let ids = ids.map_err(|error| SelfTestError::Silent(error.to_string()))?;
    match ids.is_empty() {
        true => Ok(vec![0]),
        false => Ok(ids.into_iter().map(|id| id.0).collect()),
    }
}

/// Beginnings of `ids` that leave room for an answer in a context of so many tokens.
pub(super) fn beginnings(ids: &[u32], context: u32) -> Vec<Vec<u32>> {
    let room = context.saturating_sub(TOKENS).max(1) as usize;
    let mut lengths = LENGTHS
        .map(|length| length.min(room).min(ids.len()))
        .to_vec();
    lengths.dedup();
    lengths
        .into_iter()
        .map(|length| ids[..length].to_vec())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let case = |length: usize| Case {
            prompt: vec![1; length],
            tokens: vec![2, 3],
            logprobs: vec![-0.5, -0.25],
        };
        Record {
            format: FORMAT,
            made_by: "a test".to_owned(),
            text: String::new(),
            ids: Vec::new(),
            cases: vec![case(4), case(40)],
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("golden/one.json");
        record().keep(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_record_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.json");
        let check = |text: &str, why: &str| {
            fs::write(&path, text).unwrap();
            let error = Record::read(&path).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        check("", "golden answers");
        check(r#"{"format":2,"made_by":"","cases":[]}"#, "format is 2");
        check(r#"{"format":1,"made_by":"","cases":[]}"#, "missing");
        let short =
            r#"{"format":1,"made_by":"","cases":[{"prompt":[1],"tokens":[1,2],"logprobs":[-1]}]}"#;
        check(short, "missing");
        check(&" ".repeat(2 << 20), "too large");
    }

    #[test]
    fn only_cases_that_fit_are_run() {
        let record = record();
        assert_eq!(record.fitting(20).count(), 1);
        assert_eq!(record.fitting(42).count(), 2);
        assert!(record.is_for(6, 4));
        assert!(!record.is_for(5, 4));
        assert!(!record.is_for(6, 3), "a token of another model");
    }

    #[test]
    fn prompts_leave_room_for_an_answer() {
        let ids: Vec<u32> = (0..200).collect();
        let lengths =
            |context| -> Vec<_> { beginnings(&ids, context).iter().map(Vec::len).collect() };
        assert_eq!(lengths(2048), [4, 19, 70, 150]);
        assert_eq!(lengths(64), [4, 19, 56]);
        assert_eq!(lengths(4), [1]);
        assert_eq!(beginnings(&[0], 2048), [[0]]);
    }
}
