"""The worker's state: the same, however events come; and what is gone stays gone."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.errors import WorkerStateError
from offline.records import Item, Review, ReviewAspects
from offline.worker_events import Change, Erasure, ItemChange, Origin, ReviewChange, read, sort_out
from offline.worker_state import Quiet, WorkerState
from reranker.errors import InvalidEventError
from reranker.records import Persona
from reranker.v1 import events_pb2 as pb

HERE = Origin("reviews", 0)
QUIET = Quiet(debounce=100, most=250)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[WorkerState]:
    with closing(WorkerState(tmp_path / "state.sqlite", "space")) as opened:
        yield opened


@contextmanager
def a_state() -> Iterator[WorkerState]:
    with TemporaryDirectory() as folder, closing(WorkerState(Path(folder) / "state.sqlite", "space")) as opened:
        yield opened


def review(review_id: str, at: int = 1, text: str = "said", user_id: str = "ann", deleted: bool = False) -> Change:
    return ReviewChange(Review(review_id, user_id, "emma", text, timestamp=at), at, deleted)


def item(at: int, title: str, deleted: bool = False) -> Change:
    return ItemChange(Item("emma", title), at, deleted)


def apply(state: WorkerState, *changes: Change, now: int = 0) -> list[str]:
    return state.apply([(change, HERE) for change in changes], QUIET, now)


def extracted(state: WorkerState, *review_ids: str) -> None:
    for found in state.without_aspects(review_ids):
        state.keep_aspects(found, {"slot": found.text}, np.ones(2, np.float32))


def persona(name: str, *evidence: str) -> Persona:
    return Persona(f"emma:{name}", name, name, name, evidence)


def seen(state: WorkerState) -> Any:
    return state.item("emma"), state.without_aspects({"r1", "r2"})


CHANGES = st.one_of(
    st.builds(
        review,
        st.sampled_from(["r1", "r2"]),
        st.integers(1, 4),
        st.sampled_from("ab"),
        st.sampled_from(["ann", "bob"]),
        st.booleans(),
    ),
    st.builds(item, st.integers(1, 4), st.sampled_from("ab"), st.booleans()),
    st.builds(Erasure, st.sampled_from(["ann", "bob"]), st.integers(1, 4)),
)


@settings(max_examples=40)
@given(st.data())
def test_any_order_and_repetition_of_events_ends_in_the_same_state(data: st.DataObject) -> None:
    # An id belongs to one user: with two, an erasure of the one could not know what the other's review replaced.
    of_user = {"r1": "ann", "r2": "bob"}
    changes = [
        change
        for change in data.draw(st.lists(CHANGES, max_size=8))
        if not isinstance(change, ReviewChange) or of_user[change.review.review_id] == change.review.user_id
    ]
    order = data.draw(st.permutations([*changes, *changes[:3]]))
    with a_state() as one, a_state() as other:
        apply(one, *changes)
        for change in order:
            apply(other, change)
        assert seen(one) == seen(other)


def test_reviews_of_a_burst_wait_for_each_other_but_not_for_ever(state: WorkerState) -> None:
    def due(now: int) -> list[str]:
        return [one.item_id for one in state.due({HERE}, now, 10)]

    apply(state, review("r1"), now=0)
    extracted(state, "r1")
    assert (due(99), due(100)) == ([], ["emma"])
    apply(state, review("r2"), now=90)
    extracted(state, "r2")
    assert (due(189), due(190)) == ([], ["emma"])
    apply(state, review("r3"), now=180)
    extracted(state, "r3")
    assert (due(249), due(250)) == ([], ["emma"])
    assert state.due({Origin("reviews", 1)}, 250, 10) == [], "of another process's partition"
    apply(state, item(1, "Emma"), now=200)
    assert due(200) == ["emma"]


def test_an_item_waits_for_a_review_that_a_crash_left_unread(state: WorkerState) -> None:
    apply(state, item(1, "Emma"), review("r1"), now=0)
    assert state.due({HERE}, 10_000, 10) == []
    extracted(state, "r1")
    assert [one.item_id for one in state.due({HERE}, 10_000, 10)] == ["emma"]


def test_a_change_that_comes_while_an_item_is_refreshed_is_not_lost(state: WorkerState) -> None:
    apply(state, item(1, "Emma"))
    (due,) = state.due({HERE}, 0, 10)
    apply(state, item(2, "Emma, again"))
    state.done(due)
    (again,) = state.due({HERE}, 0, 10)
    assert (again.item_id, again.withdrawn) == ("emma", False)
    state.done(again)
    assert state.count_due() == 0


def test_who_was_slow_does_not_undo_what_came_after_another_had_done(state: WorkerState) -> None:
    apply(state, item(1, "Emma"))
    (slow,) = state.due({HERE}, 0, 10)
    state.done(slow)
    apply(state, item(2, "Emma", deleted=True))
    state.done(slow)
    assert [one.item_id for one in state.due({HERE}, 0, 10)] == ["emma"]


def test_of_aspects_that_were_extracted_anew_meanwhile_histories_are_still_to_be_told(state: WorkerState) -> None:
    apply(state, item(1, "Emma"), review("r1", text="old"))
    extracted(state, "r1")
    old = state.unsent("emma")
    apply(state, review("r1", at=2, text="new"))
    extracted(state, "r1")
    state.mark_sent(old)
    (new,) = state.unsent("emma")
    assert new.aspects == {"slot": "new"}
    state.mark_sent([new])
    assert state.unsent("emma") == []


def test_reviews_of_erased_users_are_told_and_no_others(state: WorkerState) -> None:
    reviews = [Review("r1", "ann", "emma", "x", timestamp=5), Review("r2", "ann", "emma", "x", timestamp=6)]
    aspects = [ReviewAspects("r3", "emma", {"slot": "x"}, "ann"), ReviewAspects("r4", "emma", {"slot": "x"}, "bob")]
    assert state.erased_reviews([*reviews, *aspects]) == frozenset()
    apply(state, Erasure("ann", 5))
    assert state.erased_reviews([*reviews, *aspects]) == {"r1", "r3"}


def test_the_same_event_again_asks_for_nothing(state: WorkerState) -> None:
    events = item(1, "Emma"), review("r1")
    apply(state, *events)
    extracted(state, "r1")
    for due in state.due({HERE}, 10_000, 10):
        state.done(due)
    apply(state, *events)
    assert state.count_due() == 0
    assert state.without_aspects({"r1"}) == []


def test_personas_that_rest_on_what_is_gone_go_with_it(state: WorkerState) -> None:
    apply(state, item(1, "Emma"), review("r1"), review("r2", user_id="bob"))
    extracted(state, "r1", "r2")
    both, other = persona("both", "r1", "r2"), persona("other", "r2")
    assert state.keep_personas("emma", [both, other], ["r1", "r2"]) == []
    assert apply(state, Erasure("ann", 5)) == ["emma"]
    assert state.personas("emma") == (other,)
    (due,) = state.due({HERE}, 0, 10)
    assert due.withdrawn
    assert state.keep_personas("emma", [both], ["r1", "r2"]) == ["r1"], "written while the user was erased"
    assert state.personas("emma") == (other,)
    apply(state, review("r1", at=5), review("r1", at=2))
    assert state.without_aspects({"r1"}) == []
    apply(state, review("r1", at=6))
    assert len(state.without_aspects({"r1"})) == 1


def test_a_review_that_moves_to_another_item_takes_its_words_along(state: WorkerState) -> None:
    apply(state, item(1, "Emma"), review("r1"), review("r2", user_id="bob"))
    extracted(state, "r1", "r2")
    resting, other = persona("resting", "r1"), persona("other", "r2")
    assert state.keep_personas("emma", [resting, other], ["r1", "r2"]) == []
    for due in state.due({HERE}, 1000, 10):
        state.done(due)
    moved = ReviewChange(Review("r1", "ann", "persuasion", "said", timestamp=2), 2, deleted=False)
    assert apply(state, moved, now=1000) == ["emma"]
    assert state.personas("emma") == (other,)
    extracted(state, "r1")
    assert {due.item_id: due.withdrawn for due in state.due({HERE}, 2000, 10)} == {"emma": True, "persuasion": False}


def test_personas_of_newer_reviews_are_not_overwritten_by_one_that_was_slow(state: WorkerState) -> None:
    apply(state, item(1, "Emma"), review("r1"), review("r2", user_id="bob"))
    extracted(state, "r1", "r2")
    newer, older = persona("newer", "r1", "r2"), persona("older", "r1")
    assert state.keep_personas("emma", [newer], ["r1", "r2"]) == []
    assert state.keep_personas("emma", [older], ["r1"]) == []
    assert state.personas("emma") == (newer,)
    assert not state.reviews("emma").new.any()


def test_aspects_of_a_review_that_changed_meanwhile_are_not_kept(state: WorkerState) -> None:
    apply(state, review("r1"))
    (before,) = state.without_aspects({"r1"})
    apply(state, review("r1", at=2, text="other"))
    assert not state.keep_aspects(before, {"slot": "said"}, None)
    assert [found.text for found in state.without_aspects({"r1"})] == ["other"]


def test_vectors_of_another_space_are_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with closing(WorkerState(path, "one")) as state:
        apply(state, item(1, "Emma"), review("r1"))
        extracted(state, "r1")
        assert state.reviews("emma").vectors[0] is not None
    with closing(WorkerState(path, "two")) as state:
        assert state.reviews("emma").vectors == (None,)


def test_a_review_of_which_a_dataset_has_aspects_alone_is_evidence(state: WorkerState) -> None:
    state.seed_reviews([(Review("r1", "", "emma", ""), ReviewAspects("r1", "emma", {"slot": "said"}))])
    (found,) = state.reviews("emma").pieces
    assert (found.text, found.user_id) == ("said", None)


def test_rewrites_are_counted_for_an_hour(state: WorkerState) -> None:
    state.book(100, 10)
    state.book(200, 20)
    mistaken = state.book(300, 40)
    assert state.rewrites(since=100) == (3, 70)
    state.cancel([mistaken])
    assert state.rewrites(since=101) == (1, 20)


def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"no database, certainly" * 100)
    with pytest.raises(WorkerStateError, match=r"state\.sqlite"):
        WorkerState(path, "space")


@pytest.mark.parametrize(
    ("topic", "value", "told"),
    [
        ("reviews", None, "no value"),
        ("reviews", b'{"reviewId":"r","userId":"u","itemId":"i","eventTime":1}', "text: empty"),
        ("reviews", b'{"reviewId":"r","userId":"u","itemId":"","eventTime":1,"text":"x"}', "itemId"),
        ("items", b'{"itemId":"i","eventTime":1,"title":"%s"}' % (b"x" * 4097), "title: 4097 bytes"),
        ("items", b'{"itemId":"i\\nj","eventTime":1}', "itemId: .*line break"),
        ("items", b"[]", "value"),
        ("erasures", b'{"eventId":"e","userId":"u"}', "eventTime"),
    ],
)
def test_what_breaks_the_contract_is_refused_by_its_field(topic: str, value: bytes | None, told: str) -> None:
    with pytest.raises(InvalidEventError, match=told):
        read(topic, value, 10)


def test_a_review_dated_ahead_is_of_the_time_it_was_sent() -> None:
    change, ahead = read("reviews", b'{"reviewId":"r","userId":"u","itemId":"i","eventTime":11,"text":"x"}', 10)
    assert isinstance(change, ReviewChange)
    assert (change.event_time, change.review.timestamp, ahead) == (10, 10, True)


PROTOBUF = (("content-type", b"application/protobuf"),)


def test_records_in_protobuf_mean_what_they_mean_in_json() -> None:
    messages: dict[str, Message] = {
        "reviews": pb.Review(review_id="r", user_id="u", item_id="i", event_time=5, text="Words."),
        "items": pb.Item(item_id="i", event_time=5, title="T", categories=["c"], attributes={"author": "A."}),
        "erasures": pb.Erasure(event_id="e", user_id="u", event_time=5),
    }
    protobuf = [consumed(f"p.{topic}", message.SerializeToString(), PROTOBUF) for topic, message in messages.items()]
    in_json = [consumed(f"p.{topic}", MessageToJson(message).encode(), ()) for topic, message in messages.items()]
    changes = sort_out([*protobuf, consumed("p.items", b"\xff", PROTOBUF)], "p.")
    assert changes.found == sort_out(in_json, "p.").found
    assert len(changes.found) == 3
    assert [(letter.topic, letter.headers) for letter in changes.dead] == [("p.items", PROTOBUF)]


def consumed(topic: str, value: bytes, headers: tuple[tuple[str, bytes], ...]) -> Any:
    """Return a record as the consumer gives it."""
    return SimpleNamespace(topic=topic, partition=0, offset=0, timestamp=9, key=b"k", value=value, headers=headers)
