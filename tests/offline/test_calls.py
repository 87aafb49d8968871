from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from offline.calls import Call, Model, cache_key, estimated_tokens, request_body, schema_of


class Slots(BaseModel):
    plot: str | None
    style: str | None = None


class Other(BaseModel):
    plot: str


CALL: Call[Any] = Call("r1", ({"role": "user", "content": "What of the plot?"},), Slots, 50, ("user:u",))
MODEL = Model("m")


@pytest.mark.parametrize(
    ("call", "model"),
    [
        (replace(CALL, messages=({"role": "system", "content": "What of the plot?"},)), MODEL),
        (replace(CALL, messages=({"role": "user", "content": "What of the plot? "},)), MODEL),
        (replace(CALL, messages=(*CALL.messages, *CALL.messages)), MODEL),
        (Call("r1", CALL.messages, Other, 50), MODEL),
        (replace(CALL, max_tokens=51), MODEL),
        (CALL, replace(MODEL, name="n")),
        (CALL, replace(MODEL, temperature=0.1)),
        (CALL, replace(MODEL, seed=1)),
        (CALL, replace(MODEL, parameters={"top_p": 0.9})),
    ],
)
def test_what_decides_a_reply_decides_the_key(call: Call[Any], model: Model) -> None:
    assert cache_key(call, model) != cache_key(CALL, MODEL)


def test_what_does_not_decide_a_reply_leaves_the_key_alone() -> None:
    # Were it to change, every cache that exists would be worth nothing: raise KEY_FORMAT only on purpose.
    assert cache_key(CALL, MODEL).hex() == "cd7cc8925a3eb39ba90ab95e514685eb55f212b4349b42bcb33149385174e2e4"
    assert cache_key(replace(CALL, key="r2", tags=()), MODEL) == cache_key(CALL, MODEL)


@given(st.text(), st.text())
def test_messages_are_not_run_together(first: str, second: str) -> None:
    def key(*texts: str) -> bytes:
        return cache_key(replace(CALL, messages=tuple({"role": "user", "content": text} for text in texts)), MODEL)

    assert key(first, second) != key(first + second)


def test_the_schema_is_strict() -> None:
    schema = schema_of(Slots)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["plot", "style"]


def test_a_further_attempt_is_hotter_of_another_seed_and_says_the_schema_in_words() -> None:
    first, third = request_body(CALL, MODEL), request_body(CALL, MODEL, attempt=2, max_tokens=100)
    assert (first["temperature"], first["seed"], first["max_tokens"]) == (0.0, 0, 50)
    assert (third["temperature"], third["seed"], third["max_tokens"]) == (0.6, 2, 100)
    assert first["messages"] == list(CALL.messages)
    assert '"plot"' in third["messages"][-1]["content"]
    assert "response_format" in third


def test_without_constraints_the_schema_is_said_in_words_only() -> None:
    body = request_body(CALL, MODEL, constrained=False)
    assert "response_format" not in body
    assert '"plot"' in body["messages"][-1]["content"]


def test_parameters_replace_ours_and_null_takes_one_out() -> None:
    model = replace(MODEL, limit_field="max_completion_tokens", parameters={"temperature": None, "top_p": 0.5})
    body = request_body(CALL, model)
    assert "temperature" not in body
    assert "max_tokens" not in body
    assert (body["top_p"], body["max_completion_tokens"]) == (0.5, 50)


@given(st.text())
def test_tokens_are_a_quarter_of_the_bytes(text: str) -> None:
    assert 4 * (estimated_tokens(text) - 1) < len(text.encode()) <= 4 * estimated_tokens(text)
