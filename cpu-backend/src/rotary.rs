//! What happens to a head of queries or keys before attention: a norm where the decoder has one,
//! then the rotation by its position.

use model::{Decoder, Rope};

/// The rotations of the tokens of a step.
#[derive(Debug)]
pub(crate) struct Rotary {
    /// Radians that a position adds, for each pair of dimensions.
    frequencies: Vec<f32>,
    /// What cosines and sines are multiplied by.
    factor: f32,
    epsilon: f32,
    /// For each token its cosines, then its sines.
    turns: Vec<f32>,
}

impl Rotary {
    pub(crate) fn new(decoder: &Decoder) -> Self {
        let rope: &Rope = &decoder.attention.rope;
        let (frequencies, factor) = rope.frequencies(decoder.attention.head_size);
        Self {
            frequencies,
            factor,
            epsilon: decoder.norm_epsilon,
            turns: Vec::new(),
        }
    }

    /// Computes the rotations of tokens at these positions.
    pub(crate) fn set(&mut self, positions: impl IntoIterator<Item = usize>) {
        self.turns.clear();
        for position in positions {
            #[expect(
                clippy::cast_precision_loss,
                reason = "transformers computes in F32 too"
            )]
            let angles = self.frequencies.iter().map(|step| step * position as f32);
            self.turns
                .extend(angles.clone().map(|angle| angle.cos() * self.factor));
            self.turns
                .extend(angles.map(|angle| angle.sin() * self.factor));
        }
    }

    /// Norms a head of `token` if there is a `norm`, then rotates it.
    pub(crate) fn turn(&self, token: usize, norm: Option<&[f32]>, head: &mut [f32]) {
        if let Some(norm) = norm {
            #[expect(clippy::cast_precision_loss, reason = "a head has few dimensions")]
            let size = head.len() as f32;
            let square_sum: f32 = head.iter().map(|value| value * value).sum();
            let scale = (square_sum / size + self.epsilon).sqrt().recip();
            head.iter_mut()
                .zip(norm)
                .for_each(|(value, norm)| *value = *value * scale * norm);
        }
        let pairs = self.frequencies.len();
        let (cosines, sines) = self.turns[token * 2 * pairs..][..2 * pairs].split_at(pairs);
        let (firsts, seconds) = head.split_at_mut(pairs);
        for (((first, second), cosine), sine) in
            firsts.iter_mut().zip(seconds).zip(cosines).zip(sines)
        {
            (*first, *second) = (
                *first * cosine - *second * sine,
                *second * cosine + *first * sine,
            );
        }
    }
}
