//! Token ids to text, as they come: whole UTF-8 only.

use engine::TokenId;

/// Turns the tokens of one output into text, a piece a token. Made by
/// [`Tokenizer::detokenizer`](super::Tokenizer::detokenizer).
#[derive(Clone, Debug)]
pub struct Detokenizer {}

impl Detokenizer {
    /// Takes the next token and gives the text that is whole with it, perhaps none.
    pub fn push(&mut self, _token: TokenId) -> String {
        String::new()
    }

    /// Gives U+FFFD for bytes that never became a character, when the output has ended.
    pub fn finish(&mut self) -> String {
        String::new()
    }
}
