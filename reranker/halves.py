"""The two halves of a stored event, what the user did and what the review said, as the bytes that stores keep.

Of two halves with one event_id and one time the greater bytes win, in every store; so the bytes of a half are a
function of its content alone, and changing them is a new format of every store.
"""

import hashlib
import json
from typing import NamedTuple

import msgspec
import numpy as np

from reranker.records import Aspects, Event, Update


class Half(NamedTuple):
    """One half with its time, milliseconds since the epoch. Halves are ordered: the greater one wins."""

    event_time: int
    content: bytes


def user_hash(user_id: str) -> str:
    """Return what stands for a user where the id itself must not stand: 64 hex digits.

    It hides the id from who reads the store, not from who can list all ids and hash them.
    """
    return hashlib.sha256(user_id.encode()).hexdigest()


def interaction_half(update: Update) -> Half | None:
    """Return what the user did, as JSON text: item id, kind, rating."""
    if isinstance(update, Aspects):
        return None
    return Half(update.event_time, _json([update.item_id, update.kind, update.rating]))


def aspects_half(update: Update) -> Half | None:
    """Return what the review said: JSON text of item id, rating and embedding space, a line break, the vector."""
    if isinstance(update, Event):
        if update.aspects_vector is None:
            return None
        update = _aspects(update)
    vector = b"" if update.vector is None else update.vector.astype("<f4").tobytes()
    return Half(update.event_time, _json([update.item_id, update.rating, update.space]) + b"\n" + vector)


def joined(
    event_id: str,
    interaction_time: int | None,
    interaction: bytes | None,
    aspects_time: int | None,
    aspects: bytes | None,
) -> Event:
    """Return the event of two halves, one at least, given by their times and contents.

    Where both tell the same thing, the interaction is believed.
    """
    if interaction_time is None or interaction is None:
        return _review(event_id, aspects_time or 0, aspects or b"")
    item_id, kind, rating = _INTERACTION.decode(interaction)
    # Most events end here, and a request makes ten of them.
    event = Event(event_id, item_id, interaction_time, kind, rating)
    if aspects_time is None or aspects is None:
        return event
    review = _review(event_id, aspects_time, aspects)
    return event._replace(
        rating=review.rating if rating is None else rating,
        aspects_vector=review.aspects_vector,
        aspects_space=review.aspects_space,
    )


def _review(event_id: str, event_time: int, content: bytes) -> Event:
    head, _, blob = content.partition(b"\n")
    item_id, rating, space = _ASPECTS.decode(head)
    vector = np.frombuffer(blob, "<f4") if blob else None
    return Event(event_id, item_id, event_time, "", rating, vector, space if blob else None)


def _aspects(event: Event) -> Aspects:
    return Aspects(
        event_id=event.event_id,
        item_id=event.item_id,
        event_time=event.event_time,
        vector=event.aspects_vector,
        space=event.aspects_space or "",
        rating=event.rating,
    )


def _json(values: list[str | float | None]) -> bytes:
    return _ENCODER.encode(values).encode()


_INTERACTION = msgspec.json.Decoder(tuple[str, str, float | None])
_ASPECTS = msgspec.json.Decoder(tuple[str, float | None, str])
# Made once: json.dumps makes one a call for any but its default options, which costs twice the encoding.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
