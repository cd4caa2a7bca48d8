//! Every place of the API: what serves it, and what is said of it.

use std::sync::Arc;

use axum::http::header;
use axum::routing::{MethodRouter, get, post};
use utoipa::openapi::HttpMethod;

use super::chat::ChatFields;
use super::completions::CompletionFields;
use super::conversation::ConversationFields;
use super::openapi::{self, About};
use super::params::Params;
use super::tokenize::{DetokenizeFields, TokenizeFields};
use super::{Api, admin, chat, completions, models, probes, tokenize};

const JSON: &[&str] = &["application/json"];
const JSON_OR_EVENTS: &[&str] = &["application/json", "text/event-stream"];

/// Who finds a place open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Audience {
    /// Whoever can connect: what is served looks after itself.
    Anybody,
    /// Who has a key, where there are keys.
    Keys,
    /// Who has the admin-key.
    Operators,
}

/// A place of the API.
pub(super) struct Place {
    pub(super) about: About,
    pub(super) audience: Audience,
    pub(super) served_by: MethodRouter<Arc<Api>>,
}

/// All of them.
pub(super) fn all() -> Vec<Place> {
    let mut places = Vec::from(generation());
    places.extend(text());
    places.extend(models());
    places.extend(probes());
    places.extend(admin());
    places.push(description(&places));
    places
}

fn generation() -> [Place; 2] {
    let chat = [
        ConversationFields::described(),
        ChatFields::described(),
        Params::described(),
    ];
    let completion = [CompletionFields::described(), Params::described()];
    [
        Place {
            about: About {
                path: "/v1/chat/completions",
                method: HttpMethod::Post,
                summary: "Answers a conversation.",
                body: Some((chat.concat(), &["messages"])),
                answers: JSON_OR_EVENTS,
            },
            audience: Audience::Keys,
            served_by: post(chat::create),
        },
        Place {
            about: About {
                path: "/v1/completions",
                method: HttpMethod::Post,
                summary: "Goes on from prompts.",
                body: Some((completion.concat(), &["prompt"])),
                answers: JSON_OR_EVENTS,
            },
            audience: Audience::Keys,
            served_by: post(completions::create),
        },
    ]
}

fn text() -> [Place; 2] {
    let tokenize = [TokenizeFields::described(), ConversationFields::described()];
    [
        Place {
            about: About {
                path: "/tokenize",
                method: HttpMethod::Post,
                summary: "Text, or a conversation, to token ids.",
                body: Some((tokenize.concat(), &[])),
                answers: JSON,
            },
            audience: Audience::Keys,
            served_by: post(tokenize::tokenize),
        },
        Place {
            about: About {
                path: "/detokenize",
                method: HttpMethod::Post,
                summary: "Token ids to text.",
                body: Some((DetokenizeFields::described(), &["tokens"])),
                answers: JSON,
            },
            audience: Audience::Keys,
            served_by: post(tokenize::detokenize),
        },
    ]
}

fn models() -> [Place; 2] {
    let list = get_place(
        "/v1/models",
        "The model that is served.",
        JSON,
        get(models::list),
    );
    let retrieve = get_place(
        "/v1/models/{*name}",
        "The same, by name.",
        JSON,
        get(models::retrieve),
    );
    [list, retrieve].map(|place| Place {
        audience: Audience::Keys,
        ..place
    })
}

fn probes() -> [Place; 6] {
    let (health, live, version) = (get(probes::health), get(probes::live), get(probes::version));
    let (metrics, page) = (get(probes::metrics), get(probes::page));
    let ping = health.clone().post(probes::health);
    [
        get_place(
            "/health",
            "200 if requests are taken, else 503.",
            JSON,
            health,
        ),
        get_place("/ping", "The same as /health.", JSON, ping),
        get_place(
            "/live",
            "200 while the process makes progress, else 503.",
            JSON,
            live,
        ),
        get_place("/version", "The version of the server.", JSON, version),
        get_place(
            "/metrics",
            "Counts for Prometheus.",
            &["text/plain"],
            metrics,
        ),
        get_place("/", "A page to try the model.", &["text/html"], page),
    ]
}

fn admin() -> [Place; 3] {
    let reload = About {
        path: "/admin/reload",
        method: HttpMethod::Post,
        summary: "Reads the settings anew, at once. Needs the admin-key.",
        body: None,
        answers: JSON,
    };
    let status = get_place(
        "/admin/status",
        "What the server says of itself. Needs the admin-key.",
        JSON,
        get(admin::status),
    );
    let usage = get_place(
        "/admin/usage",
        "What each key has used and may use. Needs the admin-key.",
        JSON,
        get(admin::usage),
    );
    let reload = Place {
        about: reload,
        audience: Audience::Operators,
        served_by: post(admin::reload),
    };
    [status, usage, reload].map(|place| Place {
        audience: Audience::Operators,
        ..place
    })
}

fn get_place(
    path: &'static str,
    summary: &'static str,
    answers: &'static [&'static str],
    served_by: MethodRouter<Arc<Api>>,
) -> Place {
    Place {
        about: About {
            path,
            method: HttpMethod::Get,
            summary,
            body: None,
            answers,
        },
        audience: Audience::Anybody,
        served_by,
    }
}

/// The description of `places`, and of itself.
fn description(places: &[Place]) -> Place {
    let about = About {
        path: "/openapi.json",
        method: HttpMethod::Get,
        summary: "This description.",
        body: None,
        answers: JSON,
    };
    let all = places.iter().map(|place| &place.about).chain([&about]);
    let document: Arc<str> = openapi::describe(all).into();
    let served_by = get(async move || {
        (
            [(header::CONTENT_TYPE, "application/json")],
            document.to_string(),
        )
    });
    Place {
        about,
        audience: Audience::Anybody,
        served_by,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_description_holds_every_place_and_field() {
        let places = all();
        let document = openapi::describe(places.iter().map(|place| &place.about));
        let document: Value = serde_json::from_str(&document).unwrap();
        assert_eq!(document["paths"].as_object().unwrap().len(), places.len());
        let body = |path: &str| {
            &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        };
        let chat = body("/v1/chat/completions");
        assert_eq!(chat["required"], serde_json::json!(["messages"]));
        let temperature = &chat["properties"]["temperature"];
        assert_eq!(
            (&temperature["minimum"], &temperature["maximum"]),
            (&0.into(), &2.into())
        );
        assert!(
            temperature["description"]
                .as_str()
                .unwrap()
                .starts_with("0 is greedy.")
        );
        assert_eq!(chat["properties"]["n"]["maximum"], 128);
        assert_eq!(
            body("/v1/completions")["properties"]["logprobs"]["type"],
            "integer"
        );
        assert_eq!(body("/detokenize")["properties"]["tokens"]["type"], "array");
        let failure = &document["paths"]["/v1/models/{name}"]["get"]["responses"]["default"];
        let schema = &failure["content"]["application/json"]["schema"]["$ref"];
        assert_eq!(schema, "#/components/schemas/Error");
    }
}
