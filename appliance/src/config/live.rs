//! The settings as they are now, for those who must notice when they change.

use std::sync::Arc;

use tokio::sync::watch;

use super::Resolved;

/// The settings in force. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Live(watch::Sender<Arc<Resolved>>);

impl Live {
    /// Begins with these.
    pub fn new(settings: Resolved) -> Self {
        Self(watch::Sender::new(Arc::new(settings)))
    }

    /// The settings now.
    pub fn now(&self) -> Arc<Resolved> {
        Arc::clone(&self.0.borrow())
    }

    /// From now on these hold.
    pub fn replace(&self, settings: Arc<Resolved>) {
        self.0.send_replace(settings);
    }

    /// Tells of every change from now on.
    pub fn changes(&self) -> watch::Receiver<Arc<Resolved>> {
        self.0.subscribe()
    }
}
