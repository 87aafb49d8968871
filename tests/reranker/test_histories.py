"""What every history store does, held to a model of a few lines; run against each store with its real server."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker.errors import HistoryStoreError
from reranker.halves import Half, aspects_half, interaction_half, joined
from reranker.records import Aspects, Event, HistoryStore, Update, Vector
from tests.stores import Stores, stores_of

SPACE = "space"
KEEP = 3


@pytest.fixture(
    scope="module",
    params=["sqlite", pytest.param("redis", marks=pytest.mark.integration)],
)
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with stores_of(request.param, tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


def interaction(
    event_id: str, event_time: int, item_id: str = "i", kind: str = "", rating: float | None = None
) -> Event:
    return Event(event_id, item_id, event_time, kind, rating)


def aspects(event_id: str, event_time: int, *values: float, item_id: str = "i") -> Aspects:
    return Aspects(event_id, item_id, event_time, vector(*(values or (1.0,))), SPACE)


def ids(events: Iterable[Event] | None) -> list[str] | None:
    return None if events is None else [event.event_id for event in events]


def plain(event: Event) -> tuple[object, ...]:
    """An event that can be compared: arrays cannot."""
    found = None if event.aspects_vector is None else event.aspects_vector.tolist()
    return event.event_id, event.item_id, event.event_time, event.kind, event.rating, found, event.aspects_space


def test_an_event_comes_back_as_it_went_in(stores: Stores) -> None:
    store = stores.fresh()
    event = Event("e \x00é😀", "i", 1_795_301_021_920, "view", 0.1, vector(0.25, -1e-30), SPACE)
    store.merge({"u": [event]})
    assert [plain(found) for found in store.read("u", 10) or ()] == [plain(event)]


def test_a_user_never_heard_of_is_none_and_counts_nothing(stores: Stores) -> None:
    store = stores.fresh()
    store.merge({"u": [interaction("e", 1)]})
    assert store.read("v", 10) is None
    assert store.count("v") == 0
    assert store.erased_until("v") is None


def test_newest_first_by_time_then_by_the_bytes_of_the_id(stores: Stores) -> None:
    store = stores.fresh()
    store.merge({"u": [interaction("a", 5), interaction("Z", 5), interaction("é", 5), interaction("old", 4)]})
    assert ids(store.read("u", 10)) == ["é", "a", "Z", "old"]
    assert ids(store.read("u", 2)) == ["é", "a"]


@pytest.mark.parametrize("aspects_first", [True, False])
def test_aspects_join_their_interaction_whichever_comes_first(stores: Stores, aspects_first: bool) -> None:
    store = stores.fresh()
    halves: list[Update] = [aspects("e", 5, 0.5), interaction("e", 7, kind="review", rating=4.0)]
    for half in halves if aspects_first else reversed(halves):
        store.merge({"u": [half]})
    assert [plain(found) for found in store.read("u", 10) or ()] == [("e", "i", 7, "review", 4.0, [0.5], SPACE)]
    assert store.count("u") == 1


def test_aspects_alone_count_as_an_interaction(stores: Stores) -> None:
    store = stores.fresh()
    store.merge({"u": [Aspects("e", "i", 5, None, "", 2.0), interaction("f", 4)]})
    assert [plain(found) for found in store.read("u", 10) or ()] == [
        ("e", "i", 5, "", 2.0, None, None),
        ("f", "i", 4, "", None, None, None),
    ]


def test_only_the_newest_stay_however_late_the_others_come(stores: Stores) -> None:
    store = stores.fresh(KEEP)
    for event_time in (5, 9, 1, 7, 3):
        store.merge({"u": [interaction(f"e{event_time}", event_time)]})
    assert ids(store.read("u", 10)) == ["e9", "e7", "e5"]
    assert store.count("u") == KEEP


def test_an_erased_user_is_unknown_and_no_replay_brings_them_back(stores: Stores) -> None:
    store = stores.fresh()
    replayed: list[Update] = [interaction("e", 10), aspects("e", 10), interaction("f", 3)]
    store.merge({"u": replayed, "v": [interaction("e", 10)]})
    store.erase({"u": 10})
    store.merge({"u": replayed})
    assert store.read("u", 10) is None
    assert store.erased_until("u") == 10
    assert ids(store.read("v", 10)) == ["e"]


def test_who_comes_back_after_an_erasure_starts_anew(stores: Stores) -> None:
    store = stores.fresh()
    store.merge({"u": [interaction("e", 10)]})
    store.erase({"u": 10})
    store.merge({"u": [interaction("after", 11)]})
    assert ids(store.read("u", 10)) == ["after"]


def test_a_fence_never_moves_back(stores: Stores) -> None:
    store = stores.fresh()
    store.erase({"u": 10})
    store.erase({"u": 5})
    store.merge({"u": [interaction("e", 7)]})
    assert store.read("u", 10) is None
    assert store.erased_until("u") == 10


def test_a_user_without_updates_stays_unknown(stores: Stores) -> None:
    store = stores.fresh()
    store.merge({"u": []})
    assert store.read("u", 10) is None


def test_a_vector_comes_back_bit_by_bit(stores: Stores) -> None:
    sent = np.random.default_rng(0).normal(size=384).astype(np.float32)
    store = stores.fresh()
    store.merge({"u": [Aspects("e", "i", 1, sent, SPACE)]})
    (event,) = store.read("u", 1) or ()
    assert event.aspects_vector is not None
    assert event.aspects_vector.dtype == np.float32
    np.testing.assert_array_equal(event.aspects_vector, sent)


def test_what_was_merged_and_erased_is_so_for_whoever_opens_the_store_next(stores: Stores) -> None:
    store = stores.fresh()
    store.merge({"u": [interaction("e", 1)], "v": [interaction("e", 1)]})
    store.erase({"v": 5})
    store.close()
    store = stores.again()
    assert ids(store.read("u", 10)) == ["e"]
    store.merge({"v": [interaction("e", 1)]})
    assert store.read("v", 10) is None


def test_a_reader_never_sees_half_a_merge_of_a_user(stores: Stores) -> None:
    """Each merge pushes out all events that are there: a reader sees those of one merge, always."""
    reader, writer = stores.fresh(KEEP), stores.again(KEEP)
    failures = []

    def write() -> None:
        try:
            for event_time in range(1, 201):
                writer.merge({"u": [interaction(f"{event_time}{place}", event_time) for place in range(KEEP)]})
        except HistoryStoreError as error:
            failures.append(error)

    writing = threading.Thread(target=write)
    writing.start()
    while writing.is_alive():
        seen = reader.read("u", KEEP)
        assert seen is None or (len(seen), len({event.event_time for event in seen})) == (KEEP, 1), ids(seen)
    writing.join()
    assert failures == []
    assert [event.event_time for event in reader.read("u", KEEP) or ()] == [200] * KEEP


def test_two_writers_at_once_lose_nothing(stores: Stores) -> None:
    opened = [stores.fresh(), stores.again()]
    failures = []

    def write(store: HistoryStore, name: str) -> None:
        try:
            for number in range(100):
                store.merge({"u": [interaction(f"{name}{number}", number)]})
        except HistoryStoreError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(s, n)) for s, n in zip(opened, "ab", strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert opened[0].count("u") == 200


# Few of each, so that they meet.
TIMES = st.integers(0, 6)
EVENT_IDS = st.sampled_from(["a", "b", "c", "d", "é"])
UPDATES = st.one_of(
    st.builds(
        Event,
        EVENT_IDS,
        st.sampled_from(["i", "j"]),
        TIMES,
        st.sampled_from(["", "view"]),
        st.sampled_from([None, 1.0, 5.0]),
        st.sampled_from([None, vector(1.0), vector(-1.0)]),
        st.just(SPACE),
    ),
    st.builds(
        Aspects, EVENT_IDS, st.sampled_from(["i", "j"]), TIMES, st.sampled_from([None, vector(0.5)]), st.just(SPACE)
    ),
)
Erasure = int
Change = tuple[str, Update | Erasure]
CHANGES = st.lists(st.tuples(st.sampled_from("uv"), st.one_of(UPDATES, UPDATES, UPDATES, TIMES)), max_size=25)


@settings(max_examples=60, deadline=None)
@given(changes=CHANGES, data=st.data())
def test_any_order_any_repetition_and_any_batches_end_in_the_state_of_the_model(
    stores: Stores, changes: list[Change], data: st.DataObject
) -> None:
    store = stores.fresh(KEEP)
    again = data.draw(st.lists(st.sampled_from(changes))) if changes else []
    delivered = data.draw(st.permutations(changes + again))
    size = data.draw(st.integers(1, 8))
    for start in range(0, len(delivered), size):
        apply(store, delivered[start : start + size])
    assert state(store) == {user_id: model([c for u, c in changes if u == user_id]) for user_id in "uv"}


def apply(store: HistoryStore, changes: Sequence[Change]) -> None:
    updates: dict[str, list[Update]] = defaultdict(list)
    for user_id, change in changes:
        if isinstance(change, int):
            store.erase({user_id: change})
        else:
            updates[user_id].append(change)
    store.merge(updates)


def state(store: HistoryStore) -> Mapping[str, list[tuple[object, ...]]]:
    return {user_id: [plain(event) for event in store.read(user_id, 10 * KEEP) or ()] for user_id in "uv"}


def model(changes: Sequence[Update | Erasure]) -> list[tuple[object, ...]]:
    """A history as HistoryStore defines it, from all that was ever merged."""
    fence = max((change for change in changes if isinstance(change, int)), default=-1)
    updates = [change for change in changes if not isinstance(change, int)]
    interactions = newest([(u.event_id, half) for u in updates if (half := interaction_half(u))], fence)
    reviews = newest([(u.event_id, half) for u in updates if (half := aspects_half(u))], fence)
    nothing = (None, None)
    events = [
        joined(event_id, *interactions.get(event_id, nothing), *reviews.get(event_id, nothing))
        for event_id in interactions | reviews
    ]
    return [plain(event) for event in sorted(events, key=lambda event: event.recency, reverse=True)[:KEEP]]


def newest(halves: Sequence[tuple[str, Half]], fence: int) -> dict[str, Half]:
    best: dict[str, Half] = {}
    for event_id, half in halves:
        best[event_id] = max(half, best.get(event_id, half))
    order = sorted(best, key=lambda event_id: (best[event_id].event_time, event_id), reverse=True)
    return {event_id: best[event_id] for event_id in order[:KEEP] if best[event_id].event_time > fence}
