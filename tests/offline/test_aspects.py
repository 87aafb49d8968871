from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from offline.aspects import LONGEST_REVIEW, AspectsStage, aspects_schema, without_repeats
from offline.calls import schema_of
from offline.domains import load_domain
from offline.fingerprints import fingerprint
from offline.records import Review, ReviewAspects
from offline.stages import Made

BOOKS = load_domain("books")
STAGE = AspectsStage(BOOKS)
SLOTS = tuple(BOOKS.slots)
REVIEW = Review("r1", "u1", "b1", "I read it on a train.", "Fine", 4.0, 1000)
SEA = Review("r1", "u1", "b1", "Sea stories in dense prose, about a lunch. I read a book at sea.", "Fine", 4.0, 1000)


def answer(*texts: str | None) -> BaseModel:
    given: Mapping[str, str | None] = dict(zip(SLOTS, texts, strict=True))
    return aspects_schema(SLOTS).model_validate(given)


def made(*texts: str | None, review: Review = SEA) -> Made:
    return STAGE.made(review, [answer(*texts)])


def aspects(found: Made) -> tuple[str | None, ...]:
    assert isinstance(found.record, ReviewAspects)
    return tuple(found.record.aspects.values())


def test_each_slot_may_be_null_in_the_schema() -> None:
    schema = schema_of(aspects_schema(SLOTS))
    assert schema["required"] == list(SLOTS)
    assert all({"type": "null"} in schema["properties"][slot]["anyOf"] for slot in SLOTS)


def test_the_review_and_every_slot_are_in_the_prompt() -> None:
    (call,) = STAGE.calls(REVIEW)
    assert "<review>\nFine\nI read it on a train.\n</review>" in call.messages[1]["content"]
    assert all(f"- {slot}: {what}" in call.messages[0]["content"] for slot, what in BOOKS.slots.items())
    assert set(call.tags) == {"user:u1", "review:r1"}


def test_the_record_keeps_whose_and_when() -> None:
    record = made("sea stories", None, "dense prose", None).record
    expected = dict(zip(SLOTS, ("sea stories", None, "dense prose", None), strict=True))
    assert record == ReviewAspects("r1", "b1", expected, "u1", 4.0, 1000, fingerprint(SEA))


@pytest.mark.parametrize("nothing", ["", " ", "null", "N/A", "None.", "not mentioned", "Not specified", "(unknown)"])
def test_words_for_nothing_are_null(nothing: str) -> None:
    assert aspects(made("sea stories", nothing, nothing, nothing)) == ("sea stories", None, None, None)


def test_a_slot_that_repeats_another_counts_as_null() -> None:
    found = made("A book about the sea", "about the sea", "a book, about THE SEA!", "read at sea")
    assert aspects(found) == ("A book about the sea", None, None, "read at sea")
    assert found.counts["null slots"] == found.counts["slots that repeated another"] == 2


def test_a_slot_the_review_does_not_support_counts_as_null() -> None:
    found = STAGE.made(REVIEW, [answer("mystery fiction", "for enjoyment", "fine", "on trains")])
    assert aspects(found) == (None, None, "fine", "on trains")
    assert found.counts["slots the review does not support"] == 2
    russian = Review("r", "u", "b", "\u041a\u043d\u0438\u0433\u0430 \u043e \u043c\u043e\u0440\u0435")
    assert aspects(STAGE.made(russian, [answer("\u043c\u043e\u0440\u0441\u043a\u0430\u044f", "sea", None, None)])) == (
        "\u043c\u043e\u0440\u0441\u043a\u0430\u044f",
        None,
        None,
        None,
    )


@given(st.lists(st.one_of(st.none(), st.text(alphabet="ab c", min_size=1, max_size=8)), min_size=2, max_size=5))
def test_taking_repeats_out_keeps_the_first_and_is_final(texts: list[str | None]) -> None:
    given = {str(place): text for place, text in enumerate(texts)}
    kept = without_repeats(given)
    assert all(text in (None, given[slot]) for slot, text in kept.items())
    assert without_repeats(kept) == kept
    words = [frozenset(text.split()) for text in kept.values() if text and text.strip()]
    assert len(words) == len(set(words))


def test_a_review_with_more_than_three_quarters_null_leaves_the_pool() -> None:
    found = made(None, None, None, None)
    assert found.record is None
    assert found.problems[0].reason == "says too little"
    assert found.counts["null slots"] == 4
    assert made("sea stories", None, None, None).record  # just three quarters
    five = load_domain("restaurants")
    lunch = aspects_schema(tuple(five.slots)).model_validate(dict.fromkeys(five.slots) | {"visit_purpose": "lunch"})
    assert AspectsStage(five).made(SEA, [lunch]).record is None


def test_a_long_review_is_cut_at_a_sentence_and_counted() -> None:
    long = Review("r", "u", "b", "It is a good book. " * 400)
    (call,) = STAGE.calls(long)
    assert len(call.messages[1]["content"]) < LONGEST_REVIEW + 300
    assert "good book.\n</review>" in call.messages[1]["content"]
    assert made("good", None, None, None, review=long).counts["reviews cut"] == 1


def test_a_review_without_text_asks_nobody() -> None:
    empty = Review("r", "u", "b", " \n")
    assert STAGE.calls(empty) == ()
    assert STAGE.made(empty, ()).problems[0].reason == "no text"
    assert STAGE.extracted(empty).problems[0].reason == "no text"


def test_without_an_llm_the_reviews_sentences_speak() -> None:
    review = Review("r", "u", "b", "The plot and the characters are thin. I read it while travelling to work.")
    found = [text for text in aspects(STAGE.extracted(review)) if text]
    assert found
    assert all(text in review.text for text in found)
