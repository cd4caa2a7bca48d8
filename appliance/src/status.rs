//! What the server says of itself: the model it serves, what it is doing, and which settings it refused.
//! Whoever asks at `/admin/status` reads it, and so does who reads the instance's status parameter.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::host::ssm::{Parameters, SsmError};

/// The least time from one writing of the status parameter to the next.
const PAUSE: Duration = Duration::from_secs(5);

/// The longest text of a reason: a parameter holds 4 KB.
const LONGEST: usize = 1000;

/// What the server says of itself.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub(crate) struct Status {
    /// `loading`, `waiting`, `ready`, `swapping`, `draining` or `failed`.
    state: &'static str,
    /// What is being done, or why it failed.
    detail: String,
    /// The source of the model that serves.
    model: Option<String>,
    /// A digest of the parameters in force, to compare instances by.
    settings: Option<String>,
    /// Why the newest settings are refused; those before stay in force.
    refused: Option<String>,
    /// Why the newest model does not serve; the one before stays.
    kept: Option<String>,
    /// The server's own version.
    version: &'static str,
}

/// Where the status stands. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct Board(watch::Sender<Status>);

impl Board {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Status {
            state: "loading",
            detail: String::new(),
            model: None,
            settings: None,
            refused: None,
            kept: None,
            version: env!("CARGO_PKG_VERSION"),
        }))
    }

    /// The status now.
    pub(crate) fn now(&self) -> Status {
        self.0.borrow().clone()
    }

    /// The server is in this state, and does this.
    pub(crate) fn state(&self, state: &'static str, detail: &str) {
        self.change(|status| {
            status.state = state;
            status.detail = short(detail);
        });
    }

    /// This model serves, with these settings.
    pub(crate) fn serves(&self, model: &str, settings: &str) {
        self.change(|status| {
            status.state = "ready";
            status.detail.clear();
            status.model = Some(model.to_owned());
            status.settings = Some(settings.to_owned());
            status.kept = None;
        });
    }

    /// The newest settings are refused, or are not any more.
    pub(crate) fn refused(&self, why: Option<String>) {
        self.change(|status| status.refused = why.as_deref().map(short));
    }

    /// The newest model does not serve: the one before does again.
    pub(crate) fn kept(&self, why: &str) {
        self.change(|status| {
            status.state = "ready";
            status.detail.clear();
            status.kept = Some(short(why));
        });
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        self.0.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }

    /// Keeps the status parameter of `instance` true for ever; gives up where that is not allowed.
    pub(crate) async fn keep_written(self, parameters: Parameters, instance: String) {
        let mut changes = self.0.subscribe();
        loop {
            let status = changes.borrow_and_update().clone();
            let text = serde_json::to_string(&status).unwrap_or_default();
            match parameters.write_status(&instance, &text).await {
                Ok(()) => {}
                Err(denied @ SsmError::Denied { .. }) => {
                    tracing::warn!("{denied}; the status is not written any more");
                    return;
                }
                Err(error) => {
                    tracing::debug!("{error}");
                    changes.mark_changed();
                }
            }
            tokio::time::sleep(PAUSE).await;
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}
