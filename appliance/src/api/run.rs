//! A request under way: one generation for each of its prompts, told as one sequence of pieces.

use engine::{Scored, TokenId};
use futures_util::stream::{self, BoxStream, SelectAll, StreamExt};

use super::error::ApiError;
use super::usage::Usage;
use crate::access::{Bill, Tokens};
use crate::generation::{Ask, Generation, Generator, Piece, Reason};

/// A request under way. Dropping it cancels all of it.
pub(super) struct Run {
    pieces: SelectAll<BoxStream<'static, (u32, Piece)>>,
    /// For each prompt, whether it has begun to run.
    begun: Vec<bool>,
    /// Continuations of each prompt.
    choices: u32,
    /// Continuations that have not ended.
    open: u32,
    /// Nothing that is produced is told or counted.
    muted: bool,
    usage: Usage,
    /// What was taken for it; settled at its end.
    bill: Option<Bill>,
    /// How the continuation that ended last did.
    finish: &'static str,
    /// Whether one ended with an error: then nobody waits for the others.
    failed: bool,
    /// Where its end is logged.
    span: tracing::Span,
}

/// Logs and settles what a request took, whether it came to its end or its client left. What left the queue
/// neither for itself nor for others costs nothing.
impl Drop for Run {
    fn drop(&mut self) {
        self.span.in_scope(|| self.usage.log(self.open));
        if let Some(bill) = self.bill.take() {
            let begun = self.begun.contains(&true);
            let tokens = if begun {
                self.usage.tokens()
            } else {
                Tokens::default()
            };
            let finish = if self.open == 0 || self.failed {
                self.finish
            } else {
                "aborted"
            };
            bill.settle(tokens, finish);
        }
    }
}

/// What happened to one continuation; prompts and their continuations are numbered through.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Part {
    /// The tokens of a prompt after its first, scored.
    Prompt { prompt: u32, scored: Vec<Scored> },
    /// A token was produced.
    Token {
        index: u32,
        text: String,
        scored: Scored,
    },
    /// A continuation ended well.
    End { index: u32, text: String, end: End },
}

/// Why a continuation ended, of the reasons that are no error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The end-of-sequence token.
    Eos,
    /// A stop token of the request.
    Token(TokenId),
    /// A stop string of the request.
    Text(String),
    /// `max_tokens`, or the end of the context.
    Length,
}

/// One continuation, whole.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Output {
    pub(super) text: String,
    pub(super) scored: Vec<Scored>,
    pub(super) end: Option<End>,
}

/// All that came of a request.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Whole {
    /// All continuations, those of the first prompt first.
    pub(super) outputs: Vec<Output>,
    /// For each prompt its scored tokens after the first, if they were asked for.
    pub(super) prompts: Vec<Option<Vec<Scored>>>,
    pub(super) usage: Usage,
}

impl Run {
    /// Has all of `asks` admitted, or none: what was admitted before a refusal is cancelled.
    pub(super) async fn start(
        generator: &Generator,
        asks: Vec<Ask>,
        bill: Bill,
        refused: impl Fn(crate::generation::Refusal) -> ApiError,
    ) -> Result<Self, ApiError> {
        let choices = asks.first().map_or(1, |ask| ask.request.choices);
        let tokens = asks.iter().map(|ask| ask.request.prompt.len() as u64).sum();
        let mut generations = Vec::new();
        for ask in asks {
            let generation = generator.start(ask).await.map_err(&refused)?;
            generations.push(pieces(generation));
        }
        let mut run = Self::of(generations, choices, tokens);
        run.bill = Some(bill);
        Ok(run)
    }

    /// A run of one generation for each prompt; all prompts together have `tokens`.
    pub(super) fn of(
        generations: Vec<BoxStream<'static, Piece>>,
        choices: u32,
        tokens: u64,
    ) -> Self {
        let prompts = generations.len();
        let numbered = |(prompt, pieces): (u32, BoxStream<'static, Piece>)| {
            pieces.map(move |piece| (prompt, piece)).boxed()
        };
        Self {
            pieces: (0..).zip(generations).map(numbered).collect(),
            begun: vec![false; prompts],
            choices,
            open: choices.saturating_mul(u32::try_from(prompts).unwrap_or(u32::MAX)),
            muted: false,
            usage: Usage::of_prompts(tokens),
            bill: None,
            finish: "aborted",
            failed: false,
            span: tracing::Span::current(),
        }
    }

    /// Tells of the prompts only: every continuation ends without a token.
    pub(super) fn mute(&mut self) {
        self.muted = true;
    }

    /// How many continuations it has.
    pub(super) fn outputs(&self) -> usize {
        self.begun.len() * self.choices as usize
    }

    /// Tokens so far.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// What happens next; `None` after every continuation has ended well. May be given up while
    /// waiting without losing anything.
    pub(super) async fn next(&mut self) -> Result<Option<Part>, ApiError> {
        while let Some((prompt, piece)) = self.pieces.next().await {
            if let Some(part) = self.part(prompt, piece)? {
                return Ok(Some(part));
            }
        }
        match self.open {
            0 => Ok(None),
            _ => Err(ApiError::unavailable(
                "The server ended before the answer did.",
                5,
            )),
        }
    }

    fn part(&mut self, prompt: u32, piece: Piece) -> Result<Option<Part>, ApiError> {
        let index = |choice| prompt * self.choices + choice;
        Ok(Some(match piece {
            Piece::Started { cached_tokens, .. } => {
                if !std::mem::replace(&mut self.begun[prompt as usize], true) {
                    self.usage.cached(cached_tokens);
                }
                return Ok(None);
            }
            Piece::Prompt(scored) => Part::Prompt { prompt, scored },
            Piece::Token { .. } if self.muted => return Ok(None),
            Piece::Token {
                choice,
                text,
                scored,
            } => {
                let index = index(choice);
                self.usage.produced();
                if let Some(bill) = &mut self.bill {
                    bill.produced();
                }
                Part::Token {
                    index,
                    text,
                    scored,
                }
            }
            Piece::Finished {
                choice,
                text,
                reason,
            } => {
                let index = index(choice);
                self.open = self.open.saturating_sub(1);
                self.finish = finish(&reason);
                self.failed |= matches!(reason, Reason::Deadline | Reason::Failed(_));
                match (End::new(reason)?, self.muted) {
                    (end, false) => Part::End { index, text, end },
                    (_, true) => Part::End {
                        index,
                        text: String::new(),
                        end: End::Length,
                    },
                }
            }
        }))
    }

    /// All of it, once it has ended.
    pub(super) async fn whole(mut self) -> Result<Whole, ApiError> {
        let mut outputs = vec![Output::default(); self.outputs()];
        let mut prompts = vec![None; self.begun.len()];
        while let Some(part) = self.next().await? {
            match part {
                Part::Prompt { prompt, scored } => prompts[prompt as usize] = Some(scored),
                Part::Token {
                    index,
                    text,
                    scored,
                } => {
                    let output = &mut outputs[index as usize];
                    output.text.push_str(&text);
                    output.scored.push(scored);
                }
                Part::End { index, text, end } => {
                    let output = &mut outputs[index as usize];
                    output.text.push_str(&text);
                    output.end = Some(end);
                }
            }
        }
        Ok(Whole {
            outputs,
            prompts,
            usage: self.usage,
        })
    }
}

/// How the ledger tells the end of a continuation.
fn finish(reason: &Reason) -> &'static str {
    match reason {
        Reason::Eos | Reason::StopToken(_) | Reason::StopText(_) => "stop",
        Reason::Length => "length",
        Reason::Deadline => "timeout",
        Reason::Failed(_) => "error",
    }
}

fn pieces(generation: Generation) -> BoxStream<'static, Piece> {
    let next = async |mut generation: Generation| {
        let piece = generation.next().await?;
        Some((piece, generation))
    };
    stream::unfold(generation, next).boxed()
}

impl End {
    fn new(reason: Reason) -> Result<Self, ApiError> {
        match reason {
            Reason::Eos => Ok(Self::Eos),
            Reason::StopToken(token) => Ok(Self::Token(token)),
            Reason::StopText(text) => Ok(Self::Text(text)),
            Reason::Length => Ok(Self::Length),
            Reason::Deadline => Err(ApiError::timeout()),
            Reason::Failed(why) => Err(ApiError::internal(format!("The request failed: {why}"))),
        }
    }

    /// OpenAI's `finish_reason`.
    pub(super) fn finish_reason(&self) -> &'static str {
        match self {
            Self::Eos | Self::Token(_) | Self::Text(_) => "stop",
            Self::Length => "length",
        }
    }

    /// vLLM's `stop_reason`: what of the request's own stops it was.
    pub(super) fn stop_reason(&self) -> serde_json::Value {
        match self {
            Self::Eos | Self::Length => serde_json::Value::Null,
            Self::Token(token) => token.0.into(),
            Self::Text(text) => text.as_str().into(),
        }
    }
}
