//! How it fails on demand: `FAKE_NEURONX_CC`, described at the head of `main.rs`.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use crate::REFUSED;

/// The variable that says what goes wrong.
const VARIABLE: &str = "FAKE_NEURONX_CC";

/// A variable of ours: this process is one that [`Word::Hang`] made.
const HANGING: &str = "FAKE_NEURONX_CC_HANGS";

/// Something that goes wrong.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Word {
    Exit70,
    F137,
    Killed,
    Abort,
    Segfault,
    Slow(Duration),
    /// MiB.
    Memory(usize),
    Hang,
    Garbage,
    Truncated,
    Nothing,
    Newer,
    Version(String),
}

/// All that goes wrong.
#[derive(Clone, PartialEq, Default, Debug)]
pub(crate) struct Mischief(Vec<Entry>);

#[derive(Clone, PartialEq, Debug)]
struct Entry {
    word: Word,
    /// What the names of the modules begin with.
    modules: String,
    /// The file of whoever it happens to, once.
    once: Option<String>,
}

impl Mischief {
    /// What the environment says.
    ///
    /// # Errors
    /// A word has no meaning.
    pub(crate) fn from_environment() -> Result<Self, String> {
        match std::env::var(VARIABLE) {
            Ok(text) => Self::parse(&text),
            Err(std::env::VarError::NotPresent) => Ok(Self::default()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let entries = text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        entries
            .map(Entry::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// What it says its version is.
    pub(crate) fn version(&self) -> Option<&str> {
        self.0.iter().find_map(|entry| match &entry.word {
            Word::Version(version) => Some(version.as_str()),
            _ => None,
        })
    }

    /// What goes wrong with this module, in the order it was said. Asking uses up what happens once.
    pub(crate) fn of(&self, module: &str) -> Vec<&Word> {
        let of_this = self
            .0
            .iter()
            .filter(|entry| module.starts_with(&entry.modules));
        let happens = of_this.filter(|entry| match &entry.once {
            None => true,
            Some(marker) => File::create_new(marker).is_ok(),
        });
        happens.map(|entry| &entry.word).collect()
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Self, String> {
        let (rest, once) = match text.split_once(":once=") {
            Some((rest, marker)) => (rest, Some(marker.to_owned())),
            None => (text, None),
        };
        let (word, modules) = rest.split_once('@').unwrap_or((rest, ""));
        Ok(Self {
            word: Word::parse(word)?,
            modules: modules.to_owned(),
            once,
        })
    }
}

impl Word {
    fn parse(text: &str) -> Result<Self, String> {
        let word = match text.split_once('=') {
            None => match text {
                "exit70" => Self::Exit70,
                "f137" => Self::F137,
                "killed" => Self::Killed,
                "abort" => Self::Abort,
                "segfault" => Self::Segfault,
                "hang" => Self::Hang,
                "garbage" => Self::Garbage,
                "truncated" => Self::Truncated,
                "nothing" => Self::Nothing,
                "newer" => Self::Newer,
                _ => return Err(format!("there is no {text:?}")),
            },
            Some(("slow", seconds)) => {
                let seconds = seconds
                    .parse()
                    .map_err(|error| format!("{text}: {error}"))?;
                let slow = Duration::try_from_secs_f64(seconds);
                Self::Slow(slow.map_err(|error| format!("{text}: {error}"))?)
            }
            Some(("memory", size)) => {
                Self::Memory(size.parse().map_err(|error| format!("{text}: {error}"))?)
            }
            Some(("version", version)) => Self::Version(version.to_owned()),
            Some(_) => return Err(format!("there is no {text:?}")),
        };
        Ok(word)
    }

    /// Does what happens before the module is looked at. Returns the code to end with, if this is
    /// the end.
    pub(crate) fn happen(&self, log: &mut dyn FnMut(&str), held: &mut Vec<u8>) -> Option<ExitCode> {
        match self {
            Self::Exit70 => {
                log(
                    "ERROR: [INTERNAL_ERROR] [NCC_INAS001] Error message: Unexpected exception \
                     (the environment of this stand-in says so)",
                );
                return Some(ExitCode::from(REFUSED));
            }
            Self::F137 => {
                log(
                    "[F137] neuronx-cc was forcibly killed - This most commonly occurs due to \
                     insufficient system memory. Using a smaller data type, dimensions, batch \
                     size, or a larger instance type may help.",
                );
                return Some(ExitCode::from(REFUSED));
            }
            Self::Killed => signal("KILL"),
            Self::Segfault => {
                // Rust's own handler lets the first pass.
                signal("SEGV");
                signal("SEGV");
            }
            Self::Abort => std::process::abort(),
            Self::Slow(time) => std::thread::sleep(*time),
            Self::Memory(size) => held.extend(std::iter::repeat_n(1, size << 20)),
            Self::Hang => hang(),
            Self::Garbage | Self::Truncated | Self::Nothing | Self::Newer | Self::Version(_) => {}
        }
        None
    }
}

/// Ends this process by a signal, as somebody else would.
fn signal(name: &str) {
    let sent = Command::new("sh")
        .args(["-c", &format!("kill -{name} $PPID")])
        // Whoever reads what this process says waits for it alone.
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if let Err(error) = sent {
        eprintln!("fake-neuronx-cc: no signal could be sent: {error}");
    }
    // It arrives at any moment.
    std::thread::sleep(Duration::from_millis(100));
}

/// Never returns in a process that [`hang`] made.
pub(crate) fn hang_on() {
    if std::env::var_os(HANGING).is_some() {
        loop {
            std::thread::park();
        }
    }
}

/// Never returns. What a shell ignores, the program that takes its place ignores too, so that
/// SIGTERM goes unheeded; the child is in the same process group.
fn hang() {
    let script = "trap '' TERM; sleep 3600 & exec \"$0\" \"$@\"";
    let own = std::env::current_exe().unwrap_or_else(|_| "neuronx-cc".into());
    let error = Command::new("sh")
        .arg("-c")
        .arg(script)
        .arg(own)
        .args(std::env::args_os().skip(1))
        .env(HANGING, "1")
        .exec();
    eprintln!("fake-neuronx-cc: cannot hang: {error}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_with_modules_and_markers() {
        let mischief = Mischief::parse("slow=0.5, killed@decode-16,version=1.2.3").unwrap();
        assert_eq!(
            mischief.of("prefill-64"),
            [
                &Word::Slow(Duration::from_millis(500)),
                &Word::Version("1.2.3".to_owned())
            ]
        );
        assert!(mischief.of("decode-16x8").contains(&&Word::Killed));
        assert_eq!(mischief.version(), Some("1.2.3"));
        assert_eq!(Mischief::parse("").unwrap(), Mischief::default());
    }

    #[test]
    fn what_happens_once_happens_to_whoever_makes_the_marker() {
        let folder = tempfile::tempdir().unwrap();
        let marker = folder.path().join("marker");
        let text = format!("exit70@decode:once={}", marker.display());
        let mischief = Mischief::parse(&text).unwrap();
        assert!(mischief.of("prefill").is_empty());
        assert_eq!(mischief.of("decode-1"), [&Word::Exit70]);
        assert!(mischief.of("decode-1").is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "exit71",
            "slow",
            "slow=soon",
            "slow=-1",
            "memory=much",
            "exit70=1",
        ] {
            assert!(Mischief::parse(text).is_err(), "{text}");
        }
    }
}
