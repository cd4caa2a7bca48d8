//! Sockets, limits and framing: HTTP/1.1 and HTTP/2 on one port. Nothing here has a meaning; what
//! is answered comes from the router.

mod body;
mod connection;
mod exchange;
mod tally;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use self::tally::Tally;
pub(crate) use self::tls::Tls;
pub use self::tls::TlsError;
use crate::config::Resolved;
use crate::metrics::Metrics;

/// How much of the host clients can take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections open at once.
    connections: usize,
    /// Bytes of a request body.
    body: u64,
    /// How long a client may let us wait for what it owes: a request, or taking what we send.
    idle: Duration,
}

/// An HTTP server that accepts connections until it is told to close.
#[derive(Debug)]
pub(crate) struct Server {
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

/// What every connection can reach.
#[derive(Debug)]
struct Shared {
    router: TowerToHyperService<Router>,
    limits: Limits,
    /// `None` for plain HTTP.
    tls: Option<Tls>,
    metrics: Metrics,
    /// Connections open.
    connections: Tally,
    /// Requests that ask for work and whose answers are not yet written.
    work: Tally,
    /// Whether connections are to end with the request they are at.
    closing: watch::Sender<bool>,
}

impl Server {
    /// Serves `router` to whoever connects to `listener`, over TLS if there is any.
    pub(crate) fn start(
        listener: TcpListener,
        tls: Option<Tls>,
        router: Router,
        settings: &Resolved,
        metrics: Metrics,
    ) -> Self {
        let limits = Limits {
            connections: settings.max_connections.get() as usize,
            body: settings.body_limit.0,
            idle: settings.idle_timeout,
        };
        let shared = Arc::new(Shared {
            router: TowerToHyperService::new(exchange::with_routes_named(router)),
            limits,
            tls,
            metrics,
            connections: Tally::default(),
            work: Tally::default(),
            closing: watch::Sender::new(false),
        });
        if let Some(tls) = &shared.tls {
            tokio::spawn(tls.clone().follow());
        }
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { shared, accepting }
    }

    /// Waits until no request that asks for work is being answered.
    pub(crate) async fn work_done(&self) {
        self.shared.work.none().await;
    }

    /// Stops accepting, lets each connection end the request it is at, and waits for them, at most
    /// for `patience`.
    pub(crate) async fn close(self, patience: Duration) {
        self.accepting.abort();
        self.shared.closing.send_replace(true);
        let closed = tokio::time::timeout(patience, self.shared.connections.none()).await;
        if closed.is_err() {
            let open = self.shared.connections.count();
            tracing::warn!(open, "closing connections that have not ended");
        }
    }
}

/// Accepts connections, no more than the limit at once: the others wait in the kernel's backlog.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(shared.limits.connections));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let Ok(place) = place else { return };
        let (stream, peer) = accepted(&listener).await;
        let shared = Arc::clone(&shared);
        let counted = shared.connections.enter();
        shared.metrics.connections(shared.connections.count());
        tokio::spawn(async move {
            connection::attend(stream, peer, &shared).await;
            drop((counted, place));
            shared.metrics.connections(shared.connections.count());
        });
    }
}

/// The next connection. Errors are of one connection, or pass: out of files, for example.
async fn accepted(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
