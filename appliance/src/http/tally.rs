//! How many of something there are now, and when there are none.

use tokio::sync::watch;

/// Counts what is inside: each guard is one.
#[derive(Clone, Default, Debug)]
pub(super) struct Tally(watch::Sender<usize>);

/// One that is inside, until dropped.
#[derive(Debug)]
pub(super) struct Inside(Tally);

impl Tally {
    pub(super) fn enter(&self) -> Inside {
        self.0.send_modify(|count| *count += 1);
        Inside(self.clone())
    }

    pub(super) fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until nothing is inside.
    pub(super) async fn none(&self) {
        // It fails if the sender has gone, and we hold it.
        self.0.subscribe().wait_for(|count| *count == 0).await.ok();
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
