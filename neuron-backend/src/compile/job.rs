//! One run of the compiler: a directory and a process group of its own, which end with it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// Where what it says is kept, in its directory.
const SAID: &str = "said.txt";

/// Lines of what it wrote that are shown.
const TAIL: usize = 40;

/// Bytes at the end of a file that are looked at for them.
const TAIL_BYTES: u64 = 64 << 10;

/// How the compiler says that one of its processes was killed for want of memory.
const OUT_OF_MEMORY: &str = "[F137]";

/// A run of the compiler. Dropping it kills whatever is left of it and removes its directory.
#[derive(Debug)]
pub(super) struct Job {
    child: Child,
    group: Pid,
    directory: PathBuf,
    started: Instant,
    limit: Duration,
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ended {
    /// By itself, or by a signal of somebody else's.
    Status(ExitStatus),
    /// By us: it took too long.
    Late,
}

impl Job {
    /// Starts `program` in `directory`, which is made for it.
    pub(super) fn start(
        program: &OsStr,
        arguments: &[String],
        directory: PathBuf,
        limit: Duration,
    ) -> io::Result<Self> {
        let said = File::create(directory.join(SAID))?;
        let child = Command::new(reachable(program)?)
            .args(arguments)
            .current_dir(&directory)
            // What it would leave in /tmp goes with the directory.
            .env("TMPDIR", &directory)
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .process_group(0)
            .spawn()?;
        let group = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok(Self {
            child,
            group: Pid::from_raw(group),
            directory,
            started: Instant::now(),
            limit,
        })
    }

    /// How it ended, if it has; its whole group has then, too.
    pub(super) fn ended(&mut self) -> io::Result<Option<Ended>> {
        if self.is_over()? {
            return Ok(Some(Ended::Status(self.end()?)));
        }
        if self.started.elapsed() > self.limit {
            self.end()?;
            return Ok(Some(Ended::Late));
        }
        Ok(None)
    }

    /// Whether the first process is over. It is left unreaped: until it is reaped nobody else
    /// can have its number, so that killing its group kills no stranger.
    fn is_over(&self) -> io::Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        loop {
            match waitid(Id::Pid(self.group), flags) {
                Ok(WaitStatus::StillAlive) => return Ok(false),
                Ok(_) => return Ok(true),
                // A second look at one that was reaped.
                Err(Errno::ECHILD) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Kills all of it. The compiler heeds SIGTERM only after minutes.
    fn end(&mut self) -> io::Result<ExitStatus> {
        match killpg(self.group, Signal::SIGKILL) {
            // Nobody is left.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
        self.child.wait()
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The number of its process group.
    pub(super) fn group(&self) -> i32 {
        self.group.as_raw()
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// What it said, all of it.
    pub(super) fn said(&self) -> String {
        end_of(&self.directory.join(SAID), u64::MAX)
    }

    /// The last lines that it said, or else wrote to `log` in its directory.
    pub(super) fn tail(&self, log: &str) -> String {
        [SAID, log]
            .iter()
            .map(|file| last_lines(&end_of(&self.directory.join(file), TAIL_BYTES)))
            .find(|lines| !lines.is_empty())
            .unwrap_or_else(|| "(nothing)".to_owned())
    }

    /// Whether it said, or wrote to `log`, that memory ran out.
    pub(super) fn lacked_memory(&self, log: &str) -> bool {
        [SAID, log]
            .iter()
            .any(|file| end_of(&self.directory.join(file), TAIL_BYTES).contains(OUT_OF_MEMORY))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.end().ok();
        }
        // Those that were killed a moment ago may still be writing.
        for _ in 0..50 {
            match fs::remove_dir_all(&self.directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
        let directory = self.directory.display();
        tracing::warn!(%directory, "the compiler's directory cannot be removed");
    }
}

/// Kills every process that works in `directory` or below: what a run that was itself killed has
/// left behind.
pub(crate) fn kill_all_in(directory: &Path) {
    let Ok(directory) = directory.canonicalize() else {
        return;
    };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let works_in = fs::read_link(entry.path().join("cwd"));
        if works_in.is_ok_and(|path| path.starts_with(&directory)) {
            tracing::warn!(pid, "a compiler of an earlier run is killed");
            // Its owner may be another, or it may be gone: nothing is to be done then.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// A path that means the same from another directory; a name without a slash is looked for on
/// PATH.
fn reachable(program: &OsStr) -> io::Result<PathBuf> {
    let path = Path::new(program);
    match path.components().count() {
        1 if !path.is_absolute() && !program.as_encoded_bytes().contains(&b'/') => Ok(path.into()),
        _ => std::path::absolute(path),
    }
}

/// The last bytes of a file as text; none if it cannot be read.
fn end_of(path: &Path, most: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

/// `exit code 70`, `signal 9`.
pub(super) fn told(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
