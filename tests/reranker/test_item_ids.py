import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from reranker.item_ids import ItemIds, hash_ids
from reranker.xxh64 import xxh64


@given(st.lists(st.text(max_size=40), max_size=8))
def test_ids_laid_out_are_the_strings_they_were(item_ids: list[str]) -> None:
    laid_out = ItemIds.of(item_ids)
    assert (list(laid_out), len(laid_out)) == (item_ids, len(item_ids))
    assert laid_out.hashes.tolist() == hash_ids(item_ids, len(item_ids)).tolist()
    assert ItemIds.of(laid_out) is laid_out


def test_some_of_them_are_had_by_mask_and_by_slice() -> None:
    laid_out = ItemIds.of(["a", "bé", "ccc"])
    kept = laid_out[np.array([True, False, True])]
    assert (list(kept), kept.hashes.tolist()) == (["a", "ccc"], hash_ids(["a", "ccc"], 2).tolist())
    assert list(laid_out[1:]) == ["bé", "ccc"]
    with pytest.raises(IndexError):
        laid_out[3]


@given(st.binary(max_size=300), st.integers(0, 9))
def test_the_compiled_hash_is_the_library_s(data: bytes, start: int) -> None:
    array = np.frombuffer(b"-" * start + data + b"-", np.uint8)
    assert int(xxh64(array, start, start + len(data))) == xxhash.xxh64_intdigest(data)


@pytest.mark.parametrize("length", range(100))
def test_it_is_so_at_every_length(length: int) -> None:
    data = bytes(range(200, 200 + 56))[: length % 57] + bytes(length - length % 57)
    assert int(xxh64(np.frombuffer(data, np.uint8), 0, length)) == xxhash.xxh64_intdigest(data)
