"""Eq. 10 alone, in this process: what a rerank's arithmetic costs, and how far that is from touching its memory."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from persona4rec.arguments import CANDIDATES
from reranker.kernels import best_personas
from reranker.records import Vector
from reranker.segment import Segment

ROUNDS = 2000


@dataclass(frozen=True, slots=True)
class ScoringAlone:
    """Microseconds of one request, median."""

    hot: float
    """The same candidates again and again."""
    random: float
    """Other candidates each time."""
    touching: float
    """Copying the rows of other candidates each time, nothing else: the floor."""


def measure_scoring(segment: Segment) -> ScoringAlone:
    """Score as many candidates as a request has, each with all its personas."""
    arrays, random = segment.arrays, np.random.default_rng(3)
    profile: Vector = random.standard_normal(segment.dimension).astype(np.float32)
    draws = [random.choice(len(arrays.deleted), CANDIDATES, replace=False) for _ in range(ROUNDS)]
    out = np.empty((CANDIDATES * int(np.diff(arrays.offsets).max()), segment.dimension), arrays.vectors.dtype)

    here = np.zeros(CANDIDATES, np.int64)
    scores, winners = np.empty(CANDIDATES, np.float32), np.empty(CANDIDATES, np.int64)

    def score(rows: NDArray[np.int64]) -> None:
        best_personas(profile, arrays.vectors, arrays.offsets, here, rows, 0, scores, winners)

    def touch(rows: NDArray[np.int64]) -> None:
        picked = np.concatenate([np.arange(arrays.offsets[row], arrays.offsets[row + 1]) for row in rows])
        started = perf_counter_ns()
        arrays.vectors.take(picked, axis=0, out=out[: len(picked)], mode="clip")
        touched.append(perf_counter_ns() - started)

    touched: list[int] = []
    score(draws[0])  # compiles
    hot = _median(score, [draws[0]] * ROUNDS)
    # Half each, so that neither finds warm what the other has fetched.
    cold = _median(score, draws[::2])
    for rows in draws[1::2]:
        touch(rows)
    return ScoringAlone(hot, cold, float(np.median(touched)) / 1000)


def _median(work: Callable[[NDArray[np.int64]], None], draws: list[NDArray[np.int64]]) -> float:
    taken = []
    for rows in draws:
        started = perf_counter_ns()
        work(rows)
        taken.append(perf_counter_ns() - started)
    return float(np.median(taken)) / 1000
