//! `POST /v1/completions`: prompts in, how they go on out.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use engine::{Scored, TokenId};
use serde::Serialize;
use serde_json::Value;

use super::Api;
use super::body::{Asked, Fields, fields};
use super::error::ApiError;
use super::field::{Prompts, Whole};
use super::logprobs::{PromptLogprobs, TextLogprobs};
use super::manner::Manner;
use super::params::{Dialect, Params, WITHOUT_EFFECT};
use super::run::{End, Output, Part, Run};
use super::sse::{self, Chunks, Events, Head};
use super::trace::Arrival;
use super::usage::Usage;
use crate::access::redact;
use crate::config::RequestFilter;
use crate::generation::Ask;
use crate::served::Served;

fields! {
    /// What only a completion takes.
    CompletionFields {
        /// What to go on from.
        prompt: Prompts,
        /// Begin the text with the prompt.
        echo: bool,
        /// Tell how likely each token was, and this many of the likeliest in its place.
        logprobs: Whole<0, 5>,
        /// No other value than n is served.
        best_of: Whole<1, 128>,
    }
}

/// How many tokens a completion has if the client does not say: OpenAI's number.
const MAX_TOKENS: u32 = 16;
/// How many continuations a request may ask for, all prompts together.
const CONTINUATIONS: usize = 1024;

/// A completion, ready to run.
struct Completion {
    asks: Vec<Ask>,
    teller: Teller,
    /// Only the prompts are wanted: nothing that is produced is told.
    muted: bool,
}

/// Answers a completion.
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(arrival): Extension<Arrival>,
    Asked {
        served,
        body,
        caller,
    }: Asked,
) -> Result<Response, ApiError> {
    let parsed = {
        let (api, served, at) = (api.clone(), served.clone(), arrival.at);
        move || Completion::parse(&body, &served, &api, at)
    };
    let Completion {
        asks,
        teller,
        muted,
    } = api.text_work(parsed).await?;
    let headers = teller.manner.headers();
    let mut run = api
        .start(&served, (&caller, &arrival), asks, "prompt")
        .await?;
    if muted {
        run.mute();
    }
    let id = format!("cmpl-{}", arrival.id);
    let response = match teller.manner.stream {
        true => teller.stream(run, &id),
        false => teller.whole(run, &id).await?,
    };
    Ok((headers, response).into_response())
}

impl Completion {
    /// Reads a body and tokenises its prompts. Not for the event loop.
    fn parse(body: &[u8], served: &Served, api: &Api, arrived: Instant) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let advice = "leave it out: this model only goes on from a prompt";
        fields.refuse("suffix", &["\"\""], advice)?;
        let params = Params::parse(&mut fields)?;
        let completion = CompletionFields::take(&mut fields)?;
        super::check_model(params.model.as_deref(), served)?;
        let echo = completion.echo.unwrap_or(false);
        let muted = echo && params.max_tokens == Some(Whole(0));
        let facts = super::facts(served);
        let mut prompts = Vec::new();
        let mut asks = Vec::new();
        let special = params.add_special_tokens.unwrap_or(true);
        let filter = api.context.settings.now().request_filter;
        for given in completion.prompts(params.choices())? {
            let all = given.tokens(served, filter, special)?;
            let (count, dialect) = (all.len(), completion.dialect(&params, muted, api, arrived));
            let ask = params.ask(&facts, &dialect, all)?;
            let tokens = ask.request.prompt.clone();
            // What was filtered or cut is no more what it was given as.
            let whole = filter == RequestFilter::Off && tokens.len() == count;
            let uncut = given.text().filter(|_| whole);
            let decoded = || served.tokenizer.decode(&tokens, params.skip_special());
            let echo = echo.then(|| uncut.map_or_else(decoded, str::to_owned));
            prompts.push(Prompt { tokens, echo });
            asks.push(ask);
        }
        let teller = Teller {
            prompts,
            choices: params.choices(),
            logprobs: completion.logprobs.map(Whole::count),
            prompt_logprobs: params.prompt_logprobs.is_some(),
            manner: Manner::new(&params, served, fields.ignored(WITHOUT_EFFECT)),
        };
        Ok(Self {
            asks,
            teller,
            muted,
        })
    }
}

/// A prompt as it was given.
#[derive(Clone, Copy, Debug)]
enum Given<'a> {
    Text(&'a str),
    Tokens(&'a [u32]),
}

impl<'a> Given<'a> {
    fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Tokens(_) => None,
        }
    }

    /// Its tokens, as far as `filter` lets it through. Ids are read for that, and go on as they came if
    /// nothing is found in them.
    fn tokens(
        self,
        served: &Served,
        filter: RequestFilter,
        special: bool,
    ) -> Result<Vec<TokenId>, ApiError> {
        let ids: Vec<TokenId> = match self {
            Self::Text(text) => return super::encode(served, filter, "prompt", text, special),
            Self::Tokens(ids) => ids.iter().copied().map(TokenId).collect(),
        };
        if filter == RequestFilter::Off {
            return Ok(ids);
        }
        super::facts(served).known("prompt", ids.iter().map(|id| id.0))?;
        let text = served.tokenizer.decode(&ids, false);
        match redact::find(&text) {
            None => Ok(ids),
            Some(_) => super::encode(served, filter, "prompt", &text, false),
        }
    }
}

impl CompletionFields {
    /// The prompts, if they and `choices` of each can be served.
    fn prompts(&self, choices: u32) -> Result<Vec<Given<'_>>, ApiError> {
        if self
            .best_of
            .is_some_and(|best_of| best_of.count() != choices)
        {
            let message = format!(
                "`best_of` must be `n`, which is {choices}: ask for more with `n` and choose."
            );
            return Err(ApiError::invalid("best_of", message));
        }
        let missing = || ApiError::invalid("prompt", "`prompt` is missing.");
        let prompts = self.prompt.as_ref().ok_or_else(missing)?;
        let count = prompts.count();
        if count * choices as usize > CONTINUATIONS {
            let message = format!(
                "`n` is {choices}, but {count} prompts times `n` must be at most {CONTINUATIONS}."
            );
            return Err(ApiError::invalid("n", message));
        }
        Ok(match prompts {
            Prompts::Texts(texts) => texts.iter().map(|text| Given::Text(text)).collect(),
            Prompts::Tokens(lists) => lists.iter().map(|ids| Given::Tokens(ids)).collect(),
        })
    }

    fn dialect(&self, params: &Params, muted: bool, api: &Api, arrived: Instant) -> Dialect {
        let logprobs = self.logprobs.map(Whole::count);
        let echoed = logprobs.filter(|_| self.echo == Some(true));
        Dialect {
            arrived,
            prompt: "prompt",
            limit: "max_tokens",
            // What is muted still has to run.
            max_tokens: params
                .max_tokens
                .map(|most| if muted { 1 } else { most.count() }),
            default_max_tokens: Some(MAX_TOKENS),
            logprobs,
            prompt_logprobs: params.prompt_logprobs.map(Whole::count).max(echoed),
            random: api.draw(),
            cache_salt: api.cache_salt(params.cache_salt.as_deref()),
        }
    }
}

/// A prompt as it runs.
struct Prompt {
    tokens: Arc<[TokenId]>,
    /// Its text, if each answer is to begin with it.
    echo: Option<String>,
}

impl Prompt {
    /// All its tokens, of which `scored` are those after the first.
    fn scored(&self, scored: Option<&[Scored]>) -> Vec<Scored> {
        let first = self.tokens.first().map(|token| Scored {
            token: *token,
            logprob: None,
            top: Vec::new(),
        });
        let rest = scored.unwrap_or_default().iter().cloned();
        first.into_iter().chain(rest).collect()
    }
}

/// Tells the answer as the client wants it.
struct Teller {
    manner: Manner,
    prompts: Vec<Prompt>,
    /// Continuations of each prompt.
    choices: u32,
    /// How many of the likeliest tokens to tell of.
    logprobs: Option<u32>,
    /// Whether to tell of those in the prompt, apart from echo.
    prompt_logprobs: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    choices: Vec<Choice<'a>>,
    usage: Usage,
}

/// A choice, whole or in a chunk.
#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    text: Cow<'a, str>,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

impl<'a> Choice<'a> {
    fn new(index: u32, text: Cow<'a, str>) -> Self {
        Self {
            index,
            text,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            prompt_logprobs: None,
            prompt_token_ids: None,
            token_ids: None,
        }
    }

    fn ended(self, end: &End) -> Self {
        Self {
            finish_reason: Some(end.finish_reason()),
            stop_reason: Some(end.stop_reason()),
            ..self
        }
    }
}

impl Teller {
    /// The prompt of the choice `index`.
    fn prompt(&self, index: u32) -> (usize, &Prompt) {
        let prompt = (index / self.choices) as usize;
        (prompt, &self.prompts[prompt])
    }

    /// The log-probabilities of `scored`, whose text begins at `offset` of the choice's.
    fn logprobs(&self, offset: &mut u64, scored: &[Scored]) -> Option<TextLogprobs> {
        let most = self.logprobs?;
        let mut logprobs = TextLogprobs::default();
        for scored in scored {
            logprobs.push(&self.manner.names, most, offset, scored);
        }
        Some(logprobs)
    }

    async fn whole(self, run: Run, id: &str) -> Result<Response, ApiError> {
        let whole = run.whole().await?;
        let choice = |(index, output)| {
            let (prompt, _) = self.prompt(index);
            self.choice(index, output, whole.prompts[prompt].as_deref())
        };
        let body = Body {
            head: self.manner.head(id, "text_completion"),
            choices: (0..).zip(&whole.outputs).map(choice).collect(),
            usage: whole.usage,
        };
        Ok(Json(body).into_response())
    }

    /// A whole choice. `scored` are its prompt's tokens after the first.
    fn choice<'a>(
        &'a self,
        index: u32,
        output: &'a Output,
        scored: Option<&'a [Scored]>,
    ) -> Choice<'a> {
        let (_, prompt) = self.prompt(index);
        let mut told = Vec::new();
        let mut text = Cow::Borrowed(&output.text[..]);
        if let Some(echo) = &prompt.echo {
            told = prompt.scored(scored);
            text = Cow::Owned(format!("{echo}{text}"));
        }
        told.extend_from_slice(&output.scored);
        let names = &self.manner.names;
        let prompt_logprobs = scored.filter(|_| self.prompt_logprobs);
        let choice = Choice {
            logprobs: self.logprobs(&mut 0, &told),
            prompt_logprobs: prompt_logprobs.map(|scored| PromptLogprobs { names, scored }),
            prompt_token_ids: self.manner.ids(&prompt.tokens),
            token_ids: self.manner.scored_ids(&output.scored),
            ..Choice::new(index, text)
        };
        match &output.end {
            Some(end) => choice.ended(end),
            None => choice,
        }
    }

    fn stream(self, run: Run, id: &str) -> Response {
        let events = self.manner.events(&self.manner.head(id, "text_completion"));
        let chunks = TextChunks {
            begun: vec![false; run.outputs()],
            offsets: vec![0; run.outputs()],
            scored: vec![None; self.prompts.len()],
            teller: self,
        };
        sse::answer(run, chunks, events)
    }
}

/// A completion's chunks: the prompt if it is echoed, then a chunk a token, then why it ended.
struct TextChunks {
    teller: Teller,
    /// For each choice, whether anything was told.
    begun: Vec<bool>,
    /// For each choice, the letters told.
    offsets: Vec<u64>,
    /// For each prompt, its tokens after the first, once they are scored.
    scored: Vec<Option<Vec<Scored>>>,
}

impl TextChunks {
    /// Tells what comes before the first token of a choice, and gives the ids of the prompt if the
    /// next chunk is the one to tell them.
    fn begin(&mut self, index: u32, events: &mut Events) -> Option<Vec<u32>> {
        if std::mem::replace(&mut self.begun[index as usize], true) {
            return None;
        }
        let (number, prompt) = self.teller.prompt(index);
        let ids = self.teller.manner.ids(&prompt.tokens);
        let Some(echo) = &prompt.echo else { return ids };
        let scored = prompt.scored(self.scored[number].as_deref());
        let offset = &mut self.offsets[index as usize];
        events.chunk(&Choice {
            logprobs: self.teller.logprobs(offset, &scored),
            prompt_token_ids: ids,
            ..Choice::new(index, echo.into())
        });
        None
    }
}

impl Chunks for TextChunks {
    fn write(&mut self, part: Part, events: &mut Events) {
        match part {
            Part::Prompt { prompt, scored } => self.scored[prompt as usize] = Some(scored),
            Part::Token {
                index,
                text,
                scored,
            } => {
                let prompt_token_ids = self.begin(index, events);
                let scored = std::slice::from_ref(&scored);
                let offset = &mut self.offsets[index as usize];
                events.chunk(&Choice {
                    logprobs: self.teller.logprobs(offset, scored),
                    token_ids: self.teller.manner.scored_ids(scored),
                    prompt_token_ids,
                    ..Choice::new(index, text.into())
                });
            }
            Part::End { index, text, end } => {
                let prompt_token_ids = self.begin(index, events);
                let choice = Choice {
                    prompt_token_ids,
                    ..Choice::new(index, text.into())
                };
                events.chunk(&choice.ended(&end));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture::{events, finished, manner, run, scored, started, token, whole};
    use super::*;
    use crate::generation::{Piece, Reason};

    /// The prompt is `ab`.
    fn teller(fields: &str, echo: bool, logprobs: Option<u32>) -> Teller {
        let prompt = Prompt {
            tokens: [TokenId(0), TokenId(1)].into(),
            echo: echo.then(|| "ab".into()),
        };
        Teller {
            manner: manner(fields),
            prompts: vec![prompt],
            choices: 1,
            logprobs,
            prompt_logprobs: fields.contains("prompt_logprobs"),
        }
    }

    fn pieces() -> [Piece; 4] {
        [
            started(0),
            Piece::Prompt(vec![scored(1)]),
            token(0, "b", 1),
            finished(0, "", Reason::Length),
        ]
    }

    #[tokio::test]
    async fn an_echo_is_scored_like_the_rest() {
        let told = teller("{}", true, Some(1))
            .whole(run(&pieces(), 1), "id")
            .await;
        let body = whole(told.unwrap()).await;
        let choice = &body["choices"][0];
        assert_eq!(choice["text"], "abb");
        let expected = json!({
            "text_offset": [0, 1, 2],
            "token_logprobs": [null, -0.5, -0.5],
            "tokens": ["a", "b", "b"],
            "top_logprobs": [null, {"b": -0.5}, {"b": -0.5}],
        });
        assert_eq!(choice["logprobs"], expected);
        assert_eq!(choice["finish_reason"], "length");
    }

    #[tokio::test]
    async fn a_stream_echoes_first_and_then_tells_a_chunk_a_token() {
        let fields = r#"{"return_token_ids": true, "return_tokens_as_token_ids": true}"#;
        let told = teller(fields, true, Some(2)).stream(run(&pieces(), 1), "id");
        let head = r#"{"id":"id","object":"text_completion","model":"m","choices":["#;
        let expected = [
            r#"{"index":0,"text":"ab","logprobs":{"text_offset":[0,1],"token_logprobs":[null,-0.5],"tokens":["token_id:0","token_id:1"],"top_logprobs":[null,{"token_id:1":-0.5,"token_id:2":-9999.0}]},"finish_reason":null,"prompt_token_ids":[0,1]}]}"#,
            r#"{"index":0,"text":"b","logprobs":{"text_offset":[2],"token_logprobs":[-0.5],"tokens":["token_id:1"],"top_logprobs":[{"token_id:1":-0.5,"token_id:2":-9999.0}]},"finish_reason":null,"token_ids":[1]}]}"#,
            r#"{"index":0,"text":"","logprobs":null,"finish_reason":"length","stop_reason":null}]}"#,
        ];
        let mut expected: Vec<String> = expected.map(|rest| format!("{head}{rest}")).into();
        expected.push("[DONE]".into());
        assert_eq!(events(told).await, expected);
    }

    #[tokio::test]
    async fn a_muted_run_tells_the_prompt_alone() {
        let mut run = run(&pieces(), 1);
        run.mute();
        let told = teller("{}", true, Some(1)).whole(run, "id").await;
        let body = whole(told.unwrap()).await;
        assert_eq!(body["choices"][0]["text"], "ab");
        assert_eq!(body["choices"][0]["logprobs"]["tokens"], json!(["a", "b"]));
        assert_eq!(body["usage"]["completion_tokens"], 0);
    }

    #[tokio::test]
    async fn prompts_are_scored_in_vllms_shape() {
        let told = teller(r#"{"prompt_logprobs": 2}"#, false, None).whole(run(&pieces(), 1), "id");
        let body = whole(told.await.unwrap()).await;
        let choice = &body["choices"][0];
        assert_eq!(choice["logprobs"], Value::Null);
        let expected = json!([null, {
            "1": {"logprob": -0.5, "rank": 1, "decoded_token": "b"},
            "2": {"logprob": -9999.0, "rank": 2, "decoded_token": "c"},
        }]);
        assert_eq!(choice["prompt_logprobs"], expected);
    }
}
