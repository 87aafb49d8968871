import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candidate_gen.errors import ConfigurationError
from candidate_gen.interactions import Interactions

IDS = st.text(max_size=3)


@given(st.lists(st.tuples(IDS, IDS), min_size=1))
def test_the_matrix_holds_exactly_the_distinct_pairs(pairs: list[tuple[str, str]]) -> None:
    interactions = Interactions.from_pairs(pairs)
    held = [
        (user_id, interactions.item_ids[column])
        for user_id in interactions.user_ids
        for column in interactions.columns_of(user_id)
    ]
    assert held == sorted(set(pairs))
    assert set(interactions.matrix.data) == {1.0}
    assert interactions.matrix.dtype == np.float32


@given(
    st.lists(st.tuples(IDS, IDS), min_size=1).flatmap(lambda pairs: st.tuples(st.just(pairs), st.permutations(pairs)))
)
def test_order_does_not_matter(both: tuple[list[tuple[str, str]], list[tuple[str, str]]]) -> None:
    one, other = (Interactions.from_pairs(pairs) for pairs in both)
    assert (one.user_ids, one.item_ids) == (other.user_ids, other.item_ids)
    assert np.array_equal(one.matrix.indices, other.matrix.indices)


def test_unknown_ids_are_told_apart() -> None:
    interactions = Interactions.from_pairs([("u", "b"), ("v", "a"), ("v", "b")])
    assert interactions.user_row("v") == 1
    assert interactions.user_row("w") is None
    assert interactions.item_column("b") == 1
    assert interactions.item_column("c") is None
    assert interactions.item_columns(["b", "c", "a", "b"]).tolist() == [1, 0]
    assert interactions.columns_of("w").tolist() == []
    assert interactions.users_per_item.tolist() == [1, 2]


def test_no_pairs_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        Interactions.from_pairs([])
