//! `appliance bench`: measures a server that speaks OpenAI's chat completions, this one or a peer.
//!
//! The load is a closed loop: each client sends a request, reads its stream to the end and sends
//! the next. What a user of the server would see is measured, at the socket.

mod client;
mod load;
mod prompt;
mod report;

use std::fs;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use crate::config::Value;

use client::Target;
use load::Load;
use report::Report;

/// Measures a server under load: tokens per second, time to first token, gaps between tokens.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  appliance bench --clients 32 --requests 64\n  \
                  appliance bench --url http://127.0.0.1:8080 --clients 1 --requests 4 --json single.json"
)]
pub struct Bench {
    /// The server to measure, plain HTTP
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: Target,
    /// How many clients send at once; 1 also tells the rates of a single stream
    #[arg(long, value_name = "NUMBER", default_value = "32")]
    clients: NonZeroU32,
    /// How many requests they send together
    #[arg(long, value_name = "NUMBER", default_value = "32")]
    requests: NonZeroU32,
    /// About how many tokens each prompt has, with the chat template; what it was is reported
    #[arg(long, value_name = "NUMBER", default_value = "200")]
    prompt_tokens: NonZeroU32,
    /// How many tokens to ask for; a server that knows ignore_eos gives exactly as many
    #[arg(long, value_name = "NUMBER", default_value = "64")]
    output_tokens: NonZeroU32,
    /// The model to ask for [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Which prompts: another number brings other texts, so that no cache of an earlier run helps
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u32,
    /// How many requests to send before, one after the other, that are not measured
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    warm_up: u32,
    /// How long one request may take
    #[arg(long, value_name = "DURATION", default_value = "20m", value_parser = duration)]
    timeout: Duration,
    /// Also write the report to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Bench {
    /// Measures, prints the report, and fails where a request failed.
    pub fn run(&self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let report = runtime.block_on(self.measured())?;
        print!("{report}");
        if let Some(file) = &self.json {
            let text = serde_json::to_string_pretty(&report)?;
            fs::write(file, text + "\n")
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        anyhow::ensure!(
            report.failed == 0,
            "{} of {} requests failed; the first: {}",
            report.failed,
            self.requests,
            report.first_failure.as_deref().unwrap_or_default()
        );
        Ok(())
    }

    async fn measured(&self) -> anyhow::Result<Report> {
        let model = match &self.model {
            Some(model) => model.clone(),
            None => self.url.first_model().await?,
        };
        let load = Load {
            target: self.url.clone(),
            model,
            clients: self.clients.get(),
            requests: self.requests.get(),
            prompt_tokens: self.prompt_tokens.get(),
            output_tokens: self.output_tokens.get(),
            seed: self.seed,
            timeout: self.timeout,
        };
        load.warm_up(self.warm_up).await?;
        let outcome = load.run().await;
        Ok(Report::of(&load, &outcome))
    }
}

/// Reads a duration as the settings write it.
fn duration(text: &str) -> Result<Duration, String> {
    Duration::parse(text).ok_or_else(|| format!("not {}", Duration::FORM.allowed))
}
