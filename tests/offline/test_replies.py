import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from offline.replies import NOTHING, Reason, Rejected, Reply, Usage, read, reply_of, usage_in


class Verdict(BaseModel):
    verdict: str
    score: int | None = None


GOOD = '{"verdict": "yes", "score": 3}'


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"  {GOOD}\n",
        f"```json\n{GOOD}\n```",
        f"Sure! Here it is:\n```\n{GOOD}\n```\nAnything else?",
        f"<think>The set {{a, b}} has a brace, {{}} too.</think>\n{GOOD}",
        f'{{"thought": "not what was asked for"}}\n{GOOD}',
    ],
)
def test_json_is_found_where_models_put_it(text: str) -> None:
    assert read(Reply(text, "stop"), Verdict) == Verdict(verdict="yes", score=3)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("", "stop"), Reason.MALFORMED),
        (Reply("I would rather not.", "stop"), Reason.MALFORMED),
        (Reply('{"verdict": "yes"', "stop"), Reason.MALFORMED),
        (Reply('{"a":' * 100_000, "stop"), Reason.MALFORMED),
        (Reply('{"verdict": "\\ud800"}', "stop"), Reason.MALFORMED),
        (Reply('{"score": 3}', "stop"), Reason.SCHEMA),
        (Reply('{"outer": {"verdict": "yes"}}', "stop"), Reason.SCHEMA),
        (Reply('{"verdict": "ye', "length"), Reason.TRUNCATED),
        (Reply(f'[{GOOD}, {{"verdict"', "length"), Reason.TRUNCATED),
        (Reply("", "stop", refusal="I cannot help with that"), Reason.REFUSED),
        (Reply(GOOD, "content_filter"), Reason.FILTERED),
    ],
)
def test_why_there_is_no_answer(reply: Reply, reason: Reason) -> None:
    result = read(reply, Verdict)
    assert isinstance(result, Rejected)
    assert result.reason is reason
    assert "yes" not in result.detail


def test_a_whole_answer_counts_though_the_limit_was_reached_behind_it() -> None:
    assert read(Reply(GOOD + "\n\n", "length"), Verdict) == Verdict(verdict="yes", score=3)


@given(st.text(), st.sampled_from(["stop", "length", ""]))
def test_any_text_has_a_result(text: str, finish: str) -> None:
    assert isinstance(read(Reply(text, finish), Verdict), Verdict | Rejected)


@given(st.text(st.characters(exclude_characters="{", exclude_categories=["Cs"])), st.text(max_size=50), st.text())
def test_an_object_amid_prose_is_found(before: str, after: str, verdict: str) -> None:
    text = before + json.dumps({"verdict": verdict}) + after
    assert read(Reply(text, "stop"), Verdict) == Verdict(verdict=verdict)


def test_a_completion_is_taken_apart() -> None:
    body = {
        "choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "stop", "index": 0}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    assert reply_of(json.dumps(body).encode()) == reply_of(body) == Reply("", "stop", "no", Usage(1, 3, 2))


@pytest.mark.parametrize(
    "choices", [[], [{"message": {"content": [{"type": "text", "text": GOOD}]}}], [{"message": {"tool_calls": []}}]]
)
def test_a_completion_without_text_is_a_reply_that_is_paid_for(choices: list[object]) -> None:
    reply = reply_of({"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    assert reply.usage == Usage(1, 3, 2)
    assert read(reply, Verdict) == Rejected(Reason.MALFORMED, "the completion holds no text")


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 3}, {"prompt_tokens": -1, "completion_tokens": 0}, "x"])
def test_a_completion_whose_usage_is_rubbish_is_one_all_the_same(usage: object) -> None:
    reply = reply_of({"choices": [{"message": {"content": GOOD}, "finish_reason": "stop"}], "usage": usage})
    assert reply == Reply(GOOD, "stop", usage=None)


def test_what_was_used_is_told_by_any_body() -> None:
    assert usage_in(b'{"error": "x", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}') == Usage(1, 3, 2)
    assert usage_in(b"<html>") == usage_in(b"{}") == usage_in(b"[]") == NOTHING


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": [{"text": "x"}]}', b"\xff"])
def test_what_is_no_completion_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        reply_of(body)
