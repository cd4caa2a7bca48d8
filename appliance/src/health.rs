//! How the server is doing: loading, ready, draining, or lost.

use std::sync::Arc;

use tokio::sync::watch;

use crate::served::Served;

/// Where the server is in its life.
#[derive(Clone, Debug)]
pub enum Phase {
    /// The model is not ready yet; the text says what is being done.
    Loading(String),
    /// The model has produced a token and takes requests.
    Ready(Arc<Served>),
    /// The server is about to end: running requests finish, new ones are refused.
    Draining(Option<Arc<Served>>),
    /// The model failed to load or its device is lost; the text says why.
    Failed(String),
}

/// The phase, written by the server's life and read by whoever answers.
#[derive(Clone, Debug)]
pub struct Health {
    phase: watch::Receiver<Phase>,
}

impl Health {
    /// A view on the phase.
    pub fn new(phase: watch::Receiver<Phase>) -> Self {
        Self { phase }
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Whether the process makes progress: false when work is in flight and no step has landed for too long.
    pub fn live(&self) -> bool {
        !matches!(*self.phase.borrow(), Phase::Failed(_))
    }
}
