//! What the spelling of a token in the vocabulary stands for: the `decoder` of tokenizer.json, as data.

use serde::Deserialize;
use serde_json::Value;

/// How the tokens of a vocabulary are spelled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Spelling {
    /// Each character stands for a byte, as in GPT-2, Llama 3 and Qwen.
    ByteLevel,
    /// Each token is a text, as in sentencepiece, Llama 2 and Mistral.
    Text(TextSpelling),
}

/// How the tokens of a vocabulary of texts are spelled.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct TextSpelling {
    /// What is written for something else, such as `▁` for a space, in order.
    replace: Vec<(String, String)>,
    /// This letter is dropped from the first token of a text.
    drop_from_first: Option<char>,
    /// Tokens like `<0x0A>` stand for a byte.
    byte_fallback: bool,
    /// A text loses up to so many of this letter at its start.
    strip: Option<(char, usize)>,
}

/// What a token stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Piece {
    /// Bytes, of which several tokens may make a character.
    Bytes(Vec<u8>),
    /// Whole characters.
    Text(String),
}

impl Spelling {
    /// Reads the `decoder` of tokenizer.json; the error names what is not supported.
    pub(super) fn parse(decoder: &Value) -> Result<Self, String> {
        let step = Step::deserialize(decoder)
            .map_err(|error| format!("its decoder is not supported: {error}"))?;
        let mut steps = Vec::new();
        step.flatten(&mut steps);
        if steps.iter().any(|step| matches!(step, Step::ByteLevel {})) {
            let known = |step| matches!(step, &Step::ByteLevel {} | &Step::Fuse {});
            return match steps.iter().all(known) {
                true => Ok(Self::ByteLevel),
                false => Err("its decoder combines ByteLevel with others".to_owned()),
            };
        }
        TextSpelling::parse(steps).map(Self::Text)
    }

    /// What the token spelled `token` stands for; `first` if no other stands before it.
    pub(super) fn piece(&self, token: String, first: bool) -> Piece {
        match self {
            Self::ByteLevel => Piece::Bytes(bytes(token)),
            Self::Text(spelling) => spelling.piece(token, first),
        }
    }

    /// What stands for `count` bytes that are no character: as Hugging Face has it, one U+FFFD for bytes
    /// that begin a character together, but one for each that came as a token like `<0xE2>`.
    pub(super) fn replacement(&self, count: usize) -> String {
        let count = match self {
            Self::ByteLevel => count.min(1),
            Self::Text(_) => count,
        };
        "\u{FFFD}".repeat(count)
    }

    /// How many of which letter a text loses at its start.
    pub(super) fn strip(&self) -> Option<(char, usize)> {
        match self {
            Self::ByteLevel => None,
            Self::Text(spelling) => spelling.strip,
        }
    }
}

impl TextSpelling {
    fn parse(steps: Vec<Step>) -> Result<Self, String> {
        let mut spelling = Self::default();
        let mut fused = false;
        for step in steps {
            match step {
                Step::Replace { pattern, content } if !spelling.byte_fallback && !fused => {
                    spelling.replace.push((pattern.string, content));
                }
                Step::Metaspace {
                    replacement,
                    prepend_scheme,
                } if !spelling.byte_fallback && !fused => {
                    spelling.replace.push((replacement.into(), " ".to_owned()));
                    spelling.drop_from_first = (prepend_scheme != "never").then_some(replacement);
                }
                Step::ByteFallback {} if !fused => spelling.byte_fallback = true,
                Step::Fuse {} => fused = true,
                Step::Strip {
                    content,
                    start,
                    stop: 0,
                } if fused && spelling.strip.is_none() => spelling.strip = Some((content, start)),
                step => return Err(format!("its decoder has {step:?} where none is supported")),
            }
        }
        Ok(spelling)
    }

    fn piece(&self, mut token: String, first: bool) -> Piece {
        if first && let Some(letter) = self.drop_from_first {
            token.retain(|other| other != letter);
        }
        for (written, meant) in &self.replace {
            if token.contains(written) {
                token = token.replace(written, meant);
            }
        }
        match self.byte_fallback.then(|| byte(&token)).flatten() {
            Some(byte) => Piece::Bytes(vec![byte]),
            None => Piece::Text(token),
        }
    }
}

/// One step of a decoder, as tokenizer.json has it.
#[derive(Deserialize, Debug)]
#[serde(tag = "type")]
enum Step {
    Sequence {
        decoders: Vec<Step>,
    },
    ByteLevel {},
    Replace {
        pattern: Pattern,
        content: String,
    },
    Metaspace {
        replacement: char,
        prepend_scheme: String,
    },
    ByteFallback {},
    Fuse {},
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
}

#[derive(Deserialize, Debug)]
struct Pattern {
    #[serde(rename = "String")]
    string: String,
}

impl Step {
    fn flatten(self, into: &mut Vec<Step>) {
        match self {
            Self::Sequence { decoders } => {
                for step in decoders {
                    step.flatten(into);
                }
            }
            step => into.push(step),
        }
    }
}

/// The byte that `<0x0A>` stands for.
fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let two = digits.len() == 2 && token.len() == 6;
    two.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The bytes of a byte-level token. One with a letter that stands for no byte, which only an added token
/// can be, stands for itself.
fn bytes(token: String) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
    bytes.unwrap_or_else(|| token.into_bytes())
}

/// The byte that a character of a byte-level token stands for: GPT-2's table, in which visible Latin-1
/// characters are themselves and the other 68 bytes, in order, are the characters from U+0100.
fn byte_of(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokenizers::Decoder as _;
    use tokenizers::decoders::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn every_byte_has_its_letter() {
        let mut found = [false; 256];
        for letter in ByteLevel::alphabet() {
            let byte = byte_of(letter).expect("a letter of the alphabet stands for a byte");
            found[usize::from(byte)] = true;
            let text = ByteLevel::default()
                .decode(vec![letter.to_string()])
                .unwrap();
            assert_eq!(text, String::from_utf8_lossy(&[byte]), "{letter}");
        }
        assert!(found.iter().all(|found| *found));
        assert_eq!([' ', '\u{144}', '\u{7F}', '\u{AD}'].map(byte_of), [None; 4]);
    }

    #[test]
    fn byte_tokens_are_six_letters_long() {
        assert_eq!(byte("<0x0A>"), Some(10));
        assert_eq!(byte("<0xfF>"), Some(255));
        assert_eq!(
            ["<0xA>", "<0x0AB>", "<0xé>", "0x0A", "<0x0G>"].map(byte),
            [None; 5]
        );
    }

    #[test]
    fn decoders_that_are_not_supported_are_named() {
        #[track_caller]
        fn check(decoder: Value, named: &str) {
            let error = Spelling::parse(&decoder).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
        check(
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            "WordPiece",
        );
        check(json!(null), "not supported");
        check(
            json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}),
            "Strip",
        );
        let regex = json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": " "});
        check(regex, "String");
        let both = json!({"type": "Sequence", "decoders": [
            {"type": "ByteLevel"}, {"type": "ByteFallback"},
        ]});
        check(both, "ByteLevel");
    }
}
