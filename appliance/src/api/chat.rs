//! `POST /v1/chat/completions`: a conversation in, the assistant's next message out.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use engine::{Scored, TokenId};
use serde::Serialize;
use serde_json::Value;

use super::body::{Asked, Fields, fields};
use super::conversation::Conversation;
use super::error::ApiError;
use super::field::{MOST, Whole};
use super::logprobs::{ChatLogprobs, PromptLogprobs};
use super::manner::Manner;
use super::params::{Dialect, Params, WITHOUT_EFFECT};
use super::run::{End, Output, Part};
use super::sse::{self, Chunks, Events, Head};
use super::trace::Arrival;
use super::usage::Usage;
use super::{Api, run};
use crate::generation::Ask;
use crate::served::Served;

fields! {
    /// What only a chat takes.
    ChatFields {
        /// The most tokens to produce; goes before max_tokens. Default: what the context takes.
        max_completion_tokens: Whole<0, MOST>,
        /// Tell how likely each token of the answer was.
        logprobs: bool,
        /// Tell it of this many of the likeliest tokens in each place. Needs logprobs.
        top_logprobs: Whole<0, 20>,
    }
}

/// Fields that only a chat has, that are not served and would change the answer.
const REFUSED: &[(&str, &[&str], &str)] = &[
    ("functions", &["[]"], "leave it out"),
    ("function_call", &["\"none\""], "leave it out"),
    ("audio", &[], "leave it out: this model writes text"),
    (
        "modalities",
        &[r#"["text"]"#],
        "leave it out: this model writes text",
    ),
    ("web_search_options", &[], "leave it out"),
    ("best_of", &["1"], "use n and choose among the answers"),
];

const TOOLS: &str = "calls of tools are not parsed out of the answer. Leave it out, or set \
                     `tool_choice` to \"none\" and describe the tools in a message";

/// A chat, ready to run.
struct Chat {
    ask: Ask,
    manner: Manner,
    /// Whether to tell how likely each token was.
    logprobs: bool,
}

/// Answers a chat.
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
        move || Chat::parse(&body, &served, &api, at)
    };
    let Chat {
        ask,
        manner,
        logprobs,
    } = api.text_work(parsed).await?;
    let headers = manner.headers();
    let prompt = ask.request.prompt.clone();
    let run = api
        .start(&served, (&caller, &arrival), vec![ask], "messages")
        .await?;
    let id = format!("chatcmpl-{}", arrival.id);
    let teller = Teller { manner, logprobs };
    let response = match teller.manner.stream {
        true => teller.stream(run, &id, &prompt),
        false => teller.whole(run, &id, &prompt).await?,
    };
    Ok((headers, response).into_response())
}

impl Chat {
    /// Reads a body and tokenises its prompt. Not for the event loop.
    fn parse(body: &[u8], served: &Served, api: &Api, arrived: Instant) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        for (name, harmless, advice) in REFUSED {
            fields.refuse(name, harmless, advice)?;
        }
        refuse_tools(&mut fields)?;
        let params = Params::parse(&mut fields)?;
        let chat = ChatFields::take(&mut fields)?;
        let logprobs = chat.logprobs()?;
        let settings = api.context.settings.now();
        let trust = settings.trust_request_chat_template;
        let conversation = Conversation::parse(&mut fields, None, trust)?;
        super::check_model(params.model.as_deref(), served)?;
        let text = conversation.render(served)?;
        let special = params.add_special_tokens.unwrap_or(false);
        let prompt = super::encode(served, settings.request_filter, "messages", &text, special)?;
        let dialect = chat.dialect(&params, logprobs, api, arrived);
        let ask = params.ask(&super::facts(served), &dialect, prompt)?;
        Ok(Self {
            ask,
            logprobs: logprobs.is_some(),
            manner: Manner::new(&params, served, fields.ignored(WITHOUT_EFFECT)),
        })
    }
}

/// Tools would have to be found again in the answer. Who says that none is to be called gets an
/// answer without them.
fn refuse_tools(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    let choice: Option<String> = fields.take("tool_choice").unwrap_or(Some(String::new()));
    match choice.as_deref() {
        Some("none") => fields.drop("tools"),
        Some("auto") | None => {}
        Some(_) => {
            let message =
                format!("`tool_choice` asks for a call, which is not supported: {TOOLS}.");
            return Err(ApiError::invalid("tool_choice", message));
        }
    }
    fields.refuse("tools", &["[]"], TOOLS)
}

impl ChatFields {
    /// How many of the likeliest tokens to tell of.
    fn logprobs(&self) -> Result<Option<u32>, ApiError> {
        match (self.logprobs, self.top_logprobs) {
            (Some(true), top) => Ok(Some(top.map_or(0, Whole::count))),
            (_, Some(Whole(0)) | None) => Ok(None),
            (_, Some(_)) => {
                let message = "`top_logprobs` needs `logprobs`: set it to true.";
                Err(ApiError::invalid("top_logprobs", message))
            }
        }
    }

    fn dialect(
        &self,
        params: &Params,
        logprobs: Option<u32>,
        api: &Api,
        arrived: Instant,
    ) -> Dialect {
        let limit = match self.max_completion_tokens {
            Some(_) => "max_completion_tokens",
            None => "max_tokens",
        };
        Dialect {
            arrived,
            prompt: "messages",
            limit,
            max_tokens: self
                .max_completion_tokens
                .map(Whole::count)
                .or(params.max_tokens.map(Whole::count)),
            default_max_tokens: None,
            logprobs,
            prompt_logprobs: params.prompt_logprobs.map(Whole::count),
            random: api.draw(),
            cache_salt: api.cache_salt(params.cache_salt.as_deref()),
        }
    }
}

/// Tells the answer as the client wants it.
struct Teller {
    manner: Manner,
    logprobs: bool,
}

#[derive(Serialize)]
struct Completion<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    choices: Vec<Choice>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: (),
}

/// A choice in a chunk of a stream.
#[derive(Serialize)]
struct Piece<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl<'a> Piece<'a> {
    fn new(index: u32, delta: Delta<'a>) -> Self {
        Self {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        }
    }

    /// The beginning of a choice.
    fn role(index: u32) -> Self {
        let delta = Delta {
            role: Some("assistant"),
            content: Some(""),
        };
        Self::new(index, delta)
    }

    fn text(index: u32, text: &'a str) -> Self {
        let delta = Delta {
            role: None,
            content: Some(text),
        };
        Self::new(index, delta)
    }

    /// The end of a choice: nothing but the reason.
    fn end(index: u32, end: &End) -> Self {
        Self {
            finish_reason: Some(end.finish_reason()),
            stop_reason: Some(end.stop_reason()),
            ..Self::new(index, Delta::default())
        }
    }
}

impl Teller {
    async fn whole(
        self,
        run: run::Run,
        id: &str,
        prompt: &[TokenId],
    ) -> Result<Response, ApiError> {
        let whole = run.whole().await?;
        let scored = whole.prompts.first().and_then(Option::as_deref);
        let prompt_logprobs = scored.map(|scored| PromptLogprobs {
            names: &self.manner.names,
            scored,
        });
        let completion = Completion {
            head: self.manner.head(id, "chat.completion"),
            choices: whole
                .outputs
                .iter()
                .enumerate()
                .map(|(index, output)| self.choice(index, output))
                .collect(),
            usage: whole.usage,
            prompt_logprobs,
            prompt_token_ids: self.manner.ids(prompt),
        };
        Ok(Json(completion).into_response())
    }

    fn choice(&self, index: usize, output: &Output) -> Choice {
        let end = output.end.as_ref();
        Choice {
            index,
            message: Message {
                role: "assistant",
                content: output.text.clone(),
                refusal: (),
            },
            logprobs: self.logprobs(&output.scored),
            finish_reason: end.map(End::finish_reason),
            stop_reason: end.map_or(Value::Null, End::stop_reason),
            token_ids: self.manner.scored_ids(&output.scored),
        }
    }

    fn logprobs(&self, scored: &[Scored]) -> Option<ChatLogprobs> {
        self.logprobs
            .then(|| ChatLogprobs::new(&self.manner.names, scored))
    }

    fn stream(self, run: run::Run, id: &str, prompt: &[TokenId]) -> Response {
        let mut events = self
            .manner
            .events(&self.manner.head(id, "chat.completion.chunk"));
        if let Some(ids) = self.manner.ids(prompt) {
            events.say_first("prompt_token_ids", &ids);
        }
        let chunks = ChatChunks {
            begun: vec![false; run.outputs()],
            teller: self,
        };
        sse::answer(run, chunks, events)
    }
}

/// A chat's chunks: the role, then a chunk a token, then why it ended.
struct ChatChunks {
    teller: Teller,
    /// For each choice, whether its role was told.
    begun: Vec<bool>,
}

impl ChatChunks {
    fn begin(&mut self, index: u32, events: &mut Events) {
        if !std::mem::replace(&mut self.begun[index as usize], true) {
            events.chunk(&Piece::role(index));
        }
    }
}

impl Chunks for ChatChunks {
    fn write(&mut self, part: Part, events: &mut Events) {
        match part {
            Part::Prompt { .. } => {} // refused with `stream`
            Part::Token {
                index,
                text,
                scored,
            } => {
                self.begin(index, events);
                let scored = std::slice::from_ref(&scored);
                events.chunk(&Piece {
                    logprobs: self.teller.logprobs(scored),
                    token_ids: self.teller.manner.scored_ids(scored),
                    ..Piece::text(index, &text)
                });
            }
            Part::End { index, text, end } => {
                self.begin(index, events);
                if !text.is_empty() {
                    events.chunk(&Piece::text(index, &text));
                }
                events.chunk(&Piece::end(index, &end));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{events, finished, manner, run, started, token, whole};
    use super::*;
    use crate::generation::Reason;

    fn teller(fields: &str, logprobs: bool) -> Teller {
        Teller {
            manner: manner(fields),
            logprobs,
        }
    }

    const PROMPT: [TokenId; 2] = [TokenId(0), TokenId(1)];

    #[tokio::test]
    async fn a_stream_is_role_tokens_end() {
        let pieces = [
            started(0),
            token(0, "a", 0),
            token(0, "", 1),
            finished(0, "b", Reason::StopText("c".into())),
        ];
        let told =
            teller("{\"return_token_ids\": true}", false).stream(run(&pieces, 1), "id", &PROMPT);
        let head = r#"{"id":"id","object":"chat.completion.chunk","model":"m","choices":["#;
        let expected = [
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":[0,1]}"#,
            r#"{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null,"token_ids":[0]}]}"#,
            r#"{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":null,"token_ids":[1]}]}"#,
            r#"{"index":0,"delta":{"content":"b"},"logprobs":null,"finish_reason":null}]}"#,
            r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":"c"}]}"#,
        ];
        let mut expected: Vec<String> = expected.map(|rest| format!("{head}{rest}")).into();
        expected.push("[DONE]".into());
        assert_eq!(events(told).await, expected);
    }

    #[tokio::test]
    async fn usage_comes_in_each_chunk_or_at_the_end() {
        let pieces = [
            started(0),
            token(0, "a", 0),
            finished(0, "", Reason::Length),
        ];
        let usages = async |options: &str| {
            let fields = format!("{{\"stream_options\": {options}}}");
            let told = teller(&fields, false).stream(run(&pieces, 1), "id", &PROMPT);
            let events = events(told).await;
            let usage = |event: &String| {
                serde_json::from_str::<Value>(event)
                    .ok()?
                    .get("usage")
                    .cloned()
            };
            events.iter().map(usage).collect::<Vec<_>>()
        };
        let last = serde_json::json!({
            "prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 1},
        });
        let (none, null, last) = (None, Some(Value::Null), Some(last));
        let three = |usage: &Option<Value>| vec![usage.clone(); 3];
        assert_eq!(
            usages("{}").await,
            [three(&none), vec![none.clone()]].concat()
        );
        let at_the_end = [three(&null), vec![last.clone(), none.clone()]].concat();
        assert_eq!(usages(r#"{"include_usage": true}"#).await, at_the_end);
        let each = [three(&last), vec![last.clone(), none.clone()]].concat();
        let options = r#"{"include_usage": true, "continuous_usage_stats": true}"#;
        assert_eq!(usages(options).await, each);
    }

    #[tokio::test]
    async fn an_answer_is_whole() {
        let pieces = [
            started(0),
            token(0, "a", 0),
            token(1, "b", 1),
            finished(1, "", Reason::StopToken(TokenId(1))),
            finished(0, "c", Reason::Eos),
        ];
        let told = teller("{}", true)
            .whole(run(&pieces, 2), "id", &PROMPT)
            .await;
        let token = |token: &str, byte: u8| {
            serde_json::json!({
                "content": [{
                    "token": token, "logprob": -0.5, "bytes": [byte],
                    "top_logprobs": [
                        {"token": token, "logprob": -0.5, "bytes": [byte]},
                        {"token": "c", "logprob": -9999.0, "bytes": [99]},
                    ],
                }],
                "refusal": null,
            })
        };
        let choice = |index: u32, text: &str, logprobs: Value, stop_reason: Value| {
            serde_json::json!({
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": logprobs,
                "finish_reason": "stop",
                "stop_reason": stop_reason,
            })
        };
        let expected = serde_json::json!({
            "id": "id", "object": "chat.completion", "model": "m",
            "choices": [
                choice(0, "ac", token("a", 97), Value::Null),
                choice(1, "b", token("b", 98), 1.into()),
            ],
            "usage": {
                "prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 1},
            },
        });
        assert_eq!(whole(told.unwrap()).await, expected);
    }

    #[tokio::test]
    async fn what_fails_is_an_event_in_a_stream_and_a_status_else() {
        let failed = finished(0, "", Reason::Failed("x".into()));
        let late = [token(0, "a", 0), failed];
        let told = teller("{}", false).stream(run(&late, 1), "id", &PROMPT);
        let error = r#"{"error":{"message":"The request failed: x","type":"server_error","param":null,"code":null}}"#;
        assert_eq!(events(told).await[2..], [error, "[DONE]"]);
        let failed = teller("{}", false).whole(run(&late, 1), "id", &PROMPT);
        assert_eq!(failed.await.unwrap_err().status, 500);
        let lost = teller("{}", false).whole(run(&[token(0, "a", 0)], 1), "id", &PROMPT);
        assert_eq!(lost.await.unwrap_err().status, 503);
        let late = finished(0, "", Reason::Deadline);
        let late = teller("{}", false).whole(run(&[late], 1), "id", &PROMPT);
        assert_eq!(late.await.unwrap_err().status, 504);
    }

    #[test]
    fn tools_are_refused_unless_none_is_to_be_called() {
        let refused =
            |body: &str| refuse_tools(&mut Fields::parse(body.as_bytes()).unwrap()).is_err();
        let tools = r#""tools": [{"type": "function"}]"#;
        assert!(refused(&format!("{{{tools}}}")));
        assert!(refused(&format!("{{{tools}, \"tool_choice\": \"auto\"}}")));
        assert!(refused(r#"{"tool_choice": "required"}"#));
        assert!(refused(r#"{"tool_choice": {"type": "function"}}"#));
        assert!(!refused(&format!("{{{tools}, \"tool_choice\": \"none\"}}")));
        assert!(!refused(r#"{"tools": [], "tool_choice": "auto"}"#));
    }
}
