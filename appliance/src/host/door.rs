//! The listening socket. systemd keeps it while the program is started again, so that nobody who
//! connects meanwhile is refused: the kernel lets them wait.
//!
//! In the order in which it is looked for: from this program itself, which was started again with other
//! variables in its environment; from systemd, which has kept it (`FDSTORE=1`) or had it ready before the
//! first start (a socket unit); else it is bound here.

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use sd_notify::NotifyState;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::descriptor;

/// The name under which systemd keeps the socket.
const NAME: &str = "http";

/// Set when the program has started itself again, so that it does so once: standard input is the socket.
const AGAIN: &str = "_APPLIANCE_STARTED_AGAIN";

/// What the service manager says of descriptors that it passes. They are closed when the program starts
/// itself again.
const OF_MANAGER: [&str; 3] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// Connections that wait to be accepted; the kernel has a limit of its own.
const BACKLOG: i32 = 1024;

/// The listening socket, open for as long as the process lives.
#[derive(Debug)]
pub(crate) struct Door(TcpListener);

impl Door {
    /// Takes over the socket at `address`, or binds one, and has systemd keep it.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        if let Some(listener) = handed() {
            return Ok(Self(listener));
        }
        let passed = descriptor::passed().unwrap_or_else(|error| {
            tracing::warn!("what systemd says of the sockets it passes is no use: {error}");
            Vec::new()
        });
        let mut listeners = passed.into_iter().filter_map(|(descriptor, name)| {
            let listener = listening(descriptor);
            if listener.is_none() {
                tracing::warn!(
                    name,
                    "systemd passed a descriptor that is no TCP socket: not used"
                );
            }
            Some((listener?, name))
        });
        let listener = match listeners.next() {
            Some((listener, name)) => {
                let at = listener.local_addr()?;
                if name != NAME {
                    // A socket unit decides where.
                    tracing::info!(name, address = %at, "listening where the socket unit does");
                    kept(&listener);
                    listener
                } else if is_at(at, address) {
                    tracing::info!(address = %at, "took back the socket that systemd kept");
                    listener
                } else {
                    tracing::info!(was = %at, "the socket that systemd kept is at another address");
                    forgotten();
                    drop(listener);
                    bound(address)?
                }
            }
            None => bound(address)?,
        };
        Ok(Self(listener))
    }

    /// The socket, to accept on.
    ///
    /// # Errors
    /// The process has too many files open.
    pub(crate) fn listener(&self) -> io::Result<tokio::net::TcpListener> {
        let listener = self.0.try_clone()?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    }

    /// Replaces this process by the same program with more variables in its environment: the libraries
    /// of a device read them as they are loaded, and a process with threads must not change its own.
    /// Process id, arguments, the socket and whatever watches the process stay. Returns why it could not.
    pub(crate) fn start_again(self, variables: &[(&'static str, OsString)]) -> io::Error {
        let named = variables.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        if std::env::var_os(AGAIN).is_some() {
            return io::Error::other(format!("{} did not last", named.join(", ")));
        }
        tracing::info!("starting again with {} set", named.join(", "));
        let program = match std::env::current_exe() {
            Ok(program) => program,
            Err(error) => return error,
        };
        let mut command = Command::new(program);
        for variable in OF_MANAGER {
            command.env_remove(variable);
        }
        command
            .args(std::env::args_os().skip(1))
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .env(AGAIN, "1")
            .stdin(Stdio::from(OwnedFd::from(self.0)))
            .exec()
    }
}

/// Whether the program has been started by itself.
pub(crate) fn is_started_again() -> bool {
    std::env::var_os(AGAIN).is_some()
}

/// The socket that the program left itself as it started again.
fn handed() -> Option<TcpListener> {
    is_started_again().then_some(())?;
    listening(io::stdin().as_fd().try_clone_to_owned().ok()?)
}

/// `descriptor`, if it is a TCP socket at an address.
fn listening(descriptor: OwnedFd) -> Option<TcpListener> {
    let is_stream = SockRef::from(&descriptor).r#type().ok()? == Type::STREAM;
    let listener = TcpListener::from(descriptor);
    (is_stream && listener.local_addr().is_ok()).then_some(listener)
}

/// Whether a socket at `at` is what the setting asks for. Port 0 is any.
fn is_at(at: SocketAddr, asked: SocketAddr) -> bool {
    at.ip() == asked.ip() && (asked.port() == 0 || at.port() == asked.port())
}

fn bound(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = socket.into();
    kept(&listener);
    Ok(listener)
}

/// Has systemd keep the socket. A unit without room for it (`FileDescriptorStoreMax=`) does not.
fn kept(listener: &TcpListener) {
    let state = [NotifyState::FdStore, NotifyState::FdName(NAME)];
    if let Err(error) = sd_notify::notify_with_fds(&state, &[listener.as_fd()]) {
        tracing::warn!("systemd cannot be given the listening socket to keep: {error}");
    }
}

fn forgotten() {
    let state = [NotifyState::FdStoreRemove, NotifyState::FdName(NAME)];
    if let Err(error) = sd_notify::notify(&state) {
        tracing::warn!("systemd cannot be told to let go of the listening socket: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_where_the_setting_asks_for_it() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let check = |at, asked, yes| assert_eq!(is_at(address(at), address(asked)), yes);
        check("127.0.0.1:8000", "127.0.0.1:8000", true);
        check("127.0.0.1:31234", "127.0.0.1:0", true);
        check("127.0.0.1:8000", "127.0.0.1:8001", false);
        check("127.0.0.1:8000", "0.0.0.0:8000", false);
    }

    #[test]
    fn only_a_socket_of_tcp_is_taken() {
        let tcp = bound("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(listening(tcp.into()).is_some());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(listening(udp.into()).is_none());
        let (unix, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(listening(unix.into()).is_none());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(listening(file.into()).is_none());
    }
}
