//! What was called: a line of JSON for each call of interest in the file named by
//! `FAKE_NRT_JOURNAL`, so that a test can count executions and find how busy a core was.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::settings::Settings;
use crate::status::{Failure, refuse};

/// A call.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Entry {
    /// `init`, `close`, `load`, `unload`, `execute`, `tensor_allocate`, `tensor_write`,
    /// `tensor_read`, `tensor_copy`, `tensor_memset`.
    pub call: String,
    /// When it was called, in microseconds since 1970.
    pub start_us: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Of an execution: how long the device computed, in microseconds, waiting for other ranks not
    /// counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_us: Option<u64>,
    /// The status it returned.
    pub status: u32,
    /// The logical core, as the process numbers them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<u32>,
    /// The rank of a model with collectives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// The model's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The tensor's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// Bytes read, written, copied or allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// When a call started.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    since_1970: Duration,
    instant: Instant,
}

impl Start {
    /// Now.
    pub fn now() -> Self {
        Self {
            since_1970: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            instant: Instant::now(),
        }
    }
}

/// Microseconds that fit.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The file, if there is one.
#[derive(Debug)]
pub struct Journal(Option<File>);

impl Journal {
    /// Opens the file that the settings name, to write at its end.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(settings: &Settings) -> Result<Self, Failure> {
        let Some(path) = &settings.journal else {
            return Ok(Self(None));
        };
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file =
            file.map_err(|error| refuse!(FAILURE, "FAKE_NRT_JOURNAL {}: {error}", path.display()))?;
        Ok(Self(Some(file)))
    }

    /// Writes a call that started at `start`; `entry` makes the rest and is only asked if somebody
    /// reads it.
    pub fn note(&self, call: &str, start: Start, entry: impl FnOnce() -> Entry) {
        let Some(mut file) = self.0.as_ref() else {
            return;
        };
        let entry = Entry {
            call: call.to_owned(),
            start_us: micros(start.since_1970),
            took_us: micros(start.instant.elapsed()),
            ..entry()
        };
        let Ok(mut line) = serde_json::to_vec(&entry) else {
            return;
        };
        line.push(b'\n');
        // One write, so that lines of several threads and processes do not mix.
        if let Err(error) = file.write_all(&line) {
            eprintln!("fake-nrt: the journal: {error}");
        }
    }
}

/// The calls in a journal, in the order they ended. A last line that is still being written is left
/// out.
///
/// # Errors
/// The file cannot be read, or is no journal.
pub fn read(path: &Path) -> std::io::Result<Vec<Entry>> {
    let text = std::fs::read_to_string(path)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().map(serde_json::from_str);
    Ok(lines.collect::<Result<_, _>>()?)
}

/// How long at least one of these calls was under way. For the time that a core was busy, give the
/// executions of that core.
pub fn busy<'a>(calls: impl IntoIterator<Item = &'a Entry>) -> Duration {
    let mut spans: Vec<_> = calls
        .into_iter()
        .map(|call| (call.start_us, call.start_us + call.took_us))
        .collect();
    spans.sort_unstable();
    let (mut busy, mut reached) = (0, 0);
    for (start, end) in spans {
        busy += end.saturating_sub(start.max(reached));
        reached = reached.max(end);
    }
    Duration::from_micros(busy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(start_us: u64, took_us: u64) -> Entry {
        Entry {
            start_us,
            took_us,
            ..Entry::default()
        }
    }

    #[test]
    fn calls_at_the_same_time_are_busy_once() {
        let calls = [entry(10, 5), entry(12, 10), entry(13, 1), entry(30, 5)];
        assert_eq!(busy(&calls), Duration::from_micros(17));
        assert_eq!(busy(&[]), Duration::ZERO);
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let variable = (
            "FAKE_NRT_JOURNAL".to_owned(),
            path.to_str().unwrap().to_owned(),
        );
        let journal = Journal::open(&Settings::read([variable]).unwrap()).unwrap();
        journal.note("execute", Start::now(), || Entry {
            core: Some(3),
            model: Some("decode".to_owned()),
            ..Entry::default()
        });
        let calls = read(&path).unwrap();
        assert_eq!(
            (calls.len(), calls[0].call.as_str(), calls[0].core),
            (1, "execute", Some(3))
        );
        assert!(calls[0].start_us > 0);
    }
}
