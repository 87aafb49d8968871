"""Scores and orders against a plain-Python reading of eq. 10 and of the fusion's words."""

import math
from collections.abc import Sequence
from operator import mul
from random import Random
from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.index import Index, Places, open_index
from reranker.kernels import standardise
from reranker.scoring import Fusion, Ranking, Rules, best_of_index, fuse, rerank
from reranker.segment import build_segment
from tests.reranker.making import SPACE, index, item, vector

# Eighths in few dimensions: every product and sum of them is exact in float32, so equal means equal.
EIGHTHS = st.integers(-8, 8).map(lambda n: n / 8)
VECTORS = st.lists(EIGHTHS, min_size=3, max_size=3)
CATALOGUES = st.lists(st.lists(VECTORS, min_size=1, max_size=4), min_size=1, max_size=6)
SCORES = st.one_of(st.just(math.nan), st.integers(-80, 80).map(lambda n: n / 8))
SINGLES = st.floats(width=32, allow_infinity=False)
WEIGHTS = st.sampled_from([0.0, 0.25, 0.5, 1.0])

Catalogue = list[list[list[float]]]


def laid_out(catalogue: Catalogue) -> Index:
    return index(
        *(item(f"i{number}", [vector(*v) for v in vectors]) for number, vectors in enumerate(catalogue)), dimension=3
    )


@st.composite
def requests(draw: st.DrawFn) -> tuple[Catalogue, list[int], list[float]]:
    """Draw a catalogue, candidates as its rows (-1: not in it; repeated at will) and their first-stage scores."""
    catalogue = draw(CATALOGUES)
    rows = draw(st.lists(st.integers(-1, len(catalogue) - 1), max_size=8))
    scores = st.lists(SCORES, min_size=len(rows), max_size=len(rows))
    return catalogue, rows, draw(scores | SCORES.map(lambda score: [score] * len(rows)))


def places_of(rows: Sequence[int]) -> Places:
    found = np.array(rows, np.int64)
    return Places(np.where(found >= 0, 0, -1), found)


def plain_best(catalogue: Catalogue, profile: Sequence[float], row: int) -> tuple[float, int]:
    if row < 0:
        return math.nan, -1
    similarities = [sum(map(mul, persona, profile)) for persona in catalogue[row]]
    before = sum(len(vectors) for vectors in catalogue[:row])
    # The winner is found before rounding is cut off at 1: of vectors beyond it, the greatest wins and not the first.
    return max(-1.0, min(1.0, max(similarities))), before + similarities.index(max(similarities))


def plain_standard(scores: Sequence[float]) -> list[float]:
    held = [score for score in scores if not math.isnan(score)]
    spread = pstdev(held) if held else 0
    return [0.0 if math.isnan(score) or not spread else (score - fmean(held)) / spread for score in scores]


def plain_fused(persona: Sequence[float], first: Sequence[float], weight: float) -> list[float]:
    share = 1.0 if weight > 0 and not any(plain_standard(first)) else weight
    return [share * p + (1 - share) * f for p, f in zip(plain_standard(persona), plain_standard(first), strict=True)]


def plain_ranks(scores: Sequence[float]) -> list[int]:
    order = sorted(
        range(len(scores)), key=lambda n: (math.isnan(scores[n]), -scores[n] if scores[n] == scores[n] else 0)
    )
    return [order.index(number) + 1 for number in range(len(scores))]


def ranked(
    catalogue: Catalogue, rows: Sequence[int], first: Sequence[float], weight: float, profile: Sequence[float] | None
) -> Ranking:
    of_user = None if profile is None else vector(*profile)
    return rerank(laid_out(catalogue), of_user, places_of(rows), np.array(first, np.float32), weight)


def assert_places(ranking: Ranking, rows: Sequence[int], first: Sequence[float]) -> None:
    assert sorted(ranking.order.tolist()) == list(range(len(rows))), "a candidate was dropped or invented"
    assert ranking.ranks_before.tolist() == plain_ranks(first)


@given(requests(), VECTORS)
def test_the_best_persona_of_each_item_is_found(
    request: tuple[Catalogue, list[int], list[float]], profile: list[float]
) -> None:
    catalogue, rows, _ = request
    scores, winners = best_of_index(laid_out(catalogue), vector(*profile), places_of(rows))
    expected = [plain_best(catalogue, profile, row) for row in rows]
    np.testing.assert_array_equal(scores, np.array([score for score, _ in expected], np.float32))
    assert winners.tolist() == [winner for _, winner in expected]


@given(requests(), VECTORS, st.randoms(use_true_random=False))
def test_segments_give_the_scores_and_personas_of_one(
    request: tuple[Catalogue, list[int], list[float]], profile: list[float], chance: Random
) -> None:
    catalogue, rows, _ = request
    items = [item(f"i{number}", [vector(*v) for v in vectors]) for number, vectors in enumerate(catalogue)]
    dealt = [chance.randrange(3) for _ in items]
    many = open_index(
        "v", [build_segment(SPACE, 3, [i for i, to in zip(items, dealt, strict=True) if to == n]) for n in range(3)]
    )
    ids = [f"i{row}" for row in rows]
    places = many.locate(ids)
    scores, winners = best_of_index(many, vector(*profile), places)
    one = laid_out(catalogue)
    expected, expected_winners = best_of_index(one, vector(*profile), one.locate(ids))
    np.testing.assert_array_equal(scores, expected)
    for segment, winner, other in zip(places.segments.tolist(), winners, expected_winners, strict=True):
        assert (winner < 0) == (other < 0)
        assert winner < 0 or many.segments[segment].persona(winner) == one.single.persona(other)


@given(requests(), VECTORS, WEIGHTS)
def test_candidates_are_ordered_by_the_fused_score(
    request: tuple[Catalogue, list[int], list[float]], profile: list[float], weight: float
) -> None:
    catalogue, rows, first = request
    ranking = ranked(catalogue, rows, first, weight, profile)
    expected = plain_fused([plain_best(catalogue, profile, row)[0] for row in rows], first, weight)
    assert_places(ranking, rows, first)
    np.testing.assert_allclose(ranking.scores, expected, atol=1e-5)
    # By score, and of equals the one that was first before.
    keys = [(-ranking.scores[place], ranking.ranks_before[place]) for place in ranking.order]
    assert keys == sorted(keys)


def plain_reciprocal(scores: Sequence[float]) -> list[float]:
    held = [1 / (60 + rank) for rank, score in zip(plain_ranks(scores), scores, strict=True) if score == score]
    ranks = zip(plain_ranks(scores), scores, strict=True)
    return [1 / (60 + rank) if score == score else fmean(held) if held else 0 for rank, score in ranks]


@given(requests(), VECTORS, WEIGHTS)
def test_reciprocal_ranks_are_blended(
    request: tuple[Catalogue, list[int], list[float]], profile: list[float], weight: float
) -> None:
    catalogue, rows, first = request
    rules = Rules(fusion=Fusion.RECIPROCAL_RANK)
    ranking = rerank(laid_out(catalogue), vector(*profile), places_of(rows), np.array(first, np.float32), weight, rules)
    persona = [plain_best(catalogue, profile, row)[0] for row in rows]
    if weight > 0 and not any(plain_standard(first)):
        expected = plain_standard(persona)
    else:
        both = zip(plain_reciprocal(persona), plain_reciprocal(first), strict=True)
        expected = plain_standard([weight * p + (1 - weight) * f for p, f in both])
    np.testing.assert_allclose(ranking.scores, expected, atol=1e-2)


@given(requests(), VECTORS, WEIGHTS)
def test_the_persona_score_may_rank_alone(
    request: tuple[Catalogue, list[int], list[float]], profile: list[float], weight: float
) -> None:
    catalogue, rows, first = request
    rules = Rules(fusion=Fusion.PERSONA)
    alone = rerank(laid_out(catalogue), vector(*profile), places_of(rows), np.array(first, np.float32), weight, rules)
    expected = plain_standard([plain_best(catalogue, profile, row)[0] for row in rows])
    np.testing.assert_allclose(alone.scores, expected, atol=1e-5)


@given(requests(), VECTORS | st.none(), st.data())
def test_boosts_are_added_to_the_scores(
    request: tuple[Catalogue, list[int], list[float]], profile: list[float] | None, data: st.DataObject
) -> None:
    catalogue, rows, first = request
    boosts = data.draw(st.lists(EIGHTHS, min_size=len(rows), max_size=len(rows)))
    rules = Rules(boosts=np.array(boosts, np.float32))
    index, of_user = laid_out(catalogue), None if profile is None else vector(*profile)
    ranking = rerank(index, of_user, places_of(rows), np.array(first, np.float32), 0.5, rules)
    without = rerank(index, of_user, places_of(rows), np.array(first, np.float32), 0.5)
    plain = plain_standard(first) if profile is None else without.scores
    np.testing.assert_allclose(ranking.scores, np.add(plain, boosts), atol=1e-5)
    keys = [(-ranking.scores[place], ranking.ranks_before[place]) for place in ranking.order]
    assert keys == sorted(keys)


@given(requests(), WEIGHTS)
def test_without_a_profile_the_first_stage_order_stands(
    request: tuple[Catalogue, list[int], list[float]], weight: float
) -> None:
    catalogue, rows, first = request
    ranking = ranked(catalogue, rows, first, weight, profile=None)
    assert_places(ranking, rows, first)
    assert ranking.ranks_before[ranking.order].tolist() == list(range(1, len(rows) + 1))
    assert ranking.scores.tolist() == [0.0 if math.isnan(score) else score for score in first]
    assert np.isnan(ranking.persona_scores).all()
    assert (ranking.winners == -1).all()


TWO_APART: Catalogue = [[[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]]
"""The second item is the one for the profile (1, 0, 0)."""


@pytest.mark.parametrize(
    ("first", "weight", "order"),
    [
        pytest.param([2, 1], 0.0, [0, 1], id="weight 0: the first stage alone"),
        pytest.param([2, 1], 1.0, [1, 0], id="weight 1: the personas alone"),
        pytest.param([2, 1], 0.25, [0, 1], id="the first stage weighs more"),
        pytest.param([2, 1], 0.75, [1, 0], id="the personas weigh more"),
        pytest.param([2, 1], 0.5, [0, 1], id="equal: the place before decides"),
        pytest.param([1, 2], 0.5, [1, 0], id="both agree"),
        pytest.param([7, 7], 0.01, [1, 0], id="constant scores say nothing"),
        pytest.param([math.nan, math.nan], 0.01, [1, 0], id="absent scores say nothing"),
        pytest.param([7, math.nan], 0.01, [1, 0], id="a single score says nothing"),
        pytest.param([7, 7], 0.0, [0, 1], id="constant scores at weight 0: the order of the request"),
        pytest.param([math.nan, math.nan], 0.0, [0, 1], id="absent scores at weight 0: the order of the request"),
    ],
)
def test_fusion_by_hand(first: list[float], weight: float, order: list[int]) -> None:
    assert ranked(TWO_APART, [0, 1], first, weight, profile=[1.0, 0.0, 0.0]).order.tolist() == order


def test_where_the_first_stage_says_nothing_the_scores_are_those_of_the_personas_alone() -> None:
    alone = ranked(TWO_APART, [0, 1], [1, 2], 1.0, profile=[1.0, 0.0, 0.0])
    for first in ([7.0, 7.0], [math.nan, math.nan]):
        fused = ranked(TWO_APART, [0, 1], first, 0.25, profile=[1.0, 0.0, 0.0])
        assert fused.scores.tolist() == alone.scores.tolist() == [-1.0, 1.0]


def test_an_item_that_is_not_indexed_counts_as_average() -> None:
    ranking = ranked(TWO_APART, [0, -1, 1], [math.nan] * 3, 0.5, profile=[1.0, 0.0, 0.0])
    assert ranking.order.tolist() == [2, 1, 0]
    assert (ranking.scores[1], ranking.winners[1]) == (0.0, -1)
    assert np.isnan(ranking.persona_scores[1])


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("row", [-1, 1])
def test_one_candidate_is_first_with_score_zero(row: int, weight: float) -> None:
    ranking = ranked(TWO_APART, [row], [3.5], weight, profile=[1.0, 0.0, 0.0])
    assert (ranking.order.tolist(), ranking.scores.tolist(), ranking.ranks_before.tolist()) == ([0], [0.0], [1])


def test_no_candidates_make_an_empty_ranking() -> None:
    for profile in (None, [1.0, 0.0, 0.0]):
        ranking = ranked(TWO_APART, [], [], 0.5, profile)
        assert [len(ranking.order), len(ranking.scores), len(ranking.winners)] == [0, 0, 0]


def test_an_index_without_items_keeps_the_first_stage_order() -> None:
    ranking = rerank(index(), vector(1, 0), places_of([-1, -1]), vector(1, 2), 0.5)
    assert ranking.order.tolist() == [1, 0]


@given(st.lists(SINGLES, min_size=1, max_size=20))
def test_standard_scores_are_finite_and_keep_the_order(scores: list[float]) -> None:
    standard = standardise(np.array(scores, np.float32))
    assert np.isfinite(standard).all()
    assert all(standard[n] == 0 for n, score in enumerate(scores) if math.isnan(score))
    held = sorted((score, float(standard[n])) for n, score in enumerate(scores) if not math.isnan(score))
    assert [value for _, value in held] == sorted(value for _, value in held)


@given(SINGLES, st.integers(1, 50))
def test_equal_scores_are_zero_however_large(score: float, count: int) -> None:
    assert not standardise(np.full(count, score, np.float32)).any()


@given(st.floats(2**-100, 2**100, width=32), st.integers(2, 50))
def test_scores_that_differ_by_a_rounding_say_nothing(score: float, count: int) -> None:
    nearly = np.full(count, score, np.float32)
    nearly[0] = np.nextafter(nearly[0], np.float32(np.inf))
    assert not standardise(nearly).any()


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=20), st.sampled_from([1e-6, 1.0, 1e6]))
def test_scale_and_origin_of_the_first_stage_do_not_matter(values: list[int], scale: float) -> None:
    moved = standardise(np.array([scale * (value + 3) for value in values], np.float32))
    np.testing.assert_allclose(moved, plain_standard(values), atol=1e-3)


@given(st.lists(st.tuples(SINGLES, SINGLES), max_size=20), st.floats(0, 1))
def test_a_fused_score_is_never_missing(pairs: list[tuple[float, float]], weight: float) -> None:
    persona, first = np.array(pairs, np.float32).reshape(-1, 2).T
    assert np.isfinite(fuse(persona, first, weight)).all()
