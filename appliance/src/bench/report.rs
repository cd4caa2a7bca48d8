//! What was measured, for people and for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::client::Answer;
use super::load::{Load, Outcome};

/// The figures of one load. Times are seconds.
#[derive(Serialize, Debug)]
pub(super) struct Report {
    url: String,
    model: String,
    clients: u32,
    requests: u32,
    seed: u32,
    /// From the first request to the end of the last answer.
    seconds: f64,
    /// Requests without a whole answer. They count in nothing below.
    pub(super) failed: usize,
    /// What went wrong with the first of them.
    pub(super) first_failure: Option<String>,
    /// Tokens of all prompts, as the server counted them.
    prompt_tokens: u64,
    /// How many of those it took from a cache.
    cached_tokens: u64,
    /// Tokens of all answers, as the server counted them.
    output_tokens: u64,
    /// Events that brought text; fewer than the tokens where an event brings several.
    events: usize,
    output_tokens_per_second: f64,
    total_tokens_per_second: f64,
    /// From sending a request to its first text.
    first_token: Spread,
    /// From one event of a stream to the next: gaps of all streams together.
    between_tokens: Spread,
    /// With one client only: nothing else ran.
    single_stream: Option<SingleStream>,
}

/// Median, 95th percentile and greatest of some values, each one of them (nearest rank).
#[derive(Clone, Copy, Default, PartialEq, Serialize, Debug)]
struct Spread {
    p50: f64,
    p95: f64,
    max: f64,
}

/// What one stream alone gets: medians over the requests.
#[derive(Serialize, Debug)]
struct SingleStream {
    /// Tokens of the prompt for each second until the first text.
    prefill_tokens_per_second: f64,
    /// Tokens after the first for each second after it.
    decode_tokens_per_second: f64,
}

impl Report {
    /// The figures of `load` from what came of it.
    pub(super) fn of(load: &Load, outcome: &Outcome) -> Report {
        let answers: Vec<&Answer> = outcome.answers.iter().flatten().collect();
        let failures: Vec<_> = outcome
            .answers
            .iter()
            .filter_map(|a| a.as_ref().err())
            .collect();
        let sum = |of: fn(&Answer) -> u64| answers.iter().map(|answer| of(answer)).sum::<u64>();
        let prompt_tokens = sum(|answer| answer.prompt_tokens);
        let output_tokens = sum(|answer| answer.output_tokens);
        let seconds = outcome.elapsed.as_secs_f64();
        let per_second = |tokens: u64| tokens as f64 / seconds;
        let firsts = answers.iter().filter_map(|answer| answer.arrivals.first());
        let gaps = answers.iter().flat_map(|answer| gaps(&answer.arrivals));
        Report {
            url: load.target.to_string(),
            model: load.model.clone(),
            clients: load.clients,
            requests: load.requests,
            seed: load.seed,
            seconds,
            failed: failures.len(),
            first_failure: failures.first().map(|error| format!("{error:#}")),
            prompt_tokens,
            cached_tokens: sum(|answer| answer.cached_tokens),
            output_tokens,
            events: answers.iter().map(|answer| answer.arrivals.len()).sum(),
            output_tokens_per_second: per_second(output_tokens),
            total_tokens_per_second: per_second(prompt_tokens + output_tokens),
            first_token: Spread::of(firsts.map(Duration::as_secs_f64)),
            between_tokens: Spread::of(gaps.map(|gap| gap.as_secs_f64())),
            single_stream: (load.clients == 1).then(|| SingleStream::of(&answers)),
        }
    }
}

impl SingleStream {
    fn of(answers: &[&Answer]) -> SingleStream {
        let prefill = answers.iter().filter_map(|answer| {
            let first = answer.arrivals.first()?.as_secs_f64();
            Some(answer.prompt_tokens as f64 / first)
        });
        let decode = answers.iter().filter_map(|answer| {
            let [first, .., last] = answer.arrivals.as_slice() else {
                return None;
            };
            let tokens = answer.output_tokens.saturating_sub(1);
            Some(tokens as f64 / last.saturating_sub(*first).as_secs_f64())
        });
        SingleStream {
            prefill_tokens_per_second: Spread::of(prefill).p50,
            decode_tokens_per_second: Spread::of(decode).p50,
        }
    }
}

/// From each arrival to the next.
fn gaps(arrivals: &[Duration]) -> impl Iterator<Item = Duration> {
    arrivals.windows(2).map(|pair| pair[1] - pair[0])
}

impl Spread {
    /// Zeros where there is no value.
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted
                .get(rank.saturating_sub(1))
                .copied()
                .unwrap_or_default()
        };
        Spread {
            p50: at(50),
            p95: at(95),
            max: at(100),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answered = self.requests as usize - self.failed.min(self.requests as usize);
        writeln!(
            f,
            "{} of {}: {} clients, {answered} requests answered, {} failed, {:.1} s",
            self.model, self.url, self.clients, self.failed, self.seconds
        )?;
        writeln!(
            f,
            "  prompt tokens     {:>10}   ({} from a cache)",
            self.prompt_tokens, self.cached_tokens
        )?;
        let events = match self.output_tokens == self.events as u64 {
            true => String::new(),
            false => format!("   (in {} events)", self.events),
        };
        writeln!(f, "  output tokens     {:>10}{events}", self.output_tokens)?;
        rate(f, "output tokens/s", self.output_tokens_per_second)?;
        rate(f, "total tokens/s", self.total_tokens_per_second)?;
        if let Some(single) = &self.single_stream {
            rate(f, "prefill tokens/s", single.prefill_tokens_per_second)?;
            rate(f, "decode tokens/s", single.decode_tokens_per_second)?;
        }
        writeln!(f, "  {:<22}{:>6}{:>11}{:>11}", "", "p50", "p95", "max")?;
        spread(f, "first token, s", self.first_token, 1.0, 3)?;
        spread(f, "between tokens, ms", self.between_tokens, 1e3, 1)
    }
}

fn rate(f: &mut fmt::Formatter<'_>, name: &str, value: f64) -> fmt::Result {
    writeln!(f, "  {name:<18}{value:>10.1}")
}

fn spread(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    is: Spread,
    unit: f64,
    digits: usize,
) -> fmt::Result {
    let [p50, p95, max] = [is.p50, is.p95, is.max].map(|value| value * unit);
    writeln!(
        f,
        "  {name:<18}{p50:>10.digits$} {p95:>10.digits$} {max:>10.digits$}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f64], p50: f64, p95: f64, max: f64) {
        let spread = Spread::of(values.iter().copied());
        assert_eq!(spread, Spread { p50, p95, max }, "{values:?}");
    }

    #[test]
    fn a_percentile_is_the_value_at_its_rank() {
        check(&[], 0.0, 0.0, 0.0);
        check(&[3.0], 3.0, 3.0, 3.0);
        check(&[4.0, 1.0, 3.0, 2.0], 2.0, 4.0, 4.0);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        check(&hundred, 50.0, 95.0, 100.0);
    }

    fn answer(arrivals: &[u64], output_tokens: u64) -> Answer {
        Answer {
            arrivals: arrivals.iter().copied().map(Duration::from_secs).collect(),
            prompt_tokens: 20,
            cached_tokens: 0,
            output_tokens,
        }
    }

    fn report(clients: u32, answers: Vec<anyhow::Result<Answer>>) -> Report {
        let load = Load {
            target: "http://host:1".parse().unwrap(),
            model: "m".into(),
            clients,
            requests: u32::try_from(answers.len()).unwrap(),
            prompt_tokens: 20,
            output_tokens: 3,
            seed: 0,
            timeout: Duration::from_secs(1),
        };
        let elapsed = Duration::from_secs(10);
        Report::of(&load, &Outcome { elapsed, answers })
    }

    #[test]
    fn rates_are_over_the_whole_run() {
        let report = report(
            2,
            vec![Ok(answer(&[2, 3, 5], 3)), Ok(answer(&[4, 5, 9], 3))],
        );
        assert_eq!(report.output_tokens_per_second, 0.6);
        assert_eq!(report.total_tokens_per_second, 4.6);
        assert_eq!(report.first_token.max, 4.0);
        assert_eq!(report.between_tokens.max, 4.0);
        assert!(report.single_stream.is_none());
    }

    #[test]
    fn one_client_tells_the_rates_of_its_stream() {
        let report = report(1, vec![Ok(answer(&[2, 3, 6], 5))]);
        let single = report.single_stream.unwrap();
        assert_eq!(single.prefill_tokens_per_second, 10.0);
        assert_eq!(single.decode_tokens_per_second, 1.0);
    }

    #[test]
    fn a_failed_request_is_told_and_counts_in_nothing() {
        let failed = Err(anyhow::anyhow!("503: busy"));
        let report = report(2, vec![failed, Ok(answer(&[1, 2], 2))]);
        assert_eq!(
            (report.failed, report.first_failure.as_deref()),
            (1, Some("503: busy"))
        );
        assert_eq!(report.output_tokens, 2);
    }
}
