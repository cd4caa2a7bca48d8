//! What every generation takes, whatever its dialect: how to draw, when to stop, how to answer.

use std::sync::Arc;
use std::time::Instant;

use engine::{Constraint, Penalties, Request, Sampling, Stop, TokenId, TokenMask};
use model::GenerationDefaults;

use super::body::{Fields, fields};
use super::error::ApiError;
use super::field::{Bias, MOST, Positive, Real, Share, StopTexts, StreamOptions, TokenIds, Whole};
use crate::generation::Ask;

fields! {
    /// What every generation takes.
    Params {
        /// The model's name; the model that is served if absent.
        model: String,
        /// How many continuations of each prompt.
        n: Whole<1, 128>,
        /// The most tokens to produce. Prompt and output together must fit the model's context.
        max_tokens: Whole<0, MOST>,
        /// Tokens to produce before a stop token or the end of the text may end it.
        min_tokens: Whole<0, MOST>,
        /// 0 is greedy. Default: the model's own, else 1.
        temperature: Real<0, 2>,
        /// Sample from the most likely tokens that together are this likely. Default: the model's own, else 1.
        top_p: Share,
        /// Sample from this many of the most likely tokens; 0 and -1 are all. Default: the model's own, else all.
        top_k: Whole<-1, MOST>,
        /// Sample from tokens at least this fraction as likely as the likeliest. Default: the model's own, else 0.
        min_p: Real<0, 1>,
        /// Divides the logits of tokens seen in prompt or output. Default: the model's own, else 1.
        repetition_penalty: Positive,
        /// Subtracted from the logits of tokens seen in the output.
        presence_penalty: Real<-2, 2>,
        /// Subtracted from the logits of tokens for each time they were seen in the output.
        frequency_penalty: Real<-2, 2>,
        /// Added to the logits of tokens, by id.
        logit_bias: Bias,
        /// The only tokens that may be produced.
        allowed_token_ids: TokenIds<1_000_000>,
        /// The same seed gives the same tokens. Default: another each time.
        seed: Whole<{ i64::MIN }, { i64::MAX }>,
        /// Texts that end a continuation.
        stop: StopTexts,
        /// Tokens that end a continuation.
        stop_token_ids: TokenIds<256>,
        /// Whether the text that ended a continuation is part of it.
        include_stop_str_in_output: bool,
        /// Go on past the end-of-sequence token.
        ignore_eos: bool,
        /// Leave special tokens out of the text. Default: true.
        skip_special_tokens: bool,
        /// Whether the tokenizer adds its own tokens, such as BOS. Default: true for a prompt, false for messages, whose template does.
        add_special_tokens: bool,
        /// Keep only this many tokens of the prompt, its last; -1 keeps what the context takes.
        truncate_prompt_tokens: Whole<-1, MOST>,
        /// Score the prompt's tokens too, each with this many of the likeliest in its place.
        prompt_logprobs: Whole<0, 20>,
        /// Name tokens in log-probabilities by id, as `token_id:7`.
        return_tokens_as_token_ids: bool,
        /// Return the ids of prompt and output.
        return_token_ids: bool,
        /// Who goes first when not all can run: lower is earlier.
        priority: Whole<{ i32::MIN as i64 }, { i32::MAX as i64 }>,
        /// Share cached prefixes only with requests of the same salt.
        cache_salt: String,
        /// Send the answer as server-sent events.
        stream: bool,
        /// What a stream tells beside its tokens.
        stream_options: StreamOptions,
    }
}

/// Fields that are not served and would change the answer: the name, the values that ask for
/// nothing, and what to do instead.
const REFUSED: &[(&str, &[&str], &str)] = &[
    ("use_beam_search", &["false"], "leave it out and use n"),
    ("bad_words", &["[]"], "leave it out and use logit_bias"),
    ("logits_processors", &["[]"], "leave it out"),
    ("prompt_embeds", &[], "send the prompt as text or token ids"),
    (
        "response_format",
        &[r#"{"type":"text"}"#],
        "leave it out, ask for the format in the prompt, and check the answer",
    ),
    ("structured_outputs", &["{}"], STRUCTURED),
    ("guided_json", &[], STRUCTURED),
    ("guided_regex", &[], STRUCTURED),
    ("guided_choice", &[], STRUCTURED),
    ("guided_grammar", &[], STRUCTURED),
    ("guided_decoding_backend", &[], STRUCTURED),
];

const STRUCTURED: &str = "leave it out; allowed_token_ids restricts tokens";

/// Fields that others act on and that change nothing here by their own definition: they are
/// accepted without a word.
pub(super) const WITHOUT_EFFECT: &[&str] = &[
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
];

/// What parsing needs to know of the model that is served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// The most tokens of a sequence.
    pub(super) context: u32,
    /// Token ids are below it.
    pub(super) vocabulary: u32,
    /// The most log-probabilities beside a token.
    pub(super) candidates: u32,
    /// End-of-sequence tokens.
    pub(super) eos: &'a [TokenId],
    /// The model's own sampling.
    pub(super) defaults: &'a GenerationDefaults,
}

/// What a dialect has to say beside [`Params`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect {
    /// When the request arrived.
    pub(super) arrived: Instant,
    /// The field that holds the prompt.
    pub(super) prompt: &'static str,
    /// The field that limits the output, as the client wrote it.
    pub(super) limit: &'static str,
    /// The most tokens to produce, if the client said so.
    pub(super) max_tokens: Option<u32>,
    /// The most tokens to produce else; `None` is what the context takes.
    pub(super) default_max_tokens: Option<u32>,
    /// Likeliest tokens to report beside each token of the output.
    pub(super) logprobs: Option<u32>,
    /// The same for the prompt.
    pub(super) prompt_logprobs: Option<u32>,
    /// Where randomness of this request begins.
    pub(super) random: u64,
    /// Keeps cached prefixes apart; 0 is common.
    pub(super) cache_salt: u64,
}

impl Params {
    /// Takes them from a body, and refuses what nobody serves.
    pub(super) fn parse(fields: &mut Fields<'_>) -> Result<Self, ApiError> {
        for (name, harmless, advice) in REFUSED {
            fields.refuse(name, harmless, advice)?;
        }
        let params = Self::take(fields)?;
        if params.stream() && params.prompt_logprobs.is_some() {
            let message = "`prompt_logprobs` cannot be streamed: set `stream` to false.";
            return Err(ApiError::invalid("prompt_logprobs", message));
        }
        Ok(params)
    }

    /// Whether the answer comes as events.
    pub(super) fn stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// How many continuations of each prompt.
    pub(super) fn choices(&self) -> u32 {
        self.n.map_or(1, Whole::count)
    }

    /// Whether special tokens stay out of the text.
    pub(super) fn skip_special(&self) -> bool {
        self.skip_special_tokens.unwrap_or(true)
    }

    /// All of it as a request for the engine that continues `prompt`.
    pub(super) fn ask(
        &self,
        facts: &Facts<'_>,
        dialect: &Dialect,
        prompt: Vec<TokenId>,
    ) -> Result<Ask, ApiError> {
        let prompt = self.fit(facts, dialect, prompt)?;
        let max_tokens = dialect.room(facts.context, prompt.len())?;
        let request = Request {
            prompt: prompt.into(),
            choices: self.choices(),
            sampling: self.sampling(facts, dialect.random)?,
            stop: self.stop(facts, max_tokens)?,
            logprobs: facts.reported("logprobs", dialect.logprobs)?,
            prompt_logprobs: facts.reported("prompt_logprobs", dialect.prompt_logprobs)?,
            constraint: self.constraint(facts)?,
            priority: self.priority(),
            deadline: None,
            cache_salt: dialect.cache_salt,
        };
        Ok(Ask {
            arrived: dialect.arrived,
            request,
            stops: self
                .stop
                .clone()
                .map_or_else(Vec::new, |StopTexts(texts)| texts),
            include_stop: self.include_stop_str_in_output.unwrap_or(false),
            skip_special: self.skip_special(),
        })
    }

    /// The prompt, cut if the client wants it cut; refused if it has no or unknown tokens.
    fn fit(
        &self,
        facts: &Facts<'_>,
        dialect: &Dialect,
        mut prompt: Vec<TokenId>,
    ) -> Result<Vec<TokenId>, ApiError> {
        let name = dialect.prompt;
        if prompt.is_empty() {
            return Err(ApiError::invalid(
                name,
                format!("`{name}` has no tokens: say something."),
            ));
        }
        facts.known(name, prompt.iter().map(|token| token.0))?;
        if let Some(Whole(keep)) = self.truncate_prompt_tokens {
            let output = dialect.max_tokens.unwrap_or(1).max(1);
            let room = facts.context.saturating_sub(output).max(1);
            let keep = u32::try_from(keep).map_or(room, |keep| keep.max(1));
            let surplus = prompt.len().saturating_sub(keep as usize);
            prompt.drain(..surplus);
        }
        Ok(prompt)
    }

    fn sampling(&self, facts: &Facts<'_>, random: u64) -> Result<Sampling, ApiError> {
        let defaults = facts.defaults;
        let top_k = self
            .top_k
            .map_or(defaults.top_k, |top_k| Some(top_k.count()));
        let bias: Vec<_> = self.logit_bias.iter().flat_map(|Bias(bias)| bias).collect();
        facts.known("logit_bias", bias.iter().map(|(token, _)| **token))?;
        Ok(Sampling {
            temperature: or(
                self.temperature.map(|Real(it)| it),
                defaults.temperature,
                1.0,
            ),
            top_k: top_k.filter(|top_k| *top_k > 0),
            top_p: or(self.top_p.map(|Share(it)| it), defaults.top_p, 1.0),
            min_p: or(self.min_p.map(|Real(it)| it), defaults.min_p, 0.0),
            penalties: Penalties {
                repetition: or(
                    self.repetition_penalty.map(|Positive(it)| it),
                    defaults.repetition_penalty,
                    1.0,
                ),
                presence: self.presence_penalty.map_or(0.0, |Real(it)| it),
                frequency: self.frequency_penalty.map_or(0.0, |Real(it)| it),
            },
            bias: bias
                .iter()
                .map(|(token, bias)| (TokenId(**token), **bias))
                .collect(),
            seed: self.seed.map_or(random, |Whole(seed)| seed.cast_unsigned()),
        })
    }

    fn stop(&self, facts: &Facts<'_>, max_tokens: u32) -> Result<Stop, ApiError> {
        let ids = self
            .stop_token_ids
            .as_ref()
            .map_or(&[][..], |TokenIds(ids)| ids);
        facts.known("stop_token_ids", ids.iter().copied())?;
        let eos = match self.ignore_eos {
            Some(true) => &[],
            _ => facts.eos,
        };
        let mut tokens: Vec<TokenId> = ids.iter().copied().map(TokenId).collect();
        tokens.extend_from_slice(eos);
        tokens.sort_unstable();
        tokens.dedup();
        let min_tokens = self.min_tokens.map_or(0, Whole::count);
        if min_tokens > max_tokens {
            let message =
                format!("`min_tokens` is {min_tokens}, but at most {max_tokens} can be produced.");
            return Err(ApiError::invalid("min_tokens", message));
        }
        Ok(Stop {
            tokens: tokens.into(),
            min_tokens,
            max_tokens,
        })
    }

    fn constraint(&self, facts: &Facts<'_>) -> Result<Constraint, ApiError> {
        let Some(TokenIds(ids)) = &self.allowed_token_ids else {
            return Ok(Constraint::Free);
        };
        let name = "allowed_token_ids";
        if ids.is_empty() {
            let message = "`allowed_token_ids` is empty: leave it out, or allow something.";
            return Err(ApiError::invalid(name, message));
        }
        facts.known(name, ids.iter().copied())?;
        let mask = TokenMask::only(facts.vocabulary, ids.iter().copied().map(TokenId));
        Ok(Constraint::Only(Arc::new(mask)))
    }

    fn priority(&self) -> i32 {
        let priority = self.priority.map_or(0, |Whole(priority)| priority);
        i32::try_from(priority).expect("its form has 32 bits")
    }
}

fn or(said: Option<f32>, models: Option<f32>, otherwise: f32) -> f32 {
    said.or(models).unwrap_or(otherwise)
}

impl Facts<'_> {
    /// Refuses ids that are no tokens.
    pub(super) fn known(
        &self,
        param: &str,
        mut ids: impl Iterator<Item = u32>,
    ) -> Result<(), ApiError> {
        let vocabulary = self.vocabulary;
        ids.find(|id| *id >= vocabulary).map_or(Ok(()), |id| {
            let message = format!(
                "`{param}` has the token id {id}, but this model's are from 0 to {}.",
                vocabulary.saturating_sub(1)
            );
            Err(ApiError::invalid(param, message))
        })
    }

    /// Refuses more log-probabilities than the device can report.
    fn reported(&self, param: &str, asked: Option<u32>) -> Result<Option<u32>, ApiError> {
        let most = self.candidates;
        match asked {
            Some(asked) if asked > most => {
                let message =
                    format!("`{param}` asks for {asked} tokens, but this device reports {most}.");
                Err(ApiError::invalid(param, message))
            }
            _ => Ok(asked),
        }
    }
}

impl Dialect {
    /// The most tokens to produce after a prompt of `prompt` tokens. Like vLLM, more than the
    /// context takes is refused rather than cut: the client's arithmetic is wrong.
    fn room(&self, context: u32, prompt: usize) -> Result<u32, ApiError> {
        let holder = self.prompt;
        let room = u32::try_from(prompt).map_or(0, |prompt| context.saturating_sub(prompt));
        if room == 0 {
            let however = format!(
                "your {holder} resulted in {prompt} tokens, which leaves none for an answer. \
                 Please reduce the length of the {holder}."
            );
            return Err(ApiError::context_length(holder, context, &however));
        }
        match self.max_tokens {
            Some(asked) if asked > room => {
                let total = prompt as u64 + u64::from(asked);
                let limit = self.limit;
                let however = format!(
                    "you requested {total} tokens ({prompt} in the {holder}, {asked} in the completion). \
                     Please reduce the length of the {holder}, or `{limit}`."
                );
                Err(ApiError::context_length(holder, context, &however))
            }
            Some(0) => {
                let limit = self.limit;
                let message = format!("`{limit}` is 0, but must be a whole number from 1.");
                Err(ApiError::invalid(limit, message))
            }
            Some(asked) => Ok(asked),
            None => Ok(self.default_max_tokens.map_or(room, |most| most.min(room))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    /// What a request with `fields` asks of a model with a context of 100 and a vocabulary of 50.
    fn ask(fields: &str, prompt: usize) -> Result<Ask, ApiError> {
        let defaults = GenerationDefaults {
            temperature: Some(0.25),
            top_k: Some(7),
            ..GenerationDefaults::default()
        };
        let facts = Facts {
            context: 100,
            vocabulary: 50,
            candidates: 10,
            eos: &[TokenId(2), TokenId(9)],
            defaults: &defaults,
        };
        let params = Params::parse(&mut Fields::parse(fields.as_bytes())?)?;
        let dialect = Dialect {
            arrived: Instant::now(),
            prompt: "prompt",
            limit: "max_tokens",
            max_tokens: params.max_tokens.map(Whole::count),
            default_max_tokens: Some(16),
            logprobs: None,
            prompt_logprobs: params.prompt_logprobs.map(Whole::count),
            random: 77,
            cache_salt: 0,
        };
        params.ask(&facts, &dialect, vec![TokenId(1); prompt])
    }

    #[track_caller]
    fn refused(fields: &str, prompt: usize, param: &str, message: &str) {
        let error = ask(fields, prompt).expect_err(fields);
        let body = serde_json::to_value(error.body()).unwrap();
        assert_eq!(body["error"]["param"], param, "{body}");
        let told = body["error"]["message"].as_str().unwrap();
        assert!(told.contains(message), "{told}");
    }

    #[test]
    fn what_is_not_said_is_the_models_or_nothing() {
        let ask = ask("{}", 3).unwrap();
        let Request { sampling, stop, .. } = ask.request;
        assert_eq!((sampling.temperature, sampling.top_k), (0.25, Some(7)));
        assert_eq!((sampling.top_p, sampling.min_p), (1.0, 0.0));
        assert_eq!(sampling.penalties.repetition, 1.0);
        assert_eq!(sampling.seed, 77);
        assert_eq!(stop.tokens[..], [TokenId(2), TokenId(9)]);
        assert_eq!((stop.min_tokens, stop.max_tokens), (0, 16));
        assert!(ask.skip_special && !ask.include_stop);
    }

    #[test]
    fn what_is_said_goes_before_the_models() {
        let fields = r#"{"temperature": 0, "top_k": -1, "seed": -1, "stop_token_ids": [9, 4],
            "logit_bias": {"7": 1, "3": -2}, "stop": ["x"], "n": 2, "min_tokens": 5}"#;
        let ask = ask(fields, 3).unwrap();
        let request = ask.request;
        assert_eq!(request.sampling.temperature, 0.0);
        assert_eq!(request.sampling.top_k, None);
        assert_eq!(request.sampling.seed, u64::MAX);
        assert_eq!(
            request.sampling.bias[..],
            [(TokenId(3), -2.0), (TokenId(7), 1.0)]
        );
        assert_eq!(
            request.stop.tokens[..],
            [TokenId(2), TokenId(4), TokenId(9)]
        );
        assert_eq!((request.choices, request.stop.min_tokens), (2, 5));
        assert_eq!(ask.stops, ["x"]);
    }

    #[test]
    fn ignoring_the_end_leaves_the_requests_own_stops() {
        let ask = ask(r#"{"ignore_eos": true, "stop_token_ids": [4]}"#, 3).unwrap();
        assert_eq!(ask.request.stop.tokens[..], [TokenId(4)]);
    }

    #[test]
    fn an_answer_fits_what_the_prompt_leaves() {
        let most = |fields, prompt| ask(fields, prompt).unwrap().request.stop.max_tokens;
        assert_eq!(most("{}", 95), 5);
        assert_eq!(most(r#"{"max_tokens": 5}"#, 95), 5);
        let start = "This model's maximum context length is 100 tokens. However, ";
        refused("{}", 100, "prompt", start);
        refused(r#"{"max_tokens": 6}"#, 95, "prompt", start);
        refused(
            r#"{"max_tokens": 6}"#,
            95,
            "prompt",
            "you requested 101 tokens (95 in",
        );
        refused(r#"{"max_tokens": 0}"#, 5, "max_tokens", "from 1");
        refused(
            r#"{"max_tokens": 4, "min_tokens": 5}"#,
            5,
            "min_tokens",
            "at most 4",
        );
    }

    #[test]
    fn a_prompt_is_cut_on_demand() {
        let length = |fields, prompt| ask(fields, prompt).unwrap().request.prompt.len();
        assert_eq!(length(r#"{"truncate_prompt_tokens": 7}"#, 300), 7);
        assert_eq!(length(r#"{"truncate_prompt_tokens": 7}"#, 5), 5);
        assert_eq!(length(r#"{"truncate_prompt_tokens": -1}"#, 300), 99);
        assert_eq!(
            length(r#"{"truncate_prompt_tokens": -1, "max_tokens": 20}"#, 300),
            80
        );
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        for (name, value) in [
            ("response_format", r#"{"type": "json_object"}"#),
            ("guided_regex", "\"a+\""),
            ("structured_outputs", r#"{"choice": ["a"]}"#),
            ("use_beam_search", "true"),
            ("bad_words", "[\"a\"]"),
        ] {
            let fields = format!("{{\"{name}\": {value}}}");
            refused(&fields, 3, name, "which is not supported: ");
        }
        ask(
            r#"{"response_format": {"type": "text"}, "use_beam_search": false}"#,
            3,
        )
        .unwrap();
        refused(
            r#"{"prompt_logprobs": 1, "stream": true}"#,
            3,
            "prompt_logprobs",
            "streamed",
        );
        refused(
            r#"{"prompt_logprobs": 11}"#,
            3,
            "prompt_logprobs",
            "this device reports 10",
        );
    }

    #[test]
    fn ids_are_tokens_of_the_model() {
        let refused = |fields: &str, param: &str| refused(fields, 3, param, "from 0 to 49");
        refused(r#"{"stop_token_ids": [50]}"#, "stop_token_ids");
        refused(r#"{"allowed_token_ids": [1, 50]}"#, "allowed_token_ids");
        refused(r#"{"logit_bias": {"50": 1}}"#, "logit_bias");
        let ask = ask(r#"{"allowed_token_ids": [1, 49]}"#, 3).unwrap();
        let Constraint::Only(mask) = ask.request.constraint else {
            panic!("a mask")
        };
        assert_eq!((mask.count(), mask.allows(TokenId(49))), (2, true));
    }

    /// JSON of every form that a field may meet.
    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|it| it.to_string()),
            any::<i64>().prop_map(|it| it.to_string()),
            (-3_i64..60).prop_map(|it| it.to_string()),
            any::<f64>()
                .prop_filter("JSON has no such number", |it| it.is_finite())
                .prop_map(|it| format!("{it:e}")),
            "[ -~é]{0,4}".prop_map(|it| format!("{it:?}").replace('\'', "")),
        ];
        leaf.prop_recursive(2, 8, 4, |inner| {
            let list = prop::collection::vec(inner.clone(), 0..4);
            let object = prop::collection::vec(("[a-z0-9]{0,3}", inner), 0..4);
            let entry = |(name, json): (String, String)| format!("{name:?}: {json}");
            prop_oneof![
                list.prop_map(|list| format!("[{}]", list.join(", "))),
                object.prop_map(move |entries| {
                    let entries: Vec<_> = entries.into_iter().map(entry).collect();
                    format!("{{{}}}", entries.join(", "))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_value_of_any_field_is_taken_or_refused_by_name(
            field in prop::sample::select(Params::described().iter().map(|(name, ..)| *name).collect::<Vec<_>>()),
            json in json(),
            prompt in 0_usize..120,
        ) {
            let body = format!("{{\"{field}\": {json}}}");
            if let Err(error) = ask(&body, prompt) {
                let body = serde_json::to_value(error.body()).unwrap();
                let param = body["error"]["param"].as_str().unwrap();
                prop_assert!([field, "prompt", "max_tokens"].contains(&param), "{}", body);
            }
        }
    }
}
