"""Records of the topics `interactions`, `aspects` and `erasures`, read into what a history store takes.

Values are protobuf JSON of reranker/v1/events.proto. They are read by pydantic, since protobuf's own reader of JSON is
twenty times slower; a test holds the two to each other. Unknown fields are passed over, so that the contract can grow.
"""

from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from reranker.errors import InvalidEventError
from reranker.kafka import ASPECTS, ERASURES, INTERACTIONS
from reranker.records import Aspects, Event, Update, Vector

# As the contract has it: of any id; of a kind.
MAX_ID_BYTES = 256
MAX_KIND_BYTES = 64
# The last millisecond of the year 9999: micro- and nanoseconds since the epoch lie above it and so are noticed.
LATEST_TIME = 253_402_300_799_999
# Of the contract's 32 bits; NaN and infinities compare as beyond it.
LARGEST_FLOAT = 3.4028234663852886e38
# Above any embedding model in use; bounds what one event can make a store hold (32 KiB).
MAX_DIMENSION = 8192


class Erase(NamedTuple):
    """Forget the user's events up to `until`, milliseconds since the epoch."""

    until: int


class UserChange(NamedTuple):
    """What one record means: a change to one user's history."""

    user_id: str
    change: Update | Erase
    dated_ahead: bool
    """Whether it was dated after it was sent."""


def read_change(topic: str, value: bytes | None, sent_at: int) -> UserChange:
    """Read a record's value; `topic` is the contract's name of the topic.

    An event cannot have happened after it was sent, so a time after `sent_at`, the record's own timestamp in
    milliseconds since the epoch, becomes `sent_at`: an event dated far ahead would sit at the top of its history for
    ever, and escape the user's erasure. The timestamp stays with the record, so a replay ends in the same state.

    Raises InvalidEventError.
    """
    if value is None:
        raise InvalidEventError("the record has no value")
    try:
        return _READERS[topic](value, sent_at)
    except ValidationError as error:
        raise InvalidEventError(told(error)) from None


def _at_most(limit: int) -> AfterValidator:
    def check(text: str) -> str:
        if (size := len(text.encode())) > limit:
            raise ValueError(f"{size} bytes, over {limit}")
        return text

    return AfterValidator(check)


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        # Not for pydantic, to which True is 1.
        raise ValueError("a boolean where a number belongs")  # noqa: TRY004 - pydantic reports ValueErrors only
    return value


def _or_empty(value: Any) -> Any:
    # In protobuf JSON null is as good as absent.
    return "" if value is None else value


def _or_undated(value: Any) -> Any:
    return 0 if value is None else _number(value)


def _or_no_vector(value: Any) -> Any:
    return () if value is None else value


Id = Annotated[str, Field(min_length=1), _at_most(MAX_ID_BYTES)]
Label = Annotated[str, BeforeValidator(_or_empty), _at_most(MAX_KIND_BYTES)]
Time = Annotated[int, BeforeValidator(_number), Field(ge=1, le=LATEST_TIME)]
TimeOrUndated = Annotated[int, BeforeValidator(_or_undated), Field(ge=0, le=LATEST_TIME)]
Float = Annotated[float, Field(ge=-LARGEST_FLOAT, le=LARGEST_FLOAT)]
Rating = Annotated[Float | None, BeforeValidator(_number)]
Components = Annotated[list[Float], BeforeValidator(_or_no_vector), Field(max_length=MAX_DIMENSION)]


class _Message(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    event_id: Id
    user_id: Id


class _Interaction(_Message):
    item_id: Id
    event_time: Time
    kind: Label = ""
    rating: Rating = None


class _Aspects(_Message):
    item_id: Id
    event_time: TimeOrUndated = 0
    vector: Components = []
    embedding_space: Annotated[str, BeforeValidator(_or_empty), _at_most(MAX_ID_BYTES)] = ""
    rating: Rating = None


class _Erasure(_Message):
    event_time: Time


def _interaction(value: bytes, sent_at: int) -> UserChange:
    message = _Interaction.model_validate_json(value)
    event = Event(message.event_id, message.item_id, min(message.event_time, sent_at), message.kind, message.rating)
    return UserChange(message.user_id, event, message.event_time > sent_at)


def _aspects(value: bytes, sent_at: int) -> UserChange:
    message = _Aspects.model_validate_json(value)
    vector = _vector(message)
    aspects = Aspects(
        event_id=message.event_id,
        item_id=message.item_id,
        event_time=min(message.event_time, sent_at),
        vector=vector,
        space=message.embedding_space if vector is not None else "",
        rating=message.rating,
    )
    return UserChange(message.user_id, aspects, message.event_time > sent_at)


def _erasure(value: bytes, sent_at: int) -> UserChange:
    message = _Erasure.model_validate_json(value)
    return UserChange(message.user_id, Erase(min(message.event_time, sent_at)), message.event_time > sent_at)


def _vector(message: _Aspects) -> Vector | None:
    """Return the vector at unit length, as profiles average it."""
    if not message.vector:
        return None
    if not message.embedding_space:
        raise InvalidEventError("embeddingSpace: empty beside a vector")
    vector = np.array(message.vector, np.float64)
    length = float(np.linalg.norm(vector))
    if length == 0:
        raise InvalidEventError("vector: all zeros, which has no direction")
    return np.asarray(vector / length, np.float32)


def told(error: ValidationError) -> str:
    """Return field and fault without the value: it may be an id, and messages end up in headers and logs."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'value'}: {fault['msg']}" for fault in found[:3])


_READERS = {INTERACTIONS: _interaction, ASPECTS: _aspects, ERASURES: _erasure}
TOPICS = tuple(_READERS)
"""What ingest reads, by the contract's names."""
