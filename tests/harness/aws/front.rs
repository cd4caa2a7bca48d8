//! The side of a fake that faces the wire: HTTP/1.1 on a port of its own, and the manners of a service
//! that is away, slow to answer or busy.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use socket2::{Domain, SockRef, Socket, Type};

use super::clock::Clock;
use super::refusal::{Refusal, refused};
use crate::http::{Body, Framing, crlf_line};

/// The longest body that is read: more than any service takes at once.
const LONGEST: usize = 512 << 20;

/// How many hops packets last.
const USUAL_HOPS: u32 = 64;

/// How a service behaves towards whoever asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Manner {
    /// As it should.
    Works,
    /// Nobody listens: connections are refused, and those that there are get reset.
    Refuses,
    /// Requests are read and not answered, until the manner is another.
    Hangs,
    /// Every request is answered with an error: its status and code, `(503, "SlowDown")`.
    Fails(u16, &'static str),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET`, `PUT`, ..
    pub method: String,
    /// The target up to its query.
    pub path: String,
    /// What follows `?`; empty if nothing does.
    pub query: String,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body, its framing taken off.
    pub body: Vec<u8>,
}

impl Asked {
    /// The value of a header, its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name)?;
        Some(&found.1)
    }

    /// The fields of its query, or of its body where that is a form.
    pub fn fields(&self) -> Vec<(String, String)> {
        let body = String::from_utf8_lossy(&self.body);
        let form = self
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"));
        let text = if form { &*body } else { &self.query };
        text.split('&')
            .filter(|field| !field.is_empty())
            .map(|field| {
                let (name, value) = field.split_once('=').unwrap_or((field, ""));
                (unescaped(name), unescaped(value))
            })
            .collect()
    }

    /// What is asked for in one word: the operation of an AWS service, or `GET /path`.
    pub fn action(&self) -> String {
        if let Some(target) = self.header("x-amz-target") {
            return target.rsplit('.').next().unwrap_or(target).to_owned();
        }
        if let Some((_, operation)) = self.path.split_once("/operation/") {
            return operation.to_owned();
        }
        let action = self.fields().into_iter().find(|(name, _)| name == "Action");
        action.map_or_else(
            || format!("{} {}", self.method, self.path),
            |(_, name)| name,
        )
    }
}

/// `%2F` and `+` as the characters that they stand for.
fn unescaped(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let hex = |byte: Option<u8>| char::from(byte?).to_digit(16);
        plain.push(match byte {
            b'+' => b' ',
            b'%' => {
                let pair = hex(bytes.next()).zip(hex(bytes.next()));
                pair.and_then(|(high, low)| u8::try_from(high * 16 + low).ok())
                    .unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// 200, 404, ..
    pub status: u16,
    /// Headers besides those of framing.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// How many hops its packets last; `None` for as many as usual.
    pub hops: Option<u32>,
}

impl Reply {
    /// An answer with a body of this type.
    pub fn new(status: u16, kind: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: vec![("content-type".to_owned(), kind.to_owned())],
            body: body.into(),
            hops: None,
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

/// Answers requests.
type Service = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A service on a port. Dropping it closes the port.
pub struct Front {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    clock: Clock,
    service: Box<Service>,
}

struct State {
    /// `None` while connections are refused.
    listener: Option<Arc<Socket>>,
    manner: Manner,
    /// How the next requests are answered, before the manner counts again.
    next: VecDeque<(u16, &'static str)>,
    /// What was asked, by [`Asked::action`].
    asked: Vec<String>,
    ended: bool,
}

impl Front {
    /// Listens on a free port of the loopback.
    pub fn start(clock: Clock, service: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_at(address, clock, service).expect("a free port")
    }

    /// Listens at `address`.
    ///
    /// # Errors
    /// The host has no such address, or the port is taken or reserved.
    pub fn start_at(
        address: SocketAddr,
        clock: Clock,
        service: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = listen(address)?;
        let bound = listener.local_addr()?.as_socket();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                listener: Some(Arc::new(listener)),
                manner: Manner::Works,
                next: VecDeque::new(),
                asked: Vec::new(),
                ended: false,
            }),
            changed: Condvar::new(),
            clock,
            service: Box::new(service),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept());
        Ok(Self {
            address: bound.unwrap_or(address),
            shared,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as the SDK wants to know.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Behaves like this from now on.
    pub fn behave(&self, manner: Manner) {
        let mut state = self.shared.state();
        if manner == Manner::Refuses {
            state.close();
        } else if state.listener.is_none() {
            let listener = listen(self.address).expect("the port is still ours");
            state.listener = Some(Arc::new(listener));
        }
        state.manner = manner;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Answers the next `count` requests with an error, then goes on as before.
    pub fn fail_next(&self, count: usize, status: u16, code: &'static str) {
        let next = std::iter::repeat_n((status, code), count);
        self.shared.state().next.extend(next);
    }

    /// What was asked so far, by [`Asked::action`], whatever the answer.
    pub fn asked(&self) -> Vec<String> {
        self.shared.state().asked.clone()
    }

    /// How often `action` was asked for.
    pub fn count(&self, action: &str) -> usize {
        let state = self.shared.state();
        state.asked.iter().filter(|asked| *asked == action).count()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.close();
        state.ended = true;
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl State {
    /// Refuses connections. A listening socket that is shut down wakes the thread that accepts.
    fn close(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.shutdown(Shutdown::Both).ok();
        }
    }
}

/// A socket that listens at `address`.
fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket)
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>) {
        while let Some(listener) = self.listener() {
            while let Ok((socket, _)) = listener.accept() {
                let shared = Arc::clone(&self);
                // A client that goes away ends its connection, and nobody else's.
                thread::spawn(move || shared.serve(socket.into()).ok());
            }
        }
    }

    /// The socket to accept on, once there is one; `None` at the end.
    fn listener(&self) -> Option<Arc<Socket>> {
        let waits = |state: &mut State| state.listener.is_none() && !state.ended;
        let state = self.changed.wait_while(self.state(), waits);
        state
            .unwrap_or_else(PoisonError::into_inner)
            .listener
            .clone()
    }

    /// Answers requests until the client closes.
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut writer = stream;
        while let Some(asked) = read(&mut reader, &mut writer)? {
            let action = asked.action();
            let reply = match self.manner(action) {
                // Who has given up waiting has not asked.
                Manner::Works if has_gone(&writer)? => return Ok(()),
                Manner::Works => (self.service)(&asked),
                Manner::Fails(status, code) => {
                    refused(&asked, &Refusal::new(status, code, "as told"))
                }
                Manner::Refuses | Manner::Hangs => {
                    SockRef::from(&writer).set_linger(Some(std::time::Duration::ZERO))?;
                    return Ok(());
                }
            };
            self.answer(&asked, &reply, &mut writer)?;
        }
        Ok(())
    }

    /// How to answer this request, which is told once that is known.
    fn manner(&self, action: String) -> Manner {
        let mut state = self.state();
        state.asked.push(action);
        if let Some((status, code)) = state.next.pop_front() {
            return Manner::Fails(status, code);
        }
        let waits = |state: &mut State| state.manner == Manner::Hangs && !state.ended;
        let state = self.changed.wait_while(state, waits);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return Manner::Refuses;
        }
        state.manner.clone()
    }

    fn answer(&self, asked: &Asked, reply: &Reply, writer: &mut TcpStream) -> io::Result<()> {
        let mut bytes = format!("HTTP/1.1 {} -\r\n", reply.status).into_bytes();
        let has = |wanted: &str| (reply.headers.iter()).any(|(name, _)| name == wanted);
        for (name, value) in &reply.headers {
            write!(bytes, "{name}: {value}\r\n")?;
        }
        if !has("date") {
            write!(bytes, "date: {}\r\n", self.clock.date())?;
        }
        if !has("content-length") && reply.status != 204 {
            write!(bytes, "content-length: {}\r\n", reply.body.len())?;
        }
        bytes.extend_from_slice(b"\r\n");
        if asked.method != "HEAD" {
            bytes.extend_from_slice(&reply.body);
        }
        let socket = SockRef::from(&*writer);
        // For as long as the answer is on its way: it may have to be sent again.
        socket.set_ttl_v4(reply.hops.unwrap_or(USUAL_HOPS))?;
        let mut sent = &*socket;
        sent.write_all(&bytes)
    }
}

/// Whether the client has closed.
fn has_gone(stream: &TcpStream) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false)?;
    Ok(matches!(peeked, Ok(0))
        || peeked.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock))
}

/// Reads a request; `None` if the client closed before one.
fn read(reader: &mut BufReader<TcpStream>, writer: &mut TcpStream) -> io::Result<Option<Asked>> {
    if reader.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let line = crlf_line(reader)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next(), words.next());
    let (Some(method), Some(target), Some("HTTP/1.1"), None) =
        (method, target, words.next(), words.next())
    else {
        return Err(io::Error::other(format!("not a request: {line:?}")));
    };
    let mut headers = Vec::new();
    loop {
        let line = crlf_line(reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| io::Error::other(format!("not a header: {line:?}")))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut asked = Asked {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Vec::new(),
    };
    if asked
        .header("expect")
        .is_some_and(|what| what == "100-continue")
    {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let framing = match asked.header("content-length") {
        Some(length) => Framing::Length(length.parse().map_err(io::Error::other)?),
        None if asked.header("transfer-encoding").is_some() => Framing::Chunked { left: 0 },
        None => Framing::Length(0),
    };
    let mut body = Body { reader, framing }.take(LONGEST as u64);
    body.read_to_end(&mut asked.body)?;
    Ok(Some(asked))
}
