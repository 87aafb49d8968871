"""A record's value as the protobuf JSON that the readers take, by what its `content-type` header says that it is.

JSON where there is no such header, or one that is not named here; protobuf; or a CloudEvent. Of CloudEvents' two ways
over Kafka (CloudEvents 1.0.2, Kafka protocol binding) the binary one has the event's data as the value and the rest in
headers, which mean nothing here; the structured one has all in the value, a JSON envelope.
"""

import json
import math
from base64 import b64decode
from collections.abc import Iterable
from typing import Any

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from reranker.errors import InvalidEventError
from reranker.events import MAX_DIMENSION
from reranker.kafka import ASPECTS, ERASURES, INTERACTIONS, ITEMS, REVIEWS
from reranker.v1 import events_pb2 as pb

CONTENT_TYPE = "content-type"
PROTOBUF = frozenset({"application/protobuf", "application/x-protobuf"})
"""The name that IANA has registered, and the one from before that."""
CLOUDEVENT = "application/cloudevents+json"

MESSAGES: dict[str, type[Message]] = {
    INTERACTIONS: pb.Interaction,
    ASPECTS: pb.Aspects,
    ERASURES: pb.Erasure,
    REVIEWS: pb.Review,
    ITEMS: pb.Item,
}
"""What a protobuf value of each topic is, by the contract's names."""


def json_of(topic: str, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]) -> bytes | None:
    """Return a record's value as JSON; `topic` is the contract's name of the topic.

    Raises InvalidEventError if the value is not what its headers say.
    """
    content_type = next((told for name, told in headers if name.lower() == CONTENT_TYPE), None)
    return value if not content_type or value is None else _of_type(_media_type(content_type), topic, value)


def _media_type(content_type: bytes) -> str:
    """Return the type without parameters such as a character set, in lower case (RFC 9110, 8.3.1)."""
    return content_type.decode(errors="replace").partition(";")[0].strip().lower()


def _of_type(media_type: str, topic: str, value: bytes) -> bytes:
    if media_type in PROTOBUF:
        return _protobuf(topic, value)
    return _cloud_event(topic, value) if media_type == CLOUDEVENT else value


def _protobuf(topic: str, value: bytes) -> bytes:
    message = MESSAGES[topic]()
    try:
        message.ParseFromString(value)
    except DecodeError as error:
        raise InvalidEventError(f"the value is no {message.DESCRIPTOR.full_name}, as its content-type says") from error
    # Not by MessageToJson, which takes thirty times as long for a vector.
    return msgspec.json.encode({field.json_name: _plain(field, value) for field, value in message.ListFields()})


def _plain(field: FieldDescriptor, value: Any) -> Any:
    """Return the value of a field of these messages, which are flat: a scalar, a list of such, or a map of texts."""
    if not field.is_repeated:
        if isinstance(value, float) and not math.isfinite(value):
            # It would be written as null, which is as good as absent; in a list null is refused by its reader.
            raise InvalidEventError(f"{field.json_name}: not a finite number")
        return value
    if len(value) > MAX_DIMENSION:
        raise InvalidEventError(f"{field.json_name}: {len(value)} entries, over {MAX_DIMENSION}")
    return dict(value) if field.message_type else list(value)


def _cloud_event(topic: str, value: bytes) -> bytes:
    try:
        event: Any = json.loads(value)
        if "data_base64" in event:
            data_type = str(event.get("datacontenttype", ""))
            return _of_type(_media_type(data_type.encode()), topic, b64decode(event["data_base64"], validate=True))
        return json.dumps(event["data"]).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidEventError("the value is no CloudEvent with data, as its content-type says") from error
