//! Token ids to text, as they come: whole UTF-8 only.

use engine::TokenId;

use super::Tokenizer;
use super::spelling::Piece;

/// Turns the tokens of one output into text, a piece a token. Made by
/// [`Tokenizer::detokenizer`].
///
/// What bytes come to is known as soon as it can be: a character with its last byte, and U+FFFD with
/// the first byte that cannot go on what is begun. So the pieces together are the text of all tokens,
/// [`Tokenizer::decode`], however the output is cut.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// No token has been taken.
    first: bool,
    /// How many letters may still be stripped from the start.
    strip: usize,
    /// The bytes of a character that is begun.
    begun: Vec<u8>,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self {
            skip_special,
            first: true,
            strip: tokenizer.spelling().strip().map_or(0, |(_, count)| count),
            begun: Vec::new(),
            tokenizer,
        }
    }

    /// The same for an output that goes on with a text: a space at its start belongs to it. Without this
    /// the tokenizers that put a space before every text (Llama 2, Mistral) take it away again.
    #[must_use]
    pub fn inside_text(mut self) -> Self {
        self.first = false;
        self.strip = 0;
        self
    }

    /// Takes the next token and gives the text that is whole with it, perhaps none.
    pub fn push(&mut self, token: TokenId) -> String {
        let Some(token) = self.tokenizer.spelled(token, self.skip_special) else {
            return String::new();
        };
        let first = std::mem::replace(&mut self.first, false);
        let text = match self.tokenizer.spelling().piece(token, first) {
            Piece::Bytes(bytes) => self.characters(&bytes),
            Piece::Text(text) => self.broken() + &text,
        };
        self.strip_start(text)
    }

    /// Gives U+FFFD for bytes that never became a character, when the output has ended.
    pub fn finish(&mut self) -> String {
        self.broken()
    }

    /// The characters that are whole, and U+FFFD for what can be none, with `bytes` after what is begun.
    fn characters(&mut self, bytes: &[u8]) -> String {
        self.begun.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.begun.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (whole, after) = rest.split_at(error.valid_up_to());
            text += &String::from_utf8_lossy(whole);
            let Some(wrong) = error.error_len() else {
                self.begun = after.to_vec();
                return text;
            };
            text += &self.tokenizer.spelling().replacement(wrong);
            rest = &after[wrong..];
        }
        text += &String::from_utf8_lossy(rest);
        self.begun.clear();
        text
    }

    /// What stands for a character that is begun and will not be whole.
    fn broken(&mut self) -> String {
        let count = std::mem::take(&mut self.begun).len();
        self.tokenizer.spelling().replacement(count)
    }

    fn strip_start(&mut self, text: String) -> String {
        let Some((letter, _)) = self.tokenizer.spelling().strip() else {
            return text;
        };
        let mut rest = text.as_str();
        while self.strip > 0 && !rest.is_empty() {
            match rest.strip_prefix(letter) {
                Some(stripped) => {
                    rest = stripped;
                    self.strip -= 1;
                }
                None => self.strip = 0,
            }
        }
        rest.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::tokenizer_config::TokenizerConfig;
    use super::*;

    /// Id `n` is the byte `n`, 256 to 259 are parts of characters, 260 is special, 261 and 262 are added.
    fn byte_level() -> Both {
        let letter = |byte: u8| match byte {
            0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            0..=0x20 => char::from_u32(0x100 + u32::from(byte)).unwrap(),
            0x7F..=0xA0 => char::from_u32(0x121 + u32::from(byte) - 0x7F).unwrap(),
            0xAD => '\u{143}',
        };
        let mut vocabulary: serde_json::Map<String, Value> = (0..=255_u8)
            .map(|byte| (letter(byte).to_string(), json!(byte)))
            .collect();
        let parts: [&[u8]; 4] = [b"\xF0\x9F", b"\x98\x80", b" \xE2", b"\x82\xAC!"];
        for (id, part) in (256..).zip(parts) {
            let spelling: String = part.iter().map(|byte| letter(*byte)).collect();
            vocabulary.insert(spelling, json!(id));
        }
        build(json!({
            "added_tokens": [
                added(260, "<|end|>", true), added(261, "<tool>", false), added(262, "a ✓", false),
            ],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        }))
    }

    /// Like Llama 2: ids 3 to 258 are bytes, then texts.
    fn fallback(decoders: Value) -> Both {
        let texts = ["▁", "▁a", "b", "é", "▁▁", "日", "c▁d", "▁世"];
        let bytes = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>"));
        let spellings = ["<unk>", "<s>", "</s>"].map(String::from).into_iter();
        let all = spellings.chain(bytes).chain(texts.map(String::from));
        let vocabulary: serde_json::Map<String, Value> =
            all.zip(0..).map(|(text, id)| (text, json!(id))).collect();
        build(json!({
            "added_tokens": [added(1, "<s>", true), added(2, "</s>", true)],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]},
            "decoder": decoders,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>", "byte_fallback": true},
        }))
    }

    fn llama() -> Value {
        json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]})
    }

    fn metaspace() -> Value {
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true})
    }

    fn added(id: u32, content: &str, special: bool) -> Value {
        json!({
            "id": id, "content": content, "special": special, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false,
        })
    }

    type Both = (Tokenizer, tokenizers::Tokenizer);
    static BYTE_LEVEL: LazyLock<Both> = LazyLock::new(byte_level);
    static LLAMA: LazyLock<Both> = LazyLock::new(|| fallback(llama()));
    static METASPACE: LazyLock<Both> = LazyLock::new(|| fallback(metaspace()));

    fn build(json: Value) -> Both {
        let json = json.to_string();
        let ours = Tokenizer::parse(json.as_bytes(), &TokenizerConfig::default()).unwrap();
        (ours, json.parse().unwrap())
    }

    fn decode(tokenizer: &Tokenizer, tokens: &[u32], skip: bool) -> String {
        let tokens: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
        tokenizer.decode(&tokens, skip)
    }

    fn pieces(tokenizer: &Tokenizer, tokens: &[u32], skip: bool) -> Vec<String> {
        let mut detokenizer = tokenizer.detokenizer(skip);
        let mut pieces: Vec<String> = tokens
            .iter()
            .map(|id| detokenizer.push(TokenId(*id)))
            .collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    #[test]
    fn a_character_comes_with_its_last_byte() {
        let (tokenizer, _) = byte_level();
        let check = |tokens: &[u32], expected: &[&str]| {
            assert_eq!(pieces(&tokenizer, tokens, true), expected, "{tokens:?}");
        };
        check(&[0x41, 0xC3, 0xA9, 0x42], &["A", "", "é", "B", ""]);
        check(&[256, 257, 258, 259], &["", "😀", " ", "€!", ""]);
        check(&[0xE2, 0x82], &["", "", "\u{FFFD}"]);
        check(&[0xE2, 0x82, 0x41], &["", "", "\u{FFFD}A", ""]);
        check(&[0xFF, 0x80], &["\u{FFFD}", "\u{FFFD}", ""]);
        check(&[0xC3, 260, 0xA9], &["", "", "é", ""]);
        check(&[0x41, 9999, 262], &["A", "", "a ✓", ""]);
    }

    #[test]
    fn the_space_before_a_text_goes_unless_the_text_goes_on() {
        let (tokenizer, _) = fallback(llama());
        let a = tokenizer.token_id("▁a").unwrap().0;
        assert_eq!(pieces(&tokenizer, &[a, a], true), ["a", " a", ""]);
        assert_eq!(pieces(&tokenizer, &[1, a], false), ["<s>", " a", ""]);
        assert_eq!(
            tokenizer.detokenizer(true).inside_text().push(TokenId(a)),
            " a"
        );
        let (tokenizer, _) = fallback(metaspace());
        assert_eq!(pieces(&tokenizer, &[a, a], true), ["a", " a", ""]);
        assert_eq!(
            tokenizer.detokenizer(true).inside_text().push(TokenId(a)),
            " a"
        );
    }

    #[test]
    fn broken_byte_tokens_are_replaced_one_by_one() {
        let (tokenizer, theirs) = fallback(llama());
        let byte = |byte: u32| byte + 3;
        let cut = [byte(0xE6), byte(0x97), byte(0x41)];
        assert_eq!(decode(&tokenizer, &cut, true), "\u{FFFD}\u{FFFD}A");
        assert_eq!(theirs.decode(&cut, true).unwrap(), "\u{FFFD}".repeat(3));
        let end = [byte(0xE6), byte(0x97)];
        assert_eq!(
            decode(&tokenizer, &end, true),
            theirs.decode(&end, true).unwrap()
        );
    }

    #[test]
    fn bytes_of_a_token_are_exact() {
        let (tokenizer, _) = byte_level();
        assert_eq!(tokenizer.token_bytes(TokenId(0xE2)), [0xE2]);
        assert_eq!(tokenizer.token_bytes(TokenId(258)), b" \xE2");
        assert_eq!(tokenizer.token_text(TokenId(258)), " \u{FFFD}");
        assert_eq!(tokenizer.token_bytes(TokenId(9999)), [0_u8; 0]);
        let (tokenizer, _) = fallback(llama());
        assert_eq!(
            tokenizer.token_bytes(tokenizer.token_id("▁a").unwrap()),
            b" a"
        );
        assert_eq!(tokenizer.token_bytes(TokenId(13)), b"\n");
    }

    /// Whether the byte tokens of `tokens` all make characters: only then Hugging Face keeps them.
    fn valid(tokens: &[u32]) -> bool {
        let run = |run: &[u32]| {
            let bytes = run.iter().map(|id| u8::try_from(id - 3).unwrap());
            String::from_utf8(bytes.collect()).is_ok()
        };
        let seen: Vec<u32> = tokens
            .iter()
            .copied()
            .filter(|id| ![1, 2].contains(id))
            .collect();
        seen.split(|id| !(3..259).contains(id)).all(run)
    }

    proptest! {
        #[test]
        fn byte_level_pieces_make_the_whole(
            tokens in prop::collection::vec(prop_oneof![0..264_u32, 0xC0..0xF8_u32, 0x80..0xC0_u32], 0..24),
            skip: bool,
        ) {
            let (ours, theirs) = &*BYTE_LEVEL;
            prop_assert_eq!(pieces(ours, &tokens, skip).concat(), theirs.decode(&tokens, skip).unwrap());
        }

        #[test]
        fn fallback_pieces_make_the_whole(text in "[ abcé日本😀\n]{0,12}", skip: bool) {
            for (ours, theirs) in [&*LLAMA, &*METASPACE] {
                let mut tokens: Vec<u32> = ours.encode(&text, true).unwrap().iter().map(|id| id.0).collect();
                tokens.push(2);
                if valid(&tokens) && ours.spelling().strip().is_some() {
                    prop_assert_eq!(decode(ours, &tokens, true), text.clone());
                }
                prop_assert_eq!(pieces(ours, &tokens, skip).concat(), theirs.decode(&tokens, skip).unwrap());
            }
        }

        #[test]
        fn any_fallback_tokens_make_what_they_make_at_once(
            tokens in prop::collection::vec(prop_oneof![0..267_u32, 0x83..0x103_u32, 259..267_u32], 0..16),
            skip: bool,
        ) {
            let (ours, theirs) = &*LLAMA;
            let whole = theirs.decode(&tokens, skip).unwrap();
            if valid(&tokens) && skip {
                prop_assert_eq!(pieces(ours, &tokens, skip).concat(), whole);
            } else {
                prop_assert_eq!(pieces(ours, &tokens, skip).concat(), decode(ours, &tokens, skip));
            }
        }
    }
}
