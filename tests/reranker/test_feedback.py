import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.feedback import AGAINST, Feedback
from reranker.profile import build_profile
from reranker.records import Event
from tests.reranker.making import index, item, vector

EAST, NORTH = vector(1, 0), vector(0, 1)
TWO = index(item("east", [EAST]), item("north", [NORTH]))


def event(item_id: str, kind: str = "", rating: float | None = None) -> Event:
    return Event("e", item_id, 1, kind, rating)


@pytest.mark.parametrize("kind", ["", "purchase", "review", "read", "like", "anything else"])
def test_what_is_plainly_positive_weighs_one(kind: str) -> None:
    assert Feedback().weights([event("east", kind)]) == [1]


@pytest.mark.parametrize(
    "disliked",
    [
        *(event("north", kind) for kind in sorted(AGAINST)),
        event("north", "DISLIKE"),
        event("north", "purchase", 1.0),
        event("north", "", 2.9),
    ],
)
def test_what_speaks_against_an_item_neither_pulls_nor_ages(disliked: Event) -> None:
    with_it = build_profile([disliked, event("east"), event("east")], TWO, 0.5)
    without = build_profile([event("east"), event("east")], TWO, 0.5)
    np.testing.assert_array_equal(with_it.vector, without.vector)
    assert with_it.weights.tolist() == [0, *without.weights.tolist()]


def test_a_history_of_dislikes_is_no_profile() -> None:
    profile = build_profile([event("east", "dislike"), event("north", "", 1.0)], TWO, 0.9)
    assert profile.vector is None
    assert profile.weights.sum() == 0


@pytest.mark.parametrize("rating", [3.0, 5.0, 0.5, 8.0, -1.0, None])
def test_a_good_rating_or_one_of_another_scale_weighs_one(rating: float | None) -> None:
    assert Feedback().weights([event("east", rating=rating)]) == [1]


def test_a_look_weighs_half_of_a_choice() -> None:
    # Without decay: one view and one purchase are a third and two thirds.
    profile = build_profile([event("north", "view"), event("east", "purchase")], TWO, 1.0)
    np.testing.assert_allclose(profile.weights, [1 / 3, 2 / 3], rtol=1e-6)


def test_looks_alone_weigh_as_much_as_choices_alone() -> None:
    looks = build_profile([event("north", "view"), event("east", "view")], TWO, 0.9)
    choices = build_profile([event("north"), event("east")], TWO, 0.9)
    np.testing.assert_allclose(looks.weights, choices.weights, rtol=1e-6)


def test_a_platform_sets_its_own_weights_and_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONA4REC_FEEDBACK_KINDS", '{"view": 0.1, "skip": 0.2}')
    monkeypatch.setenv("PERSONA4REC_FEEDBACK_DISLIKED_RATINGS", "[0, 6]")
    own = Feedback()
    assert own.weights(event("east", kind) for kind in ("view", "skip", "dislike")) == [0.1, 0.2, 0.0]
    assert own.weights(event("east", rating=rating) for rating in (5.9, 6.0, 11.0)) == [0, 1, 1]


@given(st.lists(st.tuples(st.sampled_from(["east", "north", "unknown"]), st.sampled_from(["", "view", "hide"]))))
def test_shares_add_up_to_one_or_to_nothing(events: list[tuple[str, str]]) -> None:
    profile = build_profile([event(item_id, kind) for item_id, kind in events], TWO, 0.9)
    assert (profile.vector is None) == (profile.weights.sum() == 0)
    assert profile.weights.sum() == pytest.approx(1 if profile.vector is not None else 0, abs=1e-5)
    assert all(weight == 0 for weight, (_, kind) in zip(profile.weights, events, strict=True) if kind == "hide")
