//! `GET /openapi.json`: every place of the API, made from the same tables that serve it.

use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{ComponentsBuilder, OpenApiBuilder, Required};
use utoipa::openapi::{
    Content, HttpMethod, InfoBuilder, OpenApi, Paths, Ref, RefOr, Response, path, request_body,
};

use super::body::Described;

/// What a place is for.
#[derive(Clone)]
pub(super) struct About {
    pub(super) path: &'static str,
    pub(super) method: HttpMethod,
    /// One sentence.
    pub(super) summary: &'static str,
    /// The fields of its body, and those that must be there.
    pub(super) body: Option<(Vec<Described>, &'static [&'static str])>,
    /// The content types it answers with.
    pub(super) answers: &'static [&'static str],
}

/// The description of all places, as JSON.
pub(super) fn describe<'a>(places: impl Iterator<Item = &'a About>) -> String {
    let mut paths = Paths::new();
    for about in places {
        // axum's `{*name}` is OpenAPI's `{name}`.
        let path = about.path.replace("{*", "{");
        paths.add_path_operation(path, vec![about.method.clone()], operation(about));
    }
    let info = InfoBuilder::new()
        .title("Neuron Inference Appliance")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "OpenAI's API with vLLM's extensions. Fields that are not listed are accepted; those \
             without effect are named in the header x-appliance-ignored.",
        ));
    let document: OpenApi = OpenApiBuilder::new()
        .info(info)
        .paths(paths)
        .components(Some(
            ComponentsBuilder::new().schema("Error", error()).build(),
        ))
        .build();
    document.to_json().expect("a description has text keys")
}

fn operation(about: &About) -> path::Operation {
    let mut operation = path::OperationBuilder::new()
        .summary(Some(about.summary))
        .response("200", answer(about.answers))
        .response("default", failure());
    if about.path.contains("{*name}") {
        let name = path::ParameterBuilder::new()
            .name("name")
            .parameter_in(path::ParameterIn::Path)
            .required(Required::True)
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)));
        operation = operation.parameter(name);
    }
    if let Some((fields, required)) = &about.body {
        let content = Content::new(Some(body(fields, required)));
        let body = request_body::RequestBodyBuilder::new()
            .required(Some(Required::True))
            .content("application/json", content);
        operation = operation.request_body(Some(body.build()));
    }
    operation.build()
}

fn body(fields: &[Described], required: &[&str]) -> ObjectBuilder {
    let mut body = ObjectBuilder::new();
    for (name, help, schema) in fields {
        body = body.property(*name, helped(schema.clone(), help));
    }
    for name in required {
        body = body.required(*name);
    }
    body
}

fn helped(schema: Schema, help: &str) -> Schema {
    let help = Some(help.to_owned());
    match schema {
        Schema::Object(mut object) => {
            object.description = help;
            object.into()
        }
        Schema::Array(mut array) => {
            array.description = help;
            array.into()
        }
        Schema::OneOf(mut one_of) => {
            one_of.description = help;
            one_of.into()
        }
        other => other,
    }
}

fn answer(kinds: &[&str]) -> Response {
    let mut answer = Response::new("The answer.");
    for kind in kinds {
        let schema = match *kind {
            "application/json" => ObjectBuilder::new().schema_type(Type::Object),
            _ => ObjectBuilder::new().schema_type(Type::String),
        };
        answer
            .content
            .insert((*kind).to_owned(), Content::new(Some(schema)));
    }
    answer
}

fn failure() -> Response {
    let mut failure = Response::new("Why there is no answer.");
    let schema: RefOr<Schema> = Ref::from_schema_name("Error").into();
    failure
        .content
        .insert("application/json".to_owned(), Content::new(Some(schema)));
    failure
}

/// The body of every error.
fn error() -> Schema {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let or_null = || {
        let types = [Type::String, Type::Null];
        ObjectBuilder::new().schema_type(SchemaType::from_iter(types))
    };
    let error = ObjectBuilder::new()
        .property("message", text())
        .property("type", text())
        .property("param", or_null())
        .property("code", or_null());
    let error = ["message", "type", "param", "code"]
        .into_iter()
        .fold(error, ObjectBuilder::required);
    ObjectBuilder::new()
        .property("error", error)
        .required("error")
        .into()
}
