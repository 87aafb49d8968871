import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToJson, Parse
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from reranker.errors import InvalidEventError
from reranker.events import LATEST_TIME, MAX_DIMENSION, MAX_ID_BYTES, MAX_KIND_BYTES, Erase, read_change
from reranker.records import Aspects, Event
from reranker.v1 import events_pb2 as pb

NOW = 1_795_000_000_000

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
TIMES = st.integers(1, NOW)
RATINGS = st.none() | st.floats(-1e6, 1e6, width=32)
COMPONENTS = st.lists(st.floats(-100, 100, width=32).filter(lambda x: abs(x) > 1e-3), min_size=1, max_size=5)


def interaction(**fields: Any) -> bytes:
    return json.dumps({"eventId": "e", "userId": "u", "itemId": "i", "eventTime": "5"} | fields).encode()


@given(
    st.builds(
        pb.Interaction,
        event_id=IDS,
        user_id=IDS,
        item_id=IDS,
        event_time=TIMES,
        kind=st.sampled_from(["", "view", "é"]),
        rating=RATINGS,
    ),
    st.booleans(),
)
def test_interactions_are_read_as_protobuf_writes_and_reads_them(message: pb.Interaction, snake: bool) -> None:
    value = written(message, snake)
    read = Parse(value, pb.Interaction())
    user_id, event, dated_ahead = read_change("interactions", value, NOW)
    rating = read.rating if read.HasField("rating") else None
    assert isinstance(event, Event)
    assert user_id == read.user_id
    assert (event.event_id, event.item_id, event.event_time, event.kind) == (
        read.event_id,
        read.item_id,
        read.event_time,
        read.kind,
    )
    assert event.rating == (None if rating is None else pytest.approx(rating, rel=1e-6))
    assert not dated_ahead


@given(
    st.builds(
        pb.Aspects,
        event_id=IDS,
        user_id=IDS,
        item_id=IDS,
        event_time=st.integers(0, NOW),
        rating=RATINGS,
        vector=COMPONENTS,
        embedding_space=IDS,
        aspects=st.dictionaries(IDS, IDS, max_size=2),
    ),
    st.booleans(),
)
def test_aspects_are_read_as_protobuf_writes_and_reads_them(message: pb.Aspects, snake: bool) -> None:
    value = written(message, snake)
    read = Parse(value, pb.Aspects())
    user_id, found, _ = read_change("aspects", value, NOW)
    assert isinstance(found, Aspects)
    assert (user_id, found.event_id, found.item_id) == (read.user_id, read.event_id, read.item_id)
    assert (found.event_time, found.space) == (read.event_time, read.embedding_space)
    assert found.vector is not None
    direction = np.array(read.vector) / math.hypot(*read.vector)
    np.testing.assert_allclose(found.vector, direction, rtol=1e-5)
    assert found.vector.dtype == np.float32


def written(message: Message, snake: bool) -> bytes:
    return MessageToJson(message, indent=None, ensure_ascii=False, preserving_proto_field_name=snake).encode()


@pytest.mark.parametrize("event_time", ["17", 17, 17.0])
def test_whole_numbers_come_in_every_form_of_protobuf_json(event_time: object) -> None:
    value = interaction(eventTime=event_time)
    found = read_change("interactions", value, NOW).change
    assert isinstance(found, Event)
    assert found.event_time == Parse(value, pb.Interaction()).event_time == 17


def test_null_is_as_good_as_absent_and_what_is_unknown_is_passed_over() -> None:
    value = interaction(kind=None, rating=None, addedLater={"x": 1})
    assert read_change("interactions", value, NOW).change == Event("e", "i", 5)


def test_an_event_dated_after_it_was_sent_is_dated_when_it_was_sent() -> None:
    found, dated_ahead = read_change("interactions", interaction(eventTime=NOW + 1), NOW)[1:]
    assert (found.event_time if isinstance(found, Event) else None, dated_ahead) == (NOW, True)
    erasure = json.dumps({"eventId": "e", "userId": "u", "eventTime": LATEST_TIME}).encode()
    assert read_change("erasures", erasure, NOW).change == Erase(NOW)


def test_aspects_without_a_vector_are_kept_without_a_space() -> None:
    value = interaction(embeddingSpace="space")
    assert read_change("aspects", value, NOW).change == Aspects("e", "i", 5, None, "")


BAD = {
    "no value": None,
    "no JSON": b"rubbish",
    "bytes that are no text": b'{"eventId":"\xff"}',
    "half a surrogate": b'{"eventId":"\\ud800","userId":"u","itemId":"i","eventTime":5}',
    "a list": b"[]",
    "cut off": interaction()[:-1],
    "no user": interaction(userId=""),
    "no item": interaction(itemId=None),
    "no time": interaction(eventTime=0),
    "a negative time": interaction(eventTime=-1),
    "microseconds": interaction(eventTime=NOW * 1000),
    "a time that is no whole number": interaction(eventTime=1.5),
    "a time that is a truth": interaction(eventTime=True),
    "a time beyond 64 bits": interaction(eventTime=10**30),
    "an id too long": interaction(eventId="é" * (MAX_ID_BYTES // 2 + 1)),
    "a kind too long": interaction(kind="k" * (MAX_KIND_BYTES + 1)),
    "a rating that is no number": interaction(rating="NaN"),
    "a rating beyond 32 bits": interaction(rating=1e39),
    "a rating without end": b'{"eventId":"e","userId":"u","itemId":"i","eventTime":5,"rating":1e999}',
    "a rating that is a truth": interaction(rating=True),
    "ids that are no text": interaction(itemId=5),
}
BAD_ASPECTS = {
    "a vector without a space": interaction(vector=[1.0]),
    "a vector of no length": interaction(vector=[0.0, 0.0], embeddingSpace="s"),
    "a vector beyond 32 bits": interaction(vector=[1e300, 1e300], embeddingSpace="s"),
    "a vector with a hole": interaction(vector=[1.0, None], embeddingSpace="s"),
    "a vector too long": interaction(vector=[1.0] * (MAX_DIMENSION + 1), embeddingSpace="s"),
}


@pytest.mark.parametrize(
    ("topic", "value"),
    [pytest.param("interactions", value, id=why) for why, value in BAD.items()]
    + [pytest.param("aspects", value, id=why) for why, value in BAD_ASPECTS.items()],
)
def test_what_breaks_the_contract_is_refused(topic: str, value: bytes | None) -> None:
    with pytest.raises(InvalidEventError):
        read_change(topic, value, NOW)


def test_an_error_names_the_field_and_no_value() -> None:
    secret = "somebody@example.org"
    with pytest.raises(InvalidEventError, match="itemId") as refused:
        read_change("interactions", interaction(userId=secret, itemId=secret * 100, rating=secret), NOW)
    assert secret not in str(refused.value)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_and_nothing_else(value: bytes) -> None:
    for topic in ("interactions", "aspects", "erasures"):
        with pytest.raises(InvalidEventError):
            read_change(topic, value, NOW)


def test_ingest_loads_no_machine_learning() -> None:
    code = "import sys, reranker.ingest_process; print({'torch', 'scipy', 'pymilvus'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
