//! Stop strings: where an output ends, found as it streams, so that no part of one is ever sent.

/// Looks for stop strings in an output that arrives in pieces.
///
/// The output ends at the first byte that completes any stop string; if several end there, the
/// longest of them is the hit. So the result does not depend on how the output is cut into pieces,
/// and a stream ends as early as it can. (vLLM looks at whole tokens and takes the first of the
/// list; the two differ only when stop strings overlap in the text.)
#[derive(Clone, Debug)]
pub struct Stops {
    searches: Vec<Search>,
    include_in_output: bool,
    held: String,
    hit: bool,
}

/// What became of a piece of output.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Stopped {
    /// Text that is safe to send, perhaps empty.
    pub text: String,
    /// The stop string that ended the output; whatever comes after it is dropped.
    pub hit: Option<String>,
}

impl Stops {
    /// Looks for `stops`; empty strings among them are ignored. With `include_in_output` the stop
    /// string that ends the output is sent too.
    pub fn new(stops: Vec<String>, include_in_output: bool) -> Self {
        let searches = stops
            .into_iter()
            .filter(|stop| !stop.is_empty())
            .map(Search::new)
            .collect();
        Self {
            searches,
            include_in_output,
            held: String::new(),
            hit: false,
        }
    }

    /// Takes the next piece and gives what can be sent: all but a possible beginning of a stop string.
    pub fn push(&mut self, piece: &str) -> Stopped {
        if self.hit {
            return Stopped::default();
        }
        let before = self.held.len();
        self.held.push_str(piece);
        for (index, byte) in piece.bytes().enumerate() {
            if let Some(stop) = self.completed_by(byte) {
                return self.end(before + index + 1, stop);
            }
        }
        let begun = self.searches.iter().map(|search| search.matched).max();
        let rest = self.held.split_off(self.held.len() - begun.unwrap_or(0));
        Stopped {
            text: std::mem::replace(&mut self.held, rest),
            hit: None,
        }
    }

    /// Gives what was held back, when the output has ended without a stop string.
    pub fn finish(&mut self) -> String {
        self.hit = true;
        std::mem::take(&mut self.held)
    }

    /// The longest stop string that `byte` completes.
    fn completed_by(&mut self, byte: u8) -> Option<String> {
        let mut longest: Option<&str> = None;
        for search in &mut self.searches {
            if search.step(byte) && longest.is_none_or(|stop| stop.len() < search.stop.len()) {
                longest = Some(&search.stop);
            }
        }
        longest.map(str::to_owned)
    }

    fn end(&mut self, end: usize, stop: String) -> Stopped {
        let keep = if self.include_in_output {
            end
        } else {
            end - stop.len()
        };
        self.hit = true;
        let mut text = std::mem::take(&mut self.held);
        text.truncate(keep);
        Stopped {
            text,
            hit: Some(stop),
        }
    }
}

/// A Knuth-Morris-Pratt search for one stop string.
#[derive(Clone, Debug)]
struct Search {
    stop: String,
    /// For each length of a beginning of `stop`, the longest shorter beginning that also ends it.
    borders: Vec<usize>,
    /// How many bytes of `stop` the text so far ends with.
    matched: usize,
}

impl Search {
    fn new(stop: String) -> Self {
        let bytes = stop.as_bytes();
        let mut borders = vec![0; bytes.len() + 1];
        for length in 2..=bytes.len() {
            let mut border = borders[length - 1];
            while border > 0 && bytes[border] != bytes[length - 1] {
                border = borders[border];
            }
            borders[length] = border + usize::from(bytes[border] == bytes[length - 1]);
        }
        Self {
            stop,
            borders,
            matched: 0,
        }
    }

    /// Takes one byte of text; whether it completes the stop string. Not called again after that.
    fn step(&mut self, byte: u8) -> bool {
        let bytes = self.stop.as_bytes();
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.borders[self.matched];
        }
        self.matched += usize::from(bytes[self.matched] == byte);
        self.matched == bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (String, Option<String>) {
        let mut search = Stops::new(stops.iter().map(ToString::to_string).collect(), include);
        let mut sent = String::new();
        for piece in pieces {
            let stopped = search.push(piece);
            sent += &stopped.text;
            if stopped.hit.is_some() {
                assert_eq!(search.push("more"), Stopped::default());
                assert_eq!(search.finish(), "");
                return (sent, stopped.hit);
            }
        }
        sent += &search.finish();
        (sent, None)
    }

    #[track_caller]
    fn check(stops: &[&str], pieces: &[&str], sent: &str, hit: Option<&str>) {
        let expected = (sent.to_owned(), hit.map(str::to_owned));
        assert_eq!(run(stops, false, pieces), expected);
        let (with_stop, _) = run(stops, true, pieces);
        assert_eq!(with_stop, sent.to_owned() + hit.unwrap_or(""));
    }

    #[test]
    fn an_output_ends_where_a_stop_string_is_first_complete() {
        check(&[], &["a", "b"], "ab", None);
        check(&[""], &["a", "b"], "ab", None);
        check(&["END"], &["one EN", "D two"], "one ", Some("END"));
        check(&["END"], &["one EN", "GLISH"], "one ENGLISH", None);
        check(&["END"], &["one EN"], "one EN", None);
        check(&["aab"], &["aa", "aab!"], "aa", Some("aab"));
        check(&["abcd", "bc"], &["abcd"], "a", Some("bc"));
        check(&["c", "abc", "bc"], &["xabc"], "x", Some("abc"));
        check(&["née"], &["Mme N n", "é", "e"], "Mme N ", Some("née"));
        check(&["\n\n"], &["a\n", "b\n", "\nc"], "a\nb", Some("\n\n"));
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut stops = Stops::new(vec!["<end>".into()], false);
        assert_eq!(stops.push("a < b <e").text, "a < b ");
        assert_eq!(stops.push("x").text, "<ex");
    }

    /// The obviously right answer: try every end, then every stop string.
    fn reference(stops: &[String], text: &str) -> (String, Option<String>) {
        for end in 1..=text.len() {
            let ending = |stop: &&String| text.as_bytes()[..end].ends_with(stop.as_bytes());
            if let Some(stop) = stops.iter().filter(ending).max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    fn pieces(text: &str, cuts: &[usize]) -> Vec<String> {
        let mut pieces = vec![String::new()];
        for (index, letter) in text.chars().enumerate() {
            if cuts.contains(&index) {
                pieces.push(String::new());
            }
            pieces.last_mut().expect("never empty").push(letter);
        }
        pieces
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_and_nothing_leaks(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            text in "[abéc]{0,40}",
            cuts in prop::collection::vec(0_usize..40, 0..12),
        ) {
            let pieces = pieces(&text, &cuts);
            let names: Vec<&str> = stops.iter().map(String::as_str).collect();
            let split: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (sent, hit) = run(&names, false, &split);
            prop_assert!(stops.iter().all(|stop| !sent.contains(stop)), "{sent:?} leaks");
            prop_assert_eq!((sent, hit), reference(&stops, &text));
        }
    }
}
