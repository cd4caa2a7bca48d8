//! Candidates -> token: bias, penalties, then greedy or temperature, min-p, top-k, top-p and a draw
//! that depends on seed, choice and index alone.
//!
//! All arithmetic is our own or exactly rounded, so that a seed gives the same tokens on every host.

use siphasher::sip128::SipHasher13;

use crate::delivery::Scored;
use crate::request::{Penalties, Request, Sampling};
use crate::step::{Entry, TokenId};

/// Temperatures below this are greedy (vLLM's `_SAMPLING_EPS`): dividing by them overflows.
const GREEDY_BELOW: f32 = 1e-5;

/// How often tokens were seen, as far as penalties ask: kept from token to token.
#[derive(Clone, Default, Debug)]
pub(crate) struct Seen {
    /// Ascending by token; 0 for one that only the prompt has. Empty without penalties.
    counts: Vec<(TokenId, u32)>,
    counting: bool,
}

impl Seen {
    /// At the end of a request's prompt.
    pub(crate) fn new(request: &Request) -> Self {
        let penalties = &request.sampling.penalties;
        let mut prompt = Vec::new();
        if penalties.repetition != 1.0 {
            prompt.extend_from_slice(&request.prompt);
            prompt.sort_unstable();
            prompt.dedup();
        }
        Self {
            counts: prompt.into_iter().map(|token| (token, 0)).collect(),
            counting: *penalties != Penalties::NONE,
        }
    }

    /// Counts a produced token.
    pub(crate) fn add(&mut self, token: TokenId) {
        if !self.counting {
            return;
        }
        match self.counts.binary_search_by_key(&token, |(seen, _)| *seen) {
            Ok(index) => self.counts[index].1 += 1,
            Err(index) => self.counts.insert(index, (token, 1)),
        }
    }
}

impl Penalties {
    fn apply(&self, logit: f32, count: u32) -> f32 {
        #[expect(
            clippy::cast_precision_loss,
            reason = "outputs are shorter than 2^24 tokens"
        )]
        let frequency = self.frequency * count as f32;
        let repeated = match logit > 0.0 {
            true => logit / self.repetition,
            false => logit * self.repetition,
        };
        match count {
            0 => repeated,
            _ => repeated - frequency - self.presence,
        }
    }

    fn lift(&self) -> bool {
        self.repetition < 1.0 || self.presence < 0.0 || self.frequency < 0.0
    }
}

/// The place of a token to be drawn: what its draw depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) request: &'a Request,
    pub(crate) seen: &'a Seen,
    pub(crate) choice: u32,
    /// Tokens produced before it.
    pub(crate) index: u32,
}

impl Place<'_> {
    /// Stop tokens are not produced before `min_tokens`.
    fn suppressed(&self) -> &[TokenId] {
        let stop = &self.request.stop;
        match self.index < stop.min_tokens {
            true => &stop.tokens,
            false => &[],
        }
    }

    fn greedy(&self) -> bool {
        self.request.sampling.temperature < GREEDY_BELOW
    }

    /// The fewest candidates from which the token can be drawn exactly. What can only lower some
    /// tokens asks for as many more; what can lift one from anywhere asks for all.
    pub(crate) fn width(&self) -> u32 {
        let Sampling {
            top_k,
            penalties,
            bias,
            ..
        } = &self.request.sampling;
        let wanted = match (self.greedy(), top_k) {
            (true, _) => 1,
            (false, Some(k)) => *k,
            (false, None) => u32::MAX,
        };
        if penalties.lift() || bias.iter().any(|(_, bias)| *bias > 0.0) {
            return u32::MAX;
        }
        let lowered = self.seen.counts.len() + bias.len() + self.suppressed().len();
        wanted
            .saturating_add(u32::try_from(lowered).unwrap_or(u32::MAX))
            .max(self.request.logprobs.unwrap_or(0))
    }

    /// A number of [0, 1).
    fn draw(&self) -> f64 {
        let mut place = [0; 8];
        place[..4].copy_from_slice(&self.choice.to_le_bytes());
        place[4..].copy_from_slice(&self.index.to_le_bytes());
        let hasher = SipHasher13::new_with_keys(self.request.sampling.seed, 0);
        #[expect(clippy::cast_precision_loss, reason = "53 bits are left")]
        let bits = (hasher.hash(&place).h1 >> 11) as f64;
        bits / (1_u64 << 53) as f64
    }
}

/// Draws tokens; holds nothing but memory to work in.
#[derive(Default, Debug)]
pub(crate) struct Sampler {
    adjusted: Vec<f32>,
    /// Where in the entry a token stands. Only what it says of tokens it was told in the same call
    /// is true, so it is checked instead of cleared.
    stands: Vec<u32>,
    kept: Vec<Kept>,
    best: Vec<(f32, TokenId)>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    token: TokenId,
    value: f32,
    weight: f32,
}

impl Sampler {
    /// Draws a token; `None` if no candidate is possible.
    pub(crate) fn pick(&mut self, entry: Entry<'_>, place: Place<'_>) -> Option<TokenId> {
        let sampling = &place.request.sampling;
        let touched = !place.seen.counts.is_empty()
            || !sampling.bias.is_empty()
            || !place.suppressed().is_empty();
        let mut values = entry.logprobs;
        if touched {
            self.adjust(entry, place);
            values = &self.adjusted;
        }
        let (best, token) = most_likely(entry.ids, values)?;
        if place.greedy() {
            return Some(token);
        }
        weigh(&mut self.kept, entry.ids, values, best, sampling);
        keep_top_k(&mut self.kept, sampling.top_k);
        keep_top_p(&mut self.kept, sampling.top_p);
        draw(&mut self.kept, place.draw())
    }

    /// Bias, then penalties, then what must not be produced; only tokens that these name are
    /// touched.
    fn adjust(&mut self, entry: Entry<'_>, place: Place<'_>) {
        let Self {
            adjusted, stands, ..
        } = self;
        adjusted.clear();
        adjusted.extend_from_slice(entry.logprobs);
        for (index, TokenId(id)) in (0..).zip(entry.ids) {
            let id = *id as usize;
            if stands.len() <= id {
                stands.resize(id + 1, 0);
            }
            stands[id] = index;
        }
        let index_of = |token: TokenId| {
            let index = *stands.get(token.0 as usize)? as usize;
            (entry.ids.get(index) == Some(&token)).then_some(index)
        };
        let sampling = &place.request.sampling;
        for (token, bias) in &*sampling.bias {
            if let Some(index) = index_of(*token) {
                adjusted[index] += bias;
            }
        }
        for (token, count) in &place.seen.counts {
            if let Some(index) = index_of(*token) {
                let logit = adjusted[index] + entry.normalizer;
                let penalized = sampling.penalties.apply(logit, *count);
                adjusted[index] = penalized - entry.normalizer;
            }
        }
        for token in place.suppressed() {
            if let Some(index) = index_of(*token) {
                adjusted[index] = f32::NEG_INFINITY;
            }
        }
    }

    /// How likely the model found `token`, and the `top` most likely tokens beside it; nothing if
    /// that is not asked for.
    pub(crate) fn score(&mut self, entry: Entry<'_>, token: TokenId, top: Option<u32>) -> Scored {
        let Some(top) = top else {
            let (logprob, top) = (None, Vec::new());
            return Scored {
                token,
                logprob,
                top,
            };
        };
        let logprob = entry.target.or_else(|| {
            let index = entry.ids.iter().position(|id| *id == token)?;
            Some(entry.logprobs[index])
        });
        let top = self.top(entry, top as usize);
        Scored {
            token,
            logprob,
            top,
        }
    }

    fn top(&mut self, entry: Entry<'_>, count: usize) -> Vec<(TokenId, f32)> {
        let best = &mut self.best;
        if count == 0 {
            return Vec::new();
        }
        best.clear();
        let scored = entry
            .logprobs
            .iter()
            .copied()
            .zip(entry.ids.iter().copied());
        best.extend(scored.filter(|(logprob, _)| *logprob > f32::NEG_INFINITY));
        let by_likelihood = |one: &(f32, TokenId), other: &(f32, TokenId)| {
            other.0.total_cmp(&one.0).then(one.1.cmp(&other.1))
        };
        if count < best.len() {
            best.select_nth_unstable_by(count - 1, by_likelihood);
            best.truncate(count);
        }
        best.sort_unstable_by(by_likelihood);
        best.iter()
            .map(|(logprob, token)| (*token, *logprob))
            .collect()
    }
}

/// The largest value and its token, the lowest id among equals. Neither -inf nor NaN counts.
fn most_likely(ids: &[TokenId], values: &[f32]) -> Option<(f32, TokenId)> {
    let mut best: Option<(f32, TokenId)> = None;
    for (value, token) in values.iter().copied().zip(ids.iter().copied()) {
        let (most, lowest) = best.unwrap_or((f32::NEG_INFINITY, token));
        if value > most || (value == most && best.is_some() && token < lowest) {
            best = Some((value, token));
        }
    }
    best
}

/// Temperature and min-p: weights relative to the most likely token, whose weight is 1.
fn weigh(kept: &mut Vec<Kept>, ids: &[TokenId], values: &[f32], best: f32, sampling: &Sampling) {
    let scale = 1.0 / sampling.temperature;
    let least = sampling.min_p.max(f32::MIN_POSITIVE);
    kept.clear();
    let weighed = values.iter().zip(ids).map(|(value, token)| Kept {
        token: *token,
        value: *value,
        weight: exp((value - best) * scale),
    });
    kept.extend(weighed);
    kept.retain(|kept| kept.weight >= least);
}

fn by_value(one: &Kept, other: &Kept) -> std::cmp::Ordering {
    let equals = one.token.cmp(&other.token);
    other.value.total_cmp(&one.value).then(equals)
}

fn mass(kept: &[Kept]) -> f64 {
    kept.iter().map(|kept| f64::from(kept.weight)).sum()
}

fn keep_top_k(kept: &mut Vec<Kept>, top_k: Option<u32>) {
    if let Some(k) = top_k.map(|k| k as usize)
        && k < kept.len()
    {
        kept.select_nth_unstable_by(k - 1, by_value);
        kept.truncate(k);
    }
}

/// Keeps the fewest most likely tokens that together reach `top_p`, without sorting them all.
fn keep_top_p(kept: &mut Vec<Kept>, top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let total = mass(kept);
    let goal = total * f64::from(top_p);
    // All tokens less likely than this do not make up what is to be left out.
    #[expect(clippy::cast_precision_loss, reason = "a vocabulary's size is exact")]
    let least = (total - goal) / kept.len() as f64;
    kept.retain(|kept| f64::from(kept.weight) >= least);
    let mut most = 64;
    while most < kept.len() {
        kept.select_nth_unstable_by(most - 1, by_value);
        if mass(&kept[..most]) >= goal {
            kept.truncate(most);
        }
        most *= 4;
    }
    kept.sort_unstable_by(by_value);
    let mut reached = 0.0;
    let before_goal = kept.iter().take_while(|kept| {
        let short = reached < goal;
        reached += f64::from(kept.weight);
        short
    });
    let count = before_goal.count();
    kept.truncate(count.max(1));
}

/// The token at `at` of the way through the weights, in the order of ids: it does not depend on the
/// order of the candidates.
fn draw(kept: &mut [Kept], at: f64) -> Option<TokenId> {
    if !kept.is_sorted_by_key(|kept| kept.token) {
        kept.sort_unstable_by_key(|kept| kept.token);
    }
    let mut left = mass(kept) * at;
    let chosen = kept.iter().find(|kept| {
        left -= f64::from(kept.weight);
        left < 0.0
    });
    chosen.or(kept.last()).map(|kept| kept.token)
}

/// e^x for x <= 0 to 2e-7 of itself; 0 below -87, and for NaN. A loop over a vocabulary of the
/// standard library's is five times as slow, and its last bit differs between hosts.
fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first exact when multiplied by a small integer.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let whole = rounded - ROUND;
    let rest = (x - whole * LN_2[0]) - whole * LN_2[1];
    // The Taylor series: |rest| <= ln 2 / 2.
    let series = 1.0 / 5040.0;
    let series = series * rest + 1.0 / 720.0;
    let series = series * rest + 1.0 / 120.0;
    let series = series * rest + 1.0 / 24.0;
    let series = series * rest + 1.0 / 6.0;
    let series = series * rest + 0.5;
    let series = series * rest + 1.0;
    let series = series * rest + 1.0;
    let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if x >= -87.0 { series * scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_and_ends_at_nothing() {
        for step in 0..8_700_u16 {
            let x = -f32::from(step) / 100.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 1e-6, "e^{x} is off by {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(
            [exp(-88.0), exp(f32::NEG_INFINITY), exp(f32::NAN)],
            [0.0; 3]
        );
    }

    #[test]
    fn the_most_likely_is_a_number_and_the_lowest_id_among_equals() {
        let ids = [5, 2, 9, 4].map(TokenId);
        let best = most_likely(&ids, &[1.0, 1.0, f32::NAN, -3.0]);
        assert_eq!(best, Some((1.0, TokenId(2))));
        assert_eq!(most_likely(&ids, &[f32::NEG_INFINITY; 4]), None);
        assert_eq!(most_likely(&ids, &[f32::NAN; 4]), None);
    }

    #[test]
    fn top_p_keeps_the_same_few_of_many_as_a_full_sort() {
        let kept: Vec<_> = (0..5_000_u16)
            .map(|id| Kept {
                token: TokenId(u32::from(id)),
                value: f32::from(id * 7 % 4_999),
                weight: exp((f32::from(id * 7 % 4_999) - 4_998.0) / 300.0),
            })
            .collect();
        let mut sorted = kept.clone();
        sorted.sort_by(by_value);
        for top_p in [0.01, 0.5, 0.9, 0.99] {
            let goal = mass(&kept) * f64::from(top_p);
            let reaches = |count: &usize| mass(&sorted[..*count]) >= goal;
            let count = (1..sorted.len()).find(reaches);
            let mut few = kept.clone();
            keep_top_p(&mut few, top_p);
            assert_eq!(Some(few.len()), count, "{top_p}");
        }
    }
}
