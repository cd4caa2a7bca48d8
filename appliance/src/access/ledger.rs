//! The ledger: a JSON line for each request that ended, which outlives the process, and what was used as
//! it adds up from the lines.
//!
//! One thread writes it, at the latest a second after a request has ended: a process that is killed loses
//! that second. A file that has grown too large is put aside, and the next begins with what was used so
//! far, so that the newest file says all that a server must know when it starts.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::money::Money;
use super::usage::{Tally, Tokens, Usage};

/// How long a line may wait to be written.
const FLUSH: Duration = Duration::from_secs(1);

/// Lines that wait for the thread, at most; more are lost and counted.
const QUEUE: usize = 8192;

/// Bytes that wait for a disk that takes none, at most.
const BUFFER: usize = 4 << 20;

/// Files that were put aside and are kept, the newest of them.
const KEPT: usize = 16;

/// How long whoever ends the server waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// One line.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Entry {
    /// A request that ended.
    Request(Record),
    /// What was used before this file.
    Carried {
        /// The key's id.
        key: String,
        /// All of it.
        usage: Usage,
    },
}

/// A request that ended.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Record {
    /// When it ended.
    pub time: Timestamp,
    /// The id of its key.
    pub key: String,
    /// What its key is counted under.
    pub project: String,
    /// The model's name.
    pub model: String,
    /// Its id, as in the header `x-request-id`.
    pub request: String,
    /// Tokens of its prompts.
    pub input_tokens: u64,
    /// Those of them that the prefix cache had.
    pub cached_tokens: u64,
    /// Tokens of its answers.
    pub output_tokens: u64,
    /// What it cost, in dollars.
    pub cost: Money,
    /// Seconds from its arrival to its end.
    pub seconds: f64,
    /// Seconds from its arrival to its first token; null if there was none.
    pub first_token_seconds: Option<f64>,
    /// `stop`, `length`, `timeout`, `error`, or `aborted` by its client.
    pub finish: String,
}

impl Record {
    fn tally(&self) -> Tally {
        let tokens = Tokens {
            input: self.input_tokens,
            cached: self.cached_tokens,
            output: self.output_tokens,
        };
        Tally::of(tokens, self.cost)
    }
}

/// What each key has used, as the lines add up.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Sums(BTreeMap<String, Usage>);

impl Sums {
    /// Reads lines. Returns how many are none: the last one of a process that was killed, perhaps.
    pub fn read(&mut self, lines: impl io::BufRead) -> io::Result<u64> {
        let mut bad = 0;
        for line in lines.split(b'\n') {
            match serde_json::from_slice(&line?) {
                Ok(entry) => self.add(&entry),
                Err(_) => bad += 1,
            }
        }
        Ok(bad)
    }

    fn add(&mut self, entry: &Entry) {
        match entry {
            Entry::Request(record) => (self.0.entry(record.key.clone()))
                .or_insert_with(|| Usage::new(record.time))
                .add(record.tally(), record.time),
            Entry::Carried { key, usage } => {
                self.0.insert(key.clone(), *usage);
            }
        }
    }

    /// What the key of that id has used; nothing if it is not known.
    pub fn of(&self, key: &str) -> Usage {
        let used = self.0.get(key).copied();
        used.unwrap_or_else(|| Usage::new(Timestamp::now()))
    }

    /// All ids.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    fn carried(&self) -> impl Iterator<Item = Entry> {
        self.0.iter().map(|(key, usage)| Entry::Carried {
            key: key.clone(),
            usage: *usage,
        })
    }
}

/// Where lines go.
#[derive(Debug)]
pub struct Ledger(SyncSender<Told>);

#[derive(Debug)]
enum Told {
    Entry(Box<Entry>),
    /// Write what there is, then say so.
    Flush(SyncSender<()>),
}

impl Ledger {
    /// Goes on with the file at `path`, which may grow to `most` bytes; also what was used so far.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path, most: u64) -> io::Result<(Self, Sums)> {
        let (writer, sums) = Writer::open(path, most)?;
        let (sender, told) = mpsc::sync_channel(QUEUE);
        (thread::Builder::new().name("ledger".to_owned())).spawn(move || writer.run(&told))?;
        Ok((Self(sender), sums))
    }

    /// Writes a line, soon. Returns whether there is room for it: nobody waits for a disk.
    pub fn write(&self, record: Record) -> bool {
        let told = Told::Entry(Box::new(Entry::Request(record)));
        match self.0.try_send(told) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// Waits until all lines so far are written, for two seconds at most.
    pub fn flush(&self) {
        let (done, written) = mpsc::sync_channel(1);
        if self.0.try_send(Told::Flush(done)).is_ok() {
            // Who cannot write has said so.
            written.recv_timeout(LAST_LINES).ok();
        }
    }
}

/// The thread's side of a ledger.
struct Writer {
    path: PathBuf,
    most: u64,
    file: File,
    /// Bytes in the file.
    size: u64,
    /// What the file does not have yet.
    buffer: Vec<u8>,
    sums: Sums,
    /// Whether writing failed the last time.
    failing: bool,
    /// Lines lost since the last time that it did not.
    lost: u64,
}

impl Writer {
    fn open(path: &Path, most: u64) -> io::Result<(Self, Sums)> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let next = beside(path, "new");
        if !path.exists() && next.exists() {
            // It was about to take the other's place.
            fs::rename(&next, path)?;
        }
        let mut file = options().read(true).open(path)?;
        let mut sums = Sums::default();
        let bad = sums.read(BufReader::new(&file))?;
        if bad > 0 {
            tracing::warn!(bad, ledger = %path.display(), "lines of the ledger cannot be read");
        }
        if !ends_a_line(&file)? {
            file.write_all(b"\n")?;
        }
        let writer = Self {
            path: path.to_owned(),
            most,
            size: file.metadata()?.len(),
            file,
            buffer: Vec::new(),
            sums: sums.clone(),
            failing: false,
            lost: 0,
        };
        Ok((writer, sums))
    }

    /// Until nobody can tell it anything any more.
    fn run(mut self, told: &Receiver<Told>) {
        let mut due = Instant::now() + FLUSH;
        loop {
            match told.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Told::Entry(entry)) => self.add(&entry),
                Ok(Told::Flush(done)) => {
                    self.flush();
                    // Whoever asked may have given up.
                    done.try_send(()).ok();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.flush(),
            }
            if Instant::now() >= due {
                self.flush();
                due = Instant::now() + FLUSH;
            }
        }
    }

    fn add(&mut self, entry: &Entry) {
        self.sums.add(entry);
        if self.buffer.len() > BUFFER {
            self.lost += 1;
            return;
        }
        line(&mut self.buffer, entry);
    }

    fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        match self.written().and_then(|()| self.rotated()) {
            Ok(()) if std::mem::take(&mut self.failing) => {
                let lost = std::mem::take(&mut self.lost);
                tracing::warn!(lost, "the ledger is written again");
            }
            Ok(()) => {}
            Err(_) if self.failing => {}
            Err(error) => {
                self.failing = true;
                let path = self.path.display();
                tracing::error!("cannot write the ledger {path}: {error}; lines wait in memory");
            }
        }
    }

    /// Writes what it can. What a full disk takes of a line is gone on with when there is room.
    fn written(&mut self) -> io::Result<()> {
        while !self.buffer.is_empty() {
            match self.file.write(&self.buffer) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.buffer.drain(..count);
                    self.size += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.file.sync_data()
    }

    /// Puts a file that has grown too large aside. Whenever the process is killed meanwhile, what was used
    /// is still known.
    fn rotated(&mut self) -> io::Result<()> {
        if self.size < self.most {
            return Ok(());
        }
        let next = beside(&self.path, "new");
        let mut lines = Vec::new();
        for entry in self.sums.carried() {
            line(&mut lines, &entry);
        }
        fs::remove_file(&next).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let mut file = options().open(&next)?;
        file.write_all(&lines)?;
        file.sync_data()?;
        let now = Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ").to_string();
        fs::rename(&self.path, beside(&self.path, &now))?;
        fs::rename(&next, &self.path)?;
        self.file = file;
        self.size = lines.len() as u64;
        self.forget_old()
    }

    /// Removes what was put aside longest ago.
    fn forget_old(&self) -> io::Result<()> {
        let (Some(dir), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Ok(());
        };
        let begin = format!("{}.2", name.to_string_lossy());
        let mut aside = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&begin) {
                aside.push(entry.path());
            }
        }
        aside.sort();
        let old = aside.len().saturating_sub(KEPT);
        aside.drain(..old).try_for_each(fs::remove_file)
    }
}

/// What a ledger is opened with: nobody else on the host needs to read it.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    name.into()
}

fn line(out: &mut Vec<u8>, entry: &Entry) {
    serde_json::to_writer(&mut *out, entry).expect("entries have text keys, and memory takes all");
    out.push(b'\n');
}

/// Whether the next line can follow: a process that was killed may have written half of one.
fn ends_a_line(mut file: &File) -> io::Result<bool> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Value as _;

    fn record(key: &str, input_tokens: u64) -> Record {
        Record {
            time: Timestamp::now(),
            key: key.to_owned(),
            project: "p".to_owned(),
            model: "m".to_owned(),
            request: "r".to_owned(),
            input_tokens,
            cached_tokens: 0,
            output_tokens: 2,
            cost: Money::parse("0.25").unwrap(),
            seconds: 1.5,
            first_token_seconds: None,
            finish: "stop".to_owned(),
        }
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn what_was_written_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/ledger.jsonl");
        let (ledger, before) = Ledger::open(&path, 1 << 20).unwrap();
        assert_eq!(before, Sums::default());
        for key in ["a", "b", "a"] {
            assert!(ledger.write(record(key, 10)));
        }
        ledger.flush();
        let written = lines(&path);
        assert_eq!(written.len(), 3);
        assert_eq!(
            (&written[0]["kind"], &written[0]["cost"]),
            (&"request".into(), &0.25.into())
        );
        let (_, after) = Ledger::open(&path, 1 << 20).unwrap();
        assert_eq!(after.of("a").total.input_tokens, 20);
        assert_eq!(after.of("a").month.cost, Money::parse("0.5").unwrap());
        assert_eq!(after.of("nobody").total, Tally::default());
    }

    #[test]
    fn half_a_line_is_passed_over_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut text = Vec::new();
        line(&mut text, &Entry::Request(record("a", 1)));
        text.extend_from_slice(b"{\"kind\":\"request\",\"time\":\"20");
        fs::write(&path, text).unwrap();
        let (ledger, sums) = Ledger::open(&path, 1 << 20).unwrap();
        assert_eq!(sums.of("a").total.requests, 1);
        ledger.write(record("a", 1));
        ledger.flush();
        let (_, sums) = Ledger::open(&path, 1 << 20).unwrap();
        assert_eq!(sums.of("a").total.requests, 2);
    }

    #[test]
    fn a_file_that_is_full_is_put_aside_and_the_next_knows_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (mut writer, _) = Writer::open(&path, 1000).unwrap();
        for _ in 0..100 {
            writer.add(&Entry::Request(record("a", 1)));
            writer.flush();
        }
        let files = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 1 + KEPT);
        assert_eq!(lines(&path)[0]["kind"], "carried");
        assert!(fs::metadata(&path).unwrap().len() < 2000);
        let (_, sums) = Writer::open(&path, 1000).unwrap();
        assert_eq!(sums.of("a").total.requests, 100);
        assert_eq!(sums, writer.sums);
    }

    #[test]
    fn a_process_killed_between_two_files_goes_on_with_the_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut text = Vec::new();
        let usage = Usage::new(Timestamp::now());
        let key = "a".to_owned();
        line(&mut text, &Entry::Carried { key, usage });
        fs::write(beside(&path, "new"), text).unwrap();
        let (_, sums) = Writer::open(&path, 1000).unwrap();
        assert_eq!(sums.keys().collect::<Vec<_>>(), ["a"]);
        assert!(path.exists());
    }

    #[test]
    fn a_disk_that_takes_nothing_costs_lines_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = Writer::open(&dir.path().join("ledger"), 1000).unwrap();
        writer.file = options().open("/dev/full").unwrap();
        for _ in 0..BUFFER / 100 {
            writer.add(&Entry::Request(record("a", 1)));
        }
        writer.flush();
        assert!(writer.failing && writer.lost > 0 && writer.buffer.len() < 2 * BUFFER);
        let waiting = writer.buffer.len() as u64;
        writer.file = options().open(&writer.path).unwrap();
        writer.written().unwrap();
        assert_eq!(fs::metadata(&writer.path).unwrap().len(), waiting);
    }
}
