//! One file of a hub: fetched piece by piece until it is whole, across breaks and starts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};
use ureq::Agent;

use super::listing::Entry;
use super::{Hub, HubError, HubModel, cannot_keep};

/// How often in a row fetching may bring nothing before it is given up.
const ATTEMPTS: u32 = 5;

/// A file to fetch.
#[derive(Debug)]
pub(super) struct Download<'a> {
    pub(super) agent: &'a Agent,
    pub(super) hub: &'a Hub,
    pub(super) model: &'a HubModel,
    pub(super) url: String,
    /// Where its bytes are kept.
    pub(super) blob: PathBuf,
    pub(super) entry: &'a Entry,
    pub(super) bar: &'a ProgressBar,
}

/// Why an attempt ended early.
enum Stop {
    /// It may go on.
    Broken(String),
    /// It will not.
    Failed(HubError),
}

impl Download<'_> {
    /// Fetches what is missing and keeps it under its name. Waits for another process that does the same.
    pub(super) fn run(&self) -> Result<(), HubError> {
        let begun = self.blob.with_extension("incomplete");
        let keep = |error: io::Error| cannot_keep(&begun, &error);
        fs::create_dir_all(self.blob.parent().unwrap_or(&self.blob)).map_err(keep)?;
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&begun)
            .map_err(keep)?;
        file.lock().map_err(keep)?;
        // The other process, or another file with the same bytes.
        if self.blob.exists() {
            self.bar.inc(self.entry.size);
            return match fs::remove_file(&begun) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(keep(error)),
                _ => Ok(()),
            };
        }
        let done = self.bar.position();
        self.fill(&mut file, done)?;
        self.verify(&begun)?;
        fs::rename(&begun, &self.blob).map_err(|error| cannot_keep(&self.blob, &error))
    }

    /// Attempts until the file has all its bytes. `done` are those of other files.
    fn fill(&self, file: &mut File, done: u64) -> Result<(), HubError> {
        let length = |file: &File| {
            let length = file.metadata().map(|metadata| metadata.len());
            length.map_err(|error| cannot_keep(&self.blob, &error))
        };
        let mut in_vain = 0;
        loop {
            let have = length(file)?;
            self.bar.set_position(done + have);
            if have == self.entry.size {
                return Ok(());
            }
            let why = match self.attempt(file, have) {
                Ok(()) => "the connection ended".to_owned(),
                Err(Stop::Broken(why)) => why,
                Err(Stop::Failed(error)) => return Err(error),
            };
            let now = length(file)?;
            in_vain = if now > have { 0 } else { in_vain + 1 };
            if in_vain == ATTEMPTS {
                return Err(self.broken(why));
            }
            if now != self.entry.size {
                tracing::debug!(url = self.url, why, "fetching again");
                wait(in_vain);
            }
        }
    }

    /// Asks for all bytes after the first `have` and appends what comes.
    fn attempt(&self, file: &mut File, have: u64) -> Result<(), Stop> {
        let mut request = self.hub.get(self.agent, &self.url);
        if have > 0 {
            request = request.header("range", format!("bytes={have}-"));
        }
        let broken = |error: &dyn std::fmt::Display| Stop::Broken(error.to_string());
        let response = request.call().map_err(|error| broken(&error))?;
        let start = match response.status().as_u16() {
            206 => have,
            200 => 0,
            416 => {
                self.restart(file)?;
                return Err(Stop::Broken("the file has become shorter".to_owned()));
            }
            status @ (408 | 429 | 500..) => {
                return Err(Stop::Broken(format!("the hub gives status {status}")));
            }
            status => {
                return Err(Stop::Failed(
                    self.hub.refusal(self.model, status, &self.url),
                ));
            }
        };
        if start < have || have > self.entry.size {
            self.restart(file)?;
        }
        let rest = self.entry.size.saturating_sub(start);
        let mut body = response.into_body().into_reader().take(rest);
        let mut bytes = vec![0; 1 << 16];
        loop {
            let count = body.read(&mut bytes).map_err(|error| broken(&error))?;
            if count == 0 {
                return Ok(());
            }
            let written = file.write_all(&bytes[..count]);
            written.map_err(|error| Stop::Failed(cannot_keep(&self.blob, &error)))?;
            self.bar.inc(count as u64);
        }
    }

    fn restart(&self, file: &File) -> Result<(), Stop> {
        let emptied = file.set_len(0);
        emptied.map_err(|error| Stop::Failed(cannot_keep(&self.blob, &error)))
    }

    /// Compares the bytes with the digest that the hub gives, if it does.
    fn verify(&self, begun: &Path) -> Result<(), HubError> {
        let Some(expected) = &self.entry.sha256 else {
            return Ok(());
        };
        let found = digest(begun).map_err(|error| cannot_keep(begun, &error))?;
        if found == expected.to_lowercase() {
            return Ok(());
        }
        fs::remove_file(begun).map_err(|error| cannot_keep(begun, &error))?;
        Err(self.broken(format!("its SHA-256 is {found}, not {expected}")))
    }

    fn broken(&self, why: String) -> HubError {
        HubError::Broken {
            url: self.url.clone(),
            why,
        }
    }
}

/// The SHA-256 of a file, in hexadecimal digits.
fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut bytes = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut bytes)?;
        if count == 0 {
            let digest = digest.finalize();
            return Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        digest.update(&bytes[..count]);
    }
}

/// Waits before the next attempt, longer the more were in vain.
fn wait(in_vain: u32) {
    let pause = Duration::from_millis(100) * 2_u32.pow(2 * in_vain.min(ATTEMPTS));
    #[expect(
        clippy::disallowed_methods,
        reason = "models are fetched before there is an event loop"
    )]
    std::thread::sleep(pause);
}
