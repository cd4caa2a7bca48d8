"""What openai-python makes of keys: who is let in, and which of its errors the others get."""

import openai
import pytest

ASK = dict(model="SmolLM2-135M-Instruct", prompt="The sea is", max_tokens=3, temperature=0)


def test_a_key_is_let_in_and_sees_its_models(guarded):
    client = guarded.client(api_key=guarded.keys["free"])
    assert [model.id for model in client.models.list()] == [ASK["model"]]
    assert client.completions.create(**ASK).usage.completion_tokens == 3
    assert len(list(client.completions.create(stream=True, **ASK))) >= 3
    assert list(guarded.client(api_key=guarded.keys["other"]).models.list()) == []


def test_a_wrong_key_is_an_authentication_error(guarded):
    with pytest.raises(openai.AuthenticationError) as raised:
        guarded.client(api_key="sk-wrong", max_retries=2).models.list()
    assert raised.value.code == "invalid_api_key"


def test_another_model_is_a_permission_denied_error(guarded):
    with pytest.raises(openai.PermissionDeniedError):
        guarded.client(api_key=guarded.keys["other"]).completions.create(**ASK)


def test_too_many_requests_are_a_rate_limit_error_that_says_how_long(guarded):
    client = guarded.client(api_key=guarded.keys["slow"])
    raw = client.completions.with_raw_response.create(**ASK)
    assert raw.headers["x-ratelimit-limit-requests"] == "2"
    assert raw.headers["x-ratelimit-remaining-requests"] == "1"
    with pytest.raises(openai.RateLimitError) as raised:
        for _ in range(3):
            client.completions.create(**ASK)
    assert raised.value.code == "rate_limit_exceeded"
    assert 1 <= int(raised.value.response.headers["retry-after"]) <= 30


def test_a_spent_budget_is_a_rate_limit_error_that_is_not_tried_again(guarded):
    # The SDK tries a 429 again, unless it is told not to.
    client = guarded.client(api_key=guarded.keys["poor"], max_retries=5)
    with pytest.raises(openai.RateLimitError) as raised:
        client.completions.create(**ASK)
    assert raised.value.code == "insufficient_quota"
    assert raised.value.response.headers["x-should-retry"] == "false"
