from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.adapter import AdaptedEncoder, Adapter, Head
from offline.evaluate import Materials, adapted, evaluation_index
from offline.histories import events_by_user
from offline.publish import Document, publish
from offline.records import Interaction
from offline.vector_cache import CachedEncoder
from reranker.errors import EmbeddingSpaceError
from reranker.personas_milvus import MilvusPersonaStore
from reranker.profile import build_profile
from reranker.scoring import best_of_index
from tests.offline.reading import loaded


def head(seed: int, rank: int = 4, dimension: int = 384) -> Head:
    random = np.random.default_rng(seed)
    down = random.normal(size=(dimension, rank)).astype(np.float32) / dimension**0.5
    return Head(down, random.normal(size=(rank, dimension)).astype(np.float32))


@pytest.fixture
def adapter(encoder: CachedEncoder) -> Adapter:
    return Adapter(encoder.space, personas=head(1), interactions=head(2))


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(0, 5))
def test_a_head_adds_what_its_matrices_say_and_keeps_unit_length(seed: int, rank: int, n: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)
    one = head(seed, rank, 16)
    mapped = one(vectors)
    exact = vectors.astype(np.float64) @ (np.eye(16) + one.down.astype(np.float64) @ one.up.astype(np.float64))
    assert mapped.dtype == np.float32
    assert mapped.shape == (n, 16)
    assert mapped == pytest.approx(exact / np.linalg.norm(exact, axis=1, keepdims=True), abs=1e-5)


def test_a_head_that_adds_nothing_leaves_unit_vectors_alone(encoder: CachedEncoder) -> None:
    vectors = encoder.encode(["a whale", "a wedding"])
    untrained = replace(head(1), up=np.zeros((4, 384), np.float32))
    assert untrained(vectors) == pytest.approx(vectors, abs=1e-6)


def test_a_side_has_its_own_head(encoder: CachedEncoder, adapter: Adapter) -> None:
    both = AdaptedEncoder(encoder, adapter)
    vectors = encoder.encode(["a whale"])
    assert both.personas(["a whale"]) == pytest.approx(adapter.personas(vectors), abs=1e-6)
    assert both.interactions(["a whale"]) == pytest.approx(adapter.interactions(vectors), abs=1e-6)
    assert both.personas(["a whale"]) != pytest.approx(both.interactions(["a whale"]), abs=1e-2)


def test_every_weight_is_part_of_the_space(adapter: Adapter) -> None:
    def changed(one: Head, part: str) -> Head:
        weights = getattr(one, part).copy()
        weights[0, 0] += 1e-3
        return replace(one, **{part: weights})

    others = [
        *(replace(adapter, personas=changed(adapter.personas, part)) for part in ("down", "up")),
        *(replace(adapter, interactions=changed(adapter.interactions, part)) for part in ("down", "up")),
    ]
    swapped = replace(adapter, personas=adapter.interactions, interactions=adapter.personas)
    spaces = {one.space for one in (adapter, swapped, replace(adapter, base_space="another"), *others)}
    assert len(spaces) == 7
    assert adapter.space == replace(adapter).space
    assert adapter.space.startswith(f"{adapter.base_space}+adapter:")


def test_an_adapter_of_another_encoder_is_refused(encoder: CachedEncoder, adapter: Adapter) -> None:
    with pytest.raises(EmbeddingSpaceError, match=f"over embedding space another, the encoder is of {encoder.space}"):
        AdaptedEncoder(encoder, replace(adapter, base_space="another"))


def test_materials_are_adapted_as_an_adapted_encoder_makes_them(
    materials: Materials, books: tuple[Document, ...], encoder: CachedEncoder, adapter: Adapter, catalogue: object
) -> None:
    found, both = adapted(materials, adapter), AdaptedEncoder(encoder, adapter)
    expected = evaluation_index([replace(books[0], personas=()), *books[1:]], both)
    assert found.index.space == both.space
    arrays, wanted = found.index.single.arrays, expected.single.arrays
    assert arrays.interactions == pytest.approx(wanted.interactions, abs=1e-6)
    # A book without personas is found by its own text, and that is a persona text then.
    own = both.personas([replace(books[0], personas=()).itself])
    assert wanted.vectors[:1] == pytest.approx(own, abs=1e-6)
    assert arrays.vectors[len(books[0].personas) :] == pytest.approx(wanted.vectors[1:], abs=1e-6)


@pytest.mark.integration
def test_what_is_published_with_an_adapter_is_scored_as_with_it(
    store: MilvusPersonaStore,
    books: tuple[Document, ...],
    materials: Materials,
    interactions: tuple[Interaction, ...],
    encoder: CachedEncoder,
    adapter: Adapter,
) -> None:
    publish(books, store, AdaptedEncoder(encoder, adapter))
    index = loaded(store, adapter.space)
    expected = adapted(materials, adapter)
    events = next(iter(events_by_user(interactions, expected.aspects, adapter.space).values()))
    item_ids = [book.item.item_id for book in books]
    scores = []
    for one in (index, expected.index):
        profile = build_profile(events, one, 0.9).vector
        assert profile is not None
        scores.append(best_of_index(one, profile, one.locate(item_ids))[0])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    with pytest.raises(EmbeddingSpaceError):
        publish(books, store, encoder)
