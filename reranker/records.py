"""The domain's records: what histories, index, service and publisher say to each other."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

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


@dataclass(frozen=True, slots=True)
class Event:
    """One user-item event of a history."""

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


class HistoryStore(Protocol):
    """Keeps the newest events of every user. Implementations raise HistoryStoreError and nothing else."""

    def read(self, user_id: str, limit: int) -> tuple[Event, ...] | None:
        """Return the newest `limit` events, newest first; None for a user the store does not know."""
        ...

    def count(self, user_id: str) -> int:
        """Return how many events the store holds of the user; 0 for a user it does not know."""
        ...

    def merge(self, events: dict[str, list[Event]]) -> None:
        """Merge events by user into the store. Commutative and idempotent: any order, any repetition, the same state.

        Of two events with one event_id the later written wins, except that aspects once known are kept.
        Durable when it returns.
        """
        ...

    def close(self) -> None: ...
