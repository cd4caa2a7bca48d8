//! What looks like a person's or an account's own: found in a text, and taken out of it.
//!
//! Patterns know nothing of meaning: they find the usual forms, miss others, and now and then find what is
//! none. They are a net under people's mistakes, and no proof that nothing passes.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An e-mail address.
    Email,
    /// The id of an AWS access key, or of another thing of IAM.
    AwsKey,
    /// A number that a state gives a person: of the United States or the United Kingdom.
    NationalId,
    /// The number of a payment card, whose last digit is right.
    Card,
    /// A telephone number, with its country or in North America's form.
    Phone,
}

/// In the order in which they are tried at a place.
const KINDS: [(Kind, &str); 5] = [
    (
        Kind::Email,
        r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}",
    ),
    (
        Kind::AwsKey,
        r"(?-u:\b)(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA)[A-Z2-7]{16}(?-u:\b)",
    ),
    (
        Kind::NationalId,
        r"(?-u:\b)(?:[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}|[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?(?:[0-9]{2} ?){3}[A-D])(?-u:\b)",
    ),
    (Kind::Card, r"(?-u:\b)[0-9](?:[ -]?[0-9]){12,18}(?-u:\b)"),
    (
        Kind::Phone,
        r"\+[1-9](?:[ ().-]{0,2}[0-9]){7,14}(?-u:\b)|\(?(?-u:\b)[2-9][0-9]{2}(?:\) ?|[ .-])[0-9]{3}[ .-][0-9]{4}(?-u:\b)",
    ),
];

/// All of them, each a group.
static PATTERN: LazyLock<Regex> = LazyLock::new(|| {
    let groups = KINDS.map(|(_, pattern)| format!("({pattern})"));
    Regex::new(&groups.join("|")).expect("the patterns are fixed")
});

impl Kind {
    /// What stands in its place.
    fn mask(self) -> &'static str {
        match self {
            Self::Email => "[email]",
            Self::AwsKey => "[aws-key]",
            Self::NationalId => "[national-id]",
            Self::Card => "[card]",
            Self::Phone => "[phone]",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Email => "an e-mail address",
            Self::AwsKey => "the id of an AWS key",
            Self::NationalId => "a national identity number",
            Self::Card => "the number of a payment card",
            Self::Phone => "a telephone number",
        })
    }
}

/// The first thing in `text`.
fn next(text: &str) -> Option<(Kind, Range<usize>)> {
    let mut from = 0;
    loop {
        let found = PATTERN.captures_at(text, from)?;
        let group = |at: usize| found.get(at + 1);
        let (kind, place) =
            (0..KINDS.len()).find_map(|at| Some((KINDS[at].0, group(at)?.range())))?;
        let good = match kind {
            Kind::Card => luhn(&text[place.clone()]),
            Kind::NationalId => !["000", "666"].contains(&&text[place.start..place.start + 3]),
            Kind::Email | Kind::AwsKey | Kind::Phone => true,
        };
        if good {
            return Some((kind, place));
        }
        // All of these begin with a letter or digit of ASCII.
        from = place.start + 1;
    }
}

/// Whether the last digit is what the others make it.
fn luhn(number: &str) -> bool {
    let digits = number.bytes().rev().filter(u8::is_ascii_digit);
    let sum: u32 = (0..)
        .zip(digits)
        .map(|(at, digit)| {
            let digit = u32::from(digit - b'0');
            match at % 2 {
                0 => digit,
                _ => digit * 2 / 10 + digit * 2 % 10,
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// The first thing that is found in `text`.
pub fn find(text: &str) -> Option<Kind> {
    next(text).map(|(kind, _)| kind)
}

/// `text` with the name of each thing in its place.
pub fn mask(text: &str) -> Cow<'_, str> {
    let mut masked = String::new();
    let mut done = 0;
    // What follows stands by itself then.
    while let Some((kind, place)) = next(&text[done..]) {
        masked.push_str(&text[done..done + place.start]);
        masked.push_str(kind.mask());
        done += place.end;
    }
    match done {
        0 => Cow::Borrowed(text),
        _ => Cow::Owned(masked + &text[done..]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_usual_forms_are_found() {
        for (text, masked) in [
            ("write to jane.doe+x@mail.example.com.", "write to [email]."),
            ("<a@b.org>", "<[email]>"),
            ("key AKIAIOSFODNN7EXAMPLE, secret", "key [aws-key], secret"),
            ("ssn 123-45-6789", "ssn [national-id]"),
            (
                "nino QQ 12 34 56 C or AB123456C",
                "nino QQ 12 34 56 C or [national-id]",
            ),
            ("card 4111 1111 1111 1111 please", "card [card] please"),
            ("5500-0000-0000-0004", "[card]"),
            ("378282246310005", "[card]"),
            (
                "call +49 30 1234567 or (555) 123-4567",
                "call [phone] or [phone]",
            ),
            ("+14155552671", "[phone]"),
        ] {
            assert_eq!(mask(text), masked, "{text}");
        }
    }

    #[test]
    fn other_numbers_and_words_stay() {
        for text in [
            "",
            "The year 2026, 3.14159, 1000000 tokens, 127.0.0.1:8000.",
            "4111 1111 1111 1112 has a wrong digit",
            "a@b and @name and user@localhost",
            "AKIA is short, and xAKIAIOSFODNN7EXAMPLE is a part of a word",
            "000-12-3456 and 666-12-3456 are nobody's",
            "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            "2026-11-24T18:36:21Z",
        ] {
            assert_eq!(mask(text), text);
            assert_eq!(find(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_left_to_find_and_nothing_else_is_touched(text in "[a-z0-9@.+ -]{0,80}") {
            let masked = mask(&text);
            prop_assert_eq!(find(&text).is_some(), masked != text);
            let again = mask(&masked).into_owned();
            prop_assert_eq!(&*masked, again.as_str());
        }

        #[test]
        fn any_text_is_read(text: String) {
            mask(&text);
        }

        #[test]
        fn a_card_is_found_by_its_last_digit(number in "[3-6][0-9]{14}") {
            let right: Vec<_> = (0..10).filter(|last| luhn(&format!("{number}{last}"))).collect();
            prop_assert_eq!(right.len(), 1);
            let text = format!("x {number}{} y", right[0]);
            prop_assert_eq!(find(&text), Some(Kind::Card));
        }
    }
}
