//! A decoder-only transformer described as data: every family is a value of [`Decoder`].

#![expect(
    clippy::cast_possible_truncation,
    reason = "rotary angles are computed in F64 and F32 by turns, as transformers does"
)]

use std::f64::consts::PI;

use serde::Serialize;

/// A decoder-only transformer: what differs between families, and nothing of how it runs.
///
/// For each layer: `x += O(attention(norm(x)))`, then `x += mlp(norm(x))`, all norms being RMS norms.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Decoder {
    /// Tokens of the vocabulary: rows of the embedding and of the head.
    pub vocabulary: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Number of layers.
    pub layers: u32,
    /// How a layer attends.
    pub attention: Attention,
    /// What follows attention in a layer.
    pub mlp: Mlp,
    /// Epsilon of every RMS norm.
    pub norm_epsilon: f32,
    /// Positions the model was made for (`max_position_embeddings`).
    pub context: u32,
    /// Whether the head is the embedding.
    pub tied_head: bool,
}

/// Grouped-query attention with rotary positions (the half-split, "NeoX" form of Hugging Face).
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Attention {
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of a head; even.
    pub head_size: u32,
    /// Whether query, key and value have biases (Qwen2).
    pub input_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Whether each query and key head passes an RMS norm before rotation (Qwen3).
    pub head_norm: bool,
    /// Positions a token sees, itself included; `None` sees all before (Mistral 0.1's sliding window).
    pub window: Option<u32>,
    /// How positions rotate.
    pub rope: Rope,
}

/// Rotary position embedding.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// How a longer context than trained is reached.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// By how much.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high kept, a ramp between.
    Llama3 {
        /// By how much.
        factor: f32,
        /// Wavelengths above `original / low` are divided.
        low: f32,
        /// Wavelengths below `original / high` are kept.
        high: f32,
        /// Context of the original training.
        original: u32,
    },
    /// YaRN: a ramp over dimensions, and attention scaled.
    Yarn {
        /// By how much.
        factor: f32,
        /// Rotations at which a dimension is kept as it is.
        beta_fast: f32,
        /// Rotations at which a dimension is divided in full.
        beta_slow: f32,
        /// Context of the original training.
        original: u32,
        /// What cosines and sines are multiplied by.
        attention_factor: f32,
        /// Whether the ramp's ends are rounded to whole dimensions (`truncate`, default true).
        truncate: bool,
    },
}

/// What follows attention in a layer.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub enum Mlp {
    /// `down(activation(gate(x)) * up(x))`.
    Gated {
        /// Width inside.
        size: u32,
        /// What the gate passes.
        activation: Activation,
        /// Whether the three projections have biases.
        bias: bool,
    },
    /// A mixture of experts: a router gives each expert a probability, the softmax of `router(x)`,
    /// and the most probable ones' outputs are added up, each times its probability. Of equally
    /// probable experts the first ones are taken.
    Experts {
        /// How many there are, each a gated MLP without biases.
        experts: u32,
        /// How many of them each token passes; at most `experts`.
        chosen: u32,
        /// Width inside each.
        size: u32,
        /// What the gate passes.
        activation: Activation,
        /// Whether the probabilities of the chosen are divided by their sum.
        renormalise: bool,
    },
}

impl Mlp {
    /// Width inside, of one expert where there are several.
    pub fn size(&self) -> u32 {
        match *self {
            Self::Gated { size, .. } | Self::Experts { size, .. } => size,
        }
    }

    /// How many gated MLPs there are in a layer: 1 but for a mixture of experts.
    pub fn experts(&self) -> u32 {
        match *self {
            Self::Gated { .. } => 1,
            Self::Experts { experts, .. } => experts,
        }
    }

    /// How many of them each token passes.
    pub fn chosen(&self) -> u32 {
        match *self {
            Self::Gated { .. } => 1,
            Self::Experts { chosen, .. } => chosen,
        }
    }

    /// Whether their projections have biases.
    pub fn bias(&self) -> bool {
        matches!(self, Self::Gated { bias: true, .. })
    }
}

/// A gate's function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
}

impl Rope {
    /// The angle that a position adds to each pair of dimensions, `head_size / 2` values, and the
    /// factor that multiplies every cosine and sine (1 but for YaRN).
    ///
    /// Computed in F32 in the order of transformers' `modeling_rope_utils`, so that long contexts
    /// turn by the same angles: an ulp of the first frequency is a radian after a hundred thousand
    /// positions or so. That order has `c / x` as `x.recip() * c`, which is how torch divides a
    /// number by a tensor.
    pub fn frequencies(&self, head_size: u32) -> (Vec<f32>, f32) {
        let periods = (0..head_size / 2)
            .map(|pair| self.theta.powf((2 * pair) as f32 / head_size as f32))
            .collect::<Vec<_>>();
        let plain = periods.iter().map(|period| period.recip());
        match self.scaling {
            RopeScaling::None => (plain.collect(), 1.0),
            RopeScaling::Linear { factor } => {
                (plain.map(|frequency| frequency / factor).collect(), 1.0)
            }
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => (
                plain
                    .map(|frequency| llama3(frequency, factor, low, high, original as f32))
                    .collect(),
                1.0,
            ),
            RopeScaling::Yarn {
                factor,
                attention_factor,
                ..
            } => {
                let kept = self.yarn_kept(head_size);
                let frequencies = periods.iter().zip(kept).map(|(period, kept)| {
                    (factor * period).recip() * (1.0 - kept) + period.recip() * kept
                });
                (frequencies.collect(), attention_factor)
            }
        }
    }

    /// How much of each unscaled frequency YaRN keeps: 1 for the fastest pairs, 0 for the slowest,
    /// a ramp between.
    fn yarn_kept(&self, head_size: u32) -> Vec<f32> {
        let RopeScaling::Yarn {
            beta_fast,
            beta_slow,
            original,
            truncate,
            ..
        } = self.scaling
        else {
            return Vec::new();
        };
        // The dimension that turns this often within the original context.
        let dimension = |rotations: f32| {
            let period = f64::from(original) / (f64::from(rotations) * 2.0 * PI);
            f64::from(head_size) * period.ln() / (2.0 * f64::from(self.theta).ln())
        };
        let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(f64::from(head_size) - 1.0));
        if low == high {
            high += 0.001; // transformers' way around a ramp of no length
        }
        (0..head_size / 2)
            .map(|pair| {
                let ramp = (pair as f32 - low as f32) / (high - low) as f32;
                1.0 - ramp.clamp(0.0, 1.0)
            })
            .collect()
    }
}

/// One frequency under Llama 3.1's scaling.
fn llama3(frequency: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wavelength = frequency.recip() * (2.0 * PI) as f32;
    if wavelength > original / low {
        frequency / factor
    } else if wavelength < original / high {
        frequency
    } else {
        let smooth = (wavelength.recip() * original - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}
