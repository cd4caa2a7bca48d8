"""Makes rendered.json: what transformers' apply_chat_template writes for templates that use what
real ones use. Run with a Python that has transformers: python make.py > rendered.json"""

import json
import sys

from transformers.utils.chat_template_utils import render_jinja_template

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Hi <b> & 'you' \"é\" 日本 😀\n"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye?"},
]
THOUGHT = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\nadd them\n</think>\n\n4"},
    {"role": "user", "content": "3+3?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather at a place, in °C <now>.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string"},
                    "days": {"type": "integer", "default": 1, "minimum": 1},
                    "scale": {"type": "number", "default": 0.5, "minimum": 1e-07, "maximum": 1e22, "multipleOf": 0.5},
                },
                "required": [],
                "additionalProperties": False,
                "examples": [{}, None, True, "a\tb\\ \u2028 \x7f \x01"],
            },
        },
    }
]
CALLS = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Ōsaka", "days": 2}}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "turns": """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nDefault.<|im_end|>\\n' }}
    {% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{% endif %}
""",
    "blocks": """
{# a comment #}
    {% if true %}
  kept
    {%+ if true %}plus{% endif %}
    {% endif %}
	{%- for i in range(3) -%}
  {{ i }}
  {%- endfor %}

end
""",
    "alternate": """{{ bos_token }}{% for message in messages[1:] %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{% endif %}
{%- if message.role == 'user' %}{{ '[INST] ' ~ message.content | trim ~ ' [/INST]' }}
{%- else %}{{ ' ' + message['content'].strip() + eos_token }}{% endif %}{% endfor %}""",
    "headers": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools is defined or tools is none %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one call") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- else %}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}""",
    "tools": """{%- if tools %}
{{- "<tools>" }}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\\n</tools>\\n" }}
{{- tools | tojson(indent=4) }}
{{ tools | tojson(indent=2, sort_keys=true) }}
{{ tools[0].function.parameters.examples | tojson(ensure_ascii=true) }}
{{ tools[0].function.parameters | tojson(separators=(',', ':')) }}
{{- '\\n' -}}
{%- for name, schema in tools[0].function.parameters.properties.items() %}
{{ name }}: {{ schema.type }}{{ ' = ' ~ schema.default if schema.default is defined }}
{%- endfor %}
{%- endif %}""",
    "thinking": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- set reasoning_content = '' %}
    {%- if '</think>' in content %}
        {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if loop.index0 > ns.last_query_index or loop.last %}{{- '[' ~ reasoning_content.strip('\\n') ~ ']' }}{%- endif %}
    {{- message.role | upper ~ ':' ~ content ~ '|' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'A:' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "generation": """{% for message in messages %}
{%- if message.role == 'assistant' %}
{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
{%- else %}{{ message.content }}
{%- generation -%}  {%- endgeneration -%}
{%- endif %}
{% endfor %}""",
    "loops": """{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{{ ',' if not loop.last }}{% endfor %}
{% for message in messages if message.role == 'user' %}{{ loop.index }}/{{ loop.length }}{{ loop.previtem is defined }}{% else %}none{% endfor %}
{% for key, value in {'a': 1, 'b': [1, 'x', None, True, 1.5]}.items() %}{{ key }}={{ value }};{% endfor %}
{% macro turn(role, text='?') %}<{{ role }}>{{ text }}{% endmacro %}{{ turn('u') }}{{ turn('a', text='b') }}""",
}

# Rendered with CHAT, each by itself.
EXPRESSIONS = [
    "true",
    "none",
    "1.0",
    "7 // 2",
    "7 / 2",
    "2 ** 3",
    "-7 % 3",
    "1 == 1.0",
    "['a', 1, none, true]",
    "{'k': 'it\"s', \"q\": \"it's\"}",
    "[]",
    "{}",
    "'a' 'b'",
    "'x' * 3",
    "'%s-%d' | format('a', 3)",
    "missing",
    "missing is defined",
    "messages[0].nothing",
    "'a,b,c'.split(',') | join('+')",
    "'abc'[::-1]",
    "'abc'[1:]",
    "'abc'[-1]",
    "'Title case'.title()",
    "'x'.upper()",
    "'  a '.lstrip()",
    "messages | map(attribute='role') | join(', ')",
    "messages | selectattr('role', 'equalto', 'user') | list | length",
    "messages | rejectattr('role', 'eq', 'user') | map(attribute='content') | first",
    "(messages | last).content",
    "'a' in 'abc'",
    "'role' in messages[0]",
    "messages[0].get('name', 'none')",
    "messages[0].get('name') is none",
    "messages[0].keys() | list | join",
    "'ab' is string",
    "1 is number",
    "messages is iterable",
    "messages is sequence",
    "messages[0] is mapping",
    "none is none",
    "false is boolean",
    "'b' if false",
    "'A' | lower",
    "'a-b' | replace('-', '_')",
    "'a b'.replace(' ', '')",
    "['b', 'a'] | sort | join",
    "'1' | int + 1",
    "[1, 2] + [3]",
    "[3, 1] | max",
    "'äb' | length",
    "'text' | default('d')",
    "missing | default('d')",
    "'' | default('d', true)",
    "'line\\nline' | indent(2)",
    "dict(a=1).a",
    "'abc' | first",
    "['a', 'b'] | reverse | list",
    "'one two'.capitalize()",
    "'banana'.count('an')",
    "'banana'.find('n')",
    "'a\\nb'.splitlines()",
    "'x y z'.rsplit(' ', 1)[0]",
    "'prefix-a'.removeprefix('prefix-')",
    "'prefix-a'.removeprefix('a')",
    "'a.py'.removesuffix('.py')",
    "'a b c'.rsplit(' ', 1)",
    "' a  b c '.rsplit()",
    "'a,b,,c'.rsplit(',')",
    "' a  b c '.rsplit(none, 1)",
    "[1.0, -2, 'é\\n\\t\\\\ \\'', {'a': [true, {}]}]",
]

CASES = [
    ("turns", CHAT, {"add_generation_prompt": True}),
    ("turns", CHAT[1:], {}),
    ("turns", CHAT[:3], {"continue_final_message": True}),
    ("turns", [{"role": "assistant", "content": "One, two, "}], {"continue_final_message": True}),
    ("blocks", CHAT, {}),
    ("alternate", CHAT, {}),
    ("alternate", CHAT[:3] + [{"role": "user", "content": "I say "}], {"continue_final_message": True}),
    ("headers", CHAT, {"add_generation_prompt": True}),
    ("headers", CALLS, {"tools": TOOLS}),
    ("headers", CALLS, {"custom_tools": TOOLS}),
    ("tools", CHAT, {"tools": TOOLS}),
    ("tools", CHAT, {}),
    ("thinking", THOUGHT, {"add_generation_prompt": True}),
    ("thinking", THOUGHT, {"add_generation_prompt": True, "enable_thinking": False}),
    ("generation", CHAT, {}),
    ("loops", CHAT, {}),
]


def render(source, messages, options):
    options = dict(options)
    tools = options.pop("tools", None)
    rendered, _ = render_jinja_template([messages], tools=tools, chat_template=source, **SPECIAL, **options)
    return rendered[0]


def main():
    cases = [
        {"template": template, "messages": messages, "options": options, "rendered": render(TEMPLATES[template], messages, options)}
        for template, messages, options in CASES
    ]
    expressions = [[source, render("{{ " + source + " }}", CHAT, {})] for source in EXPRESSIONS]
    golden = {"templates": TEMPLATES, "special": SPECIAL, "cases": cases, "chat": CHAT, "expressions": expressions}
    json.dump(golden, sys.stdout, ensure_ascii=False, indent=1)
    print()


main()
