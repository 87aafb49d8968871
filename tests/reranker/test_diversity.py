"""Maximal marginal relevance against a plain reading of its definition."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reranker.diversity import spread
from reranker.records import Vector

EAST, NORTH = np.array([1, 0], np.float32), np.array([0, 1], np.float32)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[float], Vector]:
    """Draw scores in steps that float32 holds, and vectors of unit length or none along the axes."""
    scores = draw(st.lists(st.integers(-16, 16).map(lambda n: n / 8), min_size=1, max_size=12))
    axes = st.sampled_from([EAST, NORTH, -EAST, np.zeros(2, np.float32)])
    return scores, np.stack(draw(st.lists(axes, min_size=len(scores), max_size=len(scores))))


def by_score(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda number: -scores[number])


def plainly(scores: list[float], vectors: Vector, diversity: float, depth: int) -> list[int]:
    left, dealt = by_score(scores), list[int]()
    while left and len(dealt) < depth:
        chosen = max(left, key=lambda n: marginal(n, scores, vectors, dealt, diversity))
        left.remove(chosen)
        dealt.append(chosen)
    return dealt + left


def marginal(number: int, scores: list[float], vectors: Vector, dealt: list[int], diversity: float) -> float:
    nearest = max((float(vectors[number] @ vectors[other]) for other in dealt), default=-1.0)
    return (1 - diversity) * scores[number] - diversity * max(nearest, -1.0)


@given(answers(), st.sampled_from([0.25, 0.5, 0.75]), st.integers(1, 12))
def test_each_place_goes_to_the_greatest_marginal_relevance(
    answer: tuple[list[float], Vector], diversity: float, depth: int
) -> None:
    scores, vectors = answer
    order = np.array(by_score(scores))
    found = spread(order, np.array(scores, np.float32), vectors, diversity, depth)
    assert found.tolist() == plainly(scores, vectors, diversity, depth)


def test_an_item_of_another_kind_overtakes_a_near_copy() -> None:
    vectors = np.stack([EAST, EAST, NORTH])
    order = spread(np.arange(3), np.array([1.0, 0.9, 0.5], np.float32), vectors, 0.5, 0)
    assert order.tolist() == [0, 2, 1]


def test_nothing_is_spread_of_nothing() -> None:
    assert spread(np.arange(0), np.zeros(0, np.float32), np.zeros((0, 2), np.float32), 0.5, 0).tolist() == []
