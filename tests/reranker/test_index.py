import numpy as np
import pytest

from reranker.errors import EmbeddingSpaceError
from reranker.index import open_index
from reranker.segment import build_segment
from reranker.v1 import reranker_pb2 as pb
from tests.reranker.making import SPACE, deleted, index, item, item_without_personas, persona, told, told_of, vector

A, B, C = vector(1, 0), vector(0, 1), vector(0.6, 0.8)
THREE = index(
    item("b", [A, B], itself=C, generation=3),
    item_without_personas("a", B),
    item("c", [C], itself=A, generation=2),
)


def test_items_keep_their_order_and_own_their_vectors() -> None:
    arrays = THREE.single.arrays
    assert [THREE.single.item(row).item_id for row in range(3)] == ["b", "a", "c"]
    assert arrays.offsets.tolist() == [0, 2, 3, 4]
    np.testing.assert_array_equal(arrays.vectors, [A, B, B, C])
    np.testing.assert_array_equal(arrays.interactions, [C, B, A])


def test_places_of_items() -> None:
    places = THREE.locate(["c", "unknown", "b", "c"])
    assert places.segments.tolist() == [0, -1, 0, 0]
    assert places.rows[places.held].tolist() == [2, 0, 2]
    assert places.held.tolist() == [True, False, True, True]
    assert THREE.locate([]).rows.shape == (0,)
    weights = np.array([1, 8, 2, 4], np.float32)
    np.testing.assert_allclose(THREE.weighted(places, weights), A + 2 * C + 4 * A)


def test_personas_of_an_item_in_the_order_of_its_manifest() -> None:
    told = THREE.item("b")
    assert (told.found, told.title, told.summary, told.generation) == (True, "Title of b", "A summary.", 3)
    assert [(p.persona_id, p.name, tuple(p.evidence)) for p in told.personas] == [
        (p.persona_id, p.name, p.evidence) for p in (persona("b", "p0"), persona("b", "p1"))
    ]
    assert (THREE.item("a").found, len(THREE.item("a").personas)) == (True, 0)
    assert THREE.item("unknown") == pb.ItemPersonas(item_id="unknown")
    assert THREE.single.persona_rows() == {"b:p0": 0, "b:p1": 1, "c:p0": 3}


def test_what_an_index_says_of_itself() -> None:
    assert (THREE.version, THREE.space, THREE.generation, THREE.dimension) == ("items_1", "space", 3, 2)
    assert (THREE.item_count, THREE.persona_count) == (3, 3)
    assert THREE.single.arrays.vectors.dtype == np.float32
    assert THREE.single.arrays.interactions.dtype == np.float32


def test_an_index_without_items() -> None:
    empty = index(dimension=5)
    arrays = empty.single.arrays
    assert (arrays.vectors.shape, arrays.interactions.shape, arrays.offsets.tolist()) == ((0, 5), (0, 5), [0])
    assert (empty.dimension, empty.item_count, empty.persona_count) == (5, 0, 0)
    assert not empty.locate(["x"]).held.any()


NEWEST = [item("b", [C], generation=7), deleted("c", generation=6)]
MIDDLE = [item("c", [A, B], generation=5), item("d", [A], generation=5), deleted("b", generation=4)]
OLDEST = [item("a", [A]), item("b", [A, B]), item("c", [C])]


def test_the_newest_segment_that_knows_an_item_decides() -> None:
    many = open_index("v", [build_segment(SPACE, 2, items) for items in (NEWEST, MIDDLE, OLDEST)])
    assert told(many) == told_of([*OLDEST, *MIDDLE, *NEWEST])
    assert many.locate(["a", "b", "c", "d", "e"]).segments.tolist() == [2, 0, -1, 1, -1]
    assert (many.item_count, many.persona_count, many.generation) == (3, 3, 7)
    assert not many.item("c").found


def test_segments_of_two_spaces_are_refused_by_name() -> None:
    with pytest.raises(EmbeddingSpaceError, match="one and two"):
        open_index("v", [build_segment(space, 2, OLDEST) for space in ("two", "one")])
