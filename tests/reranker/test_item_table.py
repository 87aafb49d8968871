"""Item ids to rows: every id at its row, no other id anywhere."""

from random import Random

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from reranker.item_ids import Hashes, hash_ids
from reranker.item_table import build_table

IDS = st.lists(st.text(max_size=8), unique=True, max_size=60)
# Hashes of few leading bits crowd the windows; the greatest and the least ones lie at the directory's ends.
HASHES = st.lists(
    st.one_of(
        st.integers(0, 2**64 - 1), st.integers(0, 9), st.integers(2**64 - 9, 2**64 - 1), st.integers(2**63, 2**63 + 9)
    ),
    unique=True,
    max_size=40,
)


def hashes_of(values: list[int]) -> Hashes:
    return np.array(values, np.uint64)


@given(IDS, st.lists(st.text(max_size=9), max_size=20))
def test_every_id_is_found_at_its_row_and_no_other(ids: list[str], asked: list[str]) -> None:
    table = build_table(hash_ids(ids, len(ids)))
    assert table.find(hash_ids(ids, len(ids))).tolist() == list(range(len(ids)))
    expected = [ids.index(item_id) if item_id in ids else -1 for item_id in asked]
    assert table.find(hash_ids(asked, len(asked))).tolist() == expected


@given(HASHES, st.data())
def test_however_the_hashes_crowd(values: list[int], data: st.DataObject) -> None:
    table = build_table(hashes_of(values))
    asked = data.draw(st.lists(st.one_of(st.integers(0, 2**64 - 1), st.sampled_from(values or [1])), max_size=20))
    expected = [values.index(value) if value in values else -1 for value in asked]
    assert table.find(hashes_of(asked)).tolist() == expected
    assert table.find(hashes_of(values)).tolist() == list(range(len(values)))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 255, 256, 257, 100_000])
def test_sizes(size: int) -> None:
    ids = [f"item-{number}" for number in range(size)]
    table = build_table(hash_ids(ids, size))
    np.testing.assert_array_equal(table.find(hash_ids(ids, size)), np.arange(size))
    strangers = [f"stranger-{number}" for number in range(1000)]
    assert (table.find(hash_ids(strangers, 1000)) == -1).all()
    assert table.find(hash_ids([], 0)).shape == (0,)
    assert len(table.rows) == size


def test_an_id_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice, or two ids have one 64-bit hash"):
        build_table(hash_ids(["a", "b", "a"], 3))


@given(HASHES.filter(bool), st.randoms(use_true_random=False))
def test_two_ids_of_one_hash_are_refused(values: list[int], chance: Random) -> None:
    again = [*values, values[0]]
    chance.shuffle(again)
    with pytest.raises(ValueError, match="two ids have one 64-bit hash"):
        build_table(hashes_of(again))


def test_the_hash_zero_is_one_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_table(hashes_of([])).find(hashes_of([0])).tolist() == [-1]
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", lambda _: 0)
    assert build_table(hash_ids(["a"], 1)).find(hash_ids(["a"], 1)).tolist() == [0]
