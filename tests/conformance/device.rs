//! A device under test: rows in, answers out, and how near two answers must be to be the same.

use engine::{Backend, Candidates, Fault, PageCopy, PageId, Profile, Row, Step, TokenId};
use engine::{TokenMask, Want};

/// A device under test.
pub(crate) struct Device {
    pub(crate) backend: Box<dyn Backend>,
    /// How far log-probabilities that should be the same may be apart.
    tolerance: f32,
}

/// A row to run.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) tokens: Vec<u32>,
    pub(crate) position: u32,
    /// From position 0.
    pub(crate) pages: Vec<u32>,
    pub(crate) mask: Option<TokenMask>,
    pub(crate) wish: Wish,
}

/// What a row asks back.
#[derive(Clone)]
pub(crate) enum Wish {
    Nothing,
    /// So many of the best.
    Best(u32),
    /// So many of the best at each position, and how likely these tokens are.
    Each(u32, Vec<u32>),
}

/// One entry of candidates.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Answer {
    /// Tokens and their log-probabilities, ascending by token.
    pub(crate) best: Vec<(u32, f32)>,
    pub(crate) normalizer: f32,
    pub(crate) target: Option<f32>,
}

impl Ask {
    /// `tokens` from position 0 on these pages; all candidates are asked.
    pub(crate) fn prompt(tokens: &[u32], pages: &[u32]) -> Self {
        Self::at(0, tokens, pages)
    }

    /// `tokens` from `position` on; all candidates are asked.
    pub(crate) fn at(position: u32, tokens: &[u32], pages: &[u32]) -> Self {
        Self {
            tokens: tokens.to_vec(),
            position,
            pages: pages.to_vec(),
            mask: None,
            wish: Wish::Best(u32::MAX),
        }
    }

    pub(crate) fn wishing(self, wish: Wish) -> Self {
        Self { wish, ..self }
    }

    pub(crate) fn masked(self, mask: TokenMask) -> Self {
        let mask = Some(mask);
        Self { mask, ..self }
    }
}

impl Answer {
    /// How likely a token is, if it is among those given.
    pub(crate) fn logprob(&self, id: u32) -> Option<f32> {
        let place = self.best.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.best[place].1)
    }

    /// How likely the least likely of those given is.
    pub(crate) fn least(&self) -> f32 {
        let logprobs = self.best.iter().map(|(_, logprob)| *logprob);
        logprobs.fold(f32::INFINITY, f32::min)
    }
}

impl Device {
    pub(crate) fn new(backend: Box<dyn Backend>, tolerance: f32) -> Self {
        Self { backend, tolerance }
    }

    pub(crate) fn profile(&self) -> &Profile {
        self.backend.profile()
    }

    /// Pages that `tokens` tokens need, from `first` on.
    pub(crate) fn pages(&self, first: u32, tokens: usize) -> Vec<u32> {
        let pages = len(tokens).div_ceil(self.profile().page_tokens);
        (first..first + pages).collect()
    }

    /// Any tokens, different for each `series`.
    pub(crate) fn tokens(&self, series: u32, count: usize) -> Vec<u32> {
        let vocabulary = self.profile().vocabulary;
        let mut state = series.wrapping_mul(0x9e37_79b9) + 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state % vocabulary
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    /// Runs a step of one row that gives one answer.
    pub(crate) fn answer(&mut self, ask: Ask) -> Answer {
        let mut answers = self.run(&[], &[ask]).expect("a valid step");
        assert_eq!(answers.len(), 1);
        answers.remove(0)
    }

    /// Runs a step.
    pub(crate) fn run(
        &mut self,
        copies: &[(u32, u32)],
        asks: &[Ask],
    ) -> Result<Vec<Answer>, Fault> {
        let ticket = with_step(copies, asks, |step| self.backend.submit(step))?;
        let mut out = Candidates::default();
        self.backend.collect(ticket, &mut out)?;
        Ok(answers(&out))
    }

    /// Fails unless two answers are the same, as near as the device promises. Where not all tokens
    /// are given, the last of them may differ if they are as likely.
    pub(crate) fn check_same(&self, what: &str, one: &Answer, other: &Answer) {
        assert_eq!(one.best.len(), other.best.len(), "{what}");
        for (one, other) in [(one, other), (other, one)] {
            for (id, logprob) in &one.best {
                let found = other.logprob(*id).unwrap_or(other.least());
                let apart = (logprob - found).abs();
                assert!(apart <= self.tolerance, "{what}: {id} is {apart} apart");
            }
        }
    }
}

/// The least that numbers are allowed to be apart where they are worked out in different ways.
const NEAR: f32 = 1e-3;

impl Device {
    /// Fails unless two numbers are nearly the same.
    pub(crate) fn check_near(&self, what: &str, one: f32, other: f32) {
        let near = self.tolerance.max(NEAR);
        assert!((one - other).abs() < near, "{what}: {one}, not {other}");
    }

    /// Fails unless `one` is below `other`, or nearly so.
    pub(crate) fn check_below(&self, what: &str, one: f32, other: f32) {
        let near = self.tolerance.max(NEAR);
        assert!(one < other + near, "{what}: {one} is above {other}");
    }
}

/// Lays `asks` out as a step.
pub(crate) fn with_step<T>(
    copies: &[(u32, u32)],
    asks: &[Ask],
    run: impl FnOnce(&Step<'_>) -> T,
) -> T {
    let copies: Vec<_> = copies
        .iter()
        .map(|(from, to)| PageCopy {
            from: PageId(*from),
            to: PageId(*to),
        })
        .collect();
    let (mut tokens, mut pages, mut masks, mut rows) = (vec![], vec![], vec![], vec![]);
    for ask in asks {
        let mask = ask.mask.as_ref().map(|mask| {
            masks.push(mask);
            len(masks.len() - 1)
        });
        rows.push(Row {
            tokens: extend(&mut tokens, &ask.tokens, TokenId),
            pages: extend(&mut pages, &ask.pages, PageId),
            position: ask.position,
            mask,
            want: match &ask.wish {
                Wish::Nothing => Want::Nothing,
                Wish::Best(width) => Want::Candidates { width: *width },
                Wish::Each(width, targets) => Want::EachPosition {
                    width: *width,
                    targets: extend(&mut tokens, targets, TokenId),
                },
            },
        });
    }
    run(&Step {
        copies: &copies,
        tokens: &tokens,
        pages: &pages,
        masks: &masks,
        rows: &rows,
    })
}

/// Appends `ids` and says where they stand.
fn extend<T>(all: &mut Vec<T>, ids: &[u32], id: impl Fn(u32) -> T) -> std::ops::Range<u32> {
    let start = len(all.len());
    all.extend(ids.iter().copied().map(id));
    start..len(all.len())
}

/// All entries.
pub(crate) fn answers(out: &Candidates) -> Vec<Answer> {
    let entries = (0..out.len()).filter_map(|index| out.entry(index));
    let answers = entries.map(|entry| {
        let scored = entry.ids.iter().zip(entry.logprobs);
        let mut best: Vec<_> = scored.map(|(id, logprob)| (id.0, *logprob)).collect();
        best.sort_by_key(|(id, _)| *id);
        Answer {
            best,
            normalizer: entry.normalizer,
            target: entry.target,
        }
    });
    answers.collect()
}

/// A length as steps have it.
pub(crate) fn len(length: usize) -> u32 {
    u32::try_from(length).expect("a small length")
}
