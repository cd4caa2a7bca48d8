//! Server-sent events, read as the strictest client reads them.
//!
//! An event is one line `data: ` with one space, then one JSON object or `[DONE]`, then an empty
//! line. Comments (`: ..`) may stand between. Anything else, `id:` above all (openai-python then
//! fails on the next comment), and anything after `[DONE]`, fails the test.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::Value;

use crate::http::{Body, Head};

/// What came.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A comment, sent to keep the connection open.
    Comment(String),
    /// A JSON object.
    Data(Value),
    /// `[DONE]`.
    Done,
}

/// A stream of events as it arrives. Dropping it closes the connection.
#[derive(Debug)]
pub struct Stream {
    /// Status and headers of the answer.
    pub head: Head,
    lines: BufReader<Body<BufReader<TcpStream>>>,
    done: bool,
}

impl Stream {
    pub(crate) fn new(head: Head, body: Body<BufReader<TcpStream>>) -> Self {
        Self {
            head,
            lines: BufReader::with_capacity(1, body),
            done: false,
        }
    }

    /// The next event and when it was read; `None` once the body has ended as it must.
    pub fn event(&mut self) -> anyhow::Result<Option<(Event, Instant)>> {
        let Some(line) = self.line()? else {
            anyhow::ensure!(self.done, "the stream ended without [DONE]");
            return Ok(None);
        };
        let at = Instant::now();
        anyhow::ensure!(!self.done, "after [DONE]: {line:?}");
        let empty = self.line()?;
        anyhow::ensure!(
            empty.as_deref() == Some(""),
            "after {line:?} an empty line, not {empty:?}"
        );
        let event = parse(&line)?;
        self.done = event == Event::Done;
        Ok(Some((event, at)))
    }

    /// The next JSON object, past comments; `None` after `[DONE]` and the end of the body.
    pub fn next_chunk(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            match self.event()? {
                Some((Event::Data(value), _)) => return Ok(Some(value)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// All JSON objects to the end of a stream that ends well.
    pub fn chunks(mut self) -> Vec<Value> {
        let mut chunks = Vec::new();
        while let Some(chunk) = self.next_chunk().expect("a well-formed stream") {
            chunks.push(chunk);
        }
        chunks
    }

    /// Reads a body that is not a stream of events after all: an error.
    pub fn body(mut self) -> String {
        let mut body = String::new();
        std::io::Read::read_to_string(&mut self.lines, &mut body).expect("the rest of the body");
        body
    }

    fn line(&mut self) -> anyhow::Result<Option<String>> {
        let mut line = Vec::new();
        if self.lines.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        anyhow::ensure!(line.pop() == Some(b'\n'), "a line without an end");
        Ok(Some(String::from_utf8(line)?))
    }
}

fn parse(line: &str) -> anyhow::Result<Event> {
    if let Some(comment) = line.strip_prefix(':') {
        return Ok(Event::Comment(comment.trim().to_owned()));
    }
    let data = line
        .strip_prefix("data: ")
        .ok_or_else(|| anyhow::anyhow!("neither `data: ` nor a comment: {line:?}"))?;
    if data == "[DONE]" {
        return Ok(Event::Done);
    }
    anyhow::ensure!(data.starts_with('{'), "no JSON object: {line:?}");
    Ok(Event::Data(serde_json::from_str(data)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_data_with_one_space_or_a_comment() {
        let data = Event::Data(serde_json::json!({"a": 1}));
        assert_eq!(parse("data: {\"a\":1}").unwrap(), data);
        assert_eq!(parse("data: [DONE]").unwrap(), Event::Done);
        assert_eq!(parse(": ping").unwrap(), Event::Comment("ping".into()));
        for line in [
            "data:{\"a\":1}",
            "data:  {\"a\":1}",
            "id: 1",
            "event: x",
            "data: 1",
            "data: {\"a\":1} {}",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
