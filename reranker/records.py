"""The domain's records: what histories, index, service and publisher say to each other."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""One embedding, shape (dimension,), or several, shape (n, dimension); unit length unless said otherwise."""


@dataclass(frozen=True, slots=True)
class Persona:
    """One type of user who would engage with an item (eq. 3)."""

    persona_id: str
    name: str
    description: str
    preference_rationale: str
    evidence: tuple[str, ...]
    """Ids of the reviews that say so."""


def persona_id(item_id: str, name: str, description: str, preference_rationale: str) -> str:
    """Return an id that survives reordering and changes exactly when the persona's text does."""
    text = "\n".join((name, description, preference_rationale))
    return f"{item_id}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the index holds of one item: readers follow this row and nothing else."""

    item_id: str
    generation: int
    """Grows with every publish, over the whole index."""
    row_ids: tuple[str, ...]
    """The item's vectors, in order: its persona ids, or the id of its one summary row."""
    title: str
    summary: str
    interaction_vector: Vector
    """Embedding of the summary alone (eq. 4 without aspects): stands for the item in a user's history."""
    fingerprint: str
    """Of everything published for the item, so that an unchanged item is left alone."""
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One vector an item can be found by."""

    row_id: str
    item_id: str
    vector: Vector
    persona: Persona | None
    """None: the vector is the item summary's, for an item without personas."""


class Event(NamedTuple):
    """One user-item event of a history.

    A tuple, since a request makes ten of them: a frozen dataclass takes four times as long to make.
    """

    event_id: str
    item_id: str
    event_time: int
    """Milliseconds since the epoch; 0: undated, older than every dated event."""
    kind: str = ""
    rating: float | None = None
    aspects_vector: Vector | None = None
    """Embedding of concat(item summary, aspects) (eq. 4), where a review's aspects are known."""
    aspects_space: str | None = None
    """The embedding space of `aspects_vector`."""

    @property
    def recency(self) -> tuple[int, str]:
        """The order of a history: by event time, then event id, so that every replay ends in the same order."""
        return self.event_time, self.event_id


def event_id(item_id: str, event_time: int) -> str:
    """Return the id of an event that came without one: loading the same interaction again changes nothing."""
    return f"{item_id}@{event_time}"


@dataclass(frozen=True, slots=True)
class Aspects:
    """What a review said of an item, for the event that it belongs to: of the same event_id, written before or after.

    Without its interaction it is an event of its own: a review counts as one.
    """

    event_id: str
    item_id: str
    event_time: int
    """Of the review, milliseconds since the epoch; 0: undated. An interaction's own time goes before it."""
    vector: Vector | None
    """Embedding of concat(item summary, aspects) (eq. 4), shape (dimension,), unit length; None if not embedded."""
    space: str
    """The embedding space of `vector`; empty without one."""
    rating: float | None = None
    """Of the review; an interaction's own rating goes before it."""


Update = Event | Aspects
"""What is merged into a history. An Event with aspects counts as both."""


class HistoryStore(Protocol):
    """Keeps the newest events of every user. Implementations raise HistoryStoreError and nothing else.

    A history is two sets, interactions and aspects, joined by event_id when read. Each set is a function of all that
    was ever merged, whatever the order and however often: of one event_id, the half of the latest event time (then of
    the greatest content); of these, the newest `keep` by (event time, event_id); of these, those after the fence.
    """

    def read(self, user_id: str, limit: int) -> tuple[Event, ...] | None:
        """Return the newest `limit` events, `keep` at most, newest first; None for a user the store does not know."""
        ...

    def count(self, user_id: str) -> int:
        """Return how many events `read` can give of the user; 0 for a user the store does not know."""
        ...

    def merge(self, updates: Mapping[str, Sequence[Update]]) -> None:
        """Merge updates by user. Commutative and idempotent: any order, any repetition, the same state.

        Durable when it returns, as far as the store is configured to be.
        """
        ...

    def erase(self, fences: Mapping[str, int]) -> None:
        """Forget each user's events up to a time, milliseconds since the epoch, now and whenever they come again.

        Fences only move forward, so that erasures commute with merges and with each other. Durable as `merge` is.
        """
        ...

    def erased_until(self, user_id: str) -> int | None:
        """Return the time up to which the user is erased, milliseconds since the epoch; None for no erasure."""
        ...

    def close(self) -> None: ...
