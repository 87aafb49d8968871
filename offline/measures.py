"""Ranking measures with intervals and paired tests, all by kept libraries: ir-measures and scipy.

Queries of one user are not independent, so intervals and tests resample users, not queries.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
from ir_measures import RR, Success, nDCG
from numpy.typing import NDArray
from scipy import stats

Query = tuple[str, str]
"""User and held-out item."""
Rankings = Mapping[Query, Sequence[str]]
"""Item ids, best first."""

MEASURES = {"HR": Success, "MRR": RR, "NDCG": nDCG}
# Intervals to about a twentieth of their width; more moves the third digit.
RESAMPLES = 2000

HELD_VALUES = 1_000_000
"""Of resamples at a time, 8 bytes each and held a few times over: all resamples of 100,000 users would be 14 GB."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure of one ranker."""

    ranker: str
    metric: str
    k: int
    value: float
    """Mean over queries, 0 to 1."""
    low: float
    """Of the 95 % bootstrap interval over users."""
    high: float
    per_user: float
    """Mean over users of the user's mean."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether one ranker differs from another, by a paired permutation test over users."""

    ranker: str
    against: str
    metric: str
    k: int
    difference: float
    """Of the means over users; positive: `ranker` is better."""
    p: float
    """Two-sided."""


Values = Mapping[tuple[str, int], Mapping[Query, float]]
"""By metric and cut-off: the value of each query."""


def measure(rankings: Rankings, ks: Sequence[int]) -> Values:
    """Return HR, MRR and NDCG at each cut-off for each query, whose one relevant item is the held-out one."""
    names = {query: str(number) for number, query in enumerate(rankings)}
    relevant = {names[query]: {query[1]: 1} for query in rankings}
    run = {names[query]: _scored(items[: max(ks)]) for query, items in rankings.items()}
    wanted = {metric @ k: (name, k) for name, metric in MEASURES.items() for k in ks}
    queries = list(rankings)
    values: dict[tuple[str, int], dict[Query, float]] = {key: dict.fromkeys(queries, 0.0) for key in wanted.values()}
    for found in ir_measures.iter_calc(list(wanted), relevant, run):
        values[wanted[found.measure]][queries[int(found.query_id)]] = found.value
    return values


def summarise(ranker: str, values: Values, seed: int) -> list[Measured]:
    """Return the mean of each measure with its interval."""
    return [_summary(ranker, metric, k, of_query, seed) for (metric, k), of_query in values.items()]


def compare(ranker: str, values: Values, against: str, others: Values, seed: int) -> list[Comparison]:
    """Test each measure of a ranker against another's over the same queries."""
    return [
        _comparison(ranker, against, metric, k, of_query, others[metric, k], seed)
        for (metric, k), of_query in values.items()
    ]


def _scored(items: Sequence[str]) -> dict[str, float]:
    return {item: -float(rank) for rank, item in enumerate(items)}


def _summary(ranker: str, metric: str, k: int, values: Mapping[Query, float], seed: int) -> Measured:
    sums, counts = _by_user(values)
    interval = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_batch(len(sums)),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    value, per_user = float(sums.sum() / counts.sum()), float((sums / counts).mean())
    return Measured(ranker, metric, k, value, float(interval.low), float(interval.high), per_user)


def _comparison(
    ranker: str,
    against: str,
    metric: str,
    k: int,
    values: Mapping[Query, float],
    others: Mapping[Query, float],
    seed: int,
) -> Comparison:
    sums, counts = _by_user(values)
    other_sums, _ = _by_user({query: others[query] for query in values})
    mine, theirs = sums / counts, other_sums / counts
    tested = stats.permutation_test(
        (mine, theirs),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_batch(len(sums)),
        rng=np.random.default_rng(seed),
    )
    return Comparison(ranker, against, metric, k, float((mine - theirs).mean()), float(tested.pvalue))


def _batch(users: int) -> int:
    """Return how many resamples to hold at a time."""
    return max(1, HELD_VALUES // max(1, users))


def _by_user(values: Mapping[Query, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each user's sum and number of queries, shapes (users,), users in order of their names."""
    users, places = np.unique([user for user, _ in values], return_inverse=True)
    sums = np.bincount(places, weights=np.fromiter(values.values(), float, len(values)), minlength=len(users))
    counts = np.bincount(places, minlength=len(users))
    return sums.astype(np.float64), counts.astype(np.float64)


def ndcg_of_ranks(ranks: Iterable[int], k: int) -> float:
    """Return the mean NDCG at k from the ranks (from 1) of each query's one relevant item.

    For choosing settings over hundreds of thousands of rankings; what is reported comes from `measure`.
    """
    found = np.fromiter(ranks, np.float64)
    return float(np.where(found <= k, 1 / np.log2(1 + found), 0).mean()) if len(found) else 0.0
