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


def joined(event_id: str, interaction: Half | None, aspects: Half | None) -> Event:
    """Return the event of two halves, one at least; where both tell the same thing, the interaction is believed."""
    event_time, (item_id, kind, rating) = _read_interaction(interaction)
    if aspects is None:
        return Event(event_id, item_id, event_time, kind, rating)
    head, _, blob = aspects.content.partition(b"\n")
    review_item_id, review_rating, space = _ASPECTS.decode(head)
    return Event(
        event_id=event_id,
        item_id=item_id if interaction else review_item_id,
        event_time=event_time if interaction else aspects.event_time,
        kind=kind,
        rating=review_rating if rating is None else rating,
        aspects_vector=np.frombuffer(blob, "<f4") if blob else None,
        aspects_space=space if blob else None,
    )


def _read_interaction(half: Half | None) -> tuple[int, tuple[str, str, float | None]]:
    if half is None:
        return 0, ("", "", None)
    return half.event_time, _INTERACTION.decode(half.content)


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
