//! The end of a server: readiness off, what runs finishes, then it closes.

use std::sync::Arc;
use std::time::Duration;

use engine::Lost;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::dispatch::Ending;
use crate::health::Phase;
use crate::http;
use crate::served::Served;

/// How long clients have to take what is already written for them.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// SIGTERM and SIGINT: the first asks the server to end, the second makes it.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from here on.
    pub(crate) fn take() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Why a drain did not come to its end.
#[derive(Debug)]
pub(crate) enum Cut {
    /// The device was lost meanwhile.
    Lost(Lost),
    /// A second signal asked for the end at once.
    Now,
}

/// Lets what runs and waits finish within `grace`, refuses what is new, then closes.
///
/// # Errors
/// What came in between.
pub(crate) async fn drain(
    served: Arc<Served>,
    ending: &Ending,
    phase: &watch::Sender<Phase>,
    http: http::Server,
    grace: Duration,
    signals: &mut Signals,
) -> Result<(), Cut> {
    phase.send_replace(Phase::Draining(Some(served)));
    tracing::info!(
        grace_s = grace.as_secs(),
        "draining: new requests are refused, running ones finish"
    );
    let lost = tokio::select! {
        () = http.work_done() => None,
        () = tokio::time::sleep(grace) => {
            tracing::warn!("the grace period is over: ending what still runs");
            None
        }
        ended = ending.ended() => ended.err(),
        () = signals.next() => return Err(Cut::Now),
    };
    ending.end("the server is shutting down");
    tokio::select! {
        () = http.close(LAST_BYTES) => {}
        () = signals.next() => return Err(Cut::Now),
    }
    lost.map_or(Ok(()), |lost| Err(Cut::Lost(lost)))
}

/// The device is lost: every client gets to know, those of other replicas too, then the server closes.
pub(crate) async fn fail(
    lost: &Lost,
    ending: &Ending,
    phase: &watch::Sender<Phase>,
    http: http::Server,
) {
    phase.send_replace(Phase::Failed(lost.to_string()));
    ending.end(&lost.to_string());
    tokio::time::timeout(LAST_BYTES, http.work_done())
        .await
        .ok();
    http.close(LAST_BYTES).await;
}
