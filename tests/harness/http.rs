//! HTTP/1.1 from the client's side, down to the byte: a test decides what is sent, when, and how
//! much of the answer is read.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;

use crate::PATIENCE;
use crate::sse::Stream;

/// A request as bytes to be.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    /// A request without a body.
    pub fn new(method: &str, target: &str) -> Self {
        Self::bare(method, target).header("host", "appliance.test")
    }

    /// The same without any header.
    pub fn bare(method: &str, target: &str) -> Self {
        Self {
            method: method.into(),
            target: target.into(),
            headers: Vec::new(),
            body: None,
        }
    }

    /// `GET target`.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// `POST target` with a JSON body.
    pub fn post(target: &str, body: &Value) -> Self {
        Self::new("POST", target)
            .header("content-type", "application/json")
            .body(body.to_string())
    }

    /// Adds a header, whatever stands there already.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body; `content-length` follows from it.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// What goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        if let Some(body) = &self.body {
            bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }
}

/// The first part of an answer: its status and headers.
#[derive(Clone, Debug)]
pub struct Head {
    /// 200, 404, ..
    pub status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    /// The value of a header, its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name)?;
        Some(&found.1)
    }

    /// The names of all headers, in lower case.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.headers.iter().map(|(name, _)| name.as_str())
    }

    fn read(from: &mut impl BufRead) -> io::Result<Self> {
        let line = crlf_line(from)?;
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| broken(format!("not a status line: {line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = crlf_line(from)?;
            if line.is_empty() {
                return Ok(Self { status, headers });
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| broken(format!("not a header: {line:?}")))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn framing(&self) -> io::Result<Framing> {
        match (
            self.header("transfer-encoding"),
            self.header("content-length"),
        ) {
            _ if self.status / 100 == 1 || self.status == 204 || self.status == 304 => {
                Ok(Framing::Length(0))
            }
            (Some("chunked"), None) => Ok(Framing::Chunked { left: 0 }),
            (None, Some(length)) => length
                .parse()
                .map(Framing::Length)
                .map_err(|_| broken(format!("content-length: {length}"))),
            (None, None) => Ok(Framing::UntilClosed),
            both => Err(broken(format!("two framings: {both:?}"))),
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status and headers.
    pub head: Head,
    /// The body, its framing taken off.
    pub body: Vec<u8>,
}

impl Response {
    /// 200, 404, ..
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The value of a header, its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the server writes UTF-8")
    }

    /// The body as JSON; fails the test with the body if it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }
}

/// One connection to the server.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects; a read or write that stalls for [`PATIENCE`] fails.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // A small buffer, so that a stream that is not read stops its writer soon: `slow` tests.
        let reader = BufReader::with_capacity(4096, stream);
        Ok(Self { reader })
    }

    /// Makes the kernel hold as little unread data for this connection as it can.
    pub fn narrow(self) -> io::Result<Self> {
        socket2::SockRef::from(self.reader.get_ref()).set_recv_buffer_size(4096)?;
        Ok(self)
    }

    /// Writes raw bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Says that nothing more will be written, and goes on reading.
    pub fn finish_writing(&mut self) -> io::Result<()> {
        self.reader.get_ref().shutdown(Shutdown::Write)
    }

    /// Writes a request.
    pub fn send(&mut self, request: &Request) -> io::Result<()> {
        self.write(&request.bytes())
    }

    /// Reads status and headers, past any `100 Continue`.
    pub fn head(&mut self) -> io::Result<Head> {
        loop {
            let head = Head::read(&mut self.reader)?;
            if head.status != 100 {
                return Ok(head);
            }
        }
    }

    /// Reads a whole answer; the connection can be used again if the server keeps it.
    pub fn response(&mut self) -> io::Result<Response> {
        let head = self.head()?;
        let framing = head.framing()?;
        let mut body = Vec::new();
        Body {
            reader: &mut self.reader,
            framing,
        }
        .read_to_end(&mut body)?;
        Ok(Response { head, body })
    }

    /// Sends a request and reads its whole answer.
    pub fn exchange(&mut self, request: &Request) -> io::Result<Response> {
        self.send(request)?;
        self.response()
    }

    /// Reads the head of an answer whose body is a stream of events.
    pub fn stream(mut self) -> io::Result<Stream> {
        let head = self.head()?;
        let framing = head.framing()?;
        Ok(Stream::new(
            head,
            Body {
                reader: self.reader,
                framing,
            },
        ))
    }

    /// Reads whatever comes until the server closes; a reset counts as closed.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.reader.read_to_end(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(bytes),
            read => read.map(|_| bytes),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Framing {
    Length(usize),
    Chunked { left: usize },
    UntilClosed,
}

/// The body of an answer, its framing taken off as it is read.
#[derive(Debug)]
pub struct Body<R> {
    pub(crate) reader: R,
    pub(crate) framing: Framing,
}

impl<R: BufRead> Read for Body<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.framing {
            Framing::UntilClosed => self.reader.read(into),
            Framing::Length(left) => read_some(&mut self.reader, left, into),
            Framing::Chunked { left } => {
                if *left == 0 {
                    *left = chunk_size(&mut self.reader)?;
                    if *left == 0 {
                        crlf_line(&mut self.reader)?;
                        self.framing = Framing::Length(0);
                        return Ok(0);
                    }
                }
                let count = read_some(&mut self.reader, left, into)?;
                if *left == 0 {
                    crlf_line(&mut self.reader)?;
                }
                Ok(count)
            }
        }
    }
}

/// Reads at most `left` bytes and counts them off; an early end of the connection is an error.
fn read_some(from: &mut impl Read, left: &mut usize, into: &mut [u8]) -> io::Result<usize> {
    let most = into.len().min(*left);
    if most == 0 {
        return Ok(0);
    }
    let count = from.read(&mut into[..most])?;
    if count == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("closed with {left} bytes of the body to come"),
        ));
    }
    *left -= count;
    Ok(count)
}

fn chunk_size(from: &mut impl BufRead) -> io::Result<usize> {
    let line = crlf_line(from)?;
    usize::from_str_radix(&line, 16).map_err(|_| broken(format!("chunk size: {line:?}")))
}

/// Reads a line that ends in CR LF, without them.
pub(crate) fn crlf_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "closed by the server",
        ));
    }
    let line = line
        .strip_suffix(b"\r\n")
        .ok_or_else(|| broken(format!("a line not ended by CR LF: {line:?}")))?;
    String::from_utf8(line.to_vec()).map_err(|_| broken("a line that is not UTF-8".into()))
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
