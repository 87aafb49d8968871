"""The loops every request runs through, compiled by numba: one pass each, no temporary arrays, no Python inside.

The same steps as numpy calls take several times as long, since a request's arrays are small: most of such a call is
finding out what to do. Kernels write into arrays that they are given. They trust their arguments: what is not of the
types and shapes said is refused by numba or, within, not checked.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from reranker.records import Vector

F = TypeVar("F", bound=Callable[..., Any])

EPSILON = float(np.finfo(np.float32).eps)
# Sums in any order, and products fused into them, so that they fill the processor's registers. What makes them forget
# NaN and infinity is not among these.
FAST = {"reassoc", "contract", "nsz"}


def compiled(function: F) -> F:
    """Compile at the first call, and keep the machine code on disk for the next process."""
    try:
        return cast("F", numba.njit(cache=True, fastmath=FAST)(function))
    except RuntimeError:
        # Neither this package's directory nor the user's cache can be written: each process compiles for itself, 3 s.
        return cast("F", numba.njit(fastmath=FAST)(function))


@compiled
def row_of(
    wanted: np.uint64, hashes: NDArray[np.uint64], rows: NDArray[np.int32], starts: NDArray[np.int32], shift: int
) -> int:
    """Return the row of a hash in an `ItemTable`, -1 where it has none."""
    window = wanted >> np.uint64(shift)
    for place in range(starts[window], starts[window + 1]):
        if hashes[place] == wanted:
            return int(rows[place])
    return -1


@compiled
def find(
    wanted: NDArray[np.uint64],
    hashes: NDArray[np.uint64],
    rows: NDArray[np.int32],
    starts: NDArray[np.int32],
    shift: int,
) -> NDArray[np.int64]:
    """Return the row of each hash in an `ItemTable`, -1 where it has none."""
    found = np.empty(len(wanted), np.int64)
    for number in range(len(wanted)):
        found[number] = row_of(wanted[number], hashes, rows, starts, shift)
    return found


@compiled
def settle(
    wanted: NDArray[np.uint64],
    hashes: NDArray[np.uint64],
    table_rows: NDArray[np.int32],
    starts: NDArray[np.int32],
    shift: int,
    deleted: NDArray[np.bool_],
    segment: int,
    segments: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> int:
    """Enter what a segment knows of items that no newer one knew (row -1), and return how many stay unknown."""
    left = 0
    for number in range(len(wanted)):
        if rows[number] >= 0:
            continue
        row = row_of(wanted[number], hashes, table_rows, starts, shift)
        if row < 0:
            left += 1
            continue
        rows[number] = row
        segments[number] = -1 if deleted[row] else segment
    return left


@compiled
def decay(strengths: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    """Return the share of each event, newest first: its strength times gamma ** age (eq. 7), adding up to 1.

    An event of strength 0 has no share and ages nothing. Without any strength all shares are 0.
    """
    shares = np.zeros(len(strengths), np.float32)
    weight, total = 1.0, 0.0
    for number in range(len(strengths)):
        if strengths[number] > 0:
            shares[number] = weight * strengths[number]
            total += shares[number]
            weight *= gamma
    if total > 0:
        for number in range(len(strengths)):
            shares[number] /= total
    return shares


@compiled
def add_weighted(
    weights: NDArray[np.float32],
    segments: NDArray[np.int64],
    rows: NDArray[np.int64],
    segment: int,
    vectors: Vector,
    out: Vector,
) -> None:
    """Add the vectors of the items of one segment, each times its weight, to `out`, shape (dimension,)."""
    for number in range(len(weights)):
        if segments[number] == segment and weights[number] > 0:
            for at in range(len(out)):
                out[at] += weights[number] * vectors[rows[number], at]


@compiled
def best_personas(
    profile: Vector,
    vectors: Vector,
    offsets: NDArray[np.int64],
    segments: NDArray[np.int64],
    rows: NDArray[np.int64],
    segment: int,
    scores: NDArray[np.float32],
    winners: NDArray[np.int64],
) -> None:
    """Enter the best similarity of each item of one segment to the profile, and which of its vectors has it (eq. 10).

    profile: (dimension,); vectors: (vectors, dimension); offsets: (items + 1,); the others: (n,). Of equal vectors the
    first wins, before rounding beyond 1 is cut off.
    """
    for number in range(len(rows)):
        if segments[number] != segment:
            continue
        best, winner = np.float32(-np.inf), -1
        for vector in range(offsets[rows[number]], offsets[rows[number] + 1]):
            similarity = np.float32(0)
            for at in range(len(profile)):
                similarity += profile[at] * vectors[vector, at]
            if similarity > best:
                best, winner = similarity, vector
        scores[number] = max(np.float32(-1), min(np.float32(1), best))
        winners[number] = winner


@compiled
def moments(scores: NDArray[np.float32]) -> tuple[float, float]:
    """Return mean and standard deviation of the scores there are; a deviation of 0 if they differ by rounding only."""
    # In double precision: the spread of a few nearly equal float32 is mostly their rounding otherwise.
    held, total, squares, largest = 0, 0.0, 0.0, 0.0
    for score in scores:
        if np.isfinite(score):
            held, total, largest = held + 1, total + score, max(largest, abs(score))
    mean = total / max(held, 1)
    for score in scores:
        if np.isfinite(score):
            squares += (score - mean) ** 2
    spread = math.sqrt(squares / max(held, 1))
    return mean, spread if spread > EPSILON * largest else 0.0


@compiled
def standardise(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores with mean 0 and standard deviation 1; 0 where there is none, and 0 everywhere if all are equal."""
    standard = np.zeros(len(scores), np.float32)
    mean, spread = moments(scores)
    if spread > 0:
        for number in range(len(scores)):
            if np.isfinite(scores[number]):
                standard[number] = (scores[number] - mean) / spread
    return standard


@compiled
def blend(persona: NDArray[np.float32], first_stage: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """Return both standardised and added up, the persona score's share being `weight`.

    Where the first stage says nothing the persona score counts alone, unless its weight is 0.
    """
    persona_mean, persona_spread = moments(persona)
    first_mean, first_spread = moments(first_stage)
    share = 1.0 if weight > 0 and first_spread == 0 else weight
    blended = np.zeros(len(persona), np.float32)
    for number in range(len(persona)):
        score = 0.0
        if persona_spread > 0 and np.isfinite(persona[number]):
            score += share * (persona[number] - persona_mean) / persona_spread
        if first_spread > 0 and np.isfinite(first_stage[number]):
            score += (1 - share) * (first_stage[number] - first_mean) / first_spread
        blended[number] = score
    return blended


@compiled
def descending(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the places of scores from the highest to the lowest, NaN last; of equals, the first first."""
    keys = np.empty(len(scores), np.float32)
    for number in range(len(scores)):
        keys[number] = -scores[number] if np.isfinite(scores[number]) else np.inf
    return np.argsort(keys, kind="mergesort")


@compiled
def ranks(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the rank of each score, from 1 for the highest; NaN is last, and of equals the first is first."""
    found = np.empty(len(scores), np.int64)
    for rank, place in enumerate(descending(scores)):
        found[place] = rank + 1
    return found


@compiled
def in_order(
    scores: NDArray[np.float32], first_stage: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of scores from the highest to the lowest, and the rank of each by first-stage score, from 1.

    NaN is last; of equal first-stage scores the first is first, of equal scores the one of lower rank.
    """
    before = descending(first_stage)
    ranks_before, lined_up = np.empty(len(scores), np.int64), np.empty(len(scores), np.float32)
    for rank in range(len(scores)):
        ranks_before[before[rank]], lined_up[rank] = rank + 1, scores[before[rank]]
    order = descending(lined_up)
    for rank in range(len(scores)):
        order[rank] = before[order[rank]]
    return order, ranks_before
