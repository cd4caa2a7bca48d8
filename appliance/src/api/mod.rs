//! Wire dialects: bodies to asks, pieces to chunks. Nothing here knows a socket.

use std::sync::Arc;

use axum::Router;

use crate::config::Resolved;
use crate::health::Health;
use crate::metrics::Metrics;

/// What every handler can reach. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Context {
    /// Whether there is a model, and which.
    pub health: Health,
    /// What is counted.
    pub metrics: Metrics,
    /// The settings.
    pub settings: Arc<Resolved>,
}

/// All routes.
pub fn router(context: Context) -> Router {
    let _ = context;
    Router::new()
}
