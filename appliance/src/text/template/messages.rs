//! A request's messages as templates expect them.

use serde_json::Value;

use super::{TemplateError, TemplateOptions};

/// Stands after the text that the model is to go on with, to find where that is in what was rendered.
/// The space at its end tells whether the template trims. Both are transformers' own.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Messages, ready for a template.
#[derive(Debug)]
pub(super) struct Chat {
    messages: Vec<Value>,
    /// The text that the model is to go on with.
    unfinished: Option<String>,
}

impl Chat {
    /// Takes a request's messages: texts for contents, values for the arguments of tool calls.
    pub(super) fn parse(
        messages: &Value,
        options: &TemplateOptions,
    ) -> Result<Self, TemplateError> {
        let messages = messages
            .as_array()
            .ok_or_else(|| refused("messages must be an array".to_owned()))?;
        let messages = messages.iter().enumerate();
        let messages = messages.map(|(index, message)| parse_message(index, message));
        let mut chat = Self {
            messages: messages.collect::<Result<_, _>>()?,
            unfinished: None,
        };
        if options.continue_final_message {
            chat.mark_end(options)?;
        }
        Ok(chat)
    }

    /// The variable `messages` of a template.
    pub(super) fn messages(&self) -> Value {
        Value::Array(self.messages.clone())
    }

    /// Ends what was rendered where the model is to go on.
    pub(super) fn end(&self, mut rendered: String) -> Result<String, TemplateError> {
        let Some(unfinished) = &self.unfinished else {
            return Ok(rendered);
        };
        let mark = rendered
            .rfind(MARK.trim_end())
            .filter(|_| rendered.contains(unfinished.trim()))
            .ok_or_else(|| {
                refused(
                    "continue_final_message: this chat template does not write the last message \
                     as it is"
                        .to_owned(),
                )
            })?;
        let trimmed = !rendered[mark..].starts_with(MARK);
        rendered.truncate(mark);
        if trimmed {
            rendered.truncate(rendered.trim_end().len());
        }
        Ok(rendered)
    }

    fn mark_end(&mut self, options: &TemplateOptions) -> Result<(), TemplateError> {
        if options.add_generation_prompt {
            return Err(refused(
                "continue_final_message goes on with the last message, add_generation_prompt \
                 begins a new one: set one of them to false"
                    .to_owned(),
            ));
        }
        let content = self
            .messages
            .last_mut()
            .and_then(|last| last.get_mut("content"));
        let Some(Value::String(content)) = content else {
            return Err(refused(
                "continue_final_message: the last message has no text to go on with".to_owned(),
            ));
        };
        self.unfinished = Some(content.clone());
        content.push_str(MARK);
        Ok(())
    }
}

fn refused(why: String) -> TemplateError {
    TemplateError::Refused(why)
}

fn parse_message(index: usize, message: &Value) -> Result<Value, TemplateError> {
    let mut message = message.clone();
    let Some(fields) = message.as_object_mut() else {
        return Err(refused(format!("messages[{index}] must be an object")));
    };
    if let Some(Value::Array(parts)) = fields.get("content") {
        let text = joined(index, parts)?;
        fields.insert("content".to_owned(), text.into());
    }
    if let Some(Value::Array(calls)) = fields.get_mut("tool_calls") {
        calls.iter_mut().for_each(parse_arguments);
    }
    Ok(message)
}

/// The texts of content parts, a line each.
fn joined(index: usize, parts: &[Value]) -> Result<String, TemplateError> {
    let text = |(part, value): (usize, &Value)| {
        let kind = value.get("type").and_then(Value::as_str).unwrap_or("text");
        let text = value.as_str().or_else(|| value.get(kind)?.as_str());
        match (kind, text) {
            ("text" | "refusal", Some(text)) => Ok(text.to_owned()),
            ("text" | "refusal", None) => Err(refused(format!(
                "messages[{index}].content[{part}] must have a text as {kind:?}"
            ))),
            _ => Err(refused(format!(
                "messages[{index}].content[{part}] is of type {kind:?}: this model takes text only"
            ))),
        }
    };
    let texts = parts.iter().enumerate().map(text);
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// The API has the arguments of a call as JSON in a string, templates want them as values. What is not
/// JSON, because a model wrote it, stays a string.
fn parse_arguments(call: &mut Value) {
    let Some(arguments) = call.pointer_mut("/function/arguments") else {
        return;
    };
    let parsed = match arguments.as_str().map(str::trim) {
        Some("") => Some(Value::Object(serde_json::Map::new())),
        Some(json) => serde_json::from_str(json).ok(),
        None => None,
    };
    if let Some(parsed) = parsed {
        *arguments = parsed;
    }
}
