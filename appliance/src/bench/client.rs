//! One streamed chat completion, and when each of its tokens came.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;

/// How much of a body that is not a stream is read: enough of an error to show.
const SHOWN: usize = 4096;

/// The server to measure: `http://HOST:PORT`, perhaps with a path before `/v1`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    /// Host and port, as a socket and the `Host` header take them.
    address: String,
    /// What stands before `/v1`, without a slash at its end.
    path: String,
}

/// What came back for one request.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// From sending to each event that brought text.
    pub(super) arrivals: Vec<Duration>,
    /// Tokens of the prompt, as the server counted them.
    pub(super) prompt_tokens: u64,
    /// How many of them came from a cache.
    pub(super) cached_tokens: u64,
    /// Tokens that it made, as the server counted them, or else the events.
    pub(super) output_tokens: u64,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let address: Uri = text
            .parse()
            .map_err(|error| format!("{error}; write http://HOST:PORT"))?;
        if address.scheme_str() != Some("http") {
            return Err("only plain HTTP is measured; write http://HOST:PORT".into());
        }
        let host = address
            .host()
            .ok_or("it names no host; write http://HOST:PORT")?;
        Ok(Target {
            address: format!("{host}:{}", address.port_u16().unwrap_or(80)),
            path: address.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.address, self.path)
    }
}

impl Target {
    /// The id of the first model that the server lists.
    pub(super) async fn first_model(&self) -> anyhow::Result<String> {
        let response = self.send(Method::GET, "/v1/models", String::new()).await?;
        let status = response.status();
        let body = start_of(response.into_body()).await?;
        serde_json::from_slice(&body)
            .ok()
            .and_then(|list: Value| Some(list["data"][0]["id"].as_str()?.to_owned()))
            .with_context(|| {
                let body = String::from_utf8_lossy(&body);
                format!("{self}/v1/models lists no model ({status}: {body}); name it with --model")
            })
    }

    /// Sends a chat completion with `stream` set and reads its events to the end, calling `each`
    /// as each one that brings text comes.
    pub(super) async fn stream(&self, body: &Value, each: impl Fn()) -> anyhow::Result<Answer> {
        let sent = Instant::now();
        let request = body.to_string();
        let response = self
            .send(Method::POST, "/v1/chat/completions", request)
            .await?;
        let status = response.status();
        if !status.is_success() {
            let body = start_of(response.into_body()).await?;
            bail!("{status}: {}", String::from_utf8_lossy(&body).trim_end());
        }
        let mut body = response.into_body();
        let mut events = Events::default();
        let mut answer = Tally::default();
        while let Some(data) = next_data(&mut body).await? {
            let at = sent.elapsed();
            events.rest.extend_from_slice(&data);
            while let Some(line) = events.line() {
                if answer.read(&line, at)? {
                    each();
                }
            }
        }
        answer.whole()
    }

    /// Sends one request on a connection of its own; the answer's head has come.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> anyhow::Result<Response<Incoming>> {
        let socket = TcpStream::connect(&self.address).await.with_context(|| {
            format!("nobody answers at {self}: start a server there with `appliance serve`")
        })?;
        socket.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        // Ends when the answer has been read or dropped; what goes wrong shows in the body.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.path))
            .header(header::HOST, &self.address)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)?;
        Ok(sender.send_request(request).await?)
    }
}

/// The next piece of a body; `None` at its end.
async fn next_data(body: &mut Incoming) -> anyhow::Result<Option<Bytes>> {
    loop {
        match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
            None => return Ok(None),
            Some(frame) => {
                if let Ok(data) = frame?.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A body that is no stream, or the start of a long one.
async fn start_of(mut body: Incoming) -> anyhow::Result<Vec<u8>> {
    let mut start = Vec::new();
    while start.len() < SHOWN
        && let Some(data) = next_data(&mut body).await?
    {
        start.extend_from_slice(&data);
    }
    Ok(start)
}

/// The lines of a body as it comes.
#[derive(Default, Debug)]
struct Events {
    /// What has come and is not yet a whole line.
    rest: Vec<u8>,
}

impl Events {
    /// The next whole line, without its end.
    fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.rest.iter().position(|byte| *byte == b'\n')?;
        let mut line: Vec<u8> = self.rest.drain(..=end).collect();
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Some(line)
    }
}

/// What a stream has brought so far.
#[derive(Default, Debug)]
struct Tally {
    arrivals: Vec<Duration>,
    usage: Option<Usage>,
    done: bool,
}

/// One event of a stream, as far as it is measured.
#[derive(Deserialize, Debug)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize, Debug)]
struct Choice {
    #[serde(default)]
    delta: Delta,
}

#[derive(Default, Deserialize, Debug)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
}

#[derive(Deserialize, Debug)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize, Debug)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

impl Tally {
    /// Takes in one line that came at `at`; true if it brought text.
    fn read(&mut self, line: &[u8], at: Duration) -> anyhow::Result<bool> {
        // Empty lines end an event; comments keep a connection open; other fields have no meaning.
        let Some(data) = line.strip_prefix(b"data:") else {
            return Ok(false);
        };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.done = true;
            return Ok(false);
        }
        let chunk: Chunk = serde_json::from_slice(data)
            .with_context(|| format!("not an event: {}", String::from_utf8_lossy(data)))?;
        if let Some(error) = chunk.error {
            bail!("an error in the stream: {error}");
        }
        self.usage = chunk.usage.or(self.usage.take());
        let text = |delta: &Delta| {
            let parts = [&delta.content, &delta.reasoning_content];
            parts.into_iter().flatten().any(|part| !part.is_empty())
        };
        let brought = chunk.choices.iter().any(|choice| text(&choice.delta));
        if brought {
            self.arrivals.push(at);
        }
        Ok(brought)
    }

    /// The answer, if the stream ended as it must.
    fn whole(self) -> anyhow::Result<Answer> {
        ensure!(self.done, "the stream ended without [DONE]");
        ensure!(!self.arrivals.is_empty(), "the stream brought no text");
        let events = self.arrivals.len() as u64;
        let usage = self.usage.as_ref();
        Ok(Answer {
            prompt_tokens: usage.map_or(0, |usage| usage.prompt_tokens),
            cached_tokens: usage
                .and_then(|usage| usage.prompt_tokens_details.as_ref()?.cached_tokens)
                .unwrap_or(0),
            output_tokens: usage.map_or(events, |usage| usage.completion_tokens),
            arrivals: self.arrivals,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = br#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}

: keep-alive

data: {"choices":[{"delta":{"content":"Once"}}]}

data: {"choices":[{"delta":{"content":" upon"}}],"usage":null}

data: {"choices":[{"delta":{},"finish_reason":"length"}]}

data: {"choices":[],"usage":{"prompt_tokens":20,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":16}}}

data: [DONE]

"#;

    /// What a body tells that comes in pieces of `size` bytes, one a second.
    fn read(body: &[u8], size: usize) -> anyhow::Result<Answer> {
        let mut events = Events::default();
        let mut tally = Tally::default();
        for (second, piece) in (0..).zip(body.chunks(size)) {
            events.rest.extend_from_slice(piece);
            while let Some(line) = events.line() {
                tally.read(&line, Duration::from_secs(second))?;
            }
        }
        tally.whole()
    }

    #[test]
    fn only_events_that_bring_text_are_arrivals() {
        for size in [1, 7, STREAM.len()] {
            let answer = read(STREAM, size).unwrap();
            assert_eq!(answer.arrivals.len(), 2);
            assert_eq!(
                (
                    answer.prompt_tokens,
                    answer.cached_tokens,
                    answer.output_tokens
                ),
                (20, 16, 3)
            );
        }
    }

    #[test]
    fn a_stream_that_breaks_off_fails() {
        let cut = &STREAM[..STREAM.len() - 20];
        assert!(read(cut, 100).is_err());
    }

    #[test]
    fn an_error_within_a_stream_fails() {
        let body = b"data: {\"error\":{\"message\":\"device lost\"}}\n\n";
        let error = read(body, 100).unwrap_err().to_string();
        assert!(error.contains("device lost"), "{error}");
    }

    #[test]
    fn without_usage_events_are_counted() {
        let body = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n";
        assert_eq!(read(body, 100).unwrap().output_tokens, 1);
    }

    fn check(url: &str, told: Result<&str, &str>) {
        let target = url.parse::<Target>();
        match told {
            Ok(shown) => assert_eq!(target.unwrap().to_string(), shown),
            Err(part) => assert!(target.unwrap_err().contains(part), "{url}"),
        }
    }

    #[test]
    fn a_target_is_plain_http() {
        check("http://127.0.0.1:8000", Ok("http://127.0.0.1:8000"));
        check("http://[::1]:8000/", Ok("http://[::1]:8000"));
        check("http://host/proxy/", Ok("http://host:80/proxy"));
        check("https://host", Err("only plain HTTP"));
        check("host:80", Err("http://HOST:PORT"));
    }
}
