from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.dataset import Dataset
from offline.histories import aspect_vectors, events_by_user
from offline.publish import documents
from offline.records import Interaction
from offline.text import interaction_text
from offline.vector_cache import CachedEncoder
from reranker.histories_sqlite import SqliteHistoryStore

SPACE = "minilm:1:t1"


def test_a_history_is_newest_first_whatever_the_order_of_the_file() -> None:
    found = [Interaction("u", item_id, timestamp=time) for item_id, time in [("b", 2), ("d", None), ("a", 1), ("c", 3)]]
    events = events_by_user(found, {}, None)["u"]
    assert [(event.item_id, event.event_time) for event in events] == [("c", 3), ("b", 2), ("a", 1), ("d", 0)]


def test_an_event_is_named_by_item_and_time_and_keeps_its_rating() -> None:
    (event,) = events_by_user([Interaction("u", "dune", 4.5, 17)], {}, None)["u"]
    assert (event.event_id, event.rating) == ("dune@17", 4.5)
    assert event.aspects_vector is None
    assert event.aspects_space is None


def test_the_same_interaction_twice_is_one_event_and_the_later_rating_wins() -> None:
    twice = [Interaction("u", "dune", 1, 17), Interaction("u", "dune", 5, 17), Interaction("u", "dune", 3, 18)]
    assert [(e.event_id, e.rating) for e in events_by_user(twice, {}, None)["u"]] == [("dune@18", 3), ("dune@17", 5)]


def test_users_are_kept_apart() -> None:
    events = events_by_user([Interaction("u", "dune"), Interaction("v", "emma")], {}, None)
    assert {user_id: [event.item_id for event in of_user] for user_id, of_user in events.items()} == {
        "u": ["dune"],
        "v": ["emma"],
    }


def test_what_a_review_said_joins_its_own_interaction_alone() -> None:
    said = np.ones(3, np.float32)
    found = [Interaction("u", "dune"), Interaction("u", "emma"), Interaction("v", "dune")]
    events = events_by_user(found, {("u", "dune"): said}, SPACE)
    spaces = {(user, event.item_id): event.aspects_space for user, of_user in events.items() for event in of_user}
    assert spaces == {("u", "dune"): SPACE, ("u", "emma"): None, ("v", "dune"): None}
    assert [event.aspects_vector is said for event in events["u"]] == [event.item_id == "dune" for event in events["u"]]


interactions = st.builds(
    Interaction, st.just("u"), st.sampled_from("abcd"), st.just(None), st.none() | st.integers(0, 3)
)


@given(st.lists(interactions, min_size=1, max_size=20))
def test_the_order_is_that_in_which_the_store_reads(found: list[Interaction]) -> None:
    events = events_by_user(found, {}, None)
    store = SqliteHistoryStore(Path(":memory:"))
    store.merge(events)
    read = store.read("u", 100)
    store.close()
    assert read == tuple(events["u"])


@pytest.fixture
def two_films(tmp_path: Path) -> Dataset:
    (tmp_path / "items.jsonl").write_text(
        '{"item_id": "dune", "title": "Dune", "categories": ["Epic"]}\n{"item_id": "emma", "title": "Emma"}\n'
    )
    (tmp_path / "summaries.jsonl").write_text('{"item_id": "dune", "summary": "A saga of sand."}\n')
    (tmp_path / "aspects.jsonl").write_text(
        '{"review_id": "1", "item_id": "dune", "user_id": "u", "aspects": {"quality": "great worms", "mood": null}}\n'
        '{"review_id": "2", "item_id": "emma", "aspects": {"quality": "nobody knows who said so"}}\n'
        '{"review_id": "3", "item_id": "gone", "user_id": "u", "aspects": {"quality": "not in the catalogue"}}\n'
    )
    return Dataset.open(tmp_path)


def test_aspects_are_embedded_with_the_summary_of_their_item(two_films: Dataset, encoder: CachedEncoder) -> None:
    found = documents(two_films)
    vectors = aspect_vectors(two_films, found, encoder)
    assert list(vectors) == [("u", "dune")]
    text = interaction_text(found[0].item, "A saga of sand.", {"quality": "great worms"})
    assert text == "Dune. Epic. A saga of sand. great worms."
    assert vectors["u", "dune"] == pytest.approx(encoder.encode([text])[0], abs=1e-6)


def test_without_aspects_there_are_no_vectors(two_films: Dataset, encoder: CachedEncoder) -> None:
    (two_films.path / "aspects.jsonl").unlink()
    assert aspect_vectors(two_films, documents(two_films), encoder) == {}
