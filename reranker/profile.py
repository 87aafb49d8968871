"""A user's history as one vector: each event embedded (eq. 6), averaged with decay (eq. 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from reranker.index import Index
from reranker.records import Event, Vector


class VectorSource(Enum):
    """Where the vector of an event came from."""

    NONE = 0
    """Nowhere: the index does not hold the item, so the event weighs nothing."""
    ASPECTS = 1
    """Item summary and the aspects of this very event (eq. 4)."""
    ITEM = 2
    """The item's summary alone."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What the events of a user amount to."""

    vector: Vector | None
    """Shape (dimension,), unit length; None if no event has a vector."""
    weights: NDArray[np.float32]
    """Share of each event, shape (events,), in the order of the events; adds up to 1, or to 0 without a vector."""
    sources: tuple[VectorSource, ...]
    watermark: int
    """Time of the newest event, ms since the epoch; 0 if there is none or none is dated."""


def decay_weights(n: int, gamma: float) -> NDArray[np.float32]:
    """Return the shares of n events, newest first: proportional to gamma ** age in steps (eq. 7), adding up to 1."""
    weights = np.power(np.float32(gamma), np.arange(n, dtype=np.float32))
    return np.asarray(weights / weights.sum() if n else weights, dtype=np.float32)


def build_profile(events: Sequence[Event], index: Index, gamma: float) -> Profile:
    """Embed a history, newest event first.

    Events without a vector are passed over before the decay is counted, so that an item unknown to the index ages
    nothing. Aspects of another embedding space than the index's are ignored in favour of the item's own vector.
    """
    found = [_event_vector(event, index) for event in events]
    vectors = [vector for vector, _ in found if vector is not None]
    weights = np.zeros(len(events), np.float32)
    weights[[vector is not None for vector, _ in found]] = decay_weights(len(vectors), gamma)
    return Profile(
        vector=aggregate(np.stack(vectors), gamma) if vectors else None,
        weights=weights,
        sources=tuple(source for _, source in found),
        watermark=max((event.event_time for event in events), default=0),
    )


def aggregate(vectors: Vector, gamma: float) -> Vector | None:
    """Return the decayed average of event vectors, newest first, shape (n, dimension), at unit length.

    None if the average vanishes: such a profile prefers nothing to anything.
    """
    mean = decay_weights(len(vectors), gamma) @ vectors
    length = float(np.linalg.norm(mean))
    return np.asarray(mean / length, dtype=np.float32) if length > 0 else None


def _event_vector(event: Event, index: Index) -> tuple[Vector | None, VectorSource]:
    if event.aspects_vector is not None and event.aspects_space == index.space:
        return event.aspects_vector, VectorSource.ASPECTS
    row = index.item_rows.get(event.item_id)
    if row is None:
        return None, VectorSource.NONE
    return index.interaction_vectors[row], VectorSource.ITEM
