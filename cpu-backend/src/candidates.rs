//! Logits -> candidates: exact log-probabilities over the vocabulary, the best few picked.

use engine::{Candidates, TokenId, TokenMask};

use crate::kernels::{Blocks, Kernels, LANES};

/// What is asked of one row of logits.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// The token of the step after which it is asked.
    pub(crate) token: usize,
    /// The mask, by its index in the step.
    pub(crate) mask: Option<usize>,
    /// How many candidates; at least 1.
    pub(crate) width: usize,
    /// The token that is known to follow.
    pub(crate) target: Option<TokenId>,
}

/// What is given back for one row.
#[derive(Clone, Default, Debug)]
pub(crate) struct Picked {
    /// The best, with their logits.
    best: Vec<(f32, u32)>,
    normalizer: f32,
    target: Option<f32>,
}

impl Picked {
    /// Picks from row `row` of `logits`, whose padding is `-inf`; `masked` is scratch.
    pub(crate) fn pick(
        &mut self,
        kernels: &dyn Kernels,
        logits: Blocks<'_>,
        row: usize,
        ask: &Ask,
        mask: Option<&TokenMask>,
        masked: &mut Vec<f32>,
    ) {
        let (logits, row) = match mask {
            None => (logits, row),
            Some(mask) => {
                apply(mask, logits, row, masked);
                let data = &masked[..];
                (Blocks { data, rows: 1 }, 0)
            }
        };
        let max = kernels.max(logits, row);
        self.normalizer = max + kernels.exp_sum(logits, row, max).ln();
        self.target = ask.target.map(|TokenId(token)| {
            let (block, lane) = (token as usize / LANES, token as usize % LANES);
            logits.data[(block * logits.rows + row) * LANES + lane] - self.normalizer
        });
        self.best.clear();
        if ask.width == 1 {
            self.best.extend(first(logits, row, max));
        } else {
            self.keep_best(logits, row, ask.width);
        }
    }

    /// Keeps the `width` largest logits, the lower id among equals. Instead of a sort: what is above
    /// the bar is collected, and when twice too many are, the lower half goes and the bar rises.
    fn keep_best(&mut self, logits: Blocks<'_>, row: usize, width: usize) {
        let best = &mut self.best;
        let mut bar = f32::NEG_INFINITY;
        for (block, logits) in logits.row(row).enumerate() {
            for (lane, logit) in logits.iter().enumerate() {
                if *logit > bar {
                    best.push((*logit, id(block, lane)));
                }
            }
            if best.len() >= width.saturating_mul(2).max(width.saturating_add(LANES)) {
                bar = cut(best, width);
            }
        }
        if best.len() > width {
            cut(best, width);
        }
    }

    /// Whether the logits were numbers.
    pub(crate) fn is_sound(&self) -> bool {
        self.normalizer.is_finite()
    }

    /// Adds this as an entry of `out`.
    pub(crate) fn push(&self, out: &mut Candidates) {
        let scored = |(logit, id): &(f32, u32)| (TokenId(*id), logit - self.normalizer);
        out.push(self.best.iter().map(scored), self.normalizer, self.target);
    }
}

/// Leaves the `width` largest and gives the least of them.
fn cut(best: &mut Vec<(f32, u32)>, width: usize) -> f32 {
    let (_, last, _) = best.select_nth_unstable_by(width - 1, |one, other| {
        other.0.total_cmp(&one.0).then(one.1.cmp(&other.1))
    });
    let bar = last.0;
    best.truncate(width);
    bar
}

/// The first token with the logit `max`.
fn first(logits: Blocks<'_>, row: usize, max: f32) -> Option<(f32, u32)> {
    logits.row(row).enumerate().find_map(|(block, logits)| {
        let lane = logits.iter().position(|logit| *logit == max)?;
        Some((max, id(block, lane)))
    })
}

/// Copies a row of logits, `-inf` where `mask` forbids the token.
fn apply(mask: &TokenMask, logits: Blocks<'_>, row: usize, masked: &mut Vec<f32>) {
    masked.clear();
    for (block, logits) in logits.row(row).enumerate() {
        let allowed = |(lane, logit): (usize, &f32)| match mask.allows(TokenId(id(block, lane))) {
            true => *logit,
            false => f32::NEG_INFINITY,
        };
        masked.extend(logits.iter().enumerate().map(allowed));
    }
}

/// The token of a lane.
fn id(block: usize, lane: usize) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a vocabulary's size is a u32"
    )]
    let id = (block * LANES + lane) as u32;
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::detect;

    /// The tokens picked from `logits`, best first.
    fn best(logits: &[f32], width: usize, mask: Option<&TokenMask>) -> Vec<u32> {
        let mut logits = logits.to_vec();
        logits.resize(logits.len().next_multiple_of(LANES), f32::NEG_INFINITY);
        let ask = Ask {
            token: 0,
            mask: None,
            width,
            target: None,
        };
        let blocks = Blocks {
            data: &logits,
            rows: 1,
        };
        let mut picked = Picked::default();
        picked.pick(detect(), blocks, 0, &ask, mask, &mut Vec::new());
        assert!(picked.is_sound());
        picked
            .best
            .sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(&other.1)));
        picked.best.iter().map(|(_, id)| *id).collect()
    }

    #[test]
    fn the_lower_id_wins_among_equals() {
        let logits: Vec<_> = (0..100_u8).map(|id| f32::from(id % 3)).collect();
        assert_eq!(best(&logits, 1, None), [2]);
        assert_eq!(best(&logits, 3, None), [2, 5, 8]);
        let all = best(&logits, 100, None);
        assert_eq!((all[0], all[32], all[33], all[99]), (2, 98, 1, 99));
        for width in 1..100 {
            assert_eq!(best(&logits, width, None), all[..width], "{width}");
        }
    }

    #[test]
    fn only_allowed_tokens_are_picked() {
        let logits: Vec<_> = (0..50_u8).map(f32::from).collect();
        let mask = TokenMask::only(50, [3, 7, 40].map(TokenId));
        assert_eq!(best(&logits, 2, Some(&mask)), [40, 7]);
        assert_eq!(best(&logits, 50, Some(&mask)), [40, 7, 3]);
    }
}
