//! What can never be served, found before it is taken on.

use std::ops::RangeInclusive;

use crate::backend::Profile;
use crate::engine::Refused;
use crate::request::{Constraint, Limits, Request, Sampling, Stop};
use crate::step::TokenId;

/// The most continuations of one request: each costs the engine memory, and there must be an end.
const MOST_CHOICES: u32 = 1024;

/// The most tokens a sequence may have.
///
/// All pages hold at least one such sequence, whatever its neighbours, so whoever runs first always
/// comes to an end. Choices of one request need not all fit: they wait for each other as requests
/// do.
pub(crate) fn context_of(profile: &Profile, limits: &Limits) -> u32 {
    limits
        .context
        .min(profile.context.most())
        .min(profile.pages.saturating_mul(profile.page_tokens))
}

/// Refuses what makes no sense, whatever the load.
pub(crate) fn refuse_the_invalid(request: &Request, profile: &Profile) -> Result<(), Refused> {
    let vocabulary = profile.vocabulary;
    if request.prompt.is_empty() {
        return invalid("prompt", "it is empty".to_owned());
    }
    known("prompt", request.prompt.iter(), vocabulary)?;
    within("choices", request.choices, 1..=MOST_CHOICES)?;
    for (field, top) in [
        ("logprobs", request.logprobs),
        ("prompt_logprobs", request.prompt_logprobs),
    ] {
        within(field, top.unwrap_or(0), 0..=profile.candidates)?;
    }
    refuse_sampling(&request.sampling, vocabulary)?;
    refuse_stop(&request.stop, vocabulary)?;
    refuse_constraint(request, vocabulary)
}

fn refuse_sampling(sampling: &Sampling, vocabulary: u32) -> Result<(), Refused> {
    let penalties = sampling.penalties;
    within("temperature", sampling.temperature, 0.0..=f32::MAX)?;
    within("top_k", sampling.top_k.unwrap_or(1), 1..=u32::MAX)?;
    within("top_p", sampling.top_p, f32::MIN_POSITIVE..=1.0)?;
    within("min_p", sampling.min_p, 0.0..=1.0)?;
    let positive = f32::MIN_POSITIVE..=f32::MAX;
    within("repetition", penalties.repetition, positive)?;
    within("presence", penalties.presence, f32::MIN..=f32::MAX)?;
    within("frequency", penalties.frequency, f32::MIN..=f32::MAX)?;
    known(
        "bias",
        sampling.bias.iter().map(|(token, _)| token),
        vocabulary,
    )?;
    ascending("bias", sampling.bias.iter().map(|(token, _)| token))?;
    for (_, bias) in &*sampling.bias {
        within("bias", *bias, f32::MIN..=f32::MAX)?;
    }
    Ok(())
}

fn refuse_stop(stop: &Stop, vocabulary: u32) -> Result<(), Refused> {
    known("stop.tokens", stop.tokens.iter(), vocabulary)?;
    ascending("stop.tokens", stop.tokens.iter())?;
    within("stop.max_tokens", stop.max_tokens, 1..=u32::MAX)?;
    within("stop.min_tokens", stop.min_tokens, 0..=stop.max_tokens)
}

fn refuse_constraint(request: &Request, vocabulary: u32) -> Result<(), Refused> {
    let Constraint::Only(mask) = &request.constraint else {
        return Ok(());
    };
    if mask.words().len() != vocabulary.div_ceil(32) as usize {
        let words = mask.words().len();
        let reason = format!("a mask of {words} words is not one of {vocabulary} tokens");
        return invalid("constraint", reason);
    }
    let stop = &request.stop;
    let stops = stop.tokens.iter().filter(|token| mask.allows(**token));
    let suppressed = match stop.min_tokens {
        0 => 0,
        _ => stops.count(),
    };
    if mask.count() as usize <= suppressed {
        let reason = match suppressed {
            0 => "it allows no token".to_owned(),
            _ => format!(
                "it allows only stop tokens, which min_tokens {} forbids",
                stop.min_tokens
            ),
        };
        return invalid("constraint", reason);
    }
    Ok(())
}

fn invalid(field: &'static str, reason: String) -> Result<(), Refused> {
    Err(Refused::Invalid { field, reason })
}

/// NaN is within nothing.
fn within<T: PartialOrd + std::fmt::Display>(
    field: &'static str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), Refused> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, most) = range.into_inner();
    invalid(field, format!("{value} is not between {least} and {most}"))
}

fn known<'a>(
    field: &'static str,
    mut tokens: impl Iterator<Item = &'a TokenId>,
    vocabulary: u32,
) -> Result<(), Refused> {
    match tokens.find(|token| token.0 >= vocabulary) {
        None => Ok(()),
        Some(token) => invalid(
            field,
            format!("{token} is not among the {vocabulary} tokens"),
        ),
    }
}

fn ascending<'a>(
    field: &'static str,
    tokens: impl Iterator<Item = &'a TokenId>,
) -> Result<(), Refused> {
    match tokens.is_sorted_by(|one, next| one < next) {
        true => Ok(()),
        false => invalid(field, "the tokens are not ascending, each once".to_owned()),
    }
}
