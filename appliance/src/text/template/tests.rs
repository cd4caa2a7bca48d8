use serde_json::json;

use super::*;

/// What transformers renders: tests/golden/templates/make.py made it.
const GOLDEN: &str = include_str!("../../../../tests/golden/templates/rendered.json");

fn template(source: &str) -> Template {
    let model = Template {
        programs: Programs::compile(Vec::new()).unwrap(),
        special: serde_json::from_value(json!({"bos_token": "<s>", "eos_token": "</s>"})).unwrap(),
    };
    model.with_source(source).unwrap()
}

fn user(content: &str) -> Value {
    json!([{"role": "user", "content": content}])
}

/// The options of `apply_chat_template` as ours.
fn options(given: &Value) -> TemplateOptions {
    let mut extra = given.as_object().unwrap().clone();
    let mut flag = |name| extra.remove(name) == Some(Value::Bool(true));
    TemplateOptions {
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        tools: extra.remove("tools"),
        extra,
    }
}

#[test]
fn chats_render_as_in_transformers() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let template = template(golden["templates"][name].as_str().unwrap());
        let rendered = template.render(&case["messages"], &options(&case["options"]));
        let rendered = rendered.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            rendered,
            case["rendered"].as_str().unwrap(),
            "{name} {}",
            case["options"]
        );
    }
}

#[test]
fn expressions_are_as_in_python() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let mut wrong = Vec::new();
    for case in golden["expressions"].as_array().unwrap() {
        let [source, expected] = [&case[0], &case[1]].map(|text| text.as_str().unwrap());
        let template = template(&format!("{{{{ {source} }}}}"));
        let rendered = template.render(&golden["chat"], &TemplateOptions::default());
        if !rendered.as_ref().is_ok_and(|rendered| rendered == expected) {
            wrong.push(format!("{source}: {rendered:?} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[track_caller]
fn check_error(source: &str, messages: &Value, options: &TemplateOptions, expected: &str) {
    let error = template(source).render(messages, options).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

#[test]
fn errors_name_the_line() {
    let plain = TemplateOptions::default();
    let check = |source, expected| check_error(source, &user("x"), &plain, expected);
    check(
        "\n{% if true %}\n{{ raise_exception('roles must alternate') }}{% endif %}",
        "chat template, line 3: roles must alternate",
    );
    check(
        "a\n{{ messages[0].nobody.name }}",
        "chat template, line 2: undefined value",
    );
    check(
        "{{ 'x' | shout }}",
        "chat template, line 1: unknown filter: filter shout is unknown",
    );
    check(
        "{{ missing | tojson }}",
        "chat template, line 1: undefined value: an undefined value has no JSON",
    );
    let error = template("").with_source("\n\n{% for %}").unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("chat template, line 3: syntax error"),
        "{error}"
    );
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let plain = TemplateOptions::default();
    let error = template(endless).render(&user("x"), &plain).unwrap_err();
    assert!(
        error.to_string().contains("more than 10000000 steps"),
        "{error}"
    );
    let long = "{% set line = 'x' * 999999 %}{% for a in range(99) %}{{ line }}{% endfor %}";
    let error = template(long).render(&user("x"), &plain).unwrap_err();
    assert!(
        error.to_string().contains("more than 67108864 bytes"),
        "{error}"
    );
    let deep = "{% macro deeper() %}{{ deeper() }}{% endmacro %}{{ deeper() }}";
    let error = template(deep).render(&user("x"), &plain).unwrap_err();
    assert!(error.to_string().contains("recursion"), "{error}");
}

#[test]
fn text_parts_become_one_text_and_others_are_refused() {
    let source = "{{ messages[0].content }}";
    let plain = TemplateOptions::default();
    let parts = |parts: Value| json!([{"role": "user", "content": parts}]);
    let two = parts(json!([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]));
    assert_eq!(template(source).render(&two, &plain).unwrap(), "one\ntwo");
    let image = parts(json!([{"type": "image_url", "image_url": {"url": "data:"}}]));
    check_error(
        source,
        &image,
        &plain,
        "messages[0].content[0] is of type \"image_url\": this model takes text only",
    );
    let empty = parts(json!([{"type": "text"}]));
    check_error(
        source,
        &empty,
        &plain,
        "messages[0].content[0] must have a text as \"text\"",
    );
    check_error(source, &json!({}), &plain, "messages must be an array");
    check_error(
        source,
        &json!(["hi"]),
        &plain,
        "messages[0] must be an object",
    );
}

#[test]
fn arguments_of_calls_are_values() {
    let source = "{{ messages[0].tool_calls[0].function.arguments | tojson }}";
    let check = |arguments: &str, expected: &str| {
        let call = json!({"type": "function", "function": {"name": "f", "arguments": arguments}});
        let messages = json!([{"role": "assistant", "content": null, "tool_calls": [call]}]);
        let rendered = template(source).render(&messages, &TemplateOptions::default());
        assert_eq!(rendered.unwrap(), expected);
    };
    check(r#"{"a":[1]}"#, r#"{"a": [1]}"#);
    check("", "{}");
    check("{oops", r#""{oops""#);
}

#[test]
fn only_a_last_message_that_is_written_can_be_continued() {
    let go_on = TemplateOptions {
        continue_final_message: true,
        ..TemplateOptions::default()
    };
    let source = "{% for m in messages %}<{{ m.content }}>{% endfor %}";
    let check = |source: &str, messages: Value, expected: &str| {
        check_error(source, &messages, &go_on, expected);
    };
    let no_text = "continue_final_message: the last message has no text to go on with";
    check(source, json!([]), no_text);
    check(
        source,
        json!([{"role": "assistant", "content": null}]),
        no_text,
    );
    let not_written =
        "continue_final_message: this chat template does not write the last message as it is";
    check("<{{ messages[0].role }}>", user("x"), not_written);
    let both = TemplateOptions {
        add_generation_prompt: true,
        ..go_on.clone()
    };
    let error = template(source).render(&user("x"), &both).unwrap_err();
    assert!(
        error.to_string().contains("set one of them to false"),
        "{error}"
    );
    let parts = json!([{"role": "assistant", "content": [{"type": "text", "text": "I am "}]}]);
    assert_eq!(template(source).render(&parts, &go_on).unwrap(), "<I am ");
}

fn model(files: &[(&str, &str)]) -> Result<Template, TemplateError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    Template::open(dir.path())
}

#[test]
fn the_template_is_where_models_have_it() {
    let config = |template: Value| {
        let bos = json!({"content": "<s>", "special": true});
        json!({"bos_token": bos, "eos_token": null, "chat_template": template}).to_string()
    };
    let render = |files: &[(&str, &str)], options: &TemplateOptions| {
        model(files)?.render(&user("x"), options)
    };
    let plain = TemplateOptions::default();
    let tools = TemplateOptions {
        tools: Some(json!([])),
        ..TemplateOptions::default()
    };
    let missing = render(&[], &plain).unwrap_err();
    assert!(matches!(missing, TemplateError::Missing));

    let one = config(json!("one{{ bos_token }}{{ eos_token }}"));
    let one = ("tokenizer_config.json", one.as_str());
    assert_eq!(render(&[one], &plain).unwrap(), "one<s>");
    let file = ("chat_template.jinja", "file{{ bos_token }}\n");
    assert_eq!(render(&[one, file], &plain).unwrap(), "file<s>");

    let named = |name: &str| json!({"name": name, "template": format!("as {name}")});
    let two = config(json!([named("default"), named("tool_use"), named("rag")]));
    let two = ("tokenizer_config.json", two.as_str());
    assert_eq!(render(&[two], &plain).unwrap(), "as default");
    assert_eq!(render(&[two], &tools).unwrap(), "as tool_use");
    let rag = model(&[two]).unwrap().with_source("rag").unwrap();
    assert_eq!(rag.render(&user("x"), &plain).unwrap(), "as rag");
    let none = config(json!([named("rag"), named("chat")]));
    let error = render(&[("tokenizer_config.json", &none)], &plain).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("name one in chat_template: chat, rag"),
        "{error}"
    );

    let error = model(&[("chat_template.jinja", "{{")])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("chat_template.jinja: chat template, line 1: syntax"),
        "{error}"
    );
    let error = model(&[("tokenizer_config.json", "{")])
        .unwrap_err()
        .to_string();
    assert!(error.contains("tokenizer_config.json: EOF"), "{error}");
}

#[test]
fn the_time_is_now() {
    let rendered = template("{{ strftime_now('%d %b %Y') }}{{ strftime_now('%-d') }}")
        .render(&user("x"), &TemplateOptions::default())
        .unwrap();
    assert!(rendered.contains(" 20"), "{rendered}");
}
