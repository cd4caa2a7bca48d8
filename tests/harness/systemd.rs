//! systemd as a service knows it: a socket that takes its messages, a store for its descriptors, and the
//! variables and descriptors that it is started with.

use std::ffi::OsString;
use std::io::IoSliceMut;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

use crate::models::{Model, scratch};
use crate::server::Server;
use crate::within;

/// Gives the server the descriptor that is its standard input as number 3, as systemd does.
const PASS: &str = r#"exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@""#;

/// The same without one.
const PLAIN: &str = r#"exec "$@""#;

/// The service manager of one unit.
#[derive(Debug)]
pub struct Systemd {
    socket: PathBuf,
    watchdog: Option<Duration>,
    heard: Arc<Mutex<Heard>>,
}

/// What the unit has said.
#[derive(Default, Debug)]
struct Heard {
    /// Assignments, and when they came.
    lines: Vec<(Instant, String)>,
    /// Descriptors to keep, by name.
    store: Vec<(String, OwnedFd)>,
}

impl Systemd {
    /// One that hears from now on. With a `watchdog` it says how often it wants to be told of life.
    pub fn new(watchdog: Option<Duration>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Short: the path of a socket has 108 bytes.
        let socket = std::env::temp_dir().join(format!("appliance-notify-{process}-{number}"));
        std::fs::remove_file(&socket).ok();
        std::fs::create_dir_all(scratch()).expect("a directory under target");
        let ear = UnixDatagram::bind(&socket).expect("a socket");
        let heard = Arc::new(Mutex::default());
        let mut writes = Arc::downgrade(&heard);
        ear.set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a socket has a time limit");
        thread::spawn(move || while listen(&ear, &mut writes) {});
        Self {
            socket,
            watchdog,
            heard,
        }
    }

    /// Starts a server and waits until it listens: with what the store keeps, if anything.
    pub fn start(&self, address: SocketAddr, model: &Model, flags: &[&str]) -> Server {
        self.start_with(&[], address, model, flags)
    }

    /// The same with further variables.
    pub fn start_with(
        &self,
        environment: &[(&str, OsString)],
        address: SocketAddr,
        model: &Model,
        flags: &[&str],
    ) -> Server {
        let kept = {
            let heard = self.heard();
            let kept = heard.store.first();
            kept.map(|(name, descriptor)| {
                let descriptor = descriptor.try_clone().expect("a second handle");
                (name.clone(), descriptor)
            })
        };
        self.start_passing(kept, environment, address, model, flags)
    }

    /// Starts a server whose socket a socket unit has bound.
    pub fn activate(&self, socket: TcpListener, model: &Model, flags: &[&str]) -> Server {
        let passed = ("appliance.socket".to_owned(), socket.into());
        let elsewhere = SocketAddr::from(([127, 0, 0, 1], 0));
        self.start_passing(Some(passed), &[], elsewhere, model, flags)
    }

    fn start_passing(
        &self,
        passed: Option<(String, OwnedFd)>,
        environment: &[(&str, OsString)],
        address: SocketAddr,
        model: &Model,
        flags: &[&str],
    ) -> Server {
        let mut variables = vec![("NOTIFY_SOCKET", self.socket.clone().into_os_string())];
        if let Some(watchdog) = self.watchdog {
            variables.push(("WATCHDOG_USEC", watchdog.as_micros().to_string().into()));
        }
        variables.extend(environment.iter().cloned());
        match passed {
            Some((name, descriptor)) => {
                variables.push(("LISTEN_FDNAMES", name.into()));
                let stdin = Stdio::from(descriptor);
                Server::through(PASS, stdin, address, &variables, model, flags)
            }
            None => Server::through(PLAIN, Stdio::null(), address, &variables, model, flags),
        }
    }

    /// All assignments so far, in order.
    pub fn lines(&self) -> Vec<String> {
        self.heard()
            .lines
            .iter()
            .map(|(_, line)| line.clone())
            .collect()
    }

    /// When each assignment that begins with `start` came.
    pub fn times(&self, start: &str) -> Vec<Instant> {
        let heard = self.heard();
        let lines = heard
            .lines
            .iter()
            .filter(|(_, line)| line.starts_with(start));
        lines.map(|(at, _)| *at).collect()
    }

    /// Waits for an assignment that begins with `start`.
    pub fn hears(&self, start: &str, bound: Duration) {
        within(bound, &format!("systemd is told {start}"), || {
            !self.times(start).is_empty()
        });
    }

    /// Names of the descriptors that are kept.
    pub fn kept(&self) -> Vec<String> {
        self.heard()
            .store
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Forgets what was said.
    pub fn forget(&self) {
        self.heard().lines.clear();
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        std::fs::remove_file(&self.socket).ok();
    }
}

/// Takes a message; whether anybody is left who wants to know of it.
fn listen(ear: &UnixDatagram, heard: &mut std::sync::Weak<Mutex<Heard>>) -> bool {
    let mut bytes = [0; 4096];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<UnixAddr>(
        ear.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    );
    let Some(heard) = heard.upgrade() else {
        return false;
    };
    let Ok(message) = message else { return true };
    let mut descriptors = Vec::new();
    for control in message.cmsgs().expect("control messages that fit") {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            descriptors.extend(numbers.into_iter().map(owned));
        }
    }
    let length = message.bytes;
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    let name = name.unwrap_or("stored").to_owned();
    if text.lines().any(|line| line == "FDSTORE=1") {
        heard.store.extend(
            descriptors
                .into_iter()
                .map(|descriptor| (name.clone(), descriptor)),
        );
    }
    if text.lines().any(|line| line == "FDSTOREREMOVE=1") {
        heard.store.retain(|(kept, _)| *kept != name);
    }
    let now = Instant::now();
    heard
        .lines
        .extend(text.lines().map(|line| (now, line.to_owned())));
    true
}

#[expect(unsafe_code, reason = "a descriptor that was received is a number")]
fn owned(number: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made it for this process, and nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(number) }
}
