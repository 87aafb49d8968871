import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import nDCG

from offline.measures import Measured, Query, Values, compare, measure, ndcg_of_ranks, summarise

OTHERS = [f"other{number}" for number in range(30)]


def list_with(item_id: str, rank: int | None, length: int = 20) -> list[str]:
    """Return a ranking with the item at this rank; None: without it."""
    items = OTHERS[:length]
    return items if rank is None else [*items[: rank - 1], item_id, *items[rank - 1 :]]


def rankings(ranks: dict[Query, int | None]) -> dict[Query, list[str]]:
    return {query: list_with(query[1], rank) for query, rank in ranks.items()}


RANKS: dict[Query, int | None] = {("ann", "a"): 1, ("ann", "b"): 3, ("ann", "c"): None, ("ben", "a"): 6}


def test_values_are_those_worked_out_by_hand() -> None:
    values = measure(rankings(RANKS), [5, 10])
    by_hand = {
        ("HR", 5): [1, 1, 0, 0],
        ("HR", 10): [1, 1, 0, 1],
        ("MRR", 5): [1, 1 / 3, 0, 0],
        ("MRR", 10): [1, 1 / 3, 0, 1 / 6],
        ("NDCG", 5): [1, 1 / np.log2(4), 0, 0],
        ("NDCG", 10): [1, 1 / np.log2(4), 0, 1 / np.log2(7)],
    }
    assert values.keys() == by_hand.keys()
    for key, expected in by_hand.items():
        assert list(values[key]) == list(RANKS)
        assert list(values[key].values()) == pytest.approx(expected)


@pytest.mark.parametrize(("rank", "hit"), [(5, 1.0), (6, 0.0)])
def test_the_last_place_counts_and_the_one_below_does_not(rank: int, hit: float) -> None:
    assert measure(rankings({("ann", "a"): rank}), [5])["HR", 5] == {("ann", "a"): hit}


def test_a_list_shorter_than_the_cut_off_is_measured() -> None:
    assert measure({("ann", "a"): ["b", "a"], ("ben", "a"): []}, [5])["MRR", 5] == {("ann", "a"): 0.5, ("ben", "a"): 0}


def test_a_summary_is_the_mean_over_queries_and_beside_it_that_over_users() -> None:
    (hit_rate,) = [m for m in summarise("fused", measure(rankings(RANKS), [5]), 0) if m.metric == "HR"]
    assert (hit_rate.ranker, hit_rate.k) == ("fused", 5)
    assert hit_rate.value == pytest.approx(2 / 4)
    assert hit_rate.per_user == pytest.approx((2 / 3 + 0) / 2)


def values_of(queries: dict[Query, float]) -> Values:
    return {("HR", 5): queries}


def interval(queries: dict[Query, float], seed: int = 0) -> Measured:
    (found,) = summarise("any", values_of(queries), seed)
    return found


@given(
    st.dictionaries(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz")), st.floats(0, 1), min_size=2).filter(
        lambda queries: len({user for user, _ in queries}) > 1
    )
)
def test_the_interval_lies_about_the_value_within_the_range(queries: dict[Query, float]) -> None:
    found = interval(queries)
    tolerance = 1e-9
    assert 0 <= found.low <= found.high <= 1 + tolerance
    assert min(queries.values()) - tolerance <= found.low
    assert found.high <= max(queries.values()) + tolerance


def noisy(users: int, chance: float, seed: int) -> dict[Query, float]:
    hits = np.random.default_rng(seed).random(users) < chance
    return {(f"u{number}", "item"): float(hit) for number, hit in enumerate(hits)}


def test_the_interval_contains_the_value_and_narrows_with_the_users() -> None:
    few, many = interval(noisy(50, 0.4, 1)), interval(noisy(2000, 0.4, 1))
    assert few.low < few.value < few.high
    assert many.low < many.value < many.high
    # A proportion's standard error, +- 1.96 of it.
    assert many.high - many.low == pytest.approx(2 * 1.96 * np.sqrt(0.4 * 0.6 / 2000), rel=0.1)
    assert many.high - many.low < (few.high - few.low) / 4


def test_the_interval_is_decided_by_the_seed() -> None:
    queries = {(f"u{number}", "item"): value for number, value in enumerate(np.random.default_rng(0).random(50))}
    assert interval(queries, seed=7) == interval(queries, seed=7)
    assert len({interval(queries, seed=seed).low for seed in range(5)}) > 1


def test_many_queries_of_one_user_are_no_more_evidence_than_one() -> None:
    once = noisy(50, 0.4, 1)
    tenfold = {(user, f"item{copy}"): value for (user, _), value in once.items() for copy in range(10)}
    assert (interval(tenfold).low, interval(tenfold).high) == pytest.approx((interval(once).low, interval(once).high))


def test_a_planted_difference_is_found_and_signed() -> None:
    better, worse = noisy(300, 0.6, 1), noisy(300, 0.3, 2)
    (found,) = compare("fused", values_of(better), "generator", values_of(worse), 0)
    assert (found.ranker, found.against, found.metric, found.k) == ("fused", "generator", "HR", 5)
    assert found.difference == pytest.approx(np.mean(list(better.values())) - np.mean(list(worse.values())))
    assert found.p < 0.01
    (reverse,) = compare("generator", values_of(worse), "fused", values_of(better), 0)
    assert reverse.difference == pytest.approx(-found.difference)
    assert reverse.p < 0.01


def test_between_equal_rankers_there_is_no_difference() -> None:
    queries = noisy(300, 0.4, 1)
    (found,) = compare("fused", values_of(queries), "generator", values_of(dict(queries)), 0)
    assert (found.difference, found.p) == (0, 1)


def test_between_rankers_that_differ_by_chance_only_it_is_rarely_sure() -> None:
    pairs = [(noisy(100, 0.4, 2 * seed), noisy(100, 0.4, 2 * seed + 1)) for seed in range(40)]
    ps = [compare("a", values_of(mine), "b", values_of(theirs), 0)[0].p for mine, theirs in pairs]
    assert np.mean(np.array(ps) < 0.05) < 0.2


def test_queries_are_paired_by_what_they_are_not_by_their_order() -> None:
    queries = noisy(50, 0.4, 1)
    backwards = dict(reversed(queries.items()))
    more = {("another user", "item"): 1.0, **backwards, ("u7", "another item"): 1.0}
    (found,) = compare("fused", values_of(queries), "generator", values_of(more), 0)
    assert (found.difference, found.p) == (0, 1)


@given(st.lists(st.none() | st.integers(1, 21), min_size=1, max_size=30), st.integers(1, 20))
def test_ndcg_of_ranks_is_the_librarys(ranks: list[int | None], k: int) -> None:
    queries = {(f"u{number}", "item"): rank for number, rank in enumerate(ranks)}
    runs = {
        user: {item_id: -float(place) for place, item_id in enumerate(items)}
        for (user, _), items in rankings(queries).items()
    }
    relevant = {user: {"item": 1} for user, _ in queries}
    expected = ir_measures.calc_aggregate([nDCG @ k], relevant, runs)[nDCG @ k]
    assert ndcg_of_ranks((rank or 10**6 for rank in ranks), k) == pytest.approx(expected)
    assert np.mean(list(measure(rankings(queries), [k])["NDCG", k].values())) == pytest.approx(expected)


def test_ndcg_of_no_ranks_is_nothing() -> None:
    assert ndcg_of_ranks([], 10) == 0
