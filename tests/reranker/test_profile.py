import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.profile import VectorSource, build_profile, decay_weights
from reranker.records import Vector
from tests.reranker.making import event, index, item, vector

EAST, NORTH = vector(1, 0), vector(0, 1)
TWO = index(item("east", [EAST]), item("north", [NORTH]))


def known(found: Vector | None) -> Vector:
    assert found is not None
    return found


def profile_of(vectors: list[Vector], gamma: float) -> Vector | None:
    """Return the profile of events with these vectors, newest first."""
    items = index(*(item(f"i{number}", [found]) for number, found in enumerate(vectors)))
    return build_profile([event(f"i{number}") for number in range(len(vectors))], items, gamma).vector


def test_equation_7_by_hand() -> None:
    # gamma = 1/2: the newest event weighs 1, the next 1/2, then 1/4; of 7/4 that is 4/7, 2/7, 1/7.
    profile = build_profile([event("east"), event("north"), event("east")], TWO, gamma=0.5)
    np.testing.assert_allclose(profile.weights, [4 / 7, 2 / 7, 1 / 7], rtol=1e-6)
    # 5/7 east and 2/7 north, at unit length.
    np.testing.assert_allclose(known(profile.vector), np.array([5, 2]) / 29**0.5, rtol=1e-6)
    assert profile.sources == (VectorSource.ITEM,) * 3


def test_a_history_s_item_is_its_interaction_vector_not_a_persona() -> None:
    two_sided = index(item("both", [EAST, NORTH], itself=vector(0.6, 0.8)))
    found = build_profile([event("both")], two_sided, 0.9).vector
    np.testing.assert_allclose(known(found), [0.6, 0.8], rtol=1e-6)


def test_places_that_were_looked_up_already_change_nothing() -> None:
    events = [event("gone"), event("north"), event("east", aspects=NORTH)]
    places = TWO.locate(["gone", "north", "east"])
    looked_up, plain = build_profile(events, TWO, 0.5, places=places), build_profile(events, TWO, 0.5)
    np.testing.assert_array_equal(looked_up.vector, plain.vector)
    assert looked_up.sources == plain.sources == (VectorSource.NONE, VectorSource.ITEM, VectorSource.ASPECTS)


def test_without_decay_all_events_weigh_the_same() -> None:
    np.testing.assert_allclose(decay_weights(4, gamma=1.0), [0.25] * 4)


@given(st.integers(1, 200), st.floats(0.01, 1.0))
def test_weights_fall_with_age_and_add_up_to_one(n: int, gamma: float) -> None:
    weights = decay_weights(n, gamma)
    assert weights.dtype == np.float32
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert (np.diff(weights) <= 0).all()


def test_an_item_that_is_not_indexed_is_passed_over_and_ages_nothing() -> None:
    with_it = build_profile([event("gone"), event("east"), event("gone"), event("north")], TWO, 0.5)
    without = build_profile([event("east"), event("north")], TWO, 0.5)
    np.testing.assert_array_equal(with_it.vector, without.vector)
    np.testing.assert_allclose(with_it.weights, [0, 2 / 3, 0, 1 / 3], rtol=1e-6)
    assert with_it.sources == (VectorSource.NONE, VectorSource.ITEM, VectorSource.NONE, VectorSource.ITEM)


@pytest.mark.parametrize(
    ("item_id", "space", "expected", "source"),
    [
        pytest.param("east", "space", NORTH, VectorSource.ASPECTS, id="aspects stand before the item"),
        pytest.param("gone", "space", NORTH, VectorSource.ASPECTS, id="aspects need no indexed item"),
        pytest.param("east", "another", EAST, VectorSource.ITEM, id="another space: the item itself"),
        pytest.param("east", None, EAST, VectorSource.ITEM, id="no space told: the item itself"),
        pytest.param("gone", "another", None, VectorSource.NONE, id="another space and no item: nothing"),
    ],
)
def test_where_the_vector_of_an_event_comes_from(
    item_id: str, space: str | None, expected: Vector | None, source: VectorSource
) -> None:
    profile = build_profile([event(item_id, aspects=NORTH, space=space)], TWO, 0.9)
    assert profile.sources == (source,)
    if expected is None:
        assert profile.vector is None
        assert profile.weights.tolist() == [0]
    else:
        np.testing.assert_array_equal(profile.vector, expected)


@pytest.mark.parametrize("aspects", [vector(1), vector(0, 0, 1)])
def test_aspects_of_another_length_than_their_space_s_are_passed_over(aspects: Vector) -> None:
    profile = build_profile([event("east", aspects=aspects), event("gone", aspects=aspects)], TWO, 0.9)
    assert profile.sources == (VectorSource.ITEM, VectorSource.NONE)
    np.testing.assert_array_equal(profile.vector, EAST)


@pytest.mark.parametrize("vectors", [[EAST, -EAST], [vector(0, 0)]])
def test_a_profile_that_vanishes_is_none(vectors: list[Vector]) -> None:
    assert profile_of(vectors, gamma=1.0) is None


def test_a_profile_has_unit_length_even_of_small_vectors() -> None:
    found = profile_of([vector(1e-3, 0), vector(0, 2e-3)], 0.5)
    np.testing.assert_allclose(known(found), np.array([1, 1]) / 2**0.5, rtol=1e-6)


def test_no_events_make_no_profile() -> None:
    profile = build_profile([], TWO, 0.9)
    assert (profile.vector, len(profile.weights), profile.sources, profile.watermark) == (None, 0, (), 0)


@pytest.mark.parametrize(
    ("times", "watermark"), [([30, 20, 10], 30), ([0, 0], 0), ([10, 30], 30)], ids=["dated", "undated", "unsorted"]
)
def test_the_watermark_is_the_newest_event(times: list[int], watermark: int) -> None:
    assert build_profile([event("east", time) for time in times], TWO, 0.9).watermark == watermark


def test_an_event_without_a_vector_counts_for_the_watermark() -> None:
    assert build_profile([event("gone", 40), event("east", 20)], TWO, 0.9).watermark == 40
