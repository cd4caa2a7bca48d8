"""Makes the golden files beside it from Hugging Face transformers: see README.md.

    python make.py families [NAME ..]
    python make.py smollm2 MODEL_DIRECTORY
    python make.py tokenizer MODEL_DIRECTORY MODEL.gguf
    python make.py templates MODEL_DIRECTORY
    python make.py quants
    python make.py import MODEL.gguf
"""

import json
import os
import random
import sys
import tempfile

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
torch.set_grad_enabled(False)


def write(name, content):
    """One JSON file; a list of many values in one line each, so that differences can be read."""
    path = os.path.join(HERE, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        file.write(lines(content, 0) + "\n")
    print(f"{os.path.getsize(path):8} {name}")


def lines(value, depth):
    """JSON with a line for each member down to where all is small."""
    short = json.dumps(value)
    pad = " " * depth
    if len(short) + depth <= 100 or not isinstance(value, (dict, list)):
        return short
    if isinstance(value, dict):
        members = [f"{pad} {json.dumps(key)}: {lines(value[key], depth + 1)}" for key in value]
        return "{\n" + ",\n".join(members) + f"\n{pad}}}"
    if any(isinstance(member, (int, float)) for member in value):
        return short
    return "[\n" + ",\n".join(f"{pad} {lines(member, depth + 1)}" for member in value) + f"\n{pad}]"


def margins(logits):
    """How far the best logit of each row is above the second."""
    best = logits.topk(2, dim=-1).values
    return [round(float(margin), 5) for margin in best[:, 0] - best[:, 1]]


# -- families ----------------------------------------------------------------------------------

VOCABULARY = 256
PROMPT = 96
GREEDY = 24
POSITIONS = [0, 1, 2, 7, 15, 31, 63, 95]

BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}


def family(kind, **changes):
    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    names |= {"mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe"}
    own = {"architectures": [names[kind] + "ForCausalLM"], "model_type": kind}
    return {**own, **BASE, **changes}


FAMILIES = {
    "llama2": family("llama", num_key_value_heads=4, rms_norm_eps=1e-6),
    "llama3": family(
        "llama",
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama-linear": family("llama", rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "llama-yarn": family(
        "llama",
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama-biased": family("llama", attention_bias=True, mlp_bias=True),
    "smollm2": family(
        "llama",
        hidden_size=72,
        num_attention_heads=9,
        num_key_value_heads=3,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    ),
    "mistral": family("mistral", sliding_window=24, head_dim=16),
    "qwen2": family("qwen2", rope_theta=1000000.0, rms_norm_eps=1e-6, tie_word_embeddings=True),
    "qwen3": family("qwen3", rope_theta=1000000.0, rms_norm_eps=1e-6, head_dim=32),
    "mixtral": family(
        "mixtral",
        rope_theta=1000000.0,
        intermediate_size=48,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
    # Probabilities as they are, which Mixtral does not have, and sizes that are no round numbers.
    "qwen3-moe": family(
        "qwen3_moe",
        rope_theta=1000000.0,
        rms_norm_eps=1e-6,
        head_dim=32,
        num_experts=12,
        num_experts_per_tok=3,
        moe_intermediate_size=40,
        norm_topk_prob=False,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    ),
}


def weight(name, shape):
    """The numbers of a tensor: README.md says how they follow from its name."""
    count = 1
    for size in shape:
        count *= size
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        numbers.append(((mixed ^ mixed >> 31) >> 56) - 128)
    numbers = torch.tensor(numbers, dtype=torch.float32).reshape(shape)
    if "norm" in name:
        return 1 + (numbers / 4).floor() / 128
    if name.endswith("bias"):
        return numbers / 512
    return numbers / (256 if "embed" in name else 512)


def decisive(model, name):
    """The first random prompt whose greedy answer nowhere hangs on the last digits."""
    rng = random.Random(name)
    while True:
        prompt = [rng.randrange(VOCABULARY) for _ in range(PROMPT)]
        tokens, gaps = list(prompt), []
        while len(gaps) < GREEDY and min(gaps, default=1) > 0.02:
            row = model(torch.tensor([tokens])).logits[0, -1:]
            gaps += margins(row)
            tokens.append(int(row.argmax()))
        if min(gaps) > 0.02:
            return prompt, tokens[PROMPT:], gaps


def filled(model):
    """The model with its numbers, and each tensor's shape."""
    tensors = {}
    for tensor, parameter in model.named_parameters():
        parameter.copy_(weight(tensor, tuple(parameter.shape)))
        assert torch.equal(parameter, parameter.bfloat16().float()), tensor
        tensors[tensor] = list(parameter.shape)
    return model, tensors


def refilled(model):
    """The same for a mixture of experts, whose tensors have other names and shapes in memory than
    in a checkpoint: what transformers saves is filled, and loaded again."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = os.path.join(folder, "model.safetensors")
        shapes = {name: list(tensor.shape) for name, tensor in sorted(load_file(path).items())}
        numbers = {name: weight(name, tuple(shape)) for name, shape in shapes.items()}
        save_file(numbers, path, metadata={"format": "pt"})
        model, said = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            output_loading_info=True,
        )
    assert not any(said.values()), said
    return model.eval(), shapes


def make_families(*names):
    from transformers import AutoConfig, AutoModelForCausalLM

    for name in names or FAMILIES:
        config = FAMILIES[name]
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "config.json"), "w") as file:
                json.dump(config, file)
            parsed = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(parsed, attn_implementation="eager")
        model = model.float().eval()
        has_experts = "num_experts_per_tok" in config
        model, tensors = refilled(model) if has_experts else filled(model)
        prompt, greedy, gaps = decisive(model, name)
        logits = model(torch.tensor([prompt])).logits[0]
        golden = {
            "config": config,
            "tensors": tensors,
            "prompt": prompt,
            "positions": POSITIONS,
            "logits": [[round(float(x), 5) for x in logits[at]] for at in POSITIONS],
            "greedy": greedy,
            "margins": gaps,
        }
        write(f"families/{name}.json", golden)
        print(f"  logits {float(logits.min()):.1f} to {float(logits.max()):.1f}, margin {min(gaps)}")


# -- the default model -------------------------------------------------------------------------

ANSWER = 64

CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "user", "content": "Name three fruits and say what each tastes like."}],
    [{"role": "user", "content": "Write a haiku about the sea."}],
    [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "What does a compiler do?"},
    ],
    [{"role": "user", "content": "Write a Python function that reverses a string."}],
    [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Nice to meet you, Ada!"},
        {"role": "user", "content": "What is my name?"},
    ],
    [{"role": "user", "content": "Translate to French: I like green apples \U0001f34f."}],
]

TEXTS = [
    "The history of the steam engine begins",
    "def fibonacci(n):\n    ",
]


def make_smollm2(directory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    answers = []
    for source in CHATS + TEXTS:
        if isinstance(source, str):
            golden, text = {"text": source}, source
        else:
            golden = {"messages": source}
            text = tokenizer.apply_chat_template(source, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False).input_ids
        tokens, gaps, logprobs = list(prompt), [], []
        cache = None
        while len(gaps) < ANSWER:
            unseen = tokens if cache is None else tokens[-1:]
            out = model(torch.tensor([unseen]), past_key_values=cache, use_cache=True)
            cache, row = out.past_key_values, out.logits[0, -1:]
            tokens.append(int(row.argmax()))
            gaps += margins(row)
            logprobs.append(round(float(row.log_softmax(-1).max()), 5))
            if tokens[-1] in ends:
                break
        greedy = tokens[len(prompt) :]
        golden |= {"prompt": prompt, "greedy": greedy, "margins": gaps, "logprobs": logprobs}
        golden["answer"] = tokenizer.decode(greedy, skip_special_tokens=True)
        answers.append(golden)
        print(f"  {len(greedy)} tokens, margin {min(gaps)}: {golden['answer']!r}")
    write("smollm2.json", answers)


# -- the tokenizer -----------------------------------------------------------------------------

WORDS = """the of and to in is that for it as was with be by on not he his but at are this have
from or had an they which one you were all her she there would their we him been has when who
internationalisation unbelievable antidisestablishmentarianism don't I'll we've they'd it's O'Neill
GPU kernel tokenizer HTTP/1.1 e.g. i.e. U.S.A. 3.14159 1,000,000 2026-11-23 0xDEADBEEF 1e-5 50%
""".split()

CODE = [
    "def add(a, b):\n    return a + b\n",
    "fn main() {\n\tprintln!(\"{:?}\", vec![1, 2, 3]);\n}\n",
    "SELECT * FROM t WHERE x >= 10 AND y != 'z';",
    "#include <stdio.h>\nint main(void) { return 0; }\n",
    "<div class=\"a\">\r\n  <!-- b --> &amp;\r\n</div>",
    "for (let i = 0; i < n; ++i) { a[i] ??= i ** 2; } // done",
    "{\"k\": [1, 2.5e-3, null, true], \"s\": \"\\u00e9\\n\"}",
    "git commit -m 'x' && echo $? | sed -e 's/a/b/g' > out.txt 2>&1",
    "    if x:\n        y\n\n\n    else:\n\t\tz\n",
    "let r#type = &mut *p as *const u8; // 100_000u64",
]

OTHERS = [
    "Zażółć gęślą jaźń", "El pingüino Wenceslao", "Привет, как дела?", "Γειά σου Κόσμε",
    "こんにちは、世界！カタカナ", "你好，世界。今天天气很好", "안녕하세요 세계", "مرحبا بالعالم", "שלום עולם",
    "नमस्ते दुनिया", "สวัสดีชาวโลก", "Xin chào thế giới", "İstanbul'da çığ", "ﬁ ﬂ ½ ² ™ № Ⅳ",
    "\U0001f600\U0001f44d\U0001f3fd\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7 \u2764\ufe0f \u2705",
    "e\u0301 vs \u00e9", "a\u0300\u0301\u0302", "\u0661\u0662\u0663 \u0967\u0968 \uff11\uff12", "\u00a0nbsp\u00a0", "\u3000wide\u3000",
    "zero\u200bwidth\ufeff", "\u202eright to left\u202c", "\u2028line\u2029paragraph", "\u0000\u0001\u001b[0m\u007f",
]

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<empty_output>"]


def strings():
    """A few thousand texts of all kinds, the same every time."""
    rng = random.Random(1)
    yield from ["", " ", "  ", "\n", "\t", "\r\n", "a", " a", "a ", "1", "12", "123", "1 2", "'", "''s"]
    yield from CODE + OTHERS + WORDS + SPECIAL
    for special in SPECIAL:
        yield from [special + special, f" {special} ", f"a{special}b", special[:-1], special.upper()]
    spaces = [" ", "\n", "\t", "\r", "\u00a0", "\u3000", "\v", "\f", "\u2003", "\x85"]
    scripts = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80),
               (0x2000, 0x2C00), (0x3040, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0x1F300, 0x1FB00)]
    everywhere = [(0x1, 0xD800), (0xE000, 0x110000)]

    def letters(ranges, count):
        return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(count))

    for _ in range(500):
        yield " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 9)))
    for _ in range(300):
        yield "".join(rng.choice(spaces) * rng.randrange(1, 5) + rng.choice(WORDS + ["", "7", "!"])
                      for _ in range(rng.randrange(1, 6)))
    for _ in range(300):
        yield "".join(rng.choice(spaces[:3]) for _ in range(rng.randrange(1, 24)))
    for _ in range(300):
        code = rng.choice(CODE)
        start = rng.randrange(len(code))
        yield code[start : start + rng.randrange(1, 40)]
    for _ in range(400):
        yield letters([rng.choice(scripts)], rng.randrange(1, 12))
    for _ in range(300):
        yield letters(scripts, rng.randrange(1, 16))
    for _ in range(300):
        yield letters(everywhere, rng.randrange(1, 10))
    for _ in range(300):
        yield "".join(rng.choice(["0", "7", "42", "1000", "\u0663", "\u00b2", ".", ",", " ", "-", "x"])
                      for _ in range(rng.randrange(1, 12)))
    for _ in range(200):
        parts = WORDS + OTHERS + SPECIAL
        yield "".join(rng.choice(parts) + rng.choice(["", " ", "\n"]) for _ in range(rng.randrange(1, 4)))


class FirstPrinciples:
    """The tokenizer of a GGUF straight from its vocabulary and merges: no code shared with ours."""

    def __init__(self, path):
        import gguf
        import regex

        fields = gguf.GGUFReader(path).fields
        assert fields["tokenizer.ggml.pre"].contents() == "smollm"
        tokens = fields["tokenizer.ggml.tokens"].contents()
        kinds = fields["tokenizer.ggml.token_type"].contents()
        merges = fields["tokenizer.ggml.merges"].contents()
        self.ids = {token: at for at, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): at for at, merge in enumerate(merges)}
        special = [regex.escape(token) for token, kind in zip(tokens, kinds) if kind == 3]
        self.special = regex.compile("(" + "|".join(sorted(special, key=len, reverse=True)) + ")")
        # A digit of any script stands alone, then GPT-2's words.
        self.digits = regex.compile(r"(\p{N})")
        self.words = regex.compile(
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        )
        prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        hidden = [byte for byte in range(256) if byte not in prints]
        self.letters = {byte: chr(byte) for byte in prints}
        self.letters |= {byte: chr(256 + at) for at, byte in enumerate(hidden)}

    def encode(self, text):
        ids = []
        for at, part in enumerate(self.special.split(text)):
            if at % 2:
                ids.append(self.ids[part])
                continue
            for piece in filter(None, self.digits.split(part)):
                for word in self.words.findall(piece):
                    ids += self.word(word)
        return ids

    def word(self, word):
        parts = [self.letters[byte] for byte in word.encode()]
        while len(parts) > 1:
            pairs = [self.ranks.get(pair, 1 << 30) for pair in zip(parts, parts[1:])]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[best] == 1 << 30:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        # A byte that the vocabulary does not hold is dropped.
        return [self.ids[part] for part in parts if part in self.ids]


def make_tokenizer(directory, gguf):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    independent = FirstPrinciples(gguf)
    goldens, wrong = [], 0
    for text in dict.fromkeys(strings()):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if ids != independent.encode(text):
            wrong += 1
            print(f"  {text!r}\n    {ids}\n    {independent.encode(text)}")
        goldens.append([text, ids])
    assert not wrong, f"{wrong} of {len(goldens)} differ from the GGUF's own tokenizer"
    print(f"  {len(goldens)} strings, all as the GGUF's own tokenizer has them")
    write("tokenizer.json", {"goldens": goldens})


# -- chat templates ----------------------------------------------------------------------------

# Written for this test: the ways of the templates that models bring, not the text of any.
TEMPLATES = {
    "tools": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if ns.last < 0 and message.role == 'user' %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'assistant' and not message.tool_calls %}
        {%- set content = message.content %}
        {%- if message.role == 'assistant' and '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + ('!' if loop.index0 == ns.last else '') }}
        {{- '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{ '\\n' + message.content }}{% endif %}
        {%- for call in message.tool_calls %}
            {%- set call = call.function %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- (call.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
""",
    "alternating": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{% set system = messages[0]['content'].strip() %}
{% set rest = messages[1:] %}
{% else %}
{% set rest = messages %}
{% endif %}
{% for message in rest %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.first and system is defined %}
        {% set content = '<<SYS>>\\n' ~ system ~ '\\n<</SYS>>\\n\\n' ~ message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
[INST] {{ content.strip() }} [/INST]
    {% elif message['role'] == 'assistant' %}
{{ ' ' ~ content | trim ~ ' ' ~ eos_token }}
    {% endif %}
{% endfor %}
""",
    "python": """{%- for message in messages -%}
{%- if message.content is string -%}
{%- set text = message.content -%}
{%- else -%}
{%- set text = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') -%}
{%- endif -%}
{%- if message.role not in ['system', 'user', 'assistant'] -%}{%- continue -%}{%- endif -%}
{{ message['role'].title() }}[{{ loop.index }}/{{ loop.length }}]: {{ text.replace('a', 'A').rstrip() }}
{{ text.upper() if text.startswith('W') else text | capitalize }} {{ text.endswith('?') }} {{ text | length }}
{% for key, value in message.items() if key != 'content' %}{{ key }}={{ value }};{% endfor %}
{{ '%s and %d' | format('x', 3) }} {{ text[:3] }} {{ text[-1] }} {{ [1, 2] + [3] }} {{ {'a': none}.get('b', 'c') }}
{% if loop.index == 3 %}{% break %}{% endif %}
{%- endfor %}
{%- macro shout(word, times=2) %}{{ (word ~ '!') * times }}{% endmacro %}
{{ shout('hey') }} {{ shout('ho', times=1) }} {{ messages | map(attribute='role') | unique | list | join(',') }}
{{ {'b': [1, 2.5, true, none], 'a': '\\u00e9<&>'} | tojson }} {{ {'x': {'y': 1}} | tojson(indent=2) }}
""",
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <now> in a city & its surroundings",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Z\u00fcrich", "Bern"]}},
                "required": ["city"],
            },
        },
    }
]

CALLS = [
    {"role": "user", "content": "Weather in Bern?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "weather", "arguments": {"city": "Bern", "days": 2}},
            }
        ],
    },
    {"role": "tool", "content": '{"celsius": 7.5}'},
    {"role": "tool", "content": "rain"},
]

CONVERSATIONS = CHATS + [
    CALLS,
    [{"role": "system", "content": "  Be brief. "}, *CALLS[:1]],
    [
        {"role": "user", "content": "Think."},
        {"role": "assistant", "content": "<think>\nhm</think>\n\nDone."},
        {"role": "user", "content": "What? "},
    ],
    [{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "No."}],
    [
        {
            "role": "user",
            "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two \u00e9"}],
        }
    ],
]


def make_templates(directory):
    import jinja2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    templates = {"smollm2": tokenizer.chat_template, **TEMPLATES}
    cases = []
    for name, template in templates.items():
        for messages in CONVERSATIONS:
            for arguments in [
                {"add_generation_prompt": True},
                {"add_generation_prompt": False, "tools": TOOLS, "enable_thinking": False},
            ]:
                case = {"template": name, "messages": messages, "arguments": arguments}
                try:
                    case["text"] = tokenizer.apply_chat_template(
                        messages, chat_template=template, tokenize=False, **arguments
                    )
                except (jinja2.TemplateError, TypeError) as error:
                    case["error"] = str(error)
                cases.append(case)
    tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    write("templates.json", {"tokens": tokens, "templates": templates, "cases": cases})


# -- GGUF --------------------------------------------------------------------------------------

FORMATS = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K".split()


def make_quants():
    import gguf
    import numpy

    rng = numpy.random.default_rng(1)
    formats = {}
    for name in FORMATS:
        kind = gguf.GGMLQuantizationType[name]
        numbers, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (2 if numbers > 1 else 16, size), dtype=numpy.uint8)
        # Scales are F16 of moderate size: the exponent's upper bits are 01.
        for at in {"Q6_K": [208], "Q8_0": [0], "Q4_0": [0], "Q5_0": [0], "F32": [2]}.get(name, [0, 2]):
            if at + 1 < size:
                blocks[:, at + 1] = blocks[:, at + 1] & 0x87 | 0x30
        decoded = gguf.quants.dequantize(blocks.reshape(-1), kind).astype("<f4")
        formats[name] = {"blocks": blocks.tobytes().hex(), "numbers": decoded.tobytes().hex()}
    write("quants.json", formats)


def make_import(path):
    """Checksums of what the import of the default model must write, from the package gguf."""
    import gguf
    import numpy

    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    sums = {}
    for tensor in gguf.GGUFReader(path).tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        numbers = numbers.reshape([int(size) for size in reversed(tensor.shape)])
        name = {"token_embd.weight": "model.embed_tokens.weight"}.get(tensor.name)
        name = {"output_norm.weight": "model.norm.weight"}.get(tensor.name, name)
        if name is None:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{names[part]}.weight"
            if part in ("attn_q", "attn_k"):
                heads = numbers.shape[0] // 64
                split = numbers.reshape(heads, 32, 2, -1).swapaxes(1, 2)
                numbers = split.reshape(numbers.shape)
        halves = torch.from_numpy(numpy.array(numbers)).bfloat16().view(torch.int16)
        halves = halves.numpy().astype(numpy.uint16).astype(numpy.uint64).reshape(-1)
        places = numpy.arange(1, halves.size + 1, dtype=numpy.uint64)
        sums[name] = str(int((halves * places).sum(dtype=numpy.uint64)))
    write("import.json", sums)


if __name__ == "__main__":
    made = {
        "families": make_families,
        "smollm2": make_smollm2,
        "tokenizer": make_tokenizer,
        "templates": make_templates,
        "quants": make_quants,
        "import": make_import,
    }
    if len(sys.argv) < 2 or sys.argv[1] not in made:
        sys.exit(__doc__)
    made[sys.argv[1]](*sys.argv[2:])
