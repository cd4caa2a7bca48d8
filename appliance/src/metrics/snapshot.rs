//! What the server has counted, at one moment: for whoever reports how it changes.

use std::sync::Arc;
use std::sync::PoisonError;

use engine::Stats;
use prometheus::core::Collector as _;

use super::distribution::Counted;
use super::{Ended, Metrics, Model, count};

/// What the server has counted since its start, and how it stands.
#[derive(Clone, Default, Debug)]
pub(crate) struct Snapshot {
    /// The model that is served, if there is one.
    pub(crate) model: Option<ModelSnapshot>,
    /// Requests that clients got wrong: answers 4xx.
    pub(crate) client_errors: u64,
    /// Requests that the server failed: answers 5xx, those refused for being too many among them.
    pub(crate) server_errors: u64,
    /// What the device says of itself.
    pub(crate) device: Device,
}

/// The device in two numbers, where it has any.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(crate) struct Device {
    /// Bytes of its memory in use, all cores together.
    pub(crate) memory: Option<f64>,
    /// The part of the time that its cores were in use, on average, 1 being all.
    pub(crate) utilisation: Option<f64>,
}

/// A model's part of a [`Snapshot`].
#[derive(Clone, Debug)]
pub(crate) struct ModelSnapshot {
    /// Its name in the API.
    pub(crate) name: String,
    /// Continuations that can run at once.
    pub(crate) slots: u64,
    /// Those that run.
    pub(crate) running: u64,
    /// Requests that wait.
    pub(crate) waiting: u64,
    /// Their prompt tokens.
    pub(crate) waiting_tokens: u64,
    /// The part of the KV pages that some request holds, 1 being all.
    pub(crate) kv_usage: f64,
    /// What it has counted.
    pub(crate) counts: Counts,
    identity: Arc<()>,
}

/// What a model has counted since it was opened.
#[derive(Clone, Default, Debug)]
pub(crate) struct Counts {
    /// Prompt tokens of requests.
    pub(crate) tokens_in: u64,
    /// Tokens generated.
    pub(crate) tokens_out: u64,
    /// Tokens that steps ran, of prompts and of answers.
    pub(crate) run: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub(crate) looked_up: u64,
    /// Those found there.
    pub(crate) found: u64,
    /// Tokens that steps were padded with.
    pub(crate) padding: u64,
    /// Continuations that ended, however.
    pub(crate) ended: u64,
    /// Those that the device failed.
    pub(crate) failed: u64,
    /// Those whose client had gone or whose time was over.
    pub(crate) aborted: u64,
    /// Requests refused because too much was waiting.
    pub(crate) rejected: u64,
    /// Seconds to the first token.
    pub(crate) first_token: Counted,
    /// Seconds from a token to the next.
    pub(crate) inter_token: Counted,
}

impl Counts {
    /// What was counted since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let grown = |count: fn(&Self) -> u64| count(self).saturating_sub(count(before));
        Self {
            tokens_in: grown(|counts| counts.tokens_in),
            tokens_out: grown(|counts| counts.tokens_out),
            run: grown(|counts| counts.run),
            looked_up: grown(|counts| counts.looked_up),
            found: grown(|counts| counts.found),
            padding: grown(|counts| counts.padding),
            ended: grown(|counts| counts.ended),
            failed: grown(|counts| counts.failed),
            aborted: grown(|counts| counts.aborted),
            rejected: grown(|counts| counts.rejected),
            first_token: self.first_token.since(&before.first_token),
            inter_token: self.inter_token.since(&before.inter_token),
        }
    }
}

impl ModelSnapshot {
    /// A model that has done nothing yet.
    #[cfg(test)]
    pub(crate) fn idle(name: &str, slots: u64) -> Self {
        Self {
            name: name.to_owned(),
            slots,
            running: 0,
            waiting: 0,
            waiting_tokens: 0,
            kv_usage: 0.0,
            counts: Counts::default(),
            identity: Arc::default(),
        }
    }

    /// What was counted since `before`; all there is, if that is of another model or of none.
    pub(crate) fn since(&self, before: Option<&Self>) -> Counts {
        match before {
            Some(before) if Arc::ptr_eq(&self.identity, &before.identity) => {
                self.counts.since(&before.counts)
            }
            _ => self.counts.clone(),
        }
    }
}

impl Metrics {
    /// Everything at this moment.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let device = self.shared.device.lock();
        Snapshot {
            model: self.model().map(|model| model.snapshot()),
            client_errors: self.answers("4xx"),
            server_errors: self.answers("5xx"),
            device: device.unwrap_or_else(PoisonError::into_inner).told,
        }
    }

    /// Requests that were answered with a status of this class.
    fn answers(&self, class: &str) -> u64 {
        let families = self.shared.http.requests.collect();
        let series = families.iter().flat_map(|family| family.get_metric());
        let of_class = series.filter(|metric| {
            let mut labels = metric.get_label().iter();
            labels.any(|label| label.name() == "status" && label.value() == class)
        });
        of_class
            .map(|metric| whole(metric.get_counter().get_value()))
            .sum()
    }
}

impl Model {
    fn snapshot(&self) -> ModelSnapshot {
        let engines = self.state.engines.lock();
        let engines = engines.unwrap_or_else(PoisonError::into_inner).clone();
        let total = |part: fn(&Stats) -> u64| engines.iter().map(part).sum::<u64>();
        let ended = |ended: Ended| self.counts.success.with_label_values(&[ended.name()]).get();
        let rejected = ["max_num_queued_reqs", "max_num_queued_tokens"];
        let rejected = rejected.map(|why| self.counts.rejections.with_label_values(&[why]).get());
        let pages = total(|stats| stats.pages.into()).max(1);
        ModelSnapshot {
            name: self.name.clone(),
            slots: self.slots,
            running: total(|stats| stats.running.into()),
            waiting: total(|stats| stats.waiting.into()),
            waiting_tokens: total(|stats| stats.waiting_tokens),
            kv_usage: count(total(|stats| stats.pages_used.into())) / count(pages),
            counts: Counts {
                tokens_in: self.counts.prompt_tokens.get(),
                tokens_out: self.counts.generation_tokens.get(),
                run: whole(self.sizes.step_tokens.get_sample_sum()),
                looked_up: self.counts.prefix_queries.get(),
                found: self.counts.prefix_hits.get(),
                padding: self.counts.padding_tokens.get(),
                ended: Ended::ALL.map(ended).iter().sum(),
                failed: ended(Ended::Error),
                aborted: ended(Ended::Abort),
                rejected: rejected.iter().sum(),
                first_token: self.times.exact_first_token.counted(),
                inter_token: self.times.exact_inter_token.counted(),
            },
            identity: Arc::clone(&self.identity),
        }
    }
}

/// A count that Prometheus keeps as a float.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are whole, not negative, and below 2^53"
)]
fn whole(count: f64) -> u64 {
    count as u64
}
