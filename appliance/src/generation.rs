//! The story of one request: from its tokens to the pieces of its answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Event, Finish, Refused, Request, Scored, TokenId};

use crate::dispatch::{Dispatch, Share};
use crate::engine_thread::Flight;
use crate::text::{Detokenizer, Stopped, Stops, Tokenizer};

/// The salt of requests of the server's own, which no client's is: what they compute is never found in a
/// cache, and they are not measured.
pub(crate) const OURS: u64 = u64::MAX;

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
    dispatch: Dispatch,
    tokenizer: Tokenizer,
    eos: Arc<[TokenId]>,
    timeout: Duration,
}

impl Generator {
    /// Generations of the engines behind `dispatch`, whose tokens are `tokenizer`'s. Those of `eos`
    /// end a text; a request may take `timeout` from its arrival to its end.
    pub(crate) fn new(
        dispatch: Dispatch,
        tokenizer: Tokenizer,
        eos: Arc<[TokenId]>,
        timeout: Duration,
    ) -> Self {
        Self {
            dispatch,
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
        let (flight, share) = (self.dispatch)
            .admit(request, arrived, self.timeout)
            .await?;
        let voice = Voice {
            // It goes on with the prompt: a space at its start is part of it.
            detokenizer: self.tokenizer.detokenizer(skip_special).inside_text(),
            stops: Stops::new(stops, include_stop),
            ended: false,
        };
        Ok(Generation {
            flight,
            _share: share,
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
    /// What it weighs on its replica.
    _share: Share,
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use engine::{
        Axis, Backend, Candidates, Cause, Constraint, Fault, Limits, Penalties, Profile, Sampling,
        Step, Stop, Ticket, Want,
    };

    use super::*;
    use crate::engine_thread;
    use crate::health::Pulse;
    use crate::metrics::Metrics;

    /// Ids of `a` to `z`; then come the end of a text and a byte that begins a character.
    const END: TokenId = TokenId(26);

    /// A device on which each token follows the one before in the alphabet, round and round.
    struct Alphabet {
        profile: Profile,
        /// Steps submitted and not collected: what follows in each row that asked.
        flying: VecDeque<Vec<u32>>,
        /// Steps until something breaks.
        breaks: Option<(AtomicU32, Break)>,
    }

    #[derive(Clone, Copy)]
    enum Break {
        Lost,
        Panic,
    }

    impl Alphabet {
        fn new(breaks: Option<(u32, Break)>) -> Self {
            Self {
                profile: Profile {
                    prefill: Axis::UpTo(64),
                    decode: Axis::UpTo(64),
                    context: Axis::UpTo(4096),
                    mixed: true,
                    page_tokens: 16,
                    pages: 1024,
                    vocabulary: 27,
                    candidates: 27,
                    depth: 1,
                },
                flying: VecDeque::new(),
                breaks: breaks.map(|(steps, what)| (AtomicU32::new(steps), what)),
            }
        }
    }

    impl Backend for Alphabet {
        fn profile(&self) -> &Profile {
            &self.profile
        }

        fn submit(&mut self, step: &Step<'_>) -> Result<Ticket, Fault> {
            if let Some((left, what)) = &self.breaks
                && left.fetch_sub(1, Ordering::Relaxed) == 0
            {
                match what {
                    Break::Lost => return Err(Fault::Restart(Cause("unplugged".into()))),
                    Break::Panic => panic!("a mistake"),
                }
            }
            let asks = step.rows.iter().filter(|row| row.want != Want::Nothing);
            let next = asks.map(|row| (step.tokens_of(row).last().unwrap().0 + 1) % 26);
            self.flying.push_back(next.collect());
            Ok(Ticket(0))
        }

        fn collect(&mut self, _: Ticket, out: &mut Candidates) -> Result<(), Fault> {
            out.clear();
            for next in self.flying.pop_front().unwrap() {
                let logprob = |id| if id == next { -0.001 } else { -10.0 };
                out.push((0..27).map(|id| (TokenId(id), logprob(id))), 0.0, None);
            }
            Ok(())
        }
    }

    /// A tokenizer of the letters `a` to `z` and an end.
    fn tokenizer() -> Tokenizer {
        let letters = ('a'..='z')
            .zip(0..)
            .map(|(letter, id)| format!("\"{letter}\":{id}"));
        let vocabulary = letters.collect::<Vec<_>>().join(",");
        let json = format!(
            r#"{{"version":"1.0","truncation":null,"padding":null,"normalizer":null,
            "added_tokens":[{{"id":26,"content":"<end>","single_word":false,"lstrip":false,
            "rstrip":false,"normalized":false,"special":true}}],
            "pre_tokenizer":{{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}},
            "post_processor":null,
            "decoder":{{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}},
            "model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
            "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,
            "vocab":{{{vocabulary}}},"merges":[]}}}}"#
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), json).unwrap();
        Tokenizer::open(dir.path()).unwrap()
    }

    struct Server {
        generator: Generator,
        dispatch: Dispatch,
    }

    fn server(running: u32, breaks: Option<(u32, Break)>) -> Server {
        let limits = Limits {
            queued_requests: 100,
            queued_tokens: 10_000,
            running,
            context: 4096,
            step_tokens: 64,
            step_time: Duration::from_secs(1),
        };
        let (metrics, pulse) = (Metrics::new().of_model(), Arc::new(Pulse::new()));
        let device = Alphabet::new(breaks);
        let mailbox = engine_thread::start(device, limits, [0; 16], metrics, pulse).unwrap();
        let dispatch = Dispatch::new(vec![mailbox]);
        let timeout = Duration::from_secs(600);
        let generator = Generator::new(dispatch.clone(), tokenizer(), [END].into(), timeout);
        Server {
            generator,
            dispatch,
        }
    }

    /// Asks for up to `max_tokens` after `a`.
    fn ask(max_tokens: u32) -> Ask {
        let stop = Stop {
            tokens: [END].into(),
            min_tokens: 0,
            max_tokens,
        };
        let penalties = Penalties::NONE;
        let sampling = Sampling {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            penalties,
            bias: [].into(),
            seed: 0,
        };
        Ask {
            arrived: Instant::now(),
            request: Request {
                prompt: [TokenId(0)].into(),
                choices: 1,
                sampling,
                stop,
                logprobs: None,
                prompt_logprobs: None,
                constraint: Constraint::Free,
                priority: 0,
                deadline: None,
                cache_salt: 0,
            },
            stops: Vec::new(),
            include_stop: false,
            skip_special: true,
        }
    }

    /// The text of the first choice, how many tokens it has, and why it ended.
    async fn read(generation: &mut Generation) -> (String, usize, Reason) {
        let (mut all, mut tokens) = (String::new(), 0);
        while let Some(piece) = generation.next().await {
            match piece {
                Piece::Token {
                    choice: 0, text, ..
                } => {
                    all += &text;
                    tokens += 1;
                }
                Piece::Finished {
                    choice: 0,
                    text,
                    reason,
                } => return (all + &text, tokens, reason),
                _ => {}
            }
        }
        panic!("it ended without an end after {all:?}");
    }

    #[track_caller]
    fn check(read: (String, usize, Reason), text: &str, tokens: usize, reason: Reason) {
        assert_eq!(read, (text.to_owned(), tokens, reason));
    }

    #[tokio::test]
    async fn tokens_become_text_until_it_is_long_enough() {
        let server = server(8, None);
        let mut generation = server.generator.start(ask(4)).await.unwrap();
        check(read(&mut generation).await, "bcde", 4, Reason::Length);
        assert_eq!(generation.next().await, None);
    }

    #[tokio::test]
    async fn a_stop_string_ends_a_text_and_is_part_of_it_if_asked() {
        let server = server(8, None);
        let stops = vec!["ef".to_owned()];
        let ended = || Reason::StopText("ef".to_owned());
        for (include_stop, text) in [(false, "bcd"), (true, "bcdef")] {
            let ask = Ask {
                stops: stops.clone(),
                include_stop,
                ..ask(100)
            };
            let mut generation = server.generator.start(ask).await.unwrap();
            check(read(&mut generation).await, text, 5, ended());
            assert_eq!(generation.next().await, None);
        }
        let short = Ask { stops, ..ask(4) };
        let mut generation = server.generator.start(short).await.unwrap();
        check(read(&mut generation).await, "bcde", 4, Reason::Length);
    }

    #[tokio::test]
    async fn a_stop_token_counts_and_has_no_text_unless_asked() {
        let server = server(8, None);
        for (include_stop, text) in [(false, "bc"), (true, "bcd")] {
            let mut ask = Ask {
                include_stop,
                ..ask(100)
            };
            ask.request.stop.tokens = [TokenId(3), END].into();
            let mut generation = server.generator.start(ask).await.unwrap();
            check(
                read(&mut generation).await,
                text,
                3,
                Reason::StopToken(TokenId(3)),
            );
        }
    }

    #[tokio::test]
    async fn each_choice_ends_for_itself() {
        let server = server(8, None);
        let mut ask = ask(3);
        ask.request.choices = 3;
        let mut generation = server.generator.start(ask).await.unwrap();
        let mut ended = Vec::new();
        while let Some(piece) = generation.next().await {
            if let Piece::Finished { choice, reason, .. } = piece {
                assert_eq!(reason, Reason::Length);
                ended.push(choice);
            }
        }
        ended.sort_unstable();
        assert_eq!(ended, [0, 1, 2]);
    }

    #[tokio::test]
    async fn who_is_dropped_makes_room() {
        let server = server(1, None);
        for _ in 0..20 {
            let mut dropped = server.generator.start(ask(4000)).await.unwrap();
            dropped.next().await.unwrap();
        }
        let mut generation = server.generator.start(ask(2)).await.unwrap();
        check(read(&mut generation).await, "bc", 2, Reason::Length);
    }

    #[tokio::test]
    async fn who_does_not_read_is_paused_and_misses_nothing() {
        let server = server(8, None);
        let mut slow = server.generator.start(ask(1000)).await.unwrap();
        for _ in 0..5 {
            let mut other = server.generator.start(ask(200)).await.unwrap();
            assert_eq!(read(&mut other).await.1, 200);
        }
        let alphabet = "bcdefghijklmnopqrstuvwxyza".repeat(40);
        check(
            read(&mut slow).await,
            &alphabet[..1000],
            1000,
            Reason::Length,
        );
    }

    #[tokio::test]
    async fn a_lost_device_or_a_panic_ends_every_request_with_the_reason() {
        for (what, why) in [(Break::Lost, "unplugged"), (Break::Panic, "a mistake")] {
            let server = server(8, Some((3, what)));
            let mut generation = server.generator.start(ask(100)).await.unwrap();
            let (text, _, reason) = read(&mut generation).await;
            assert!("bcd".starts_with(&text) && text.len() > 1, "{text}");
            assert!(
                matches!(&reason, Reason::Failed(told) if told.contains(why)),
                "{reason:?}"
            );
            let lost = server.dispatch.ending().ended().await.unwrap_err();
            let refused = server.generator.start(ask(1)).await.unwrap_err();
            assert_eq!(refused, Refusal::Engine(Refused::Lost(lost)));
        }
    }

    #[tokio::test]
    async fn when_the_server_ends_requests_are_told_and_later_ones_refused() {
        let server = server(8, None);
        let mut generation = server.generator.start(ask(4000)).await.unwrap();
        generation.next().await.unwrap();
        server.dispatch.ending().end("closing time");
        let (.., reason) = read(&mut generation).await;
        assert_eq!(reason, Reason::Failed("closing time".to_owned()));
        assert_eq!(server.dispatch.ending().ended().await, Ok(()));
        let refused = server.generator.start(ask(1)).await.unwrap_err();
        assert_eq!(refused, Refusal::Draining);
    }

    #[tokio::test]
    async fn a_request_ends_at_its_deadline() {
        let mut server = server(8, None);
        server.generator.timeout = Duration::ZERO;
        let mut generation = server.generator.start(ask(4000)).await.unwrap();
        let (.., reason) = read(&mut generation).await;
        assert_eq!(reason, Reason::Deadline);
    }
}
