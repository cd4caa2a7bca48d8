//! The change of the model: the new one proves itself before it takes the old one's place, and whatever fails
//! on the way leaves the old one serving.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::Resolved;
use crate::drivers::{DriverError, Hold};
use crate::health::Phase;
use crate::metrics::Metrics;
use crate::opening::{self, LoadError, Opened, Place, Progress};

/// What a swap works with.
#[derive(Debug)]
pub(crate) struct Swap<'a> {
    /// Where the server is in its life.
    pub(crate) phase: &'a watch::Sender<Phase>,
    /// What is measured.
    pub(crate) metrics: &'a Metrics,
    /// Told of what is being done.
    pub(crate) progress: &'a Progress,
    /// How long requests of the old model may go on if it has to make room first.
    pub(crate) grace: Duration,
}

/// What a swap that failed has left.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The old model serves on: nothing was taken from it.
    Kept(LoadError),
    /// The old model had made room, and serves again.
    Restored(LoadError),
    /// None: the old model had to make room, and could not be opened again.
    Lost(LoadError),
}

impl Swap<'_> {
    /// Puts the model of `new` in the place of `current`, which was opened with `old`. Beside it if the device
    /// has room for both, and then no request notices; else after it.
    ///
    /// # Errors
    /// Why the new model does not serve, and what does instead.
    pub(crate) async fn run(
        &self,
        current: &mut Option<Opened>,
        old: &Arc<Resolved>,
        new: &Arc<Resolved>,
    ) -> Result<(), Failed> {
        match self.open(new, Place::Beside).await {
            Ok(opened) => {
                self.switch(current, opened);
                Ok(())
            }
            Err(LoadError::Driver(DriverError::NoRoom { why, .. })) => {
                tracing::info!("{why}: the model that serves makes room first");
                let _device = Hold::new();
                self.make_room(current).await;
                self.open_in_place(current, old, new).await
            }
            Err(why) => Err(Failed::Kept(why)),
        }
    }

    async fn open(&self, settings: &Arc<Resolved>, place: Place) -> Result<Opened, LoadError> {
        opening::open(settings, place, self.metrics, self.progress).await
    }

    /// From here on `opened` takes the requests. The old model ends with the last that it has taken.
    fn switch(&self, current: &mut Option<Opened>, opened: Opened) {
        self.phase
            .send_replace(Phase::Ready(Arc::clone(&opened.served)));
        let old = current.replace(opened);
        let Some(old) = old else { return };
        let (ending, since, name) = (
            old.dispatch.ending(),
            Instant::now(),
            old.served.name.clone(),
        );
        drop(old);
        tokio::spawn(async move {
            ending.freed().await;
            let seconds = since.elapsed().as_secs_f64();
            tracing::info!(model = name, seconds, "the model before is freed");
        });
    }

    /// Refuses requests, lets those that run finish, and frees the model that serves.
    async fn make_room(&self, current: &mut Option<Opened>) {
        let what = "the model is being replaced";
        self.phase.send_replace(Phase::Loading(what.to_owned()));
        let Some(Opened { served, dispatch }) = current.take() else {
            return;
        };
        let ending = dispatch.ending();
        // Its engines end with the last request that holds on to them, unless that takes too long.
        drop((served, dispatch));
        if tokio::time::timeout(self.grace, ending.freed())
            .await
            .is_err()
        {
            tracing::warn!("the grace period is over: ending what still runs on the model before");
            ending.end("the model was replaced");
            ending.freed().await;
        }
    }

    /// Opens the new model where the old one was, or else the old one again.
    async fn open_in_place(
        &self,
        current: &mut Option<Opened>,
        old: &Arc<Resolved>,
        new: &Arc<Resolved>,
    ) -> Result<(), Failed> {
        let why = match self.open(new, Place::Alone).await {
            Ok(opened) => {
                self.switch(current, opened);
                return Ok(());
            }
            Err(why) => why,
        };
        tracing::warn!("{why}; opening the model before again");
        match self.open(old, Place::Alone).await {
            Ok(opened) => {
                self.switch(current, opened);
                Err(Failed::Restored(why))
            }
            Err(worse) => {
                tracing::error!("the model before cannot be opened again either: {worse}");
                Err(Failed::Lost(worse))
            }
        }
    }
}
