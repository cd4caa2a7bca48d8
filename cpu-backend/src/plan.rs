//! How memory is split: weights first, then room for the work of a step, then KV.

use std::sync::atomic::{AtomicU64, Ordering};

use engine::{Axis, Demand, Profile};
use model::{Decoder, Mlp};

use crate::kernels::LANES;
use crate::weights::Packed;
use crate::{OpenError, Precision};

/// Positions of a page. A page of keys is then a panel of the kernels, sixteen columns wide.
pub(crate) const PAGE: usize = LANES;

/// Rows of logits that are computed at once at the least: with the largest vocabularies (150 000
/// tokens) this many take 40 MB.
const LOGIT_ROWS: u32 = 64;

/// Of the memory that weights and work leave, the part that KV takes unless told otherwise: 1 / this.
/// The rest is the server's, and the system's cache of the checkpoint.
const KV_PART: u64 = 2;

/// What a device will hold.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) profile: Profile,
    /// Rows of logits that are computed at once.
    pub(crate) logit_rows: usize,
    /// Bytes of all KV pages.
    pub(crate) kv: u64,
}

/// Bytes of KV that devices of this process hold. The system counts a page only once it is written to, so it
/// would promise the same memory to the next device.
static PROMISED: AtomicU64 = AtomicU64::new(0);

/// KV memory that a device holds, until it is dropped.
#[derive(Debug)]
pub(crate) struct Promise(u64);

impl Promise {
    pub(crate) fn new(kv: u64) -> Self {
        PROMISED.fetch_add(kv, Ordering::Relaxed);
        Self(kv)
    }

    /// Bytes that all hold now.
    pub(crate) fn all() -> u64 {
        PROMISED.load(Ordering::Relaxed)
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        PROMISED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

impl Plan {
    /// Splits `free` bytes.
    ///
    /// # Errors
    /// [`OpenError::Memory`] where they do not hold what is asked.
    pub(crate) fn new(
        decoder: &Decoder,
        precision: Precision,
        demand: &Demand,
        free: u64,
    ) -> Result<Self, OpenError> {
        let logit_rows = demand.rows.max(LOGIT_ROWS);
        let weights = Packed::bytes(decoder, precision);
        let work = work_bytes(decoder, demand, logit_rows);
        let page = page_bytes(decoder);
        let pages_of = |positions: u64| positions.div_ceil(PAGE as u64).max(1);
        let one_row = pages_of(demand.context.into());
        let pages = match demand.kv_tokens {
            Some(positions) => pages_of(positions),
            None => {
                let left = free.saturating_sub(weights + work) / KV_PART;
                let every_row = one_row.saturating_mul(demand.rows.max(1).into());
                // Short of one sequence of full length there is no point in starting.
                every_row.min(left / page).max(one_row)
            }
        };
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        let kv = u64::from(pages).saturating_mul(page);
        let needed = (weights + work).saturating_add(kv);
        if needed > free {
            return Err(OpenError::Memory {
                needed,
                free,
                weights,
                kv,
            });
        }
        Ok(Self {
            profile: Profile {
                prefill: Axis::UpTo(demand.step_tokens),
                decode: Axis::UpTo(demand.rows),
                context: Axis::UpTo(demand.context),
                mixed: true,
                #[expect(clippy::cast_possible_truncation, reason = "it is 16")]
                page_tokens: PAGE as u32,
                pages,
                vocabulary: decoder.vocabulary,
                candidates: decoder.vocabulary,
                depth: 1,
            },
            logit_rows: logit_rows as usize,
            kv,
        })
    }
}

/// Bytes of one page of KV, in all layers, in F32.
fn page_bytes(decoder: &Decoder) -> u64 {
    let attention = &decoder.attention;
    let head = (attention.head_size as usize).next_multiple_of(LANES) as u64;
    2 * 4 * PAGE as u64 * head * u64::from(attention.kv_heads) * u64::from(decoder.layers)
}

/// Bytes of the activations of the largest step, and of the logits.
fn work_bytes(decoder: &Decoder, demand: &Demand, logit_rows: u32) -> u64 {
    let attention = &decoder.attention;
    let heads = u64::from(attention.heads + 2 * attention.kv_heads);
    let attended = (heads + 2 * u64::from(attention.heads)) * u64::from(attention.head_size);
    let chosen = u64::from(decoder.mlp.chosen());
    // What experts compute from is gathered for each of them.
    let gathered = match decoder.mlp {
        Mlp::Gated { .. } => 0,
        Mlp::Experts { .. } => u64::from(decoder.hidden),
    };
    let inner = chosen * (u64::from(decoder.mlp.size()) + gathered);
    let token = attended + 2 * u64::from(decoder.hidden) + inner;
    let tokens = u64::from(demand.step_tokens) + u64::from(demand.rows);
    4 * (token * tokens + u64::from(logit_rows) * u64::from(decoder.vocabulary))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 10000, "tie_word_embeddings": true, "vocab_size": 100}"#;

    fn plan(kv_tokens: Option<u64>, free: u64) -> Result<Plan, OpenError> {
        let decoder = Decoder::parse(CONFIG.as_bytes()).unwrap();
        let demand = Demand {
            context: 1000,
            rows: 8,
            step_tokens: 64,
            kv_tokens,
            cores: None,
        };
        Plan::new(&decoder, Precision::Bf16, &demand, free)
    }

    #[test]
    fn kv_takes_half_of_what_is_left_and_no_more_than_all_rows_fill() {
        // A page: keys and values of 16 positions, 2 heads of 16 dimensions, 2 layers, 4 bytes.
        const PAGE_BYTES: u64 = 2 * 16 * 2 * 16 * 2 * 4;
        let pages = |kv_tokens, free| plan(kv_tokens, free).unwrap().profile.pages;
        assert_eq!(pages(None, 1 << 30), 8 * 63);
        let half = pages(None, 2 << 20);
        assert!((63..8 * 63).contains(&half), "{half}");
        assert_eq!(pages(None, (2 << 20) + 2 * 10 * PAGE_BYTES), half + 10);
        assert_eq!(pages(Some(100), 1 << 30), 7);
    }

    #[test]
    fn too_little_memory_is_said_with_the_numbers() {
        let error = plan(Some(16_000), 1 << 20).unwrap_err();
        let OpenError::Memory {
            needed, free, kv, ..
        } = error
        else {
            panic!("{error}")
        };
        assert_eq!((free, kv), (1 << 20, 1000 * 8192));
        assert!(needed > kv);
        assert!(
            plan(None, 600_000).is_err(),
            "one sequence of full length must fit"
        );
    }
}
