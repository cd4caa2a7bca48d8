//! A server under measurement: started on a free port, watched, ended with us.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::peer::Peer;

/// How long a server may take to be ready.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often it is asked whether it is: the error of the time to ready.
const BETWEEN_ASKING: Duration = Duration::from_millis(5);

/// How often the wait is told.
const BETWEEN_TELLING: Duration = Duration::from_secs(5);

/// A running server. Dropping it ends it, and so does our own end, however it comes.
#[derive(Debug)]
pub(super) struct Server {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// From the start of its process to `GET /health` answering 200.
    pub(super) ready_after: Duration,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts `peer`, what it prints going to a file in `folder`, and waits until it is ready.
    pub(super) fn start(peer: &Peer, folder: &Path) -> Result<Server> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = folder.join(format!("{}.log", peer.name.title()));
        let file = File::options().create(true).append(true).open(&log)?;
        let mut command = ended_with_us(&(peer.command)(address));
        let start = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("could not start `setpriv`, a part of util-linux")?;
        let mut server = Server {
            address,
            ready_after: Duration::ZERO,
            child,
            log,
        };
        server.await_ready(start)?;
        Ok(server)
    }

    fn await_ready(&mut self, start: Instant) -> Result<()> {
        let mut told = start;
        while !is_ready(self.address).unwrap_or(false) {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "it ended before it was ready ({status}): {}",
                    self.log_end()
                );
            }
            if start.elapsed() > PATIENCE {
                bail!("not ready after {PATIENCE:?}: {}", self.log_end());
            }
            if told.elapsed() > BETWEEN_TELLING {
                told = Instant::now();
                eprintln!("not ready yet after {:.0} s", start.elapsed().as_secs_f64());
            }
            sleep(BETWEEN_ASKING);
        }
        self.ready_after = start.elapsed();
        Ok(())
    }

    /// The id of its process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it held at once, in bytes (`VmHWM` of `/proc/PID/status`).
    pub(super) fn peak_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.id());
        let status = fs::read_to_string(&path).with_context(|| format!("no {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kib.with_context(|| format!("no VmHWM in {path}"))? * 1024)
    }

    fn log_end(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().rev().take(8).collect();
        let end: Vec<_> = lines.into_iter().rev().collect();
        format!("{} ends: {}", self.log.display(), end.join("; "))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// `command`, which the kernel kills when we end: Ctrl-C, a signal or a crash leave no server.
/// `setpriv` becomes the program, so the process we start is the server itself.
fn ended_with_us(command: &Command) -> Command {
    let mut ended = Command::new("setpriv");
    ended
        .args(["--pdeathsig", "KILL", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => ended.env(name, value),
            None => ended.env_remove(name),
        };
    }
    ended
}

/// Whether `GET /health` answers 200.
fn is_ready(address: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200 "))
}
