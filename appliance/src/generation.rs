//! The story of one request: from its tokens to the pieces of its answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Event, Finish, Refused, Request, Scored, TokenId};

use crate::engine_thread::{Flight, Mailbox};
use crate::text::{Detokenizer, Stopped, Stops, Tokenizer};

/// What a caller asks of the model, parsed: token ids for the engine, and what concerns text.
#[derive(Clone, Debug)]
pub struct Ask {
    /// When the request arrived: what it waits and takes is counted from here.
    pub arrived: Instant,
    /// For the engine. Its deadline is set by [`Generator::start`].
    pub request: Request,
    /// Texts that end a continuation.
    pub stops: Vec<String>,
    /// Whether the stop string or token that ended it is part of the text.
    pub include_stop: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special: bool,
}

/// Starts generations on the model that is served. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Generator {
    mailbox: Mailbox,
    tokenizer: Tokenizer,
    eos: Arc<[TokenId]>,
    timeout: Duration,
}

impl Generator {
    /// Generations of the engine behind `mailbox`, whose tokens are `tokenizer`'s. Those of `eos`
    /// end a text; a request may take `timeout` from its arrival to its end.
    pub(crate) fn new(
        mailbox: Mailbox,
        tokenizer: Tokenizer,
        eos: Arc<[TokenId]>,
        timeout: Duration,
    ) -> Self {
        Self {
            mailbox,
            tokenizer,
            eos,
            timeout,
        }
    }

    /// Hands `ask` to the engine and waits until it is admitted or refused.
    ///
    /// # Errors
    /// The engine's reason, or that the server is about to end.
    pub async fn start(&self, ask: Ask) -> Result<Generation, Refusal> {
        let Ask {
            arrived,
            request,
            stops,
            include_stop,
            skip_special,
        } = ask;
        let enders = Arc::clone(&request.stop.tokens);
        let choices = request.choices;
        let flight = self.mailbox.admit(request, arrived, self.timeout).await?;
        let voice = Voice {
            // It goes on with the prompt: a space at its start is part of it.
            detokenizer: self.tokenizer.detokenizer(skip_special).inside_text(),
            stops: Stops::new(stops, include_stop),
            ended: false,
        };
        Ok(Generation {
            flight,
            voices: (0..choices).map(|_| voice.clone()).collect(),
            open: choices,
            enders,
            eos: Arc::clone(&self.eos),
            include_stop,
            pieces: VecDeque::new(),
        })
    }
}

/// Why a request was not taken on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The engine refused it: too long, not valid, or too much is waiting.
    #[error(transparent)]
    Engine(#[from] Refused),
    /// The server is about to end.
    #[error("the server is shutting down")]
    Draining,
}

/// One request in flight. Dropping it is the one and only cancel: its pages are free within a step.
#[derive(Debug)]
pub struct Generation {
    flight: Flight,
    voices: Vec<Voice>,
    /// How many choices have not ended.
    open: u32,
    /// Tokens that end a choice.
    enders: Arc<[TokenId]>,
    /// Those of them that the model means to.
    eos: Arc<[TokenId]>,
    include_stop: bool,
    /// What happened and has not been asked for yet.
    pieces: VecDeque<Piece>,
}

/// One choice's way from tokens to text.
#[derive(Clone, Debug)]
struct Voice {
    detokenizer: Detokenizer,
    stops: Stops,
    ended: bool,
}

impl Generation {
    /// The next thing that happened; `None` after every choice has finished. May be dropped while
    /// it waits, and asked again.
    pub async fn next(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Some(piece);
            }
            if self.open == 0 {
                return None;
            }
            match self.flight.next().await {
                Some((choice, event)) => self.take(choice, event),
                None => self.fail("the engine has ended"),
            }
        }
    }

    fn take(&mut self, choice: u32, event: Event) {
        // A choice whose text has ended may still have tokens on their way.
        let ended = (self.voices.get(choice as usize)).is_none_or(|voice| voice.ended);
        if ended {
            return;
        }
        match event {
            Event::Started { cached_tokens } => self.pieces.push_back(Piece::Started {
                choice,
                cached_tokens,
            }),
            Event::Prompt(scored) => self.pieces.push_back(Piece::Prompt(scored)),
            Event::Token(scored) => self.speak(choice, scored),
            Event::Finished(finish) => self.finish(choice, finish),
        }
    }

    /// A token becomes text, as far as it can be sent; a stop string in it ends the choice.
    fn speak(&mut self, choice: u32, scored: Scored) {
        let silent = !self.include_stop && self.enders.contains(&scored.token);
        let voice = &mut self.voices[choice as usize];
        let text = match silent {
            true => String::new(),
            false => voice.detokenizer.push(scored.token),
        };
        let Stopped { text, hit } = voice.stops.push(&text);
        self.pieces.push_back(Piece::Token {
            choice,
            text,
            scored,
        });
        if let Some(stop) = hit {
            self.flight.cancel_choice(choice);
            self.end(choice, String::new(), Reason::StopText(stop));
        }
    }

    /// The engine ended the choice: what was held back is text after all.
    fn finish(&mut self, choice: u32, finish: Finish) {
        let voice = &mut self.voices[choice as usize];
        let Stopped { mut text, hit } = voice.stops.push(&voice.detokenizer.finish());
        text += &voice.stops.finish();
        let reason = match (hit, finish) {
            (Some(stop), _) => Reason::StopText(stop),
            (None, Finish::Stop(token)) if self.eos.contains(&token) => Reason::Eos,
            (None, Finish::Stop(token)) => Reason::StopToken(token),
            (None, Finish::Length) => Reason::Length,
            (None, Finish::Deadline) => Reason::Deadline,
            (None, Finish::Failed(why)) => Reason::Failed(why),
        };
        self.end(choice, text, reason);
    }

    fn end(&mut self, choice: u32, text: String, reason: Reason) {
        self.voices[choice as usize].ended = true;
        self.open -= 1;
        self.pieces.push_back(Piece::Finished {
            choice,
            text,
            reason,
        });
    }

    /// Nothing will come any more: every choice still ends.
    fn fail(&mut self, why: &str) {
        for choice in 0..u32::try_from(self.voices.len()).unwrap_or(u32::MAX) {
            self.take(choice, Event::Finished(Finish::Failed(why.to_owned())));
        }
    }
}

/// One thing that happened to one choice of a request.
#[derive(Clone, PartialEq, Debug)]
pub enum Piece {
    /// A choice left the queue.
    Started {
        /// Which choice, from 0.
        choice: u32,
        /// Prompt tokens found in the prefix cache.
        cached_tokens: u32,
    },
    /// The prompt's tokens after the first, scored; once, before all tokens, if asked for.
    Prompt(Vec<Scored>),
    /// A token was produced, one piece each.
    Token {
        /// Which choice.
        choice: u32,
        /// Text that can be sent now: whole UTF-8, no beginning of a stop string; often the token's,
        /// sometimes empty, sometimes that of several tokens.
        text: String,
        /// The token.
        scored: Scored,
    },
    /// A choice ended; nothing of it follows.
    Finished {
        /// Which choice.
        choice: u32,
        /// Text that had been held back.
        text: String,
        /// Why.
        reason: Reason,
    },
}

/// Why a choice ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The end-of-sequence token.
    Eos,
    /// A stop token of the request (`stop_token_ids`).
    StopToken(TokenId),
    /// A stop string of the request.
    StopText(String),
    /// `max_tokens` or the end of the context.
    Length,
    /// It took longer than the server allows.
    Deadline,
    /// The device failed it; the text says why.
    Failed(String),
}
