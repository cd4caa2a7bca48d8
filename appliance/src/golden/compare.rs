//! Holds answers to those that are known. Devices round differently, so that the best of two tokens
//! that are nearly alike may be either; what another model says is further away than that.

use std::fmt;

use engine::Scored;

use super::record::Case;
use crate::config::Precision;

/// How far a device may be from the answers that are known, in nats.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    /// The right token may be this much less likely than the one that the device prefers.
    pub margin: f32,
    /// The log-probability of a token may be off by this much.
    pub one: f32,
    /// And on average by this much.
    pub mean: f32,
}

impl Tolerance {
    /// What weights of this format come to.
    pub fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self {
                margin: 0.02,
                one: 0.05,
                mean: 0.02,
            },
            Precision::Auto | Precision::Bf16 => Self {
                margin: 0.3,
                one: 0.4,
                mean: 0.1,
            },
            Precision::Fp8 | Precision::Int8 => Self {
                margin: 0.8,
                one: 1.2,
                mean: 0.4,
            },
        }
    }
}

/// Where an answer is not the one that is known.
#[derive(Clone, PartialEq, Debug)]
pub enum Mismatch {
    /// The text of the prompts becomes other tokens than it did.
    Tokenizer,
    /// Another token.
    Token {
        /// Which prompt, from 0, and its length.
        prompt: (usize, usize),
        /// Which token of the answer, from 0.
        position: usize,
        /// The right one and its log-probability.
        expected: (u32, f32),
        /// The one that came and its log-probability.
        got: (u32, f32),
        /// The log-probability of the right one here, if it is among the likely ones.
        here: Option<f32>,
    },
    /// The right token, as likely as it should not be.
    Logprob {
        /// Which prompt, from 0, and its length.
        prompt: (usize, usize),
        /// Which token of the answer, from 0.
        position: usize,
        /// The right token and its log-probability.
        expected: (u32, f32),
        /// Its log-probability here.
        got: f32,
    },
    /// Log-probabilities that are off by a little each, and together by too much.
    Mean(f32),
    /// An answer that ends too soon.
    Short {
        /// Which prompt, from 0, and its length.
        prompt: (usize, usize),
        /// Tokens that came.
        tokens: usize,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokenizer => {
                f.write_str("the tokenizer makes other tokens of a text than it did")
            }
            Self::Token {
                prompt: (prompt, length),
                position,
                expected: (expected, logprob),
                got: (got, likely),
                here,
            } => {
                write!(
                    f,
                    "prompt {prompt} ({length} tokens), answer token {position}: expected {expected} \
                     (log-probability {logprob:.3}), got {got} ({likely:.3})"
                )?;
                match here {
                    Some(here) => write!(f, "; the expected one has {here:.3} here"),
                    None => f.write_str("; the expected one is not among the likely ones here"),
                }
            }
            Self::Logprob {
                prompt: (prompt, length),
                position,
                expected: (token, logprob),
                got,
            } => write!(
                f,
                "prompt {prompt} ({length} tokens), answer token {position}: expected {token} with \
                 log-probability {logprob:.3}, got it with {got:.3}"
            ),
            Self::Mean(mean) => write!(
                f,
                "log-probabilities of the expected tokens are off by {mean:.3} on average"
            ),
            Self::Short {
                prompt: (prompt, length),
                tokens,
            } => write!(
                f,
                "prompt {prompt} ({length} tokens): the answer ends after {tokens} tokens"
            ),
        }
    }
}

/// Holds each answer to its case; how many tokens were compared.
pub(super) fn all(
    cases: &[&Case],
    answers: &[Vec<Scored>],
    tolerance: &Tolerance,
) -> Result<usize, Mismatch> {
    let mut off = Vec::new();
    for (prompt, (case, answer)) in cases.iter().zip(answers).enumerate() {
        one(
            (prompt, case.prompt.len()),
            case,
            answer,
            tolerance,
            &mut off,
        )?;
    }
    #[expect(clippy::cast_precision_loss, reason = "some dozens")]
    let mean = off.iter().sum::<f32>() / off.len().max(1) as f32;
    match mean <= tolerance.mean {
        true => Ok(off.len()),
        false => Err(Mismatch::Mean(mean)),
    }
}

/// Compares until the answers part for a good reason: what follows another token is another text.
fn one(
    prompt: (usize, usize),
    case: &Case,
    answer: &[Scored],
    tolerance: &Tolerance,
    off: &mut Vec<f32>,
) -> Result<(), Mismatch> {
    let expected = case
        .tokens
        .iter()
        .copied()
        .zip(case.logprobs.iter().copied());
    for (position, (token, logprob)) in expected.enumerate() {
        let Some(got) = answer.get(position) else {
            let tokens = answer.len();
            return Err(Mismatch::Short { prompt, tokens });
        };
        let likely = got.logprob.unwrap_or(f32::NAN);
        let same = got.token.0 == token;
        let here = match same {
            true => Some(likely),
            false => {
                (got.top.iter()).find_map(|(other, logprob)| (other.0 == token).then_some(*logprob))
            }
        };
        // Whatever is no number fails these.
        let near = |here: f32| likely - here <= tolerance.margin;
        let Some(here) = here.filter(|here| same || near(*here)) else {
            return Err(Mismatch::Token {
                prompt,
                position,
                expected: (token, logprob),
                got: (got.token.0, likely),
                here,
            });
        };
        let distance = (here - logprob).abs();
        let is_close = distance <= tolerance.one;
        if !is_close {
            return Err(Mismatch::Logprob {
                prompt,
                position,
                expected: (token, logprob),
                got: here,
            });
        }
        off.push(distance);
        if !same {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether answers could be a model's: of numbers, and not all the same.
pub(super) fn sensible(answers: &[Vec<Scored>]) -> Result<(), String> {
    let all = || answers.iter().flatten();
    let told = |scored: &Scored| (scored.token, scored.logprob.unwrap_or(f32::NAN));
    for (token, logprob) in all().map(told) {
        if !logprob.is_finite() || logprob > 1e-3 {
            let token = token.0;
            return Err(format!(
                "token {token} came with a log-probability of {logprob}"
            ));
        }
    }
    let first = all().next().map(told);
    match all().count() > 1 && all().all(|scored| Some(told(scored)) == first) {
        true => Err(format!(
            "every answer to every prompt is the same token, {}, with the same log-probability",
            first.map_or(0, |(token, _)| token.0)
        )),
        false => Ok(()),
    }
}

/// Whether answers to the same prompts are the same twice. A device may add in another order than before,
/// so that a token that was nearly the best may be the best.
pub(super) fn repeated(first: &[Vec<Scored>], second: &[Vec<Scored>]) -> Result<(), String> {
    let tolerance = Tolerance::of(Precision::Bf16);
    let cases: Vec<_> = first
        .iter()
        .map(|answer| Case::of(Vec::new(), answer))
        .collect();
    all(&cases.iter().collect::<Vec<_>>(), second, &tolerance)
        .map(drop)
        .map_err(|mismatch| format!("the same prompt is answered in two ways: {mismatch}"))
}

#[cfg(test)]
mod tests {
    use engine::TokenId;

    use super::*;

    const BF16: Tolerance = Tolerance {
        margin: 0.3,
        one: 0.4,
        mean: 0.1,
    };

    fn scored(top: &[(u32, f32)]) -> Scored {
        Scored {
            token: TokenId(top[0].0),
            logprob: Some(top[0].1),
            top: top
                .iter()
                .map(|(id, logprob)| (TokenId(*id), *logprob))
                .collect(),
        }
    }

    fn case() -> Case {
        Case {
            prompt: vec![1, 2, 3],
            tokens: vec![5, 6, 7],
            logprobs: vec![-0.7, -0.1, -0.2],
        }
    }

    fn right() -> Vec<Scored> {
        vec![
            scored(&[(5, -0.7), (9, -0.8)]),
            scored(&[(6, -0.1), (9, -3.0)]),
            scored(&[(7, -0.2), (9, -3.0)]),
        ]
    }

    fn check(answer: Vec<Scored>) -> Result<usize, Mismatch> {
        all(&[&case()], &[answer], &BF16)
    }

    #[test]
    fn the_right_answer_passes_and_rounding_does() {
        assert_eq!(check(right()), Ok(3));
        let mut answer = right();
        answer[1] = scored(&[(6, -0.25), (9, -3.0)]);
        assert_eq!(check(answer), Ok(3));
    }

    #[test]
    fn a_token_that_was_nearly_the_best_may_be_it_and_ends_the_comparison() {
        let mut answer = right();
        answer[0] = scored(&[(9, -0.72), (5, -0.74)]);
        answer[1] = scored(&[(1, -0.1)]);
        assert_eq!(check(answer), Ok(1));
    }

    #[test]
    fn another_token_is_refused_with_where_it_stands() {
        let mut answer = right();
        answer[1] = scored(&[(9, -0.1), (6, -2.4)]);
        let mismatch = check(answer).unwrap_err();
        assert_eq!(
            mismatch.to_string(),
            "prompt 0 (3 tokens), answer token 1: expected 6 (log-probability -0.100), got 9 (-0.100); the \
             expected one has -2.400 here"
        );
        let mut answer = right();
        answer[2] = scored(&[(9, -0.1)]);
        assert!(matches!(
            check(answer),
            Err(Mismatch::Token { here: None, .. })
        ));
    }

    #[test]
    fn the_right_token_with_the_wrong_probability_is_refused() {
        let mut answer = right();
        answer[2] = scored(&[(7, -0.9)]);
        assert!(matches!(
            check(answer),
            Err(Mismatch::Logprob { position: 2, .. })
        ));
        for logprob in [f32::NAN, f32::NEG_INFINITY] {
            let mut answer = right();
            answer[0] = scored(&[(5, logprob)]);
            assert!(matches!(
                check(answer),
                Err(Mismatch::Logprob { position: 0, .. })
            ));
        }
        let off = |by: f32| {
            let near = |(id, logprob): (u32, f32)| scored(&[(id, logprob - by)]);
            [(5, -0.7), (6, -0.1), (7, -0.2)].map(near).to_vec()
        };
        assert_eq!(check(off(0.05)), Ok(3));
        assert!(matches!(check(off(0.2)), Err(Mismatch::Mean(_))));
    }

    #[test]
    fn an_answer_that_ends_too_soon_is_refused() {
        let mut answer = right();
        answer.pop();
        let prompt = (0, 3);
        assert_eq!(check(answer), Err(Mismatch::Short { prompt, tokens: 2 }));
    }

    #[test]
    fn what_is_always_the_same_or_no_number_is_no_answer() {
        assert_eq!(sensible(&[right()]), Ok(()));
        let same = vec![scored(&[(3, -2.0)]); 4];
        assert!(sensible(&[same.clone(), same.clone()]).is_err());
        let mut varied = same;
        varied[3] = scored(&[(3, -2.1)]);
        assert_eq!(sensible(&[varied.clone()]), Ok(()));
        varied[0] = scored(&[(3, f32::NAN)]);
        assert!(sensible(&[varied]).is_err());
    }

    #[test]
    fn who_answers_in_two_ways_is_found_out() {
        assert_eq!(repeated(&[right()], &[right()]), Ok(()));
        let mut other = right();
        other[1] = scored(&[(9, -0.1)]);
        assert!(repeated(&[right()], &[other]).is_err());
    }
}
