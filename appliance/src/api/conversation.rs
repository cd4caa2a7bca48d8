//! A conversation: messages, checked, and how they become the text of a prompt.

use serde_json::{Map, Value};

use super::body::{Fields, fields};
use super::error::ApiError;
use super::field::{Object, Objects};
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

/// Checks one message. What is in a content's parts and in calls of tools is the template's to read.
fn message((index, message): (usize, Value)) -> Result<Value, ApiError> {
    let wrong = |what: &str| ApiError::invalid("messages", format!("`messages[{index}]{what}."));
    let Value::Object(mut message) = message else {
        return Err(wrong("` must be an object"));
    };
    let role = match message.get("role").and_then(Value::as_str) {
        Some("") | None => return Err(wrong(".role` must be a text, such as \"user\"")),
        Some(role) => role,
    };
    // OpenAI's newer name; templates know the older one.
    let developer = role == "developer";
    let may_be_silent = ["assistant", "tool", "function"].contains(&role);
    match message.get("content") {
        Some(Value::String(_) | Value::Array(_)) => {}
        // A message that only calls tools: empty, as vLLM has it, because templates join texts.
        None | Some(Value::Null) if may_be_silent => {
            message.insert("content".into(), "".into());
        }
        None | Some(Value::Null) => return Err(wrong(".content` is missing")),
        Some(_) => return Err(wrong(".content` must be a text or a list of parts")),
    }
    if developer {
        message.insert("role".into(), "system".into());
    }
    Ok(Value::Object(message))
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
        check(
            json!([{"role": "developer", "content": "a", "name": "x"}]),
            Ok(json!([{"role": "system", "content": "a", "name": "x"}])),
        );
        check(
            json!([{"role": "assistant", "tool_calls": []}]),
            Ok(json!([{"role": "assistant", "tool_calls": [], "content": ""}])),
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
