//! `config.json` -> [`Decoder`]: what each family's fields mean, and what is refused by name.
//!
//! Defaults are those of transformers' configuration classes. Sizes have none: a configuration
//! that leaves one out describes nothing.

use std::path::Path;

use serde_json::Value;

use crate::decoder::{Activation, Attention, Decoder, Mlp, Rope, RopeScaling};
use crate::fields::{self, ConfigError, Fields};

const FILE: &str = "config.json";

/// What most families have in common.
const USUAL: Family = Family {
    input_bias: Bias::Never,
    output_bias: Bias::Never,
    mlp: Inner::Gated(Bias::Never),
    head_norm: false,
    head_size: None,
    window: Window::Never,
    theta: 10_000.0,
    norm_epsilon: 1e-6,
};

/// The `architectures` that are known, and what sets them apart.
const FAMILIES: [(&str, Family); 6] = [
    (
        "LlamaForCausalLM",
        Family {
            input_bias: Bias::Configured,
            output_bias: Bias::Configured,
            mlp: Inner::Gated(Bias::Configured),
            head_norm: false,
            head_size: None,
            window: Window::Never,
            ..USUAL
        },
    ),
    (
        "MistralForCausalLM",
        Family {
            input_bias: Bias::Never,
            output_bias: Bias::Never,
            mlp: Inner::Gated(Bias::Never),
            head_norm: false,
            head_size: None,
            window: Window::EveryLayer {
                default: Some(4096),
            },
            ..USUAL
        },
    ),
    (
        "Qwen2ForCausalLM",
        Family {
            input_bias: Bias::Always,
            output_bias: Bias::Never,
            mlp: Inner::Gated(Bias::Never),
            head_norm: false,
            head_size: None,
            window: Window::UpperLayers { default: 4096 },
            ..USUAL
        },
    ),
    (
        "Qwen3ForCausalLM",
        Family {
            input_bias: Bias::Configured,
            output_bias: Bias::Configured,
            mlp: Inner::Gated(Bias::Never),
            head_norm: true,
            head_size: Some(128),
            window: Window::UpperLayers { default: 4096 },
            ..USUAL
        },
    ),
    (
        "MixtralForCausalLM",
        Family {
            mlp: Inner::Experts {
                count: ["num_local_experts", "num_experts"],
                size: "intermediate_size",
                renormalise: None,
            },
            window: Window::EveryLayer { default: None },
            theta: 1e6,
            norm_epsilon: 1e-5,
            ..USUAL
        },
    ),
    (
        "Qwen3MoeForCausalLM",
        Family {
            input_bias: Bias::Configured,
            output_bias: Bias::Configured,
            mlp: Inner::Experts {
                count: ["num_experts", "num_local_experts"],
                size: "moe_intermediate_size",
                renormalise: Some("norm_topk_prob"),
            },
            head_norm: true,
            window: Window::Switched { default: 4096 },
            ..USUAL
        },
    ),
];

/// What a family fixes and its configuration cannot say.
#[derive(Clone, Copy)]
struct Family {
    /// Of query, key and value.
    input_bias: Bias,
    output_bias: Bias,
    mlp: Inner,
    head_norm: bool,
    /// `head_dim` where it is absent; `None` divides `hidden_size` by the heads.
    head_size: Option<u32>,
    window: Window,
    /// `rope_theta` where it is absent.
    theta: f32,
    /// `rms_norm_eps` where it is absent.
    norm_epsilon: f32,
}

/// What a family has behind attention.
#[derive(Clone, Copy)]
enum Inner {
    Gated(Bias),
    Experts {
        /// The field that says how many there are: its name, and another that transformers takes.
        count: [&'static str; 2],
        /// The field that says how wide each is.
        size: &'static str,
        /// The field that says whether the probabilities of the chosen are divided by their sum,
        /// false where it is absent; `None` where they always are.
        renormalise: Option<&'static str>,
    },
}

/// Whether a projection has a bias.
#[derive(Clone, Copy)]
enum Bias {
    Never,
    Always,
    /// As `attention_bias` or `mlp_bias` says.
    Configured,
}

/// How a family reads `sliding_window`.
#[derive(Clone, Copy)]
enum Window {
    /// It does not.
    Never,
    /// In every layer, unless it is null.
    EveryLayer { default: Option<u32> },
    /// In every layer, if `use_sliding_window` is true.
    Switched { default: u32 },
    /// In the layers from `max_window_layers` on, if `use_sliding_window` is true.
    UpperLayers { default: u32 },
}

// The most that a size may be: beyond any model there is, and small enough that no product of two
// of them overflows.
const VOCABULARY: [u32; 2] = [1, 1 << 24];
const WIDTH: [u32; 2] = [1, 1 << 20];
const LAYERS: [u32; 2] = [1, 1 << 10];
const HEADS: [u32; 2] = [1, 1 << 12];
const HEAD_SIZE: [u32; 2] = [2, 1 << 12];
const EXPERTS: [u32; 2] = [1, 1 << 10];
const POSITIONS: [u32; 2] = [1, 1 << 28];

impl Decoder {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// A file that cannot be read, and all that [`Decoder::parse`] refuses.
    pub fn open(dir: &Path) -> Result<Self, ConfigError> {
        Self::parse(&fields::read(dir, FILE)?)
    }

    /// Reads the content of a `config.json`.
    ///
    /// # Errors
    /// The field that is missing, senseless or not supported, with its value and what it may be.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let object = fields::parse(FILE, json)?;
        let config = Fields {
            file: FILE,
            within: "",
            object: &object,
        };
        let family = family(&config)?;
        refuse_unsupported(&config)?;
        let context = required(&config, "max_position_embeddings", POSITIONS)?;
        Ok(Self {
            vocabulary: required(&config, "vocab_size", VOCABULARY)?,
            hidden: required(&config, "hidden_size", WIDTH)?,
            layers: required(&config, "num_hidden_layers", LAYERS)?,
            attention: attention(&config, family, context)?,
            mlp: mlp(&config, family.mlp)?,
            norm_epsilon: positive(&config, "rms_norm_eps")?.unwrap_or(family.norm_epsilon),
            context,
            tied_head: config.flag("tie_word_embeddings")?.unwrap_or(false),
        })
    }
}

fn family(config: &Fields<'_>) -> Result<Family, ConfigError> {
    let supported = || FAMILIES.map(|(name, _)| name).join(", ");
    let Some(named) = config.value("architectures") else {
        return Err(config.missing("architectures"));
    };
    let names = named.as_array().map(Vec::as_slice).unwrap_or_default();
    let known = |name: &Value| FAMILIES.iter().find(|(known, _)| name == known);
    match names {
        [name] => known(name).map(|(_, family)| *family),
        _ => None,
    }
    .ok_or_else(|| config.unsupported("architectures", &supported()))
}

/// Refuses what would change the computation and is not computed.
fn refuse_unsupported(config: &Fields<'_>) -> Result<(), ConfigError> {
    if config.value("quantization_config").is_some() {
        return Err(config.unsupported("quantization_config", "unquantised checkpoints"));
    }
    for (field, only) in [
        ("hidden_act", Value::from("silu")),
        ("pretraining_tp", Value::from(1)),
        ("add_cross_attention", Value::from(false)),
    ] {
        if config.value(field).is_some_and(|value| *value != only) {
            return Err(config.unsupported(field, &only.to_string()));
        }
    }
    whole_rotation(config)
}

fn mlp(config: &Fields<'_>, inner: Inner) -> Result<Mlp, ConfigError> {
    let activation = Activation::Silu;
    let (count, size, renormalise) = match inner {
        Inner::Gated(inner) => {
            return Ok(Mlp::Gated {
                size: required(config, "intermediate_size", WIDTH)?,
                activation,
                bias: bias(config, inner, "mlp_bias")?,
            });
        }
        Inner::Experts {
            count,
            size,
            renormalise,
        } => (count, size, renormalise),
    };
    same_in_every_layer(config)?;
    let [usual, other] = count;
    let count = if config.value(usual).is_some() {
        usual
    } else {
        other
    };
    let experts = config.whole(count, EXPERTS)?;
    let experts = experts.ok_or_else(|| config.missing(usual))?;
    let chosen = required(config, "num_experts_per_tok", EXPERTS)?;
    if chosen > experts {
        let expected = format!("at most `{count}`, which is {experts}");
        return Err(config.invalid("num_experts_per_tok", &expected));
    }
    Ok(Mlp::Experts {
        experts,
        chosen,
        size: required(config, size, WIDTH)?,
        activation,
        renormalise: match renormalise {
            Some(field) => config.flag(field)?.unwrap_or(false),
            None => true,
        },
    })
}

/// Refuses layers without experts among those with them.
fn same_in_every_layer(config: &Fields<'_>) -> Result<(), ConfigError> {
    const SUPPORTED: &str = "experts in every layer";
    let dense = config.value("mlp_only_layers");
    if dense.is_some_and(|layers| *layers != Value::Array(Vec::new())) {
        return Err(config.unsupported("mlp_only_layers", SUPPORTED));
    }
    let step = config.value("decoder_sparse_step");
    if step.is_some_and(|step| step.as_u64() != Some(1)) {
        return Err(config.unsupported("decoder_sparse_step", SUPPORTED));
    }
    Ok(())
}

fn attention(config: &Fields<'_>, family: Family, context: u32) -> Result<Attention, ConfigError> {
    let heads = required(config, "num_attention_heads", HEADS)?;
    let kv_heads = config.whole("num_key_value_heads", HEADS)?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        let expected = format!("a divisor of `num_attention_heads`, which is {heads}");
        return Err(config.invalid("num_key_value_heads", &expected));
    }
    Ok(Attention {
        heads,
        kv_heads,
        head_size: head_size(config, family, heads)?,
        input_bias: bias(config, family.input_bias, "attention_bias")?,
        output_bias: bias(config, family.output_bias, "attention_bias")?,
        head_norm: family.head_norm,
        window: window(config, family.window)?,
        rope: rope(config, family.theta, context)?,
    })
}

fn head_size(config: &Fields<'_>, family: Family, heads: u32) -> Result<u32, ConfigError> {
    let hidden = required(config, "hidden_size", WIDTH)?;
    let size = match config.whole("head_dim", HEAD_SIZE)?.or(family.head_size) {
        Some(size) => size,
        None if hidden % heads == 0 => hidden / heads,
        None => {
            let expected = format!("a multiple of `num_attention_heads`, which is {heads}");
            return Err(config.invalid("hidden_size", &expected));
        }
    };
    if size % 2 == 0 && size <= HEAD_SIZE[1] {
        Ok(size)
    } else {
        let [least, most] = HEAD_SIZE;
        Err(ConfigError::Invalid {
            file: FILE,
            field: "head_dim".into(),
            found: size.to_string(),
            expected: format!("an even number from {least} to {most}"),
        })
    }
}

fn bias(config: &Fields<'_>, bias: Bias, field: &str) -> Result<bool, ConfigError> {
    match bias {
        Bias::Never => Ok(false),
        Bias::Always => Ok(true),
        Bias::Configured => Ok(config.flag(field)?.unwrap_or(false)),
    }
}

fn window(config: &Fields<'_>, window: Window) -> Result<Option<u32>, ConfigError> {
    let (default, sliding) = match window {
        Window::Never => return Ok(None),
        Window::EveryLayer { default } => (default, true),
        Window::Switched { default } => {
            let sliding = config.flag("use_sliding_window")?.unwrap_or(false);
            (Some(default), sliding)
        }
        Window::UpperLayers { default } => (Some(default), every_layer_slides(config)?),
    };
    let width = match config.object.get("sliding_window") {
        None => default,
        Some(_) => config.whole("sliding_window", POSITIONS)?,
    };
    Ok(width.filter(|_| sliding))
}

/// Whether all layers of a Qwen have a sliding window, rather than none; refuses a mixture.
fn every_layer_slides(config: &Fields<'_>) -> Result<bool, ConfigError> {
    const SUPPORTED: &str = "the same attention in every layer";
    let layers = required(config, "num_hidden_layers", LAYERS)?;
    if !config.flag("use_sliding_window")?.unwrap_or(false) {
        // Without a window of its own, a layer called sliding attends to all before it.
        return Ok(false);
    }
    if let Some(kinds) = config.value("layer_types") {
        let kinds = kinds.as_array().map(Vec::as_slice).unwrap_or_default();
        return match kinds {
            [kind, rest @ ..] if rest.iter().all(|other| other == kind) => match kind.as_str() {
                Some("full_attention") => Ok(false),
                Some("sliding_attention") => Ok(true),
                _ => Err(config.unsupported("layer_types", SUPPORTED)),
            },
            _ => Err(config.unsupported("layer_types", SUPPORTED)),
        };
    }
    match config
        .whole("max_window_layers", [0, u32::MAX])?
        .unwrap_or(28)
    {
        0 => Ok(true),
        full if full >= layers => Ok(false),
        _ => Err(config.unsupported("use_sliding_window", SUPPORTED)),
    }
}

/// Rotary positions, as `rope_parameters` (transformers 5) or as `rope_theta` and `rope_scaling`.
fn rope(config: &Fields<'_>, usual: f32, context: u32) -> Result<Rope, ConfigError> {
    let default = positive(config, "rope_theta")?.unwrap_or(usual);
    // transformers lets the old name win where both are there.
    for (field, within) in [
        ("rope_scaling", "rope_scaling."),
        ("rope_parameters", "rope_parameters."),
    ] {
        let object = config.read(field, Value::as_object, || "an object".into())?;
        let Some(object) = object.filter(|object| !object.is_empty()) else {
            continue;
        };
        let rope = Fields {
            file: FILE,
            within,
            object,
        };
        whole_rotation(&rope)?;
        return Ok(Rope {
            theta: theta(&rope, "rope_theta", default)?,
            scaling: scaling(config, &rope, context)?,
        });
    }
    Ok(Rope {
        theta: theta(config, "rope_theta", default)?,
        scaling: RopeScaling::None,
    })
}

/// The base of the frequencies: more than 1, or they would not fall.
fn theta(fields: &Fields<'_>, field: &str, default: f32) -> Result<f32, ConfigError> {
    let theta = positive(fields, field)?.unwrap_or(default);
    if theta > 1.0 {
        Ok(theta)
    } else {
        Err(fields.invalid(field, "more than 1"))
    }
}

fn scaling(
    config: &Fields<'_>,
    rope: &Fields<'_>,
    context: u32,
) -> Result<RopeScaling, ConfigError> {
    const KIND: &str = "rope_type";
    // Before transformers 4.43 the field was called `type`.
    let field = if rope.value(KIND).is_some() {
        KIND
    } else {
        "type"
    };
    let original = || {
        let outer = config.whole("original_max_position_embeddings", POSITIONS)?;
        let inner = rope.whole("original_max_position_embeddings", POSITIONS)?;
        Ok(outer.or(inner).unwrap_or(context))
    };
    match rope.text(field)? {
        None if rope.value("full_attention").is_some() => {
            Err(rope.unsupported("full_attention", "one set of values for every layer"))
        }
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: factor(rope, "factor")?,
        }),
        Some("llama3") => llama3(rope, original()?),
        Some("yarn") => yarn(rope, original()?, context),
        Some(_) => Err(rope.unsupported(field, "default, linear, llama3, yarn")),
    }
}

fn llama3(rope: &Fields<'_>, original: u32) -> Result<RopeScaling, ConfigError> {
    let low = factor(rope, "low_freq_factor")?;
    let high = factor(rope, "high_freq_factor")?;
    if high <= low {
        return Err(rope.invalid("high_freq_factor", "more than `low_freq_factor`"));
    }
    Ok(RopeScaling::Llama3 {
        factor: factor(rope, "factor")?,
        low,
        high,
        original,
    })
}

fn yarn(rope: &Fields<'_>, original: u32, context: u32) -> Result<RopeScaling, ConfigError> {
    let stretch = match positive(rope, "factor")? {
        Some(factor) => f64::from(factor),
        None => f64::from(context) / f64::from(original),
    };
    // How much attention is scaled for a stretch (equation 22 of the paper, with DeepSeek's scales).
    let scale = |by: f64| match stretch {
        ..=1.0 => 1.0,
        _ => 0.1 * by * stretch.ln() + 1.0,
    };
    let (own, all) = (number(rope, "mscale")?, number(rope, "mscale_all_dim")?);
    let derived = match (own, all) {
        (Some(own), Some(all)) if own != 0.0 && all != 0.0 => scale(own) / scale(all),
        _ => scale(1.0),
    };
    let (fast, slow) = (positive(rope, "beta_fast")?, positive(rope, "beta_slow")?);
    Ok(RopeScaling::Yarn {
        factor: narrow(stretch),
        beta_fast: fast.unwrap_or(32.0),
        beta_slow: slow.unwrap_or(1.0),
        original,
        attention_factor: positive(rope, "attention_factor")?.unwrap_or(narrow(derived)),
        truncate: rope.flag("truncate")?.unwrap_or(true),
    })
}

/// Refuses a rotation of a part of each head only.
fn whole_rotation(fields: &Fields<'_>) -> Result<(), ConfigError> {
    let part = fields.value("partial_rotary_factor");
    match part.is_none_or(|part| part.as_f64() == Some(1.0)) {
        true => Ok(()),
        false => Err(fields.unsupported("partial_rotary_factor", "1")),
    }
}

fn required(fields: &Fields<'_>, field: &str, range: [u32; 2]) -> Result<u32, ConfigError> {
    (fields.whole(field, range)?).ok_or_else(|| fields.missing(field))
}

fn factor(fields: &Fields<'_>, field: &str) -> Result<f32, ConfigError> {
    positive(fields, field)?.ok_or_else(|| fields.missing(field))
}

/// A number above 0 that an F32 holds.
fn positive(fields: &Fields<'_>, field: &str) -> Result<Option<f32>, ConfigError> {
    let fits = |number| narrow(number) > 0.0 && narrow(number).is_finite();
    Ok(fields.number(field, fits, "a number above 0")?.map(narrow))
}

fn number(fields: &Fields<'_>, field: &str) -> Result<Option<f64>, ConfigError> {
    fields.number(field, |number| narrow(number).is_finite(), "a number")
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the nearest F32 is what torch computes with"
)]
fn narrow(number: f64) -> f32 {
    number as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 256,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}"#;

    /// The Llama above, with these fields added or put in place.
    fn parse(changes: &str) -> Result<Decoder, ConfigError> {
        let mut config = fields::parse(FILE, LLAMA.as_bytes()).unwrap();
        config.extend(fields::parse(FILE, changes.as_bytes()).unwrap());
        Decoder::parse(Value::from(config).to_string().as_bytes())
    }

    fn refused(changes: &str, message: &str) {
        let error = parse(changes).expect_err(changes);
        assert_eq!(error.to_string(), format!("config.json: {message}"));
    }

    fn unsupported(changes: &str, found: &str, supported: &str) {
        let message = format!("{found}, which is not supported; supported: {supported}");
        refused(changes, &message);
    }

    #[test]
    fn a_llama_has_the_defaults_of_transformers() {
        let expected = Decoder {
            vocabulary: 256,
            hidden: 64,
            layers: 2,
            attention: Attention {
                heads: 4,
                kv_heads: 2,
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
            norm_epsilon: 1e-6,
            context: 128,
            tied_head: false,
        };
        assert_eq!(parse("{}").unwrap(), expected);
        assert_eq!(parse(r#"{"sliding_window": 8}"#).unwrap(), expected);
    }

    #[test]
    fn families_differ_in_biases_norms_and_windows() {
        let attention = |changes| parse(changes).unwrap().attention;
        let llama = attention(r#"{"attention_bias": true}"#);
        assert!(llama.input_bias && llama.output_bias);
        let mistral = attention(r#"{"architectures": ["MistralForCausalLM"]}"#);
        assert_eq!(mistral.window, Some(4096));
        let qwen2 = attention(r#"{"architectures": ["Qwen2ForCausalLM"]}"#);
        assert!(qwen2.input_bias && !qwen2.output_bias && qwen2.window.is_none());
        let qwen3 = attention(r#"{"architectures": ["Qwen3ForCausalLM"]}"#);
        assert!(qwen3.head_norm && !qwen3.input_bias);
        assert_eq!(qwen3.head_size, 128);
    }

    const MIXTRAL: &str = r#""architectures": ["MixtralForCausalLM"], "num_local_experts": 8,
        "num_experts_per_tok": 2"#;
    const QWEN: &str = r#""architectures": ["Qwen3MoeForCausalLM"], "num_experts": 16,
        "num_experts_per_tok": 4, "moe_intermediate_size": 24"#;

    #[test]
    fn mixtures_of_experts_are_read_as_each_family_does() {
        let mixtral = parse(&format!("{{{MIXTRAL}}}")).unwrap();
        let experts = |experts, chosen, size, renormalise| Mlp::Experts {
            experts,
            chosen,
            size,
            activation: Activation::Silu,
            renormalise,
        };
        assert_eq!(mixtral.mlp, experts(8, 2, 96, true));
        assert_eq!(
            (mixtral.attention.rope.theta, mixtral.norm_epsilon),
            (1e6, 1e-5)
        );
        assert!(mixtral.attention.window.is_none() && !mixtral.attention.head_norm);
        let qwen = parse(&format!("{{{QWEN}}}")).unwrap();
        assert_eq!(qwen.mlp, experts(16, 4, 24, false));
        assert!(qwen.attention.head_norm && qwen.attention.window.is_none());
        assert_eq!(qwen.attention.head_size, 16);
        let changes = r#""norm_topk_prob": true, "use_sliding_window": true, "mlp_only_layers": [],
            "decoder_sparse_step": 1, "num_experts": null, "num_local_experts": 32"#;
        let qwen = parse(&format!("{{{QWEN}, {changes}}}")).unwrap();
        assert_eq!(qwen.mlp, experts(32, 4, 24, true));
        assert_eq!(qwen.attention.window, Some(4096));
    }

    #[test]
    fn mixtures_that_make_no_sense_are_refused() {
        let missing = format!("{{{MIXTRAL}, \"num_local_experts\": null}}");
        refused(&missing, "`num_local_experts` is missing");
        let missing = format!("{{{QWEN}, \"moe_intermediate_size\": null}}");
        refused(&missing, "`moe_intermediate_size` is missing");
        refused(
            &format!("{{{MIXTRAL}, \"num_experts_per_tok\": 9}}"),
            "`num_experts_per_tok` is 9, but must be at most `num_local_experts`, which is 8",
        );
        refused(
            &format!("{{{QWEN}, \"num_experts\": 0}}"),
            "`num_experts` is 0, but must be a whole number from 1 to 1024",
        );
        unsupported(
            &format!("{{{QWEN}, \"mlp_only_layers\": [0]}}"),
            "`mlp_only_layers` is [0]",
            "experts in every layer",
        );
        unsupported(
            &format!("{{{QWEN}, \"decoder_sparse_step\": 2}}"),
            "`decoder_sparse_step` is 2",
            "experts in every layer",
        );
    }

    #[test]
    fn windows_are_read_as_each_family_does() {
        let window = |family: &str, changes: &str| {
            let changes = format!(r#"{{"architectures": ["{family}ForCausalLM"], {changes}}}"#);
            parse(&changes).unwrap().attention.window
        };
        assert_eq!(window("Mistral", r#""sliding_window": 8"#), Some(8));
        assert_eq!(window("Mistral", r#""sliding_window": null"#), None);
        assert_eq!(window("Qwen2", r#""sliding_window": 8"#), None);
        let sliding = r#""use_sliding_window": true, "sliding_window": 8"#;
        let from = |layer: u32| format!(r#"{sliding}, "max_window_layers": {layer}"#);
        assert_eq!(window("Qwen2", &from(2)), None);
        assert_eq!(window("Qwen3", &from(0)), Some(8));
        let kind = r#""sliding_attention""#;
        let kinds = format!(r#"{sliding}, "layer_types": [{kind}, {kind}]"#);
        assert_eq!(window("Qwen3", &kinds), Some(8));
    }

    #[test]
    fn rope_is_read_in_both_forms() {
        let check = |changes, theta, scaling| {
            let found = parse(changes).unwrap().attention.rope;
            assert_eq!(found, Rope { theta, scaling }, "{changes}");
        };
        let linear = || RopeScaling::Linear { factor: 2.0 };
        let old = r#"{"rope_theta": 50000, "rope_scaling": {"type": "linear", "factor": 2}}"#;
        check(old, 50_000.0, linear());
        let new = r#"{"rope_parameters": {"rope_theta": 5e4, "rope_type": "linear", "factor": 2}}"#;
        check(new, 50_000.0, linear());
        let mixed = r#"{"rope_theta": 50000, "rope_parameters": {"rope_type": "default"}}"#;
        check(mixed, 50_000.0, RopeScaling::None);
        let yarn = r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": false,
            "original_max_position_embeddings": 32, "mscale": 1.0, "mscale_all_dim": 0.5}}"#;
        let ln = 4.0_f64.ln();
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original: 32,
            attention_factor: narrow((0.1 * ln + 1.0) / (0.05 * ln + 1.0)),
            truncate: false,
        };
        check(yarn, 10_000.0, scaling);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        unsupported(
            r#"{"architectures": ["GemmaForCausalLM"]}"#,
            r#"`architectures` is ["GemmaForCausalLM"]"#,
            "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, \
                MixtralForCausalLM, Qwen3MoeForCausalLM",
        );
        unsupported(
            r#"{"hidden_act": "gelu"}"#,
            r#"`hidden_act` is "gelu""#,
            r#""silu""#,
        );
        unsupported(
            r#"{"quantization_config": {"bits": 4}}"#,
            r#"`quantization_config` is {"bits":4}"#,
            "unquantised checkpoints",
        );
        unsupported(r#"{"pretraining_tp": 2}"#, "`pretraining_tp` is 2", "1");
        unsupported(
            r#"{"rope_parameters": {"partial_rotary_factor": 0.5}}"#,
            "`rope_parameters.partial_rotary_factor` is 0.5",
            "1",
        );
        unsupported(
            r#"{"rope_scaling": {"type": "dynamic", "factor": 2.0}}"#,
            r#"`rope_scaling.type` is "dynamic""#,
            "default, linear, llama3, yarn",
        );
        unsupported(
            r#"{"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": true,
                "max_window_layers": 1}"#,
            "`use_sliding_window` is true",
            "the same attention in every layer",
        );
    }

    #[test]
    fn senseless_sizes_are_refused_with_their_bounds() {
        for (field, most) in [
            ("vocab_size", 16_777_216),
            ("hidden_size", 1_048_576),
            ("num_hidden_layers", 1024),
            ("num_attention_heads", 4096),
            ("intermediate_size", 1_048_576),
        ] {
            for found in ["0", "-1", "4294967296", "\"64\"", "64.5"] {
                let changes = format!(r#"{{"{field}": {found}}}"#);
                let expected = format!("a whole number from 1 to {most}");
                refused(
                    &changes,
                    &format!("`{field}` is {found}, but must be {expected}"),
                );
            }
            let changes = format!(r#"{{"{field}": null}}"#);
            refused(&changes, &format!("`{field}` is missing"));
        }
        refused(
            r#"{"num_key_value_heads": 3}"#,
            "`num_key_value_heads` is 3, but must be a divisor of `num_attention_heads`, which is 4",
        );
        refused(
            r#"{"hidden_size": 66}"#,
            "`hidden_size` is 66, but must be a multiple of `num_attention_heads`, which is 4",
        );
        refused(
            r#"{"hidden_size": 60}"#,
            "`head_dim` is 15, but must be an even number from 2 to 4096",
        );
        refused(
            r#"{"rope_theta": 1}"#,
            "`rope_theta` is 1, but must be more than 1",
        );
    }
}
