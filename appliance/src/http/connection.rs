//! One connection, from its first byte to its last, and how long it may keep us waiting.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Shared;
use super::exchange;

/// Bytes of answers that wait to be written, at most: a reader that falls behind is felt by the
/// engine, not by our memory. Also the longest head of a request.
const BUFFER: usize = 64 * 1024;

/// Requests that one HTTP/2 connection may have in flight.
const STREAMS: u32 = 256;

/// How often an HTTP/2 connection is asked whether its peer is still there.
const PING: Duration = Duration::from_secs(20);

/// Answers all requests of a connection, which TLS may make private first.
pub(super) async fn attend(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>) {
    // Each token is its own small write, and must leave at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, "cannot turn off Nagle's algorithm: {error}");
    }
    match &shared.tls {
        None => attend_open(stream, peer, shared).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => attend_open(stream, peer, shared).await,
            Err(error) => tracing::debug!(%peer, "no TLS with this client: {error}"),
        },
    }
}

/// Answers all requests of a connection; returns when it has ended or its client has kept us
/// waiting for too long.
async fn attend_open(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    shared: &Arc<Shared>,
) {
    let waiting = Arc::new(Waiting::new());
    let service = service_fn(|request| {
        let (shared, waiting) = (Arc::clone(shared), Arc::clone(&waiting));
        async move { Ok::<_, Infallible>(exchange::answer(&shared, peer, waiting, request).await) }
    });
    let builder = builder(shared.limits.idle);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut closing = shared.closing.subscribe();
    let mut told = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, "connection ended: {error}");
                }
                return;
            }
            _ = closing.wait_for(|closing| *closing), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            () = waiting.longer_than(shared.limits.idle) => {
                tracing::debug!(%peer, "connection closed: its client has gone quiet");
                return;
            }
        }
    }
}

fn builder(idle: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(PING)
        .max_send_buf_size(BUFFER);
    builder
}

/// Since when a connection's client owes something: its next request, or taking a part of an answer.
#[derive(Debug)]
pub(super) struct Waiting {
    origin: Instant,
    /// Requests being answered.
    answering: AtomicUsize,
    /// Milliseconds from `origin` to when the client began to owe, or [`NOTHING_OWED`].
    since: AtomicU64,
}

const NOTHING_OWED: u64 = u64::MAX;

impl Waiting {
    fn new() -> Self {
        Self {
            origin: Instant::now(),
            answering: AtomicUsize::new(0),
            since: AtomicU64::new(0),
        }
    }

    /// A request has come.
    pub(super) fn begin(self: &Arc<Self>) -> Answering {
        self.answering.fetch_add(1, Ordering::Relaxed);
        self.settled();
        Answering(Arc::clone(self))
    }

    /// The client owes from now on.
    pub(super) fn owed(&self) {
        self.since.store(self.now(), Ordering::Relaxed);
    }

    /// The client owes nothing.
    pub(super) fn settled(&self) {
        self.since.store(NOTHING_OWED, Ordering::Relaxed);
    }

    /// Returns once the client has owed for `patience`.
    async fn longer_than(&self, patience: Duration) {
        loop {
            let owed = match self.since.load(Ordering::Relaxed) {
                NOTHING_OWED => Duration::ZERO,
                since => Duration::from_millis(self.now().saturating_sub(since)),
            };
            if owed >= patience {
                return;
            }
            let rest = patience.saturating_sub(owed);
            tokio::time::sleep(rest.max(Duration::from_millis(1))).await;
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(NOTHING_OWED - 1)
    }
}

/// A request that is being answered; dropped when the last byte of the answer is written, or never
/// will be.
#[derive(Debug)]
pub(super) struct Answering(Arc<Waiting>);

impl Answering {
    /// A part of the answer was handed out to be written.
    pub(super) fn handed_out(&self) {
        self.0.owed();
    }

    /// There is room for the next part.
    pub(super) fn taken(&self) {
        self.0.settled();
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if self.0.answering.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.owed();
        }
    }
}
