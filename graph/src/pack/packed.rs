//! A packed step: what is launched, and how its answers are read.

use std::ops::{AddAssign, Range};

use engine::{Candidates, TokenId, TokenMask};

use super::shape::{Shape, Shapes};

/// No token that may follow is this unlikely: one that seems so is forbidden by a mask.
const NEVER: f32 = -1e8;

/// Rounding brings a log-probability no further above 0.
const CERTAIN: f32 = 0.1;

/// Ids that travel as F32 are below this.
const MOST_TOKENS: f32 = 16_777_216.0;

/// In place of a mask: everything is allowed.
pub(super) const OPEN: u32 = u32::MAX;

/// A step, packed. It holds all that is needed of the step, and its memory is used again for later
/// ones. All ranks read the same.
#[derive(Clone, Default, Debug)]
pub struct Packed {
    pub(super) launches: Vec<Placed>,
    pub(super) ints: Vec<i32>,
    /// For each entry of each launch its mask among those of the step, or [`OPEN`].
    pub(super) entry_masks: Vec<u32>,
    /// The words of all masks of the step, one mask after the other.
    masks: Vec<u32>,
    pub(super) answers: Vec<Answer>,
    pub(super) load: Load,
    vocabulary: u32,
    candidates: usize,
    rank_words: usize,
}

/// A launch: ranges of what the step has.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    bucket: usize,
    pub(super) ints: Range<usize>,
    pub(super) entries: Range<usize>,
    pub(super) is_masked: bool,
    pub(super) answers: usize,
}

/// Where an entry of [`Candidates`] comes from.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Answer {
    pub(super) launch: usize,
    pub(super) entry: usize,
    pub(super) width: u32,
    pub(super) target: Option<TokenId>,
}

/// What a step brings, and what it is padded with.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Load {
    /// Tokens of the step.
    pub tokens: u64,
    /// Tokens that pad them.
    pub padded_tokens: u64,
    /// KV pages that are read.
    pub pages: u64,
    /// KV pages that are read for nothing.
    pub padded_pages: u64,
}

/// A module to run. Those of a step run in order: each may read what one before has written.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Its place among the step's launches.
    pub index: usize,
    /// Its bucket: a place in the list that the packer was made with.
    pub bucket: usize,
    /// What [`crate::Content::Ints`] is set to.
    pub ints: &'a [i32],
    /// Entries of its output that are answers. If there are none it need not be read.
    pub answers: usize,
    /// Whether a row of it is masked. While none is, [`Launch::write_masks`] gives the same for
    /// every launch of a bucket, so that masks that were written once need not be again.
    pub is_masked: bool,
    packed: &'a Packed,
    masks: &'a [u32],
}

/// Why what a device gave is no answer. Nothing of the step may be used then.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum UnpackError {
    /// Not as long as the module's output.
    #[error("launch {launch} gave {found} numbers, and its entry {entry} ends at {needed}")]
    Short {
        /// Which launch of the step.
        launch: usize,
        /// Which entry of its output.
        entry: usize,
        /// Numbers there are.
        found: usize,
        /// Numbers there should be.
        needed: usize,
    },
    /// A number that cannot be.
    #[error(
        "entry {entry} of launch {launch} has {value} as {what}: the weights are broken, or the \
         device is"
    )]
    Number {
        /// Which launch of the step.
        launch: usize,
        /// Which entry of its output.
        entry: usize,
        /// What it should be.
        what: &'static str,
        /// What it is.
        value: f32,
    },
    /// Candidates that cannot be.
    #[error("entry {entry} of launch {launch} has candidates {why}: the device is broken")]
    Candidates {
        /// Which launch of the step.
        launch: usize,
        /// Which entry of its output.
        entry: usize,
        /// What is wrong with them.
        why: &'static str,
    },
}

impl Packed {
    /// What to run, in this order.
    pub fn launches(&self) -> impl ExactSizeIterator<Item = Launch<'_>> {
        let launches = self.launches.iter().enumerate();
        launches.map(|(index, placed)| Launch {
            index,
            bucket: placed.bucket,
            ints: &self.ints[placed.ints.clone()],
            answers: placed.answers,
            is_masked: placed.is_masked,
            packed: self,
            masks: &self.entry_masks[placed.entries.clone()],
        })
    }

    /// What the step brings, and its padding.
    pub fn load(&self) -> Load {
        self.load
    }

    /// Clears `out` and writes an entry for each row that asked, or for each position of it.
    /// `output` gives what a launch gave: `[entries, 2 * candidates + 2]`, see
    /// [`crate::Content::Candidates`]. It is asked for those with answers only.
    ///
    /// # Errors
    /// What cannot be an answer. `out` is empty then.
    pub fn unpack<'a>(
        &self,
        output: impl Fn(usize) -> &'a [f32],
        out: &mut Candidates,
    ) -> Result<(), UnpackError> {
        out.clear();
        for answer in &self.answers {
            if let Err(error) = self.unpack_entry(answer, output(answer.launch), out) {
                out.clear();
                return Err(error);
            }
        }
        Ok(())
    }

    fn unpack_entry(
        &self,
        answer: &Answer,
        output: &[f32],
        out: &mut Candidates,
    ) -> Result<(), UnpackError> {
        let at = At {
            launch: answer.launch,
            entry: answer.entry,
        };
        let (count, width) = (self.candidates, answer.width as usize);
        let end = (at.entry + 1) * (2 * count + 2);
        let numbers = output.get(end - (2 * count + 2)..end);
        let Some((candidates, [normalizer, target])) = numbers.and_then(<[_]>::split_last_chunk)
        else {
            return Err(at.short(output.len(), end));
        };
        if !normalizer.is_finite() {
            return Err(at.number("the logarithm of a sum", *normalizer));
        }
        let mask = self.mask(self.entry_masks[self.launches[at.launch].entries.start + at.entry]);
        let (ids, logprobs) = candidates.split_at(count);
        let best = ids.iter().copied().zip(logprobs.iter().copied());
        self.check(best.clone().take(width.max(2)), mask, at)?;
        let target = match answer.target {
            None => None,
            Some(token) if !is_allowed(mask, token) => Some(f32::NEG_INFINITY),
            Some(_) if target.is_nan() || *target > CERTAIN => {
                return Err(at.number("a target's log-probability", *target));
            }
            Some(_) => Some(*target),
        };
        let allowed = best.filter_map(|(id, logprob)| self.allowed(id, logprob, mask));
        out.push(allowed.take(width), *normalizer, target);
        Ok(())
    }

    /// Whether these can be the best candidates of an entry.
    fn check(
        &self,
        best: impl Iterator<Item = (f32, f32)>,
        mask: Option<&[u32]>,
        at: At,
    ) -> Result<(), UnpackError> {
        let mut last = None;
        for (id, logprob) in best {
            if logprob.is_nan() || logprob > CERTAIN {
                return Err(at.number("a log-probability", logprob));
            }
            if !(0.0..MOST_TOKENS).contains(&id) || id.fract() != 0.0 {
                return Err(at.number("a token", id));
            }
            let Some(allowed) = self.allowed(id, logprob, mask) else {
                continue;
            };
            match last {
                Some((token, _)) if token == allowed.0 => {
                    return Err(at.candidates("of which two are the same"));
                }
                Some((_, likelier)) if likelier < logprob => {
                    return Err(at.candidates("that are not in order"));
                }
                _ => last = Some(allowed),
            }
        }
        match last {
            None => Err(at.candidates("of which none is allowed")),
            Some(_) => Ok(()),
        }
    }

    /// The candidate, if it may follow at all.
    fn allowed(&self, id: f32, logprob: f32, mask: Option<&[u32]>) -> Option<(TokenId, f32)> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the cast saturates, and ids are whole numbers below 2^24"
        )]
        let token = TokenId(id as u32);
        let allowed = token.0 < self.vocabulary && logprob > NEVER && is_allowed(mask, token);
        allowed.then_some((token, logprob))
    }

    /// The words of a mask of the step.
    fn mask(&self, mask: u32) -> Option<&[u32]> {
        let words = self.vocabulary.div_ceil(32) as usize;
        (mask != OPEN).then(|| &self.masks[mask as usize * words..][..words])
    }

    /// Forgets the step before.
    pub(super) fn clear(&mut self, shapes: &Shapes) {
        self.launches.clear();
        self.ints.clear();
        self.entry_masks.clear();
        self.masks.clear();
        self.answers.clear();
        self.load = Load::default();
        self.vocabulary = shapes.vocabulary;
        self.candidates = shapes.candidates;
        self.rank_words = shapes.mask_words;
    }

    /// Copies the masks of a step.
    pub(super) fn keep_masks(&mut self, masks: &[&TokenMask]) {
        (masks.iter()).for_each(|mask| self.masks.extend_from_slice(mask.words()));
    }

    /// Adds a launch without answers and gives its integers, all 0.
    pub(super) fn open(&mut self, shape: &Shape) -> &mut [i32] {
        let (ints, entries) = (self.ints.len(), self.entry_masks.len());
        self.ints.resize(ints + shape.ints.len, 0);
        self.entry_masks.resize(entries + shape.entries, OPEN);
        self.launches.push(Placed {
            bucket: shape.place,
            ints: ints..self.ints.len(),
            entries: entries..self.entry_masks.len(),
            is_masked: false,
            answers: 0,
        });
        &mut self.ints[ints..]
    }
}

impl Launch<'_> {
    /// Writes what [`crate::Content::Masks`] of `rank` is set to, `[entries, vocabulary of a rank /
    /// 32]`, in place of what `out` holds. Entries that are not masked allow the whole vocabulary;
    /// what pads the vocabulary is never allowed.
    pub fn write_masks(&self, rank: u32, out: &mut Vec<u32>) {
        out.clear();
        let first = self.packed.rank_words * rank as usize;
        let words = first..first + self.packed.rank_words;
        for mask in self.masks {
            match self.packed.mask(*mask) {
                None => out.extend(
                    words
                        .clone()
                        .map(|word| open_word(self.packed.vocabulary, word)),
                ),
                Some(mask) => {
                    let own = words.start.min(mask.len())..words.end.min(mask.len());
                    out.extend_from_slice(&mask[own.clone()]);
                    out.extend(std::iter::repeat_n(0, words.len() - own.len()));
                }
            }
        }
    }
}

/// A word of a mask that allows the whole vocabulary.
fn open_word(vocabulary: u32, word: usize) -> u32 {
    match (vocabulary as usize).saturating_sub(word * 32) {
        bits @ 0..32 => (1 << bits) - 1,
        _ => u32::MAX,
    }
}

fn is_allowed(mask: Option<&[u32]>, TokenId(token): TokenId) -> bool {
    mask.is_none_or(|mask| mask[token as usize / 32] >> (token % 32) & 1 == 1)
}

/// Where something is wrong.
#[derive(Clone, Copy, Debug)]
struct At {
    launch: usize,
    entry: usize,
}

impl At {
    fn short(self, found: usize, needed: usize) -> UnpackError {
        let Self { launch, entry } = self;
        UnpackError::Short {
            launch,
            entry,
            found,
            needed,
        }
    }

    fn number(self, what: &'static str, value: f32) -> UnpackError {
        let Self { launch, entry } = self;
        UnpackError::Number {
            launch,
            entry,
            what,
            value,
        }
    }

    fn candidates(self, why: &'static str) -> UnpackError {
        let Self { launch, entry } = self;
        UnpackError::Candidates { launch, entry, why }
    }
}

impl Load {
    /// Puts a row in the place of padding.
    pub(super) fn fill(&mut self, tokens: u32, pages: u32) {
        self.tokens += u64::from(tokens);
        self.padded_tokens -= u64::from(tokens);
        self.pages += u64::from(pages);
        self.padded_pages -= u64::from(pages);
    }
}

impl AddAssign for Load {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.padded_tokens += other.padded_tokens;
        self.pages += other.pages;
        self.padded_pages += other.padded_pages;
    }
}
