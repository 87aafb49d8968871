"""When an item's personas are written anew, and which of the old ones stay: pure functions."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from offline.decisions import Alike
from reranker.records import Persona, Vector

LEAST_NEW = 3
"""New reviews that are enough, however few there were: two more of one kind make no other kind of person."""

NEW_SHARE = 0.5
"""New reviews that are enough, as a share of those that the personas were written from. So the n-th review is one of
about log(n) / log(1.5) rewrites: a thousand reviews cost about 15."""

FAR = 0.25
"""Cosine below which a review is unlike what a persona rests on. Measured with the bundled encoder, what each review
says against the nearest centre of its item's clusters, formed without it: of 540 book reviews 5 % are below 0.26, of
596 points of films, which all begin alike, 5 % below 0.46 and 1 % below 0.36. Too low costs freshness, too high tokens:
so the lower one."""

SAME = 0.5
"""Of the reviews that either of two personas rests on, the share that both do (Jaccard) from which they are one."""


class Why(StrEnum):
    """What decided about an item's personas."""

    FIRST = "first reviews"
    WITHDRAWN = "evidence withdrawn"
    ENOUGH = "enough new reviews"
    UNLIKE = "unlike every persona"
    NO_REVIEWS = "no reviews"
    NOTHING_NEW = "nothing new"
    TOO_FEW = "too few new reviews"
    HOURLY_BOUND = "rewrites of this hour used up"
    TOKEN_BUDGET = "tokens of this hour used up"  # noqa: S105 - no password

    @property
    def rewrite(self) -> bool:
        return self in {Why.FIRST, Why.WITHDRAWN, Why.ENOUGH, Why.UNLIKE}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What warrants a rewrite."""

    least_new: int = LEAST_NEW
    new_share: float = NEW_SHARE
    far: float = FAR


def verdict(
    vectors: Vector,
    new: NDArray[np.bool_],
    resting: Sequence[Sequence[int]],
    thresholds: Thresholds,
    *,
    withdrawn: bool = False,
) -> Why:
    """Return whether an item's personas are to be written anew, and why.

    vectors: of what its reviews say, unit length, shape (reviews, dimension). new: shape (reviews,), those that the
    personas were not written from. resting: for each persona the places of the reviews that it rests on. withdrawn: a
    persona had to go with a review that is gone.
    """
    if not len(vectors):
        return Why.NO_REVIEWS
    if withdrawn:
        return Why.WITHDRAWN
    count = int(new.sum())
    if not count:
        return Why.NOTHING_NEW
    if not resting:
        return Why.FIRST
    if count >= max(thresholds.least_new, thresholds.new_share * (len(new) - count)):
        return Why.ENOUGH
    return Why.UNLIKE if any(nearest(vectors[new], vectors, resting) < thresholds.far) else Why.TOO_FEW


def nearest(vectors: Vector, reviews: Vector, resting: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Return the cosine of each vector with the nearest centre of what a persona rests on, shape (vectors,).

    1 where no persona is known to rest on anything: then nothing can be told.
    """
    centres = [reviews[list(places)].mean(axis=0) for places in resting if places]
    if not centres:
        return np.ones(len(vectors), np.float32)
    stacked = np.stack(centres)
    stacked /= np.linalg.norm(stacked, axis=1, keepdims=True).clip(min=1e-9)
    return np.asarray((vectors @ stacked.T).max(axis=1), np.float32)


def kept(
    old: Sequence[Persona], written: Sequence[Persona], known: Collection[str], decided: Collection[str], alike: Alike
) -> tuple[Persona, ...]:
    """Return what was written, with the words of an old persona, and so its id, where it says what one said before.

    Such a one rests on the reviews of both: its words are of the old ones, and go when one of these is withdrawn.

    Two are one if they rest on the same reviews for the most part, or are alike in words. Of those that the old ones
    could rest on only `known` are compared: what is new has no part in it. Each old persona is kept once. `decided`:
    ids of personas that an editor wrote or pinned; these stay as they are.
    """
    chosen: dict[int, Persona] = {}
    for _, place, persona in _pairs(old, written, known, decided, alike):
        if place not in chosen and persona not in chosen.values():
            chosen[place] = persona
    return tuple(_resting_on_both(new, chosen[place]) if place in chosen else new for place, new in enumerate(written))


def _resting_on_both(new: Persona, old: Persona) -> Persona:
    return replace(old, evidence=tuple(dict.fromkeys((*new.evidence, *old.evidence))))


def _pairs(
    old: Sequence[Persona], written: Sequence[Persona], known: Collection[str], decided: Collection[str], alike: Alike
) -> list[tuple[float, int, Persona]]:
    """Return how far written and old personas are the same, where they are, the best first; ties in their order."""
    found = [
        (likeness, place, before)
        for place, new in enumerate(written)
        if new.persona_id not in decided
        for before in old
        if (likeness := _likeness(before, new, known, alike)) >= SAME
    ]
    return sorted(found, key=lambda pair: -pair[0])


def _likeness(before: Persona, new: Persona, known: Collection[str], alike: Alike) -> float:
    if before.persona_id == new.persona_id:
        # More than anything else can be, so that no other takes its place.
        return 2.0
    first, second = set(before.evidence), {review_id for review_id in new.evidence if review_id in known}
    shared = len(first & second) / max(1, len(first | second))
    return shared if shared >= SAME else float(alike(before, new))


def text_changed(old: Sequence[Persona], new: Sequence[Persona]) -> float:
    """Return the share of personas, of all before and after, that are not in both: 0 nothing changed, 1 everything."""
    before, after = ({persona.persona_id for persona in personas} for personas in (old, new))
    return len(before ^ after) / max(1, len(before | after))


def resting_places(personas: Sequence[Persona], places: Mapping[str, int]) -> list[list[int]]:
    """Return for each persona the places of its evidence, by review id, as far as it is known."""
    return [[places[review_id] for review_id in persona.evidence if review_id in places] for persona in personas]
