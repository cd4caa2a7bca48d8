"""What openai-python makes of the server: the types it parses, the errors it raises."""

import asyncio
import math

import openai
import pytest

from conftest import eventually

CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
STORY = [{"role": "user", "content": "Tell me a long story about a lighthouse."}]


def test_a_chat_is_answered_with_sense(client, model):
    answer = client.chat.completions.create(
        model=model, messages=CAPITAL, temperature=0, max_tokens=24
    )
    assert answer.object == "chat.completion"
    assert answer.model == model
    [choice] = answer.choices
    assert "Paris" in choice.message.content
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert choice.logprobs is None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_a_stream_says_the_same(client, model):
    ask = dict(model=model, messages=CAPITAL, temperature=0, max_tokens=24)
    whole = client.chat.completions.create(**ask)
    chunks = list(
        client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    ends = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert ends == [whole.choices[0].finish_reason]
    assert len({c.id for c in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])


def test_a_stream_has_one_chunk_a_token(client, model):
    chunks = client.chat.completions.create(
        model=model, messages=STORY, max_tokens=12, stream=True, extra_body={"ignore_eos": True}
    )
    tokens = [c for c in chunks if c.choices and c.choices[0].delta.content is not None]
    assert len(tokens) == 1 + 12


def test_logprobs_are_probabilities(client, model):
    answer = client.chat.completions.create(
        model=model, messages=CAPITAL, temperature=0, max_tokens=4, logprobs=True, top_logprobs=5
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 5
        assert token.logprob == token.top_logprobs[0].logprob
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0001
        if token.bytes is not None:
            assert bytes(token.bytes).decode("utf-8", "replace") == token.token


def test_several_choices(client, model):
    answer = client.chat.completions.create(
        model=model, messages=STORY, n=3, max_tokens=12, temperature=1.0, seed=5
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    again = client.chat.completions.create(
        model=model, messages=STORY, n=3, max_tokens=12, temperature=1.0, seed=5
    )
    texts = [[choice.message.content for choice in one.choices] for one in (answer, again)]
    assert texts[0] == texts[1]


def test_stop_strings(client, model):
    ask = dict(model=model, messages=CAPITAL, temperature=0, max_tokens=24)
    full = client.chat.completions.create(**ask).choices[0].message.content
    at = full.index("aris")
    stopped = client.chat.completions.create(stop=["never said", "aris"], **ask).choices[0]
    assert stopped.message.content == full[:at]
    assert stopped.finish_reason == "stop"
    stream = client.chat.completions.create(stop="aris", stream=True, **ask)
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == full[:at]


def test_models(client, model):
    assert client.models.retrieve(model).id == model
    assert [one.id for one in client.models.list()] == [model]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such/model")


def test_completions(client, model):
    answer = client.completions.create(
        model=model, prompt="One, two, three,", max_tokens=8, temperature=0, logprobs=2, echo=True
    )
    [choice] = answer.choices
    assert choice.text.startswith("One, two, three,")
    assert "four" in choice.text
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    stream = client.completions.create(
        model=model, prompt="One, two, three,", max_tokens=8, temperature=0, stream=True
    )
    streamed = "".join(chunk.choices[0].text for chunk in stream)
    assert "One, two, three," + streamed == choice.text


def test_a_repeated_prompt_is_cached(client, model):
    messages = [{"role": "user", "content": "A prompt of some length. " * 12}]
    ask = dict(model=model, messages=messages, max_tokens=1)
    first, second = (client.chat.completions.create(**ask).usage for _ in range(2))
    # The template's own system message may be cached before the first.
    assert first.prompt_tokens_details.cached_tokens < first.prompt_tokens / 2
    assert second.prompt_tokens_details.cached_tokens > second.prompt_tokens / 2


@pytest.mark.parametrize(
    "wrong", [{"temperature": 9}, {"messages": []}, {"n": 0}, {"max_tokens": -1}, {"top_logprobs": 50}]
)
def test_a_bad_request_is_a_bad_request_error(client, model, wrong):
    ask = {"model": model, "messages": CAPITAL, **wrong}
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**ask)
    assert raised.value.type == "invalid_request_error"
    assert raised.value.param == next(iter(wrong))
    assert raised.value.request_id


def test_a_long_prompt_says_context_length_exceeded(client, model):
    messages = [{"role": "user", "content": "word " * 12000}]
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=model, messages=messages)
    assert raised.value.code == "context_length_exceeded"
    assert "maximum context length is" in raised.value.message


def test_an_unknown_model_is_a_not_found_error(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="no/such/model", messages=CAPITAL)
    assert raised.value.code == "model_not_found"


def test_a_large_body_is_a_413(narrow):
    client = narrow.client()
    messages = [{"role": "user", "content": "x" * 70000}]
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(model="any", messages=messages)
    assert raised.value.status_code == 413


def test_a_full_server_is_an_internal_server_error_that_is_tried_again(narrow, model):
    client = narrow.client()
    ask = dict(model=model, messages=STORY, extra_body={"ignore_eos": True})
    with client.chat.completions.create(max_tokens=4000, stream=True, **ask) as stream:
        next(iter(stream))
        with pytest.raises(openai.InternalServerError) as raised:
            client.chat.completions.create(max_tokens=1, **ask)
        assert raised.value.status_code == 503
        assert int(raised.value.response.headers["retry-after"]) > 0
        assert raised.value.code == "overloaded"
    # With retries the same client gets through, now that there is room.
    answer = client.with_options(max_retries=5).chat.completions.create(max_tokens=1, **ask)
    assert answer.usage.completion_tokens == 1


def test_closing_a_stream_cancels_it(server, client, model):
    stream = client.chat.completions.create(
        model=model, messages=STORY, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    for _ in range(3):
        next(stream)
    eventually("it runs", lambda: server.metric("vllm:num_requests_running") == 1)
    stream.close()
    eventually("it is cancelled", lambda: server.metric("vllm:num_requests_running") == 0)
    eventually("its pages are free", lambda: server.metric("vllm:kv_cache_usage_perc") == 0)


def test_a_failed_connection_is_told_apart():
    nobody = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIConnectionError):
        nobody.models.list()


def test_sixteen_at_once(server, model):
    async def one(client, number):
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Count from %d." % number}],
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage.completion_tokens == 8
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    async def all_of_them():
        async with server.client(openai.AsyncOpenAI) as client:
            together = await asyncio.gather(*(one(client, number) for number in range(16)))
            alone = [await one(client, number) for number in (0, 7, 15)]
        assert alone == [together[0], together[7], together[15]]

    asyncio.run(all_of_them())
