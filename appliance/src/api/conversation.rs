//! A conversation: messages, checked, and how they become the text of a prompt.

use serde_json::{Map, Value};

use super::body::{Fields, fields};
use super::error::ApiError;
use super::field::{Field as _, Object, Objects};
use crate::served::Served;
use crate::text::{Template, TemplateOptions};

fields! {
    /// What is rendered to a prompt by the model's chat template.
    ConversationFields {
        /// The messages, each with a role and a content: a text, or a list of parts of type text.
        messages: Objects,
        /// End the prompt with the beginning of the assistant's turn. Default: true, unless the final message is continued.
        add_generation_prompt: bool,
        /// Go on with the last message instead of answering it.
        continue_final_message: bool,
        /// Another chat template. Only if the server trusts its clients with that.
        chat_template: String,
        /// Further variables for the chat template.
        chat_template_kwargs: Object,
        /// Documents for the chat template.
        documents: Objects,
    }
}

/// Messages and how to render them.
#[derive(Clone, Debug)]
pub(super) struct Conversation {
    messages: Value,
    options: TemplateOptions,
    /// The request's own template.
    template: Option<String>,
}

impl Conversation {
    /// Takes it from a body. `tools` are for the template.
    pub(super) fn parse(
        fields: &mut Fields<'_>,
        tools: Option<Objects>,
        trust_template: bool,
    ) -> Result<Self, ApiError> {
        let taken = ConversationFields::take(fields)?;
        let Some(Objects(messages)) = taken.messages.filter(|Objects(list)| !list.is_empty())
        else {
            let message = "`messages` must be a list of at least one message.";
            return Err(ApiError::invalid("messages", message));
        };
        if taken.chat_template.is_some() && !trust_template {
            let message = "`chat_template` is not accepted: templates are programs. Leave it out, \
                           or start the server with --trust-request-chat-template.";
            return Err(ApiError::invalid("chat_template", message));
        }
        let continue_final_message = taken.continue_final_message.unwrap_or(false);
        let add_generation_prompt = taken
            .add_generation_prompt
            .unwrap_or(!continue_final_message);
        if continue_final_message && add_generation_prompt {
            let message = "`continue_final_message` and `add_generation_prompt` are both true: \
                           the prompt ends either in the last message or after it.";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        let mut extra = taken
            .chat_template_kwargs
            .map_or_else(Map::new, |Object(extra)| extra);
        if let Some(Objects(documents)) = taken.documents {
            extra.insert("documents".into(), Value::Array(documents));
        }
        let messages = messages
            .into_iter()
            .enumerate()
            .map(message)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            messages: Value::Array(messages),
            options: TemplateOptions {
                add_generation_prompt,
                continue_final_message,
                tools: tools.map(|Objects(tools)| Value::Array(tools)),
                extra,
            },
            template: taken.chat_template,
        })
    }

    /// The text of the prompt. Not for the event loop.
    pub(super) fn render(&self, served: &Served) -> Result<String, ApiError> {
        let own: Option<Template> = match &self.template {
            Some(source) => Some(served.template.with_source(source)?),
            None => None,
        };
        let template = own.as_ref().unwrap_or(&served.template);
        Ok(template.render(&self.messages, &self.options)?)
    }
}

/// Checks one message and brings it to the form that templates expect.
fn message((index, message): (usize, Value)) -> Result<Value, ApiError> {
    let wrong = |what: &str| ApiError::invalid("messages", format!("`messages[{index}]{what}."));
    let Value::Object(mut message) = message else {
        return Err(wrong("` must be an object"));
    };
    let role = match message.get("role").and_then(Value::as_str) {
        Some("") | None => return Err(wrong(".role` must be a text, such as \"user\"")),
        // OpenAI's newer name; templates know the older one.
        Some("developer") => "system",
        Some(role) => role,
    }
    .to_owned();
    let content = content(message.remove("content").unwrap_or(Value::Null))
        .map_err(|what| wrong(&format!(".content{what}")))?;
    if content.is_none() && !matches!(&role[..], "assistant" | "tool" | "function") {
        return Err(wrong(".content` is missing"));
    }
    message.insert("role".into(), role.into());
    message.insert("content".into(), content.into());
    if let Some(calls) = message.get_mut("tool_calls") {
        tool_calls(calls).map_err(|what| wrong(&format!(".tool_calls{what}")))?;
    }
    Ok(Value::Object(message))
}

/// The text of a content: itself, or its parts as lines, as vLLM joins them.
fn content(content: Value) -> Result<Option<String>, String> {
    let parts = match content {
        Value::Null => return Ok(None),
        Value::String(text) => return Ok(Some(text)),
        Value::Array(parts) => parts,
        _ => return Err("` must be a text or a list of parts".into()),
    };
    let text = |(index, part): (usize, &Value)| {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
        match (kind, part.get(kind).and_then(Value::as_str)) {
            ("text" | "refusal", Some(text)) => Ok(text.to_owned()),
            ("text" | "refusal", None) => Err(format!("[{index}].{kind}` must be a text")),
            _ => Err(format!(
                "[{index}].type` is {kind:?}, but this model reads text only"
            )),
        }
    };
    let lines = parts
        .iter()
        .enumerate()
        .map(text)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Some(lines.join("\n")))
}

/// Past calls of tools: their arguments come as the text of an object, and templates expect the
/// object.
fn tool_calls(calls: &mut Value) -> Result<(), String> {
    let calls = match calls {
        Value::Null => return Ok(()),
        Value::Array(calls) => calls,
        _ => return Err("` must be a list".into()),
    };
    for (index, call) in calls.iter_mut().enumerate() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else {
            return Err(format!("[{index}].function.arguments` is missing"));
        };
        let parsed = match arguments.as_str() {
            None => continue,
            Some("") => Some(Value::Object(Map::new())),
            Some(text) => Object::parse(text).map(|Object(arguments)| Value::Object(arguments)),
        };
        *arguments = parsed.ok_or_else(|| {
            format!("[{index}].function.arguments` must be the text of an object")
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(given: Value, expected: Result<Value, &str>) {
        let body = serde_json::to_vec(&json!({ "messages": given })).unwrap();
        let parsed = Conversation::parse(&mut Fields::parse(&body).unwrap(), None, false);
        let parsed = parsed.map(|conversation| conversation.messages);
        let message = |error: ApiError| {
            serde_json::to_value(error.body()).unwrap()["error"]["message"].clone()
        };
        assert_eq!(parsed.map_err(message), expected.map_err(Value::from));
    }

    #[test]
    fn messages_are_brought_to_one_form() {
        let user = |content: Value| json!([{"role": "user", "content": content}]);
        check(user(json!("a")), Ok(user(json!("a"))));
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        check(user(parts), Ok(user(json!("a\nb"))));
        check(
            json!([{"role": "developer", "content": "a", "name": "x"}]),
            Ok(json!([{"role": "system", "name": "x", "content": "a"}])),
        );
        check(
            json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": 1}"}}]}]),
            Ok(
                json!([{"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}]),
            ),
        );
    }

    #[test]
    fn errors_say_which_message() {
        check(
            json!([]),
            Err("`messages` must be a list of at least one message."),
        );
        let ok = json!({"role": "user", "content": "a"});
        check(
            json!([ok, {"content": "a"}]),
            Err("`messages[1].role` must be a text, such as \"user\"."),
        );
        check(
            json!([{"role": "user"}]),
            Err("`messages[0].content` is missing."),
        );
        check(
            json!([{"role": "user", "content": 1}]),
            Err("`messages[0].content` must be a text or a list of parts."),
        );
        check(
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            Err("`messages[0].content[0].type` is \"image_url\", but this model reads text only."),
        );
        check(
            json!([{"role": "user", "content": [{"type": "text"}]}]),
            Err("`messages[0].content[0].text` must be a text."),
        );
        check(
            json!([{"role": "assistant", "tool_calls": [{"function": {"arguments": "x"}}]}]),
            Err("`messages[0].tool_calls[0].function.arguments` must be the text of an object."),
        );
    }

    #[test]
    fn a_prompt_ends_in_one_way() {
        let parse = |extra: &str| {
            let body = format!(r#"{{"messages": [{{"role": "user", "content": "a"}}], {extra}}}"#);
            let conversation =
                Conversation::parse(&mut Fields::parse(body.as_bytes())?, None, false)?;
            let options = conversation.options;
            Ok::<_, ApiError>((
                options.add_generation_prompt,
                options.continue_final_message,
            ))
        };
        assert_eq!(parse(r#""a": 1"#).unwrap(), (true, false));
        assert_eq!(
            parse(r#""continue_final_message": true"#).unwrap(),
            (false, true)
        );
        assert_eq!(
            parse(r#""add_generation_prompt": false"#).unwrap(),
            (false, false)
        );
        parse(r#""add_generation_prompt": true, "continue_final_message": true"#).unwrap_err();
        parse(r#""chat_template": "x""#).unwrap_err();
    }
}
