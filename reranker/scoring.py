"""Scores and orders: pure functions over arrays, the same ones online and in evaluation."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reranker.index import Index
from reranker.records import Vector

Scores = NDArray[np.float32]
"""One score a candidate, shape (candidates,); NaN: there is none."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates in their new order. All arrays but `order` are in the order of the request."""

    order: NDArray[np.int64]
    """Candidate numbers, best first, shape (candidates,)."""
    scores: Scores
    """What `order` is by: fused and standardised; without a profile the first-stage scores, 0 where absent."""
    persona_scores: Scores
    """Eq. 10, in [-1, 1]; NaN without a profile, or where the index does not hold the item."""
    winners: NDArray[np.int64]
    """The vector of the index with that score; -1 where there is none."""
    ranks_before: NDArray[np.int64]
    """Place by first-stage score, from 1; ties and absent scores in the order of the request."""


def rerank(
    index: Index, profile: Vector | None, rows: NDArray[np.int64], first_stage: Scores, weight: float
) -> Ranking:
    """Order candidates, given by their `rows` of the index (-1: not in it), for a profile of unit length.

    weight: share of the persona score in the fused score, 0 to 1.
    """
    ranks_before = _ranks(first_stage)
    if profile is None:
        nothing, nobody = np.full(len(rows), np.nan, np.float32), np.full(len(rows), -1, np.int64)
        return Ranking(_order(first_stage, ranks_before), np.nan_to_num(first_stage), nothing, nobody, ranks_before)
    persona_scores, winners = best_personas(profile, index.vectors, index.offsets, rows)
    scores = fuse(persona_scores, first_stage, weight)
    return Ranking(_order(scores, ranks_before), scores, persona_scores, winners, ranks_before)


def best_personas(
    profile: Vector, vectors: Vector, offsets: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[Scores, NDArray[np.int64]]:
    """Return each item's best similarity to the profile and which vector has it (eq. 10; of equals, the first).

    profile: (dimension,); vectors: (vectors, dimension); offsets: (items + 1,); rows: (candidates,), -1 for an item
    that is not in the index: its score is NaN and its winner -1. Every item in the index owns a vector at least.
    """
    scores = np.full(len(rows), np.nan, np.float32)
    winners = np.full(len(rows), -1, np.int64)
    held = rows >= 0
    if held.any():
        starts, counts = offsets[rows[held]], np.diff(offsets)[rows[held]]
        scores[held], winners[held] = _segment_best(profile, vectors, starts, counts)
    return scores, winners


def _segment_best(
    profile: Vector, vectors: Vector, starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[Scores, NDArray[np.int64]]:
    heads = np.cumsum(counts) - counts
    picked = np.arange(counts.sum()) + np.repeat(starts - heads, counts)
    similarities = np.clip(vectors[picked] @ profile, -1.0, 1.0)
    best = np.maximum.reduceat(similarities, heads)
    # The first place of a segment at which its maximum stands: where nothing else can stand, beyond the end.
    places = np.where(similarities == np.repeat(best, counts), np.arange(len(picked)), len(picked))
    return best, picked[np.minimum.reduceat(places, heads)]


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
    if not held.any():
        return standard
    # In double precision: the spread of a few nearly equal float32 is mostly their rounding otherwise.
    values = scores[held].astype(np.float64)
    spread = values.std()
    if spread > np.finfo(np.float32).eps * np.abs(values).max():
        standard[held] = (values - values.mean()) / spread
    return standard


def _ranks(first_stage: Scores) -> NDArray[np.int64]:
    ranks = np.empty(len(first_stage), np.int64)
    ranks[np.argsort(-first_stage, kind="stable")] = np.arange(1, len(first_stage) + 1)
    return ranks


def _order(scores: Scores, ranks_before: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.lexsort((ranks_before, -scores))
