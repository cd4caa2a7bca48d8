//! Which modules are compiled ahead of time, and how large the KV cache is: chosen from what is
//! wanted and from what a core holds, each of it open to be said otherwise.
//!
//! A step runs in the smallest module that holds it, so between two sizes of a bucket all that a
//! step lacks is padding that costs as much as work; but each module takes minutes to compile,
//! memory once loaded, and on Trainium2 even time while others run (neuron.md 5.3). So sizes go by
//! fours, and the longest contexts get the most of them.

use std::fmt;
use std::str::FromStr;

use engine::Demand;
use graph::{
    Activations, Advice, Bucket, Cut, Footprint, Form, FormError, Head, KvFormat, Memory, Target,
    TooLarge, WeightFormat,
};
use model::Decoder;

/// Bytes of a page of keys that a gather should move at once at the least: fewer waste bandwidth
/// on descriptors (neuron.md 5.3).
const PAGE_BYTES: u64 = 4096;

/// Positions of a page, unless its bytes would be too few or too many pages were half empty.
const PAGE_TOKENS: [u32; 2] = [32, 256];

/// From one size to the next.
const FACTOR: u32 = 4;

/// Pages of the smallest context that has modules of its own; below, all is cheap.
const LEAST_PAGES: u32 = 8;

/// Sizes of context at the most.
const CONTEXTS: usize = 4;

/// Sizes of a chunk of a prompt, as far as a step may bring so many tokens.
const CHUNKS: [u32; 3] = [128, 512, 2048];

/// Tokens of the module that scores prompts: each costs a row of the head.
const SCORED: u32 = 64;

/// Tokens of the last chunk of a prompt whose embedding is asked.
const EMBEDDED: u32 = 128;

/// Pages that are copied at once: a page is copied when sequences that share it part.
const COPIES: u32 = 8;

/// Candidates an entry holds, unless told otherwise.
const CANDIDATES: u32 = 64;

/// What is to be prepared. What is `None` is chosen.
#[derive(Clone, PartialEq, Debug)]
pub struct Wish {
    /// The devices to compile for.
    pub target: Target,
    /// Physical cores that make a logical one.
    pub lnc: Option<u32>,
    /// Ranks that compute together.
    pub ranks: u32,
    /// How matrices are held.
    pub weights: WeightFormat,
    /// What activations are held in.
    pub activations: Activations,
    /// How keys and values are held.
    pub kv: KvFormat,
    /// Context, rows, tokens of a step and of the KV cache.
    pub demand: Demand,
    /// Candidates an entry holds.
    pub candidates: Option<u32>,
    /// Positions of a KV page.
    pub page_tokens: Option<u32>,
    /// KV pages, without the null page; before [`Demand::kv_tokens`].
    pub kv_pages: Option<u32>,
    /// Rows of decode modules.
    pub decode_rows: Option<Vec<u32>>,
    /// Tokens of prefill modules.
    pub prefill_tokens: Option<Vec<u32>>,
    /// Pages that modules may read.
    pub context_pages: Option<Vec<u32>>,
    /// Whether there is a module that gives embeddings.
    pub embeddings: bool,
}

/// What will be compiled.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// The devices to compile for.
    pub target: Target,
    /// Physical cores that make a logical one.
    pub lnc: u32,
    /// What all modules share.
    pub form: Form,
    /// The modules, those first that are loaded first.
    pub buckets: Vec<Bucket>,
    /// Pages of one sequence of full length.
    least_pages: u32,
    /// Whether the number of KV pages is ours to choose.
    chooses_pages: bool,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The decoder cannot be lowered so.
    #[error(transparent)]
    Form(#[from] FormError),
    /// The target has no such logical cores.
    #[error("--lnc {lnc}: {target} has logical cores of {} physical cores", any_of(target.facts().logical))]
    Lnc {
        /// What was asked for.
        lnc: u32,
        /// Of which target.
        target: Target,
    },
    /// A list of sizes is no list of sizes.
    #[error("--{flag} {}: sizes ascend and start from 1", listed(sizes))]
    Sizes {
        /// The flag.
        flag: &'static str,
        /// What it was given.
        sizes: Vec<u32>,
    },
    /// The modules would not reach as far as the context does.
    #[error(
        "--context-pages {}: a context of {context} positions has {needed} pages of {page_tokens}; \
         add {needed}, or ask for --max-context {}",
        listed(sizes), sizes.last().unwrap_or(&0) * page_tokens
    )]
    Context {
        /// What was asked for.
        sizes: Vec<u32>,
        /// Positions of the longest sequence.
        context: u32,
        /// Pages of it.
        needed: u32,
        /// Positions of a page.
        page_tokens: u32,
    },
    /// The KV cache would not hold one sequence of full length.
    #[error(
        "{pages} KV pages of {page_tokens} positions do not hold one sequence of {context}: give \
         at least --kv-pages {needed}, or a shorter --max-context"
    )]
    Pages {
        /// What was asked for.
        pages: u32,
        /// Positions of a page.
        page_tokens: u32,
        /// Positions of the longest sequence.
        context: u32,
        /// Pages of it.
        needed: u32,
    },
    /// A core does not hold it.
    #[error(
        "with one sequence of {context} positions ({pages} pages) and no more: {why} (the flags: \
         --max-context, --kv-pages, --dtype, --kv-dtype, --tp)"
    )]
    Memory {
        /// Positions of the longest sequence.
        context: u32,
        /// Pages that were to be.
        pages: u32,
        /// What is missing.
        why: Box<TooLarge>,
    },
}

impl Plan {
    /// Chooses what `wish` leaves open.
    ///
    /// # Errors
    /// What cannot be, or does not fit, and what would.
    pub fn new(decoder: &Decoder, wish: &Wish) -> Result<Self, PlanError> {
        let target = wish.target;
        let lnc = wish.lnc.unwrap_or(target.default_logical());
        if !target.facts().logical.contains(&lnc) {
            return Err(PlanError::Lnc { lnc, target });
        }
        let context = wish.demand.context;
        let page_tokens = match wish.page_tokens {
            Some(tokens) => tokens,
            None => page_tokens(decoder, wish)?,
        };
        let form = Form {
            ranks: wish.ranks,
            weights: wish.weights,
            activations: wish.activations,
            kv: wish.kv,
            fp8_max: target.facts().fp8_max,
            page_tokens,
            pages: 2,
            context,
            candidates: wish
                .candidates
                .unwrap_or(CANDIDATES.min(decoder.vocabulary)),
        };
        // Before anything is divided by a size that cannot be.
        graph::Layout::of(decoder, &form, Bucket::Copy { pairs: 1 })?;
        let least_pages = context.div_ceil(page_tokens);
        let mut plan = Self {
            target,
            lnc,
            buckets: buckets(wish, &form, least_pages)?,
            form,
            least_pages,
            chooses_pages: wish.kv_pages.is_none() && wish.demand.kv_tokens.is_none(),
        };
        plan.size_cache(decoder, wish)?;
        Ok(plan)
    }

    /// Makes the KV cache as large as wanted, and where nobody says how large, as large as all
    /// rows of full length can fill, or as a core holds.
    fn size_cache(&mut self, decoder: &Decoder, wish: &Wish) -> Result<(), PlanError> {
        let page_tokens = self.form.page_tokens;
        let of_tokens = |tokens: u64| tokens.div_ceil(page_tokens.into());
        let pages = match (wish.kv_pages, wish.demand.kv_tokens) {
            (Some(pages), _) => pages.into(),
            (None, Some(tokens)) => of_tokens(tokens),
            (None, None) => u64::from(self.least_pages) * u64::from(wish.demand.rows.max(1)),
        };
        // The null page is one more. What is counted in S32 ends before 2^31.
        let countable = ((1 << 31) - 1) / page_tokens;
        let pages = u32::try_from(pages.saturating_add(1)).unwrap_or(u32::MAX);
        self.form.pages = match self.chooses_pages {
            true => pages.min(countable),
            false => pages,
        };
        if pages <= self.least_pages {
            return Err(PlanError::Pages {
                pages: pages - 1,
                page_tokens,
                context: self.form.context,
                needed: self.least_pages,
            });
        }
        let known: Vec<_> = self
            .buckets
            .iter()
            .map(|bucket| (*bucket, Footprint::default()))
            .collect();
        self.settle(&|form| Memory::of_footprints(decoder, form, &known))
            .map(|_| ())
    }

    /// Makes the KV cache no larger than a core holds beside all else, as `memory` counts it, if
    /// its size is ours to choose. Gives whether anything changed.
    ///
    /// # Errors
    /// Not even the least fits.
    pub(crate) fn settle(
        &mut self,
        memory: &dyn Fn(&Form) -> Result<Memory, FormError>,
    ) -> Result<bool, PlanError> {
        let Err(why) = memory(&self.form)?.fit(self.target, self.lnc) else {
            return Ok(false);
        };
        let fit = why.advice.iter().find_map(|advice| match advice {
            Advice::Pages { pages, .. } => Some(*pages),
            _ => None,
        });
        match fit {
            Some(pages) if self.chooses_pages && pages > self.least_pages => {
                self.form.pages = pages;
                Ok(true)
            }
            _ => Err(self.too_large(memory, why)),
        }
    }

    /// The refusal, with the numbers of the least that would serve where that does not fit either.
    fn too_large(
        &self,
        memory: &dyn Fn(&Form) -> Result<Memory, FormError>,
        why: Box<TooLarge>,
    ) -> PlanError {
        let least = Form {
            pages: self.least_pages + 1,
            ..self.form.clone()
        };
        let of_least = match self.chooses_pages {
            true => memory(&least).ok(),
            false => None,
        };
        let refused = of_least.and_then(|memory| memory.fit(self.target, self.lnc).err());
        let pages = refused.as_ref().map_or(self.form.pages, |_| least.pages);
        PlanError::Memory {
            context: self.form.context,
            pages: pages - 1,
            why: refused.unwrap_or(why),
        }
    }

    /// The parts of a module's work that are padding: at the worst, and in the mean where all sizes
    /// that come to it are equally likely. Work grows as rows or tokens times pages.
    pub fn padding(&self, bucket: Bucket) -> Padding {
        let below = |size: u32, of: &dyn Fn(Bucket) -> Option<u32>| {
            let sizes = self.buckets.iter().filter_map(|other| of(*other));
            sizes.filter(|other| *other < size).max().unwrap_or(0)
        };
        let Bucket::Step {
            rows,
            tokens,
            pages,
            head,
        } = bucket
        else {
            return Padding::of(&[(0, bucket_size(bucket))]);
        };
        let like = |other: Bucket| match other {
            Bucket::Step {
                rows: other_rows,
                tokens: other_tokens,
                pages: other_pages,
                head: other_head,
            } if other_head == head && (tokens == 1) == (other_tokens == 1) => {
                Some((other_rows, other_tokens, other_pages))
            }
            _ => None,
        };
        let width = match tokens {
            1 => (below(rows, &|other| Some(like(other)?.0)), rows),
            // One row, which is never padding.
            _ => (below(tokens, &|other| Some(like(other)?.1)), tokens),
        };
        // Where no page is read there is none to pad.
        let depth = (pages > 0).then(|| (below(pages, &|other| Some(like(other)?.2)), pages));
        let axes: Vec<_> = std::iter::once(width).chain(depth).collect();
        Padding::of(&axes)
    }
}

fn bucket_size(bucket: Bucket) -> u32 {
    match bucket {
        Bucket::Step { rows, tokens, .. } => rows * tokens,
        Bucket::Copy { pairs } => pairs,
    }
}

/// What part of a module's work is padding, 0 to 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Padding {
    /// By the smallest step that comes to it.
    pub worst: f64,
    /// In the mean.
    pub mean: f64,
}

impl Padding {
    /// From each axis: the next smaller size, and this one.
    fn of(axes: &[(u32, u32)]) -> Self {
        let fill = |size: &dyn Fn(f64, f64) -> f64| {
            let fills = axes.iter().map(|&(below, size_)| {
                let (least, most) = (f64::from(below) + 1.0, f64::from(size_));
                size(least, most) / most
            });
            1.0 - fills.product::<f64>()
        };
        Self {
            worst: fill(&|least, _| least),
            mean: fill(&|least, most| f64::midpoint(least, most)),
        }
    }
}

/// Positions of a page whose keys are enough bytes to move at once.
fn page_tokens(decoder: &Decoder, wish: &Wish) -> Result<u32, FormError> {
    let cut = Cut::of(decoder, wish.ranks)?;
    let [least, most] = PAGE_TOKENS;
    let position = u64::from(cut.kv_heads) * u64::from(decoder.attention.head_size);
    let position = position * wish.kv.element().bytes();
    let mut tokens = least;
    while tokens < most && u64::from(tokens) * position < PAGE_BYTES {
        tokens *= 2;
    }
    Ok(tokens)
}

/// All modules: decode first, as it is loaded first.
fn buckets(wish: &Wish, form: &Form, all_pages: u32) -> Result<Vec<Bucket>, PlanError> {
    let contexts = match &wish.context_pages {
        Some(sizes) => reaching(ascending("context-pages", sizes)?, form, all_pages)?,
        None => ladder(all_pages, LEAST_PAGES, CONTEXTS),
    };
    let rows = match &wish.decode_rows {
        Some(sizes) => ascending("decode-rows", sizes)?,
        None => ladder(wish.demand.rows.max(1), 1, usize::MAX),
    };
    let most = wish.demand.step_tokens.min(form.context);
    let tokens = match &wish.prefill_tokens {
        Some(sizes) => ascending("prefill-tokens", sizes)?,
        None => chunks(most),
    };
    let step = |rows, tokens, pages, head| Bucket::Step {
        rows,
        tokens,
        pages,
        head,
    };
    let mut buckets = Vec::new();
    for &rows in &rows {
        buckets.extend(
            contexts
                .iter()
                .map(|&pages| step(rows, 1, pages, Head::Last)),
        );
    }
    let befores = befores(&contexts, wish.context_pages.is_some());
    for &tokens in &tokens {
        buckets.extend(
            befores
                .iter()
                .map(|&pages| step(1, tokens, pages, Head::Last)),
        );
    }
    // For what is rare, one size is enough.
    let deepest = contexts.last().copied().unwrap_or(all_pages);
    buckets.push(step(1, SCORED.min(most), deepest, Head::Each));
    if wish.embeddings {
        buckets.push(step(1, EMBEDDED.min(most), deepest, Head::Embedding));
    }
    buckets.push(Bucket::Copy { pairs: COPIES });
    let mut seen = std::collections::BTreeSet::new();
    buckets.retain(|bucket| seen.insert(*bucket));
    Ok(buckets)
}

/// `most`, and below it by fours, rounded up to whole sizes, as far as `least`: ascending.
fn ladder(most: u32, least: u32, count: usize) -> Vec<u32> {
    let mut sizes = vec![most];
    let mut power = FACTOR;
    // Rows go by powers of four (1, 4, 16, ..), so that sizes are round whatever the most is.
    if least == 1 {
        let powers = std::iter::successors(Some(1_u32), |size| size.checked_mul(FACTOR));
        sizes.extend(powers.take_while(|size| *size < most));
    } else {
        while sizes.len() < count && most.div_ceil(power) >= least {
            sizes.push(most.div_ceil(power));
            power *= FACTOR;
        }
    }
    sizes.sort_unstable();
    sizes
}

/// Tokens of chunks, `most` the largest.
fn chunks(most: u32) -> Vec<u32> {
    let smaller = CHUNKS.into_iter().filter(|tokens| *tokens < most);
    // A chunk of one token is a decode row.
    smaller.chain((most > 1).then_some(most)).collect()
}

/// Pages that a chunk may read: none, as the first of a prompt, and every second size from the
/// largest down, or all that were asked for.
fn befores(contexts: &[u32], all: bool) -> Vec<u32> {
    let every = if all { 1 } else { 2 };
    let mut sizes: Vec<_> = contexts.iter().copied().rev().step_by(every).collect();
    sizes.push(0);
    sizes.reverse();
    sizes
}

fn ascending(flag: &'static str, sizes: &[u32]) -> Result<Vec<u32>, PlanError> {
    let starts = sizes.first().is_some_and(|size| *size > 0);
    if starts && sizes.is_sorted_by(|a, b| a < b) {
        return Ok(sizes.to_vec());
    }
    Err(PlanError::Sizes {
        flag,
        sizes: sizes.to_vec(),
    })
}

/// `sizes`, if the last holds a sequence of full length.
fn reaching(sizes: Vec<u32>, form: &Form, needed: u32) -> Result<Vec<u32>, PlanError> {
    match sizes.last() {
        Some(last) if *last >= needed => Ok(sizes),
        _ => Err(PlanError::Context {
            sizes,
            context: form.context,
            needed,
            page_tokens: form.page_tokens,
        }),
    }
}

/// `1,2,3`.
fn listed(sizes: &[u32]) -> String {
    let sizes: Vec<_> = sizes.iter().map(u32::to_string).collect();
    sizes.join(",")
}

/// `1 or 2`.
fn any_of(numbers: &[u32]) -> String {
    listed(numbers).replace(',', " or ")
}

/// A bucket by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named(pub Bucket);

/// A text that names no bucket.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text:?} names no bucket: they are called decode-ROWSxPAGES, prefill-ROWSxTOKENSxPAGES, both \
     perhaps with -each or -embedding behind, and copy-PAGES, such as decode-4x8"
)]
pub struct UnknownBucket {
    /// The text.
    pub text: String,
}

impl FromStr for Named {
    type Err = UnknownBucket;

    /// The opposite of [`Bucket::name`].
    fn from_str(text: &str) -> Result<Self, UnknownBucket> {
        let unknown = || UnknownBucket {
            text: text.to_owned(),
        };
        let (kind, rest) = text.split_once('-').ok_or_else(unknown)?;
        let (sizes, head) = match rest.split_once('-') {
            None => (rest, Head::Last),
            Some((sizes, "each")) => (sizes, Head::Each),
            Some((sizes, "embedding")) => (sizes, Head::Embedding),
            Some(_) => return Err(unknown()),
        };
        let sizes: Option<Vec<u32>> = sizes.split('x').map(|size| size.parse().ok()).collect();
        let bucket = match (kind, sizes.ok_or_else(unknown)?.as_slice(), head) {
            ("decode", &[rows, pages], head) => Bucket::Step {
                rows,
                tokens: 1,
                pages,
                head,
            },
            ("prefill", &[rows, tokens, pages], head) if tokens != 1 => Bucket::Step {
                rows,
                tokens,
                pages,
                head,
            },
            ("copy", &[pairs], Head::Last) => Bucket::Copy { pairs },
            _ => return Err(unknown()),
        };
        Ok(Self(bucket))
    }
}

impl fmt::Display for Padding {
    /// `up to 75 %, 38 % in the mean`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: f64| 100.0 * part;
        write!(
            f,
            "up to {:.0} %, {:.0} % in the mean",
            percent(self.worst),
            percent(self.mean)
        )
    }
}

#[cfg(test)]
mod tests;
