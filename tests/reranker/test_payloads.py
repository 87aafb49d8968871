"""What a record's headers say its value is, is read as that, and whatever it is it means the same."""

import json
import math
from base64 import b64encode

import pytest
from google.protobuf.json_format import MessageToDict, Parse
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from reranker.errors import InvalidEventError
from reranker.events import MAX_DIMENSION, read_change
from reranker.kafka import INPUTS
from reranker.payloads import CLOUDEVENT, MESSAGES, PROTOBUF, json_of
from reranker.records import Aspects, Event
from reranker.v1 import events_pb2 as pb

EVENTS: dict[str, Message] = {
    "interactions": pb.Interaction(event_id="e", user_id="u", item_id="i", event_time=5, kind="view", rating=0.0),
    "aspects": pb.Aspects(
        event_id="e", user_id="u", item_id="i", aspects={"slot": "é"}, vector=[0.5, -1], embedding_space="s"
    ),
    "erasures": pb.Erasure(event_id="e", user_id="u", event_time=5),
    "reviews": pb.Review(review_id="r", user_id="u", item_id="i", event_time=5, text="Words.", deleted=True),
    "items": pb.Item(item_id="i", event_time=5, categories=["c"], attributes={"author": "A."}),
}
BINARY = "ce_specversion", b"1.0"


def envelope(**fields: object) -> bytes:
    return json.dumps({"specversion": "1.0", "type": "t", "id": "1", "source": "/s"} | fields).encode()


def test_every_input_topic_has_its_message() -> None:
    assert set(MESSAGES) == set(INPUTS) == set(EVENTS)


@pytest.mark.parametrize("topic", EVENTS)
@pytest.mark.parametrize("content_type", [*sorted(PROTOBUF), "Application/X-Protobuf; proto=whatever"])
def test_protobuf_says_what_its_json_says(topic: str, content_type: str) -> None:
    event = EVENTS[topic]
    found = json_of(topic, event.SerializeToString(), [BINARY, ("Content-Type", content_type.encode())])
    assert found is not None
    assert Parse(found, MESSAGES[topic]()) == event


@given(st.lists(st.floats(width=32), min_size=1, max_size=8))
def test_a_vector_is_the_same_vector_or_refused(vector: list[float]) -> None:
    event = pb.Aspects(event_id="e", user_id="u", item_id="i", vector=vector, embedding_space="s")
    found = json_of("aspects", event.SerializeToString(), [("content-type", b"application/protobuf")])
    if all(map(math.isfinite, vector)) and any(vector):
        (_, change, _), length = read_change("aspects", found, 9), math.hypot(*vector)
        assert isinstance(change, Aspects)
        assert change.vector == pytest.approx([component / length for component in vector], rel=1e-5, abs=1e-30)
    else:
        with pytest.raises(InvalidEventError):
            read_change("aspects", found, 9)


def test_a_rating_that_is_no_number_is_refused() -> None:
    event = pb.Interaction(event_id="e", user_id="u", item_id="i", event_time=5, rating=math.nan)
    with pytest.raises(InvalidEventError, match="rating: not a finite number"):
        json_of("interactions", event.SerializeToString(), [("content-type", b"application/protobuf")])


def test_what_is_far_too_long_is_refused_before_it_is_read() -> None:
    event = pb.Aspects(event_id="e", vector=[0.5] * (MAX_DIMENSION + 1))
    with pytest.raises(InvalidEventError, match="vector: 8193 entries, over 8192"):
        json_of("aspects", event.SerializeToString(), [("content-type", b"application/protobuf")])


@pytest.mark.parametrize("topic", EVENTS)
def test_a_cloud_event_says_what_its_data_says(topic: str) -> None:
    event = EVENTS[topic]
    data, base64 = MessageToDict(event), b64encode(event.SerializeToString()).decode()
    for value in (envelope(data=data), envelope(data_base64=base64, datacontenttype="application/protobuf")):
        found = json_of(topic, value, [("content-type", f"{CLOUDEVENT}; charset=utf-8".encode())])
        assert found is not None
        assert Parse(found, MESSAGES[topic]()) == event


def test_an_event_is_the_same_event_in_all_ways() -> None:
    event = EVENTS["interactions"]
    protobuf = json_of("interactions", event.SerializeToString(), [("content-type", b"application/protobuf")])
    assert read_change("interactions", protobuf, 9) == ("u", Event("e", "i", 5, "view", 0.0), False)
    undated = pb.Interaction(event_id="e", user_id="u", item_id="i").SerializeToString()
    with pytest.raises(InvalidEventError, match="eventTime: Field required"):
        read_change("interactions", json_of("interactions", undated, [("content-type", b"application/protobuf")]), 9)


@pytest.mark.parametrize("headers", [[], [BINARY], [("content-type", b"application/json")], [("content-type", None)]])
@pytest.mark.parametrize("value", [b'{"eventId": "e"}', b"\xff", b"", None])
def test_all_else_is_left_as_it_is(headers: list[tuple[str, bytes | None]], value: bytes | None) -> None:
    assert json_of("interactions", value, headers) == value


@given(st.sampled_from(list(EVENTS)), st.sampled_from([*PROTOBUF, CLOUDEVENT]), st.binary(max_size=64))
def test_rubbish_is_refused_or_read_but_breaks_nothing(topic: str, content_type: str, value: bytes) -> None:
    try:
        found = json_of(topic, value, [("content-type", content_type.encode())])
    except InvalidEventError as error:
        assert "as its content-type says" in str(error)  # noqa: PT017 - it need not be raised
    else:
        json.loads(found or b"")


@pytest.mark.parametrize(
    "value",
    [b"[]", b"5", b'"data_base64"', b"{}", envelope(), envelope(data_base64="?"), envelope(data_base64=5), b"[" * 9999],
)
def test_an_envelope_without_data_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidEventError, match="no CloudEvent with data"):
        json_of("items", value, [("content-type", CLOUDEVENT.encode())])
