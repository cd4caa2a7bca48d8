//! How likely tokens were, in the shapes of chat, of completions, and of vLLM's `prompt_logprobs`.

use engine::{Scored, TokenId};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::text::Tokenizer;

/// What stands for anything less likely, so that JSON can say it (OpenAI's convention).
const VERY_UNLIKELY: f32 = -9999.0;

/// How tokens are named.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) tokenizer: Tokenizer,
    /// As `token_id:7` instead of by their text.
    pub(super) by_id: bool,
}

impl Names {
    fn of(&self, token: TokenId) -> String {
        match self.by_id {
            true => format!("token_id:{}", token.0),
            false => self.tokenizer.token_text(token),
        }
    }
}

/// The log-probabilities of a chat's tokens.
#[derive(serde::Serialize, Debug)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: (),
}

#[derive(serde::Serialize, Debug)]
struct ChatToken {
    #[serde(flatten)]
    token: NamedToken,
    top_logprobs: Vec<NamedToken>,
}

#[derive(serde::Serialize, Debug)]
struct NamedToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// Of `scored`.
    pub(super) fn new(names: &Names, scored: &[Scored]) -> Self {
        let named = |token, logprob| NamedToken {
            token: names.of(token),
            logprob: finite(logprob),
            bytes: names.tokenizer.token_bytes(token),
        };
        let token = |scored: &Scored| ChatToken {
            token: named(scored.token, scored.logprob.unwrap_or(VERY_UNLIKELY)),
            top_logprobs: scored
                .top
                .iter()
                .map(|(token, logprob)| named(*token, *logprob))
                .collect(),
        };
        Self {
            content: scored.iter().map(token).collect(),
            refusal: (),
        }
    }
}

/// The log-probabilities of a completion's tokens.
#[derive(Default, serde::Serialize, Debug)]
pub(super) struct TextLogprobs {
    text_offset: Vec<u64>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<Pairs>>,
}

impl TextLogprobs {
    /// Adds a token whose text begins `offset` letters into the choice's text, and moves `offset`
    /// past it; `most` of the likeliest in its place are told. The first token of a prompt has no
    /// log-probability.
    pub(super) fn push(&mut self, names: &Names, most: u32, offset: &mut u64, scored: &Scored) {
        self.text_offset.push(*offset);
        *offset += names.tokenizer.token_text(scored.token).chars().count() as u64;
        self.tokens.push(names.of(scored.token));
        self.token_logprobs.push(scored.logprob.map(finite));
        self.top_logprobs.push(scored.logprob.map(|logprob| {
            let own = (scored.token, logprob);
            let others = scored
                .top
                .iter()
                .take(most as usize)
                .copied()
                .filter(|(token, _)| *token != scored.token);
            Pairs::new(names, std::iter::once(own).chain(others))
        }));
    }
}

/// An object of names and numbers, in order.
#[derive(Debug)]
struct Pairs(Vec<(String, f32)>);

impl Pairs {
    /// Of two tokens with one name, such as two halves of characters, the first stays.
    fn new(names: &Names, tokens: impl Iterator<Item = (TokenId, f32)>) -> Self {
        let mut pairs: Vec<(String, f32)> = Vec::new();
        for (token, logprob) in tokens {
            let name = names.of(token);
            if pairs.iter().all(|(other, _)| *other != name) {
                pairs.push((name, finite(logprob)));
            }
        }
        Self(pairs)
    }
}

impl Serialize for Pairs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, logprob)| (name, logprob)))
    }
}

/// vLLM's `prompt_logprobs`: null for the first token, then for each its likely tokens by id.
#[derive(Debug)]
pub(super) struct PromptLogprobs<'a> {
    pub(super) names: &'a Names,
    pub(super) scored: &'a [Scored],
}

impl Serialize for PromptLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let names = self.names;
        let each = self
            .scored
            .iter()
            .map(|scored| Some(Place { names, scored }));
        serializer.collect_seq(std::iter::once(None).chain(each))
    }
}

/// The likely tokens at one place of a prompt.
struct Place<'a> {
    names: &'a Names,
    scored: &'a Scored,
}

#[derive(serde::Serialize)]
struct Likely {
    logprob: f32,
    /// 1 is the likeliest; null if it is not among those reported.
    rank: Option<usize>,
    decoded_token: String,
}

impl Serialize for Place<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let scored = self.scored;
        let own_rank = scored
            .top
            .iter()
            .position(|(token, _)| *token == scored.token);
        let likely = |token, logprob, rank: Option<usize>| Likely {
            logprob: finite(logprob),
            rank: rank.map(|rank| rank + 1),
            decoded_token: self.names.tokenizer.token_text(token),
        };
        let mut map = serializer.serialize_map(None)?;
        let own = likely(
            scored.token,
            scored.logprob.unwrap_or(VERY_UNLIKELY),
            own_rank,
        );
        map.serialize_entry(&scored.token.0, &own)?;
        for (rank, (token, logprob)) in scored.top.iter().enumerate() {
            if *token != scored.token {
                map.serialize_entry(&token.0, &likely(*token, *logprob, Some(rank)))?;
            }
        }
        map.end()
    }
}

fn finite(logprob: f32) -> f32 {
    logprob.max(VERY_UNLIKELY)
}
