//! A small S3 of our own, for what moto does not do: connections that break off or drip, bytes that are
//! wrong, objects that change between two ranges. It signs nothing and checks no signature: moto does.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What goes wrong with a `GET` of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// 503 `SlowDown`.
    SlowDown,
    /// 500 `InternalError`.
    Internal,
    /// 403 `AccessDenied`.
    Denied,
    /// The connection breaks off after so many bytes of the body.
    Reset(usize),
    /// One byte is another.
    WrongByte,
    /// The object is another from now on.
    Replaced,
    /// Ranges are not heeded.
    Whole,
    /// Nothing is sent for a while.
    Stalls,
}

/// Objects by `bucket/key`, behind a port. Dropping it closes the port.
#[derive(Debug)]
pub struct S3 {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    ended: AtomicBool,
}

#[derive(Default, Debug)]
struct State {
    objects: BTreeMap<String, Arc<Vec<u8>>>,
    /// Counts up when an object is replaced: part of its `ETag`.
    version: u32,
    /// Of which objects, how many times more, and what.
    faults: Vec<(String, usize, Fault)>,
    /// `GET bucket/key bytes=0-7`
    asked: Vec<String>,
    running: usize,
    most: usize,
}

impl S3 {
    /// An empty one.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A client that goes away ends its connection, and nobody else's.
                thread::spawn(move || shared.serve(&stream?));
            }
        });
        Self { address, shared }
    }

    /// The variables by which the SDK finds it.
    pub fn environment(&self) -> [(&'static str, std::ffi::OsString); 5] {
        [
            (
                "AWS_ENDPOINT_URL_S3",
                format!("http://{}", self.address).into(),
            ),
            ("AWS_REGION", super::REGION.into()),
            ("AWS_ACCESS_KEY_ID", "TEST".into()),
            ("AWS_SECRET_ACCESS_KEY", "TEST".into()),
            ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ]
    }

    /// Puts an object, over one that is there.
    pub fn put(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        let mut state = self.shared.lock();
        state.objects.insert(key.to_owned(), Arc::new(bytes.into()));
    }

    /// Puts the files of a directory under `prefix`.
    pub fn put_files(&self, prefix: &str, directory: &std::path::Path) {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("a file").path();
            let name = path.file_name().expect("a name").to_string_lossy();
            let bytes = std::fs::read(&path).expect("a file can be read");
            self.put(&format!("{prefix}/{name}"), bytes);
        }
    }

    /// The bytes of an object.
    pub fn object(&self, key: &str) -> Option<Arc<Vec<u8>>> {
        self.shared.lock().objects.get(key).cloned()
    }

    /// The keys of all objects.
    pub fn keys(&self) -> Vec<String> {
        self.shared.lock().objects.keys().cloned().collect()
    }

    /// Goes wrong with the next `times` `GET`s of objects whose key ends in `key`.
    pub fn fail(&self, key: &str, times: usize, fault: Fault) {
        self.shared
            .lock()
            .faults
            .push((key.to_owned(), times, fault));
    }

    /// What was asked, such as `GET bucket/key bytes=0-7`.
    pub fn asked(&self) -> Vec<String> {
        self.shared.lock().asked.clone()
    }

    /// The most requests that were under way at once.
    pub fn most_at_once(&self) -> usize {
        self.shared.lock().most
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        TcpStream::connect(self.address).ok();
    }
}

/// A request: its method, target, headers and body.
struct Asked {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// An answer: its status, headers and body, and where the body breaks off.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes that are sent before the connection breaks off.
    cut: Option<usize>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut: None,
        }
    }

    fn error(status: u16, code: &str) -> Self {
        let body = format!("<Error><Code>{code}</Code><Message>as told</Message></Error>");
        Self::new(status, body).header("content-type", "application/xml")
    }

    fn header(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while let Some(asked) = read(&mut reader, stream)? {
            {
                let mut state = self.lock();
                state.running += 1;
                state.most = state.most.max(state.running);
            }
            let answer = self.answer(&asked);
            let sent = send(stream, &answer, asked.method == "HEAD");
            self.lock().running -= 1;
            if !sent? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.path.trim_start_matches('/').to_owned();
        let range = asked.headers.get("range").cloned().unwrap_or_default();
        let line = format!("{} {path} {range}", asked.method);
        self.lock().asked.push(line.trim().to_owned());
        match asked.method.as_str() {
            "GET" if asked.query.contains("list-type=2") => self.list(&path, &asked.query),
            "GET" | "HEAD" => self.get(&path, asked),
            "PUT" => {
                let mut state = self.lock();
                state.objects.insert(path, Arc::new(asked.body.clone()));
                Answer::new(200, "").header("etag", "\"put\"")
            }
            _ => Answer::error(501, "NotImplemented"),
        }
    }

    fn list(&self, path: &str, query: &str) -> Answer {
        let bucket = path.split('/').next().unwrap_or_default();
        let prefix = query
            .split('&')
            .find_map(|field| field.strip_prefix("prefix="));
        let prefix = prefix.unwrap_or_default().replace("%2F", "/");
        let start = format!("{bucket}/{prefix}");
        let state = self.lock();
        let listed = state
            .objects
            .iter()
            .filter(|(key, _)| key.starts_with(&start));
        let contents: String = listed
            .map(|(key, bytes)| {
                let (key, size) = (&key[bucket.len() + 1..], bytes.len());
                let etag = etag(state.version, bytes);
                format!(
                    "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{etag}</ETag></Contents>"
                )
            })
            .collect();
        let body = format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        );
        Answer::new(200, body).header("content-type", "application/xml")
    }

    fn get(&self, path: &str, asked: &Asked) -> Answer {
        let fault = self.fault(path);
        match fault {
            Some(Fault::SlowDown) => return Answer::error(503, "SlowDown"),
            Some(Fault::Internal) => return Answer::error(500, "InternalError"),
            Some(Fault::Denied) => return Answer::error(403, "AccessDenied"),
            Some(Fault::Replaced) => self.lock().version += 1,
            Some(Fault::Stalls) => thread::sleep(Duration::from_secs(2)),
            _ => {}
        }
        let state = self.lock();
        let Some(bytes) = state.objects.get(path).cloned() else {
            return Answer::error(404, "NoSuchKey");
        };
        let etag = etag(state.version, &bytes);
        drop(state);
        let wanted = asked.headers.get("if-match");
        if wanted.is_some_and(|wanted| *wanted != etag) {
            return Answer::error(412, "PreconditionFailed");
        }
        let range = asked
            .headers
            .get("range")
            .filter(|_| fault != Some(Fault::Whole));
        let range = range.and_then(|range| {
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?))
        });
        let mut answer = match range {
            Some((from, to)) if to < bytes.len() => {
                let range = format!("bytes {from}-{to}/{}", bytes.len());
                Answer::new(206, &bytes[from..=to]).header("content-range", range)
            }
            Some(_) => return Answer::error(416, "InvalidRange"),
            None => Answer::new(200, bytes.to_vec()),
        };
        match fault {
            Some(Fault::WrongByte) => {
                let middle = answer.body.len() / 2;
                answer.body[middle] ^= 1;
            }
            Some(Fault::Reset(after)) => answer.cut = Some(after.min(answer.body.len())),
            _ => {}
        }
        answer.header("etag", etag)
    }

    /// What goes wrong this time.
    fn fault(&self, path: &str) -> Option<Fault> {
        let mut state = self.lock();
        let at = state
            .faults
            .iter()
            .position(|(key, ..)| path.ends_with(key))?;
        let (_, times, fault) = &mut state.faults[at];
        let fault = *fault;
        *times -= 1;
        if *times == 0 {
            state.faults.remove(at);
        }
        Some(fault)
    }
}

/// Like S3's, it tells bytes apart and is in quotes.
fn etag(version: u32, bytes: &[u8]) -> String {
    let sum = bytes
        .iter()
        .fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
    format!("\"{version}-{sum:x}\"")
}

fn read(reader: &mut impl BufRead, mut writer: impl Write) -> io::Result<Option<Asked>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let first = lines.first().cloned().unwrap_or_default();
    let mut words = first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines[1.min(lines.len())..].iter().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    });
    let headers: BTreeMap<_, _> = headers.collect();
    if headers.contains_key("expect") {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let length = headers
        .get("content-length")
        .and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok(Some(Asked {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body,
    }))
}

/// Sends an answer; false if the connection is to be broken off.
fn send(mut stream: &TcpStream, answer: &Answer, head: bool) -> io::Result<bool> {
    let mut text = format!("HTTP/1.1 {} Told\r\n", answer.status);
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("content-length: {}\r\n\r\n", answer.body.len()));
    stream.write_all(text.as_bytes())?;
    if head {
        return Ok(true);
    }
    stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())])?;
    Ok(answer.cut.is_none())
}
