//! `GET /v1/models` and `/v1/models/{id}`: what is served.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::Serialize;

use super::Api;
use super::error::ApiError;
use crate::access::Caller;
use crate::served::Served;

/// A list of models.
#[derive(Serialize, Debug)]
pub(super) struct List {
    object: &'static str,
    data: Vec<Model>,
}

/// A model: OpenAI's fields, and those that vLLM adds.
#[derive(Serialize, Debug)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: String,
    parent: (),
    max_model_len: u32,
}

impl Model {
    fn new(served: &Served) -> Self {
        Self {
            id: served.name.clone(),
            object: "model",
            created: served.created,
            owned_by: "appliance",
            root: served.name.clone(),
            parent: (),
            max_model_len: served.context,
        }
    }
}

/// The model that is served, if the caller may use it; none while it is not loaded.
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
) -> Json<List> {
    let served = api.loaded().filter(|served| caller.may_use(&served.name));
    let data = served.iter().map(|served| Model::new(served)).collect();
    Json(List {
        object: "list",
        data,
    })
}

/// The model of that name, which may hold slashes.
pub(super) async fn retrieve(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Json<Model>, ApiError> {
    let served = match api.loaded() {
        Some(served) => served,
        None => api.served()?,
    };
    super::check_model(Some(&name), &served)?;
    if !caller.may_use(&name) {
        return Err(ApiError::forbidden_model(caller.id(), &name));
    }
    Ok(Json(Model::new(&served)))
}
