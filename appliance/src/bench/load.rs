//! The load: clients that each send a request, read it to the end and send the next.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::client::{Answer, Target};
use super::prompt;

/// A load to put on a server.
#[derive(Clone, Debug)]
pub(super) struct Load {
    /// The server.
    pub(super) target: Target,
    /// The model to ask for.
    pub(super) model: String,
    /// Clients at once.
    pub(super) clients: u32,
    /// Requests of all clients together.
    pub(super) requests: u32,
    /// About how many tokens each prompt has.
    pub(super) prompt_tokens: u32,
    /// How many tokens each answer has.
    pub(super) output_tokens: u32,
    /// Which prompts.
    pub(super) seed: u32,
    /// How long one request may take.
    pub(super) timeout: Duration,
}

/// What came of a load.
#[derive(Debug)]
pub(super) struct Outcome {
    /// From the first request to the end of the last answer.
    pub(super) elapsed: Duration,
    /// An answer or what went wrong, for each request.
    pub(super) answers: Vec<anyhow::Result<Answer>>,
}

/// How far a load is; counters that the clients share.
#[derive(Default, Debug)]
struct Progress {
    begun: AtomicU32,
    ended: AtomicU32,
    events: AtomicU32,
}

impl Load {
    /// Sends `count` requests one after the other; the first that fails is an error.
    pub(super) async fn warm_up(&self, count: u32) -> anyhow::Result<()> {
        for back in 1..=count {
            // Counted from the far end, so that no measured prompt has been seen.
            self.ask(u32::MAX - back, &Progress::default())
                .await
                .context("the request to warm up failed")?;
        }
        Ok(())
    }

    /// Runs it to the end, telling on standard error how far it is.
    pub(super) async fn run(&self) -> Outcome {
        let progress = Arc::new(Progress::default());
        let load = Arc::new(self.clone());
        let start = Instant::now();
        let mut clients = JoinSet::new();
        for _ in 0..self.clients.min(self.requests) {
            clients.spawn(client(Arc::clone(&load), Arc::clone(&progress)));
        }
        let mut shown = Shown::new();
        let mut answers = Vec::new();
        loop {
            tokio::select! {
                ended = clients.join_next() => match ended {
                    None => break,
                    Some(Ok(all)) => answers.extend(all),
                    Some(Err(error)) => answers.push(Err(error.into())),
                },
                () = shown.due() => shown.show(&progress.line(self.requests, start.elapsed())),
            }
        }
        let elapsed = start.elapsed();
        shown.clear();
        Outcome { elapsed, answers }
    }

    async fn ask(&self, index: u32, progress: &Progress) -> anyhow::Result<Answer> {
        let body = self.body(index);
        let each = || {
            progress.events.fetch_add(1, Relaxed);
        };
        timeout(self.timeout, self.target.stream(&body, each))
            .await
            .with_context(|| format!("no whole answer within {:?}", self.timeout))?
    }

    fn body(&self, index: u32) -> Value {
        json!({
            "model": self.model,
            "messages": prompt::messages(self.seed, index, self.prompt_tokens),
            "max_tokens": self.output_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": { "include_usage": true },
        })
    }
}

/// One client: takes the next request until none is left.
async fn client(load: Arc<Load>, progress: Arc<Progress>) -> Vec<anyhow::Result<Answer>> {
    let mut answers = Vec::new();
    loop {
        let index = progress.begun.fetch_add(1, Relaxed);
        if index >= load.requests {
            return answers;
        }
        answers.push(load.ask(index, &progress).await);
        progress.ended.fetch_add(1, Relaxed);
    }
}

impl Progress {
    fn line(&self, requests: u32, elapsed: Duration) -> String {
        let [ended, events] = [&self.ended, &self.events].map(|count| count.load(Relaxed));
        let seconds = elapsed.as_secs_f64();
        format!(
            "{seconds:.0} s: {ended} of {requests} requests ended, {events} tokens, {:.1} tokens/s",
            f64::from(events) / seconds.max(1e-9)
        )
    }
}

/// One line on standard error that is written over and over; a line each time where it is a file.
#[derive(Debug)]
struct Shown {
    on_terminal: bool,
    interval: tokio::time::Interval,
}

impl Shown {
    fn new() -> Shown {
        let on_terminal = std::io::stderr().is_terminal();
        let mut interval = interval(Duration::from_secs(if on_terminal { 1 } else { 5 }));
        interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
        interval.reset();
        Shown {
            on_terminal,
            interval,
        }
    }

    async fn due(&mut self) {
        self.interval.tick().await;
    }

    fn show(&self, line: &str) {
        if self.on_terminal {
            eprint!("\r\x1b[K{line}");
            std::io::stderr().flush().ok();
        } else {
            eprintln!("{line}");
        }
    }

    fn clear(&self) {
        if self.on_terminal {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const STREAM: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\ndata: [DONE]\n\n";
    const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\r\nall is full";

    /// A server that answers every request with `answer`, and a load of 5 requests for it.
    fn load(answer: &'static str) -> Load {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                // Each request is small enough to come in one piece.
                assert!(socket.read(&mut [0; 1 << 16]).unwrap() > 0);
                socket.write_all(answer.as_bytes()).unwrap();
            }
        });
        Load {
            target: format!("http://{address}").parse().unwrap(),
            model: "m".into(),
            clients: 3,
            requests: 5,
            prompt_tokens: 50,
            output_tokens: 2,
            seed: 0,
            timeout: Duration::from_secs(60),
        }
    }

    #[tokio::test]
    async fn every_request_is_sent_once_and_answered() {
        let load = load(STREAM);
        load.warm_up(1).await.unwrap();
        let outcome = load.run().await;
        let tokens: Vec<_> = outcome
            .answers
            .iter()
            .map(|answer| answer.as_ref().unwrap().output_tokens)
            .collect();
        assert_eq!(tokens, [2; 5]);
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_servers_words() {
        let load = load(BUSY);
        assert!(load.warm_up(1).await.is_err());
        let outcome = load.run().await;
        assert_eq!(outcome.answers.len(), 5);
        for answer in outcome.answers {
            let error = format!("{:#}", answer.unwrap_err());
            assert_eq!(error, "503 Service Unavailable: all is full");
        }
    }
}
