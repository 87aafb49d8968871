"""Scores and orders: pure functions over arrays, the same ones online and in evaluation."""

import math
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reranker.index import Index, Places
from reranker.records import Vector
from reranker.segment import Spans

EPSILON = float(np.finfo(np.float32).eps)

Scores = NDArray[np.float32]
"""One score a candidate, shape (candidates,); NaN: there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Candidates in their new order. All arrays but `order` are in the order of the request."""

    order: NDArray[np.int64]
    """Candidate numbers, best first, shape (candidates,)."""
    scores: Scores
    """What `order` is by: fused and standardised; without a profile the first-stage scores, 0 where absent."""
    persona_scores: Scores
    """Eq. 10, in [-1, 1]; NaN without a profile, or where the index does not hold the item."""
    winners: NDArray[np.int64]
    """The vector with that score, within the item's segment; -1 where there is none."""
    ranks_before: NDArray[np.int64]
    """Place by first-stage score, from 1; ties and absent scores in the order of the request."""


def rerank(index: Index, profile: Vector | None, places: Places, first_stage: Scores, weight: float) -> Ranking:
    """Order candidates, given by where the index has them, for a profile of unit length.

    weight: share of the persona score in the fused score, 0 to 1.
    """
    ranks_before = _ranks(first_stage)
    if profile is None:
        nothing, nobody = np.full(len(first_stage), np.nan, np.float32), np.full(len(first_stage), -1, np.int64)
        return Ranking(_order(first_stage, ranks_before), np.nan_to_num(first_stage), nothing, nobody, ranks_before)
    persona_scores, winners = best_of_index(index, profile, places)
    scores = fuse(persona_scores, first_stage, weight)
    return Ranking(_order(scores, ranks_before), scores, persona_scores, winners, ranks_before)


def best_of_index(index: Index, profile: Vector, places: Places) -> tuple[Scores, NDArray[np.int64]]:
    """Return each item's best similarity to the profile and which vector of its segment has it (eq. 10).

    The score is NaN and the winner -1 where the index does not hold the item.
    """
    scores = np.full(len(places.rows), np.nan, np.float32)
    winners = np.full(len(places.rows), -1, np.int64)
    for number, segment in enumerate(index.segments):
        here = places.segments == number
        if here.any():
            arrays = segment.arrays
            scores[here], winners[here] = best_personas(profile, arrays.vectors, arrays.offsets, places.rows[here])
    return scores, winners


def best_personas(
    profile: Vector, vectors: Vector, offsets: Spans, rows: NDArray[np.int64]
) -> tuple[Scores, NDArray[np.int64]]:
    """Return the best similarity of each item's vectors to the profile and which has it (eq. 10; of equals, the first).

    profile: (dimension,); vectors: (vectors, dimension); offsets: (items + 1,); rows: (n,), n >= 1, each of an item
    that owns a vector at least.
    """
    starts = offsets[rows]
    counts = offsets[rows + 1] - starts
    heads = np.cumsum(counts) - counts
    picked = np.arange(heads[-1] + counts[-1]) + np.repeat(starts - heads, counts)
    similarities = _gathered(vectors, picked) @ profile
    best = np.maximum.reduceat(similarities, heads)
    # The first place of a segment at which its maximum stands: where nothing else can stand, beyond the end.
    places = np.where(similarities == np.repeat(best, counts), np.arange(len(picked)), len(picked))
    return np.clip(best, -1.0, 1.0), picked[np.minimum.reduceat(places, heads)]


# 1,000 candidates of five 384-d personas: 7.7 MB. A larger gather is made anew.
_SCRATCH_BYTES = 8 << 20


class _Scratch(threading.local):
    """Memory that each thread gathers into: taking 0.8 MB anew for every request costs its page faults, about 50 us."""

    def __init__(self) -> None:
        self.floats = np.empty(_SCRATCH_BYTES // 4, np.float32)


_scratch = _Scratch()


def _gathered(vectors: Vector, picked: NDArray[np.int64]) -> Vector:
    size = len(picked) * vectors.shape[1]
    if size > len(_scratch.floats):
        return vectors.take(picked, axis=0)
    out = _scratch.floats[:size].reshape(len(picked), -1)
    # "clip" only because the default mode copies through a buffer of its own to write into `out`; all places are sound.
    return vectors.take(picked, axis=0, out=out, mode="clip")


def fuse(persona: Scores, first_stage: Scores, weight: float) -> Scores:
    """Blend both scores after standardising each within the request.

    A missing score counts as the mean of the others. Constant or absent first-stage scores say nothing, so the
    persona score ranks alone, unless its weight is 0.
    """
    first = standardise(first_stage)
    if weight > 0 and not first.any():
        return standardise(persona)
    return np.asarray(weight * standardise(persona) + (1 - weight) * first, dtype=np.float32)


def standardise(scores: Scores) -> Scores:
    """Return scores with mean 0 and standard deviation 1; 0 where there is none, and 0 everywhere if all are equal."""
    held = np.isfinite(scores)
    standard = np.zeros(len(scores), np.float32)
    # In double precision: the spread of a few nearly equal float32 is mostly their rounding otherwise.
    values = scores[held].astype(np.float64)
    if not len(values):
        return standard
    centred = values - values.sum() / len(values)
    spread = math.sqrt(centred.dot(centred) / len(centred))
    if spread > EPSILON * max(-values.min(), values.max()):
        standard[held] = centred / spread
    return standard


def _ranks(first_stage: Scores) -> NDArray[np.int64]:
    ranks = np.empty(len(first_stage), np.int64)
    ranks[np.argsort(-first_stage, kind="stable")] = np.arange(1, len(first_stage) + 1)
    return ranks


def _order(scores: Scores, ranks_before: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.lexsort((ranks_before, -scores))
