//! `appliance keys new`: makes a key for a client, and the line that stores it.

use std::num::NonZeroU32;

use anyhow::{Context as _, ensure};
use jiff::Timestamp;

use super::keys::{ANYONE, Allowance, Key, PRIORITY, PROJECT, is_name};
use super::money::Money;
use crate::config::Value as _;

/// Manages the keys of clients.
#[derive(clap::Args, Clone, Debug)]
pub struct KeysVerb {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Verb {
    /// Make a key: prints it once, then the line to store
    #[command(after_help = EXAMPLES)]
    New(New),
}

const EXAMPLES: &str = "\
Examples:
  appliance keys new --id team-a
  appliance keys new --id team-a --project search --requests-per-minute 60 --budget-per-month 20
  appliance keys new --id trial --model SmolLM2-135M-Instruct --expires 2027-01-31T00:00:00Z

The first line is the key, for the client: it is shown now and never again. The second is what the
server stores: a line of the file that --keys-file names, or of the SSM parameter <prefix>/keys.";

/// A key and what it may do.
#[derive(clap::Args, Clone, Debug)]
struct New {
    /// Its name in logs, metrics and the ledger.
    #[arg(long, value_name = "NAME")]
    id: String,
    /// What it is counted under.
    #[arg(long, value_name = "NAME", default_value = PROJECT)]
    project: String,
    /// A model that it may use, and no other; may be given again [default: all].
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// Requests that may begin within a minute.
    #[arg(long, value_name = "NUMBER")]
    requests_per_minute: Option<NonZeroU32>,
    /// Tokens within a minute, prompts and answers together.
    #[arg(long, value_name = "NUMBER")]
    tokens_per_minute: Option<NonZeroU32>,
    /// Requests at the same time.
    #[arg(long, value_name = "NUMBER")]
    concurrent: Option<NonZeroU32>,
    /// What a day of UTC may cost.
    #[arg(long, value_name = "DOLLARS", value_parser = money)]
    budget_per_day: Option<Money>,
    /// What a month of UTC may cost.
    #[arg(long, value_name = "DOLLARS", value_parser = money)]
    budget_per_month: Option<Money>,
    /// Whose requests go first: lower is earlier, from -1000 to 1000.
    #[arg(
        long, value_name = "NUMBER", default_value_t = 0, allow_hyphen_values = true,
        value_parser = clap::value_parser!(i32).range(-i64::from(PRIORITY)..=PRIORITY.into())
    )]
    priority: i32,
    /// When it ends, such as 2027-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    expires: Option<Timestamp>,
}

fn money(text: &str) -> Result<Money, String> {
    Money::parse(text).ok_or_else(|| format!("not {}", Money::FORM.allowed))
}

impl KeysVerb {
    /// Does it.
    ///
    /// # Errors
    /// The names are no names, or the host has no randomness.
    pub fn run(&self) -> anyhow::Result<()> {
        let Verb::New(new) = &self.verb;
        let secret = secret()?;
        let key = new.key(&secret)?;
        println!("{secret}\n{key}");
        eprintln!(
            "The first line is the key, shown this once. The second is for the file that --keys-file names, \
             or for a parameter of its own:\n  aws ssm put-parameter --type SecureString --name \
             /appliance/default/keys/{} --value '{key}'",
            key.id
        );
        Ok(())
    }
}

impl New {
    fn key(&self, secret: &str) -> anyhow::Result<Key> {
        let named = is_name(&self.id) && self.id != ANYONE && is_name(&self.project);
        ensure!(
            named,
            "--id and --project take 1 to 64 letters, digits and any of . _ -, and {ANYONE:?} stands for \
             whoever has no key"
        );
        let mut key = Key::new(&self.id, secret);
        key.project.clone_from(&self.project);
        key.models = (!self.models.is_empty()).then(|| self.models.clone());
        key.allowance = Allowance {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrent: self.concurrent,
            budget_per_day: self.budget_per_day,
            budget_per_month: self.budget_per_month,
        };
        key.priority = self.priority;
        key.expires = self.expires;
        Ok(key)
    }
}

/// 32 random bytes, in letters that need no quoting anywhere.
fn secret() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context("the host has no randomness")?;
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    Ok(format!("sk-{}", digits.collect::<String>()))
}
