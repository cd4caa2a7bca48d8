//! Which forms and buckets can be: what is refused, and what would do instead.

use model::Decoder;

use crate::bucket::{Bucket, Form};
use crate::cut::TOP_K_COLUMNS;

/// The most candidates of an entry: what the device's top-K is used for.
pub const MAX_CANDIDATES: u32 = 256;

/// Token ids travel as F32, which holds every integer below this.
const MAX_VOCABULARY: u32 = 1 << 24;

/// Places of the cache are counted in S32.
const MAX_SLOTS: u64 = 1 << 31;

/// Integers of a step, and tokens times rows: far above what a device holds.
const MAX_INTS: u64 = 1 << 26;

/// Why a decoder cannot be lowered in a form or bucket.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormError {
    /// Heads cannot be shared out.
    #[error(
        "{ranks} ranks cannot share out {heads} query heads and {kv_heads} key and value heads \
         evenly: choose a tensor parallelism of {}",
        listed(working)
    )]
    Ranks {
        /// What was asked for.
        ranks: u32,
        /// Query heads.
        heads: u32,
        /// Key and value heads.
        kv_heads: u32,
        /// Numbers of ranks that work.
        working: Vec<u32>,
    },
    /// Not a power of two, or 1, which leaves a padded token no place.
    #[error(
        "a KV page of {page_tokens} positions cannot be: choose a power of two from 2 to {}, such \
         as 32", 1_u32 << 16
    )]
    PageTokens {
        /// What was asked for.
        page_tokens: u32,
    },
    /// None, or more than can be counted.
    #[error(
        "{pages} KV pages of {page_tokens} positions cannot be: there must be the null page and at \
         least one more, and fewer than {MAX_SLOTS} positions in all"
    )]
    Pages {
        /// What was asked for, the null page included.
        pages: u32,
        /// Positions of each.
        page_tokens: u32,
    },
    /// None.
    #[error(
        "a context of {context} positions cannot be: choose one from 1 to the model's {trained}"
    )]
    Context {
        /// What was asked for.
        context: u32,
        /// Positions the model was made for.
        trained: u32,
    },
    /// None, or more than the device or the vocabulary has.
    #[error("{candidates} candidates an entry cannot be: choose from 1 to {most}")]
    Candidates {
        /// What was asked for.
        candidates: u32,
        /// What works.
        most: u32,
    },
    /// Nothing that is E4M3.
    #[error(
        "the largest E4M3 number cannot be {fp8_max}: it is 240 on NeuronCore-v2 and v3, 448 elsewhere"
    )]
    Fp8Max {
        /// What was asked for.
        fp8_max: u32,
    },
    /// No tokens, or ids that an F32 does not hold exactly.
    #[error(
        "a vocabulary of {vocabulary} tokens cannot be: ids travel as F32, so there may be 1 to \
         {MAX_VOCABULARY}"
    )]
    Vocabulary {
        /// What the model has.
        vocabulary: u32,
    },
    /// Heads that cannot be rotated in halves.
    #[error("heads of {head_size} dimensions cannot be rotated in halves: their size must be even")]
    HeadSize {
        /// What the model has.
        head_size: u32,
    },
    /// A bucket of nothing, or of more than there can be.
    #[error("the bucket {bucket} cannot be: {reason}")]
    Bucket {
        /// Its name.
        bucket: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Form {
    /// Whether `decoder` can be lowered in this form, but for how it is cut: see [`crate::Cut::of`].
    pub(crate) fn check(&self, decoder: &Decoder) -> Result<(), FormError> {
        let (vocabulary, page_tokens, pages) = (decoder.vocabulary, self.page_tokens, self.pages);
        let slots = u64::from(page_tokens) * u64::from(pages);
        let head_size = decoder.attention.head_size;
        // What all ranks found is looked through at once.
        let most = MAX_CANDIDATES
            .min(vocabulary)
            .min(TOP_K_COLUMNS / self.ranks.max(1));
        match self {
            _ if !(1..=MAX_VOCABULARY).contains(&vocabulary) => {
                Err(FormError::Vocabulary { vocabulary })
            }
            _ if head_size == 0 || !head_size.is_multiple_of(2) => {
                Err(FormError::HeadSize { head_size })
            }
            _ if !page_tokens.is_power_of_two() || !(2..=1 << 16).contains(&page_tokens) => {
                Err(FormError::PageTokens { page_tokens })
            }
            _ if pages < 2 || slots >= MAX_SLOTS => Err(FormError::Pages { pages, page_tokens }),
            Self { context, .. } if !(1..=MAX_VOCABULARY).contains(context) => {
                Err(FormError::Context {
                    context: *context,
                    trained: decoder.context,
                })
            }
            Self { candidates, .. } if !(1..=most).contains(candidates) => {
                Err(FormError::Candidates {
                    candidates: *candidates,
                    most,
                })
            }
            Self { fp8_max, .. } if ![240, 448].contains(fp8_max) => {
                Err(FormError::Fp8Max { fp8_max: *fp8_max })
            }
            _ => Ok(()),
        }
    }
}

impl Bucket {
    /// Whether there can be such a bucket in `form`.
    pub(crate) fn check(self, form: &Form) -> Result<(), FormError> {
        let refuse = |reason: String| {
            let bucket = self.name();
            Err(FormError::Bucket { bucket, reason })
        };
        let (rows, tokens, pages) = match self {
            Self::Copy { pairs: 0 } => return refuse("it copies nothing".into()),
            Self::Copy { pairs } => (1, 1, pairs),
            Self::Step { rows: 0, .. } => return refuse("it has no rows".into()),
            Self::Step { tokens: 0, .. } => return refuse("its rows bring no tokens".into()),
            Self::Step { tokens, .. } if tokens > form.context => {
                return refuse(format!(
                    "its rows bring more tokens than the context of {} has",
                    form.context
                ));
            }
            Self::Step {
                rows,
                tokens,
                pages,
                ..
            } => (rows, tokens, pages),
        };
        let positions = u64::from(pages) * u64::from(form.page_tokens);
        let ints = u64::from(rows)
            .saturating_mul(u64::from(tokens) + u64::from(pages))
            .max(positions);
        if ints >= MAX_INTS {
            return refuse("it is larger than any device can take".into());
        }
        Ok(())
    }
}

/// `1, 2 or 4`.
fn listed(numbers: &[u32]) -> String {
    let numbers: Vec<_> = numbers.iter().map(u32::to_string).collect();
    match numbers.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        Some((last, _)) => last.clone(),
        None => String::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use model::{Activation, Attention, Mlp, Rope, RopeScaling};

    use super::*;
    use crate::bucket::{Activations, Head, KvFormat, WeightFormat};

    /// A decoder with these heads and nothing else of note.
    pub(crate) fn decoder(heads: u32, kv_heads: u32) -> Decoder {
        Decoder {
            vocabulary: 1000,
            hidden: 64,
            layers: 2,
            attention: Attention {
                heads,
                kv_heads,
                head_size: 16,
                input_bias: false,
                output_bias: false,
                head_norm: false,
                window: None,
                rope: Rope {
                    theta: 10_000.0,
                    scaling: RopeScaling::None,
                },
            },
            mlp: Mlp::Gated {
                size: 96,
                activation: Activation::Silu,
                bias: false,
            },
            norm_epsilon: 1e-5,
            context: 256,
            tied_head: false,
        }
    }

    /// A form that suits [`decoder`].
    pub(crate) fn form() -> Form {
        Form {
            ranks: 1,
            weights: WeightFormat::Bf16,
            activations: Activations::Bf16,
            kv: KvFormat::Bf16,
            fp8_max: 448,
            page_tokens: 16,
            pages: 17,
            context: 256,
            candidates: 64,
        }
    }

    #[test]
    fn a_form_that_cannot_be_is_refused_by_the_number_that_is_wrong() {
        let decoder = decoder(4, 2);
        type Change = fn(&mut Form);
        let wrong: [(Change, &str); 7] = [
            (|form| form.page_tokens = 24, "power of two"),
            (|form| form.page_tokens = 1, "power of two"),
            (|form| form.pages = 1, "null page"),
            (|form| form.context = 0, "context of 0"),
            (|form| form.candidates = 0, "from 1 to 256"),
            (|form| form.candidates = 257, "from 1 to 256"),
            (|form| form.fp8_max = 300, "240"),
        ];
        assert_eq!(form().check(&decoder), Ok(()));
        for (change, word) in wrong {
            let mut form = form();
            change(&mut form);
            let refusal = form.check(&decoder).unwrap_err().to_string();
            assert!(refusal.contains(word), "{refusal}");
        }
    }

    #[test]
    fn there_are_no_more_candidates_than_tokens() {
        let mut decoder = decoder(4, 2);
        decoder.vocabulary = 40;
        let refusal = form().check(&decoder).unwrap_err().to_string();
        assert!(refusal.contains("from 1 to 40"), "{refusal}");
    }

    #[test]
    fn a_bucket_of_nothing_is_refused() {
        let step = |rows, tokens, pages| Bucket::Step {
            rows,
            tokens,
            pages,
            head: Head::Last,
        };
        assert!(step(1, 1, 0).check(&form()).is_ok());
        assert!(step(0, 1, 1).check(&form()).is_err());
        assert!(step(1, 0, 1).check(&form()).is_err());
        assert!(step(1, 257, 1).check(&form()).is_err());
        assert!(step(u32::MAX, 1, u32::MAX).check(&form()).is_err());
        assert!(Bucket::Copy { pairs: 0 }.check(&form()).is_err());
    }
}
