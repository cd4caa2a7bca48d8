//! What goes wrong on purpose: the file named by `FAKE_NRT_FAULTS`, read again at each call that a
//! rule could be about, so that a test can change it while the server runs.
//!
//! A line is a rule, `#` starts a comment:
//!
//! ```text
//! CALL ACTION.. [WHEN] [FILTER..]
//!
//! CALL    init | load | unload | execute | tensor_allocate | tensor_read | tensor_write |
//!         tensor_copy | memory_stats        (`read`, `write` and `copy` for short)
//! ACTION  status=STATUS    the call fails so: a number or a name (1003, TIMEOUT, ..)
//!         stall=DURATION   it takes so much longer: 2s, 150ms, 40us
//!         hang             it does not return
//!         die              the process ends at once, as by a signal
//!         nan              every float that an execution gives, caches aside, is no number
//!         unordered        a write into a tensor that an execution uses lands (else it aborts)
//! WHEN    at=N             only the Nth call that the filters let through
//!         every=N          the Nth, the 2Nth, ..
//!         from=N           the Nth and all after it
//!                          without: all
//! FILTER  rank=R           calls of this rank
//!         core=C           calls for this logical core, as the process numbers them
//!         model=TEXT       calls with a model whose name contains this
//!         tensor=TEXT      the same for a tensor
//! ```
//!
//! `nan at=9` is short for `execute nan at=9`. Counting starts again whenever the text of the file
//! changes: `at=1` is the next call.
//!
//! An execution by several ranks is one call to a rule without `rank=` or `core=`: it is asked once
//! all ranks have arrived, and all of them get what it says. A rule with one of these is asked when
//! that rank arrives, and the others then wait for it in vain, as on the device.
//!
//! What an execution with `status=` leaves behind: 1002, 1005, 7 and 101 have not run. 1003 has run
//! to its end. After any other, outputs hold garbage, but caches (outputs that share memory with an
//! input) what they held before.

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::status::{Failure, Status, misuse};

/// What a rule can be about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// `nrt_init`.
    Init,
    /// `nrt_load` and `nrt_load_collectives`.
    Load,
    /// `nrt_unload`.
    Unload,
    /// `nrt_execute`.
    Execute,
    /// `nrt_tensor_allocate`.
    TensorAllocate,
    /// `nrt_tensor_read`.
    TensorRead,
    /// `nrt_tensor_write` and `nrt_tensor_memset`.
    TensorWrite,
    /// `nrt_tensor_copy`.
    TensorCopy,
    /// `nrt_get_vnc_memory_stats`.
    MemoryStats,
}

impl Call {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "init" => Self::Init,
            "load" => Self::Load,
            "unload" => Self::Unload,
            "execute" => Self::Execute,
            "tensor_allocate" => Self::TensorAllocate,
            "tensor_read" | "read" => Self::TensorRead,
            "tensor_write" | "write" => Self::TensorWrite,
            "tensor_copy" | "copy" => Self::TensorCopy,
            "memory_stats" => Self::MemoryStats,
            _ => return None,
        })
    }
}

/// Who calls, as far as it is known.
#[derive(Clone, Copy, Default, Debug)]
pub struct Place<'a> {
    /// The logical core, as the process numbers them.
    pub core: Option<u32>,
    /// The rank.
    pub rank: Option<u32>,
    /// The model's name.
    pub model: Option<&'a str>,
    /// The tensor's name.
    pub tensor: Option<&'a str>,
}

/// Which rules are asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All.
    All,
    /// Those that name a rank or a core.
    Rank,
    /// Those that name neither.
    Round,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Effect {
    /// It fails so.
    pub status: Option<Status>,
    /// It takes so much longer.
    pub stall: Duration,
    /// It does not return.
    pub hang: bool,
    /// The process ends.
    pub die: bool,
    /// Floats are no numbers.
    pub nan: bool,
    /// A write lands whatever runs.
    pub unordered: bool,
}

impl Effect {
    fn join(&mut self, other: &Self) {
        self.status = self.status.or(other.status);
        self.stall += other.stall;
        self.hang |= other.hang;
        self.die |= other.die;
        self.nan |= other.nan;
        self.unordered |= other.unordered;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum When {
    Always,
    At(u64),
    Every(u64),
    From(u64),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    call: Call,
    effect: Effect,
    when: When,
    rank: Option<u32>,
    core: Option<u32>,
    model: Option<String>,
    tensor: Option<String>,
    calls: u64,
}

impl Rule {
    fn is_about(&self, call: Call, place: &Place<'_>, scope: Scope) -> bool {
        let narrow = self.rank.is_some() || self.core.is_some();
        let asked = match scope {
            Scope::All => true,
            Scope::Rank => narrow,
            Scope::Round => !narrow,
        };
        let holds = |part: &Option<String>, name: Option<&str>| {
            let part = part.as_deref();
            part.is_none_or(|part| name.is_some_and(|name| name.contains(part)))
        };
        asked
            && self.call == call
            && (self.rank.is_none() || self.rank == place.rank)
            && (self.core.is_none() || self.core == place.core)
            && holds(&self.model, place.model)
            && holds(&self.tensor, place.tensor)
    }

    /// Counts a call, and says whether it goes wrong.
    fn strikes(&mut self) -> bool {
        self.calls += 1;
        match self.when {
            When::Always => true,
            When::At(n) => self.calls == n,
            When::Every(n) => self.calls.is_multiple_of(n),
            When::From(n) => self.calls >= n,
        }
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace().peekable();
        let mut rule = Self {
            call: Call::Execute,
            effect: Effect::default(),
            when: When::Always,
            rank: None,
            core: None,
            model: None,
            tensor: None,
            calls: 0,
        };
        let first = words.peek().copied().unwrap_or_default();
        if let Some(call) = Call::parse(first) {
            rule.call = call;
            words.next();
        } else if first != "nan" {
            return Err(format!("{first:?} is no call"));
        }
        for word in words {
            rule.take(word)?;
        }
        if rule.effect == Effect::default() {
            return Err("it has no action".to_owned());
        }
        Ok(rule)
    }
}

impl Rule {
    fn take(&mut self, word: &str) -> Result<(), String> {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.parse().map_err(|_| format!("{word:?}: a number"));
        let count = || match value.parse() {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(format!("{word:?}: a number from 1 on")),
        };
        match key {
            "status" => {
                let status = Status::parse(value);
                self.effect.status = Some(status.ok_or(format!("{value:?} is no status"))?);
            }
            "stall" => self.effect.stall = duration(value)?,
            "hang" => self.effect.hang = true,
            "die" => self.effect.die = true,
            "nan" => self.effect.nan = true,
            "unordered" => self.effect.unordered = true,
            "at" => self.when = When::At(count()?),
            "every" => self.when = When::Every(count()?),
            "from" => self.when = When::From(count()?),
            "rank" => self.rank = Some(number()?),
            "core" => self.core = Some(number()?),
            "model" => self.model = Some(value.to_owned()),
            "tensor" => self.tensor = Some(value.to_owned()),
            _ => return Err(format!("{word:?} has no meaning")),
        }
        Ok(())
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 2s, 150ms or 40us");
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    match &text[digits.len()..] {
        "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "us" => Ok(Duration::from_micros(number)),
        _ => Err(wrong()),
    }
}

/// The file of rules.
#[derive(Debug)]
pub struct Faults {
    path: Option<PathBuf>,
    state: Mutex<(String, Vec<Rule>)>,
}

impl Faults {
    /// The rules of a file; it need not be there yet.
    pub fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            state: Mutex::default(),
        }
    }

    /// What goes wrong with a call.
    ///
    /// # Errors
    /// A line of the file has no meaning: a test that needs it would prove nothing.
    pub fn strike(&self, call: Call, place: &Place<'_>, scope: Scope) -> Result<Effect, Failure> {
        let mut effect = Effect::default();
        let Some(path) = &self.path else {
            return Ok(effect);
        };
        // A file that is not there, or is just being replaced, says nothing.
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != text {
            let rules = parse(&text);
            let rules = rules.map_err(|error| misuse!("{}: {error}", path.display()))?;
            *state = (text, rules);
        }
        for rule in &mut state.1 {
            if rule.is_about(call, place, scope) && rule.strikes() {
                effect.join(&rule.effect);
            }
        }
        Ok(effect)
    }
}

fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let lines = text.lines().enumerate();
    let lines = lines.map(|(at, line)| (at + 1, line.split('#').next().unwrap_or_default().trim()));
    let rules = lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| {
            let rule = line.parse::<Rule>();
            rule.map_err(|error| format!("line {number}, {line:?}: {error}"))
        });
    rules.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> (tempfile::TempDir, Faults) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("faults");
        fs::write(&path, text).unwrap();
        let faults = Faults::new(Some(path));
        (directory, faults)
    }

    fn statuses(faults: &Faults, calls: usize) -> Vec<Option<u32>> {
        let strike = |_| {
            let effect = faults.strike(Call::Execute, &Place::default(), Scope::All);
            effect.unwrap().status.map(|status| status.0)
        };
        (0..calls).map(strike).collect()
    }

    #[test]
    fn rules_strike_when_they_say() {
        let (_directory, at) = faults("execute status=1003 at=2 # once\n\n# nothing\n");
        assert_eq!(statuses(&at, 4), [None, Some(1003), None, None]);
        let (_directory, every) = faults("execute status=TIMEOUT every=2");
        assert_eq!(statuses(&every, 4), [None, Some(5), None, Some(5)]);
        let (_directory, from) = faults("execute status=7 from=3\nload status=4");
        assert_eq!(statuses(&from, 4), [None, None, Some(7), Some(7)]);
    }

    #[test]
    fn counting_starts_again_when_the_file_changes() {
        let (directory, faults) = faults("execute status=5 at=1");
        assert_eq!(statuses(&faults, 2), [Some(5), None]);
        fs::write(directory.path().join("faults"), "execute status=6 at=1").unwrap();
        assert_eq!(statuses(&faults, 2), [Some(6), None]);
        fs::remove_file(directory.path().join("faults")).unwrap();
        assert_eq!(statuses(&faults, 1), [None]);
    }

    #[test]
    fn rules_are_about_whom_they_name() {
        let text = "execute status=5 rank=1 model=decode\nnan at=1\nwrite stall=3ms tensor=ints";
        let (_directory, faults) = faults(text);
        let place = |rank, model| Place {
            rank: Some(rank),
            model: Some(model),
            tensor: Some("ints.0"),
            ..Place::default()
        };
        let strike = |call, place, scope| faults.strike(call, &place, scope).unwrap();
        let decode = place(1, "decode-4x8");
        assert_eq!(
            strike(Call::Execute, decode, Scope::Rank).status.unwrap().0,
            5
        );
        assert_eq!(
            strike(Call::Execute, place(0, "decode-4x8"), Scope::Rank).status,
            None
        );
        assert_eq!(
            strike(Call::Execute, place(1, "prefill"), Scope::Rank).status,
            None
        );
        let round = strike(Call::Execute, decode, Scope::Round);
        assert_eq!((round.status, round.nan), (None, true));
        let write = strike(Call::TensorWrite, decode, Scope::All);
        assert_eq!(write.stall, Duration::from_millis(3));
    }

    #[test]
    fn a_line_without_meaning_is_misuse() {
        for line in [
            "fly",
            "execute",
            "execute status=GREEN",
            "execute at=3",
            "execute status=5 at=0",
            "execute stall=2",
            "execute stall=2h",
            "execute status=5 sometimes",
        ] {
            let (_directory, faults) = faults(line);
            let failure = faults.strike(Call::Load, &Place::default(), Scope::All);
            let failure = failure.unwrap_err();
            assert!(matches!(failure, Failure::Misuse(_)), "{line}: {failure}");
            assert!(failure.to_string().contains("line 1"), "{failure}");
        }
    }
}
