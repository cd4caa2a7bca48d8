//! Prompts to measure with: plain words, the same for the same numbers, distinct from the first
//! word on so that no prefix cache can help.

use serde_json::{Value, json};

/// Words that the tokenizers of today's models know as one token each, after a space.
const WORDS: [&str; 64] = [
    "river", "stone", "garden", "letter", "winter", "music", "table", "window", "market", "bridge",
    "paper", "forest", "island", "silver", "teacher", "doctor", "captain", "machine", "engine",
    "morning", "evening", "summer", "village", "mountain", "ocean", "desert", "castle", "kitchen",
    "picture", "number", "story", "answer", "question", "travel", "color", "flower", "animal",
    "horse", "bird", "fish", "bread", "water", "fire", "light", "shadow", "voice", "heart", "hand",
    "road", "ship", "train", "wheel", "gold", "iron", "glass", "wood", "cloud", "storm", "snow",
    "rain", "field", "tree", "leaf", "root",
];

/// Tokens of a prompt that are not its words: what a chat template puts around two messages, and
/// the last sentence. Counted with SmolLM2's template; other models differ by a few.
const AROUND: u32 = 26;

/// The messages of request `index` of a run: about `tokens` tokens once the template is applied.
///
/// The first word differs between 64 neighbours, the first three between any two of 262 144; the
/// system message takes the place of a template's default one, which all prompts would share.
pub(super) fn messages(seed: u32, index: u32, tokens: u32) -> Value {
    let opening = [index % 64, index / 64 % 64, seed % 64];
    let mut state = (u64::from(seed) << 32 | u64::from(index)) ^ 0x9e37_79b9_7f4a_7c15;
    let count = tokens.saturating_sub(AROUND).max(1);
    let words: Vec<_> = std::iter::from_fn(|| Some(next(&mut state)))
        .take(count as usize)
        .collect();
    json!([
        { "role": "system", "content": text(&opening) },
        {
            "role": "user",
            "content": format!("{}. Tell a long story with these words.", text(&words)),
        },
    ])
}

/// The next of a deterministic row of numbers below 64 (xorshift).
fn next(state: &mut u64) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    // The top six bits.
    u32::try_from(*state >> 58).unwrap_or_default()
}

fn text(words: &[u32]) -> String {
    let words: Vec<_> = words.iter().map(|word| WORDS[*word as usize]).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn first_words(seed: u32, index: u32) -> String {
        let messages = messages(seed, index, 200);
        let text = messages[0]["content"].as_str().unwrap();
        text.split(' ').take(3).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_same_numbers_bring_the_same_prompt() {
        assert_eq!(messages(1, 2, 200), messages(1, 2, 200));
    }

    #[test]
    fn prompts_differ_from_the_first_words_on() {
        let firsts: HashSet<_> = (0..4)
            .flat_map(|seed| (0..256).map(move |index| first_words(seed, index)))
            .collect();
        assert_eq!(firsts.len(), 4 * 256);
        let word = |index| first_words(7, index).split(' ').next().map(str::to_owned);
        let words: HashSet<_> = (0..64).map(word).collect();
        assert_eq!(words.len(), 64);
    }

    #[test]
    fn words_are_listed_once() {
        assert_eq!(WORDS.iter().collect::<HashSet<_>>().len(), WORDS.len());
    }

    #[test]
    fn a_short_prompt_is_a_prompt() {
        assert!(messages(0, 0, 1)[1]["content"].is_string());
    }
}
