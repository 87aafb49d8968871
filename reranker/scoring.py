"""Scores and orders: pure functions over arrays, the same ones online and in evaluation."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from reranker import kernels
from reranker.diversity import spread
from reranker.index import Index, Places
from reranker.kernels import standardise
from reranker.records import Vector

Scores = NDArray[np.float32]
"""One score a candidate, shape (candidates,); NaN: there is none."""


class Fusion(Enum):
    """How first-stage score and persona score become one."""

    BLEND = "blend"
    """Both standardised within the request, in the shares of the weight."""
    RECIPROCAL_RANK = "reciprocal_rank"
    """Reciprocal ranks in the shares of the weight, then standardised (Cormack, Clarke, Büttcher, SIGIR 2009)."""
    PERSONA = "persona"
    """The persona score alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """How a request wants its candidates ordered, beside the weight."""

    fusion: Fusion = Fusion.BLEND
    boosts: Scores | None = None
    """Added to each standardised score, shape (candidates,); None: nothing."""
    diversity: float = 0.0
    """How much resembling the items above holds an item back, 0 to below 1."""
    depth: int = 0
    """How many places diversity has a say in; 0: all."""


PLAIN = Rules()


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Candidates in their new order. All arrays but `order` are in the order of the request."""

    order: NDArray[np.int64]
    """Candidate numbers, best first, shape (candidates,)."""
    scores: Scores
    """What `order` is by but for diversity: fused, standardised, boosted; without profile and boosts the first-stage
    scores, 0 where absent."""
    persona_scores: Scores
    """Eq. 10, in [-1, 1]; NaN without a profile, or where the index does not hold the item."""
    winners: NDArray[np.int64]
    """The vector with that score, within the item's segment; -1 where there is none."""
    ranks_before: NDArray[np.int64]
    """Place by first-stage score, from 1; ties and absent scores in the order of the request."""


def rerank(
    index: Index, profile: Vector | None, places: Places, first_stage: Scores, weight: float, rules: Rules = PLAIN
) -> Ranking:
    """Order candidates, given by where the index has them, for a profile of unit length.

    weight: share of the persona score in the fused score, 0 to 1.
    """
    if profile is None:
        return _by_first_stage(first_stage, rules.boosts)
    persona_scores, winners = best_of_index(index, profile, places)
    scores = fuse(persona_scores, first_stage, weight, rules.fusion)
    if rules.boosts is not None:
        scores = scores + rules.boosts
    order, ranks_before = kernels.in_order(scores, first_stage)
    if rules.diversity:
        order = spread(order, scores, index.vectors(places, winners), rules.diversity, rules.depth)
    return Ranking(order, scores, persona_scores, winners, ranks_before)


def _by_first_stage(first_stage: Scores, boosts: Scores | None) -> Ranking:
    nothing, nobody = np.full(len(first_stage), np.nan, np.float32), np.full(len(first_stage), -1, np.int64)
    scores = first_stage if boosts is None else standardise(first_stage) + boosts
    order, ranks_before = kernels.in_order(scores, first_stage)
    return Ranking(order, np.nan_to_num(scores), nothing, nobody, ranks_before)


def best_of_index(index: Index, profile: Vector, places: Places) -> tuple[Scores, NDArray[np.int64]]:
    """Return each item's best similarity to the profile and which vector of its segment has it (eq. 10).

    The score is NaN and the winner -1 where the index does not hold the item.
    """
    scores, winners = np.full(len(places.rows), np.nan, np.float32), np.full(len(places.rows), -1, np.int64)
    for number, segment in enumerate(index.segments):
        arrays = segment.arrays
        kernels.best_personas(
            profile, arrays.vectors, arrays.offsets, places.segments, places.rows, number, scores, winners
        )
    return scores, winners


def fuse(persona: Scores, first_stage: Scores, weight: float, fusion: Fusion = Fusion.BLEND) -> Scores:
    """Make one score of both, mean 0 and in units of about their spread.

    A missing score counts as the mean of the others. Constant or absent first-stage scores say nothing, so the
    persona score ranks alone, unless its weight is 0.
    """
    if fusion is Fusion.BLEND:
        return kernels.blend(persona, first_stage, weight)
    if fusion is Fusion.PERSONA or (weight > 0 and not standardise(first_stage).any()):
        return standardise(persona)
    # Plain floats times float32 arrays stay float32.
    return standardise(weight * _reciprocal_ranks(persona) + (1 - weight) * _reciprocal_ranks(first_stage))


# What the source found best, and everybody has used since.
_RANK_OFFSET = 60


def _reciprocal_ranks(scores: Scores) -> Scores:
    """Return 1 / (60 + rank), of equals the first of the request before; the mean of the others where there is none."""
    reciprocal = 1 / (_RANK_OFFSET + kernels.ranks(scores)).astype(np.float32)
    held = np.isfinite(scores)
    return np.where(held, reciprocal, reciprocal[held].mean() if held.any() else 0)
