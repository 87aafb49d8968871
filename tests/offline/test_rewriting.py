"""When personas are written anew, and what stays of the old ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.refresh import Bounds
from offline.rewriting import Thresholds, Why, kept, text_changed, verdict
from reranker.records import Persona, Vector, persona_id


def directions(*places: int) -> Vector:
    return np.eye(4, dtype=np.float32)[list(places)]


def persona(words: str, *evidence: str) -> Persona:
    return Persona(persona_id("i", words, words, words), words, words, words, evidence)


def never(one: Persona, other: Persona) -> bool:
    return False


@pytest.mark.parametrize(
    ("of", "new", "resting", "withdrawn", "why"),
    [
        ([], [], [], False, Why.NO_REVIEWS),
        ([], [], [], True, Why.NO_REVIEWS),
        ([0], [True], [], False, Why.FIRST),
        ([0, 0], [False, False], [[0]], True, Why.WITHDRAWN),
        ([0, 0], [False, False], [[0]], False, Why.NOTHING_NEW),
        ([0, 0], [False, False], [], False, Why.NOTHING_NEW),
        ([0, 0, 0], [False, True, True], [[0]], False, Why.TOO_FEW),
        ([0, 0, 0, 0], [False, True, True, True], [[0]], False, Why.ENOUGH),
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [False] * 7 + [True] * 3, [[0]], False, Why.TOO_FEW),
        ([0, 0, 0, 0, 0, 0, 0, 0, 0], [False] * 6 + [True] * 3, [[0]], False, Why.ENOUGH),
        ([0, 1], [False, True], [[0]], False, Why.UNLIKE),
        ([0, 1, 1], [False, False, True], [[0], [1]], False, Why.TOO_FEW),
        ([0, 1], [False, True], [[]], False, Why.TOO_FEW),
    ],
)
def test_personas_are_rewritten_where_the_evidence_warrants_it(
    of: list[int], new: list[bool], resting: list[list[int]], withdrawn: bool, why: Why
) -> None:
    assert verdict(directions(*of), np.array(new, bool), resting, Thresholds(3, 0.5, 0.25), withdrawn=withdrawn) is why


def test_a_thousand_reviews_of_one_kind_cost_about_fifteen_rewrites() -> None:
    known = rewrites = 0
    for count in range(1, 1001):
        new = np.arange(count) >= known
        if verdict(directions(*[0] * count), new, [[0]] if known else [], Thresholds()).rewrite:
            known, rewrites = count, rewrites + 1
    assert 12 <= rewrites <= 18


@pytest.mark.parametrize(
    ("rewrites", "tokens", "more", "refusal"),
    [(0, 0, 10, None), (5, 0, 10, Why.HOURLY_BOUND), (4, 90, 10, None), (4, 91, 10, Why.TOKEN_BUDGET)],
)
def test_an_hour_holds_so_many_rewrites_and_tokens(rewrites: int, tokens: int, more: int, refusal: Why | None) -> None:
    assert Bounds(5, 100).refusal(rewrites, tokens, more) is refusal
    assert Bounds(5, None).refusal(4, 10**9, more) is None


def test_what_rests_on_the_same_reviews_keeps_its_words_and_gains_the_new_evidence() -> None:
    old = [persona("romance", "r1", "r2"), persona("crime", "r3")]
    written = [persona("murder", "r3", "r9"), persona("war", "r8"), persona("love", "r1", "r2", "r7")]
    first, second, third = kept(old, written, {"r1", "r2", "r3"}, (), never)
    assert (first.persona_id, first.evidence) == (old[1].persona_id, ("r3", "r9"))
    assert second == written[1]
    assert (third.name, third.evidence) == ("romance", ("r1", "r2", "r7"))
    assert text_changed(old, (first, second, third)) == pytest.approx(1 / 3)


def test_words_that_are_kept_go_on_resting_on_the_reviews_they_were_written_from() -> None:
    """Or the erasure of who wrote r1 would find nothing to take away."""
    old, written = persona("quotes r1", "r1", "r2", "r3"), persona("another", "r2", "r3", "r4")
    (found,) = kept([old], [written], {"r1", "r2", "r3"}, (), never)
    assert (found.name, found.evidence) == ("quotes r1", ("r2", "r3", "r4", "r1"))


def test_what_is_alike_in_words_is_kept_and_an_editor_s_own_is_not_replaced() -> None:
    old, written = [persona("romance", "r1")], [persona("love", "r5")]
    assert kept(old, written, {"r1"}, (), lambda one, other: True)[0].name == "romance"
    assert kept(old, written, {"r1"}, {written[0].persona_id}, lambda one, other: True) == (written[0],)


REVIEWS = [f"r{number}" for number in range(8)]
PERSONAS = st.lists(
    st.tuples(st.text("abcdef", min_size=1, max_size=4), st.lists(st.sampled_from(REVIEWS), min_size=1, unique=True)),
    max_size=5,
    unique_by=lambda drawn: drawn[0],
).map(lambda drawn: [persona(words, *evidence) for words, evidence in drawn])


@given(PERSONAS, PERSONAS, st.sets(st.sampled_from(REVIEWS)))
def test_as_many_are_left_with_their_evidence_and_none_is_there_twice(
    old: list[Persona], written: list[Persona], known: set[str]
) -> None:
    found = kept(old, written, known, (), never)
    by_id = {one.persona_id: one for one in old}
    for one, new in zip(found, written, strict=True):
        before = by_id.get(one.persona_id)
        assert set(one.evidence) == set(new.evidence) | set(before.evidence if before else ())
    assert len({one.persona_id for one in found}) == len(found)


@given(PERSONAS)
def test_writing_the_same_again_changes_nothing(old: list[Persona]) -> None:
    known = {review_id for one in old for review_id in one.evidence}
    assert kept(old, old, known, (), never) == tuple(old)
