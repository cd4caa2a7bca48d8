//! A decoder-only transformer described as data: every family is a value of [`Decoder`].

/// A decoder-only transformer: what differs between families, and nothing of how it runs.
///
/// For each layer: `x += O(attention(norm(x)))`, then `x += mlp(norm(x))`, all norms being RMS norms.
#[derive(Clone, PartialEq, Debug)]
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
#[derive(Clone, PartialEq, Debug)]
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
#[derive(Clone, PartialEq, Debug)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// How a longer context than trained is reached.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Clone, PartialEq, Debug)]
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
#[derive(Clone, PartialEq, Debug)]
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
}

/// A gate's function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
}

impl Rope {
    /// The angle a position adds to each pair of dimensions: `head_size / 2` values, and the factor that
    /// multiplies every cosine and sine (1 but for YaRN).
    pub fn frequencies(&self, head_size: u32) -> (Vec<f32>, f32) {
        // Computed in f32 in the order of transformers' `modeling_rope_utils`, for the sake of equal bits.
        let exponents = (0..head_size / 2).map(|pair| (2 * pair) as f32 / head_size as f32);
        (
            exponents
                .map(|exponent| 1.0 / self.theta.powf(exponent))
                .collect(),
            1.0,
        )
    }
}
