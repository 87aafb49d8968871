"""A user's history as one vector: each event embedded (eq. 6), averaged with decay (eq. 7)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from reranker import kernels
from reranker.feedback import ORDINARY, Feedback
from reranker.index import Index, Places
from reranker.records import Event, Vector

# Events that cancel out leave the rounding of float32 sums of unit vectors, about 1e-7; two unlike items leave 1e-1.
VANISHED = 1e-6


class VectorSource(Enum):
    """Where the vector of an event came from."""

    NONE = 0
    """Nowhere: the index does not hold the item, or the event does not speak for it, so the event weighs nothing."""
    ASPECTS = 1
    """Item summary and the aspects of this very event (eq. 4)."""
    ITEM = 2
    """The item's summary alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What the events of a user amount to."""

    vector: Vector | None
    """Shape (dimension,), unit length; None if no event has a vector, or if they cancel out."""
    weights: NDArray[np.float32]
    """Share of each event, shape (events,), in the order of the events; adds up to 1, or to 0 without a vector."""
    said: tuple[bool, ...]
    """Whether each event has aspects that could be used."""
    watermark: int
    """Time of the newest event, ms since the epoch; 0 if there is none or none is dated."""

    @property
    def sources(self) -> tuple[VectorSource, ...]:
        """Where the vector of each event came from."""
        return tuple(map(_source, self.said, self.weights.tolist()))


def decay_weights(n: int, gamma: float) -> NDArray[np.float32]:
    """Return the shares of n events, newest first: proportional to gamma ** age in steps (eq. 7), adding up to 1."""
    return kernels.decay(np.ones(n, np.float32), gamma)


def build_profile(
    events: Sequence[Event],
    index: Index,
    gamma: float,
    feedback: Feedback = ORDINARY,
    places: Places | None = None,
) -> Profile:
    """Embed a history, newest event first.

    places: where the index has the events' items, if the caller has looked already.

    An event's share is its decay times its weight by `feedback`. Events without a vector, or of weight 0, are passed
    over before the decay is counted, so that an item unknown to the index ages nothing. Aspects of another embedding
    space than the index's, or of another length, are ignored in favour of the item's own vector.
    """
    if places is None:
        places = index.locate([event.item_id for event in events])
    said = tuple([_fits(event, index) for event in events])
    strengths, held = np.array(feedback.weights(events), np.float32), places.segments >= 0
    strengths[~(held | said) if True in said else ~held] = 0
    weights = kernels.decay(strengths, gamma)
    return Profile(
        vector=_unit(_mean(events, said, index, places, weights)),
        weights=weights,
        said=said,
        watermark=max([event.event_time for event in events], default=0),
    )


def _fits(event: Event, index: Index) -> bool:
    """Return whether an event has aspects of the index's space; of its length, too, for whoever sent them may err."""
    vector = event.aspects_vector
    return vector is not None and event.aspects_space == index.space and len(vector) == index.dimension


def _mean(
    events: Sequence[Event], said: Sequence[bool], index: Index, places: Places, weights: NDArray[np.float32]
) -> Vector:
    if True not in said:
        return index.weighted(places, weights)
    mean = index.weighted(places, np.where(said, np.float32(0), weights))
    for event, aspects, weight in zip(events, said, weights, strict=True):
        if aspects and event.aspects_vector is not None:
            mean += weight * event.aspects_vector
    return mean


def _source(said: bool, weight: float) -> VectorSource:
    if weight == 0:
        return VectorSource.NONE
    return VectorSource.ASPECTS if said else VectorSource.ITEM


def _unit(mean: Vector) -> Vector | None:
    """Return the vector at unit length; None if it vanishes: such a profile prefers nothing to anything."""
    length = math.sqrt(mean.dot(mean))
    return mean / np.float32(length) if length > VANISHED else None
