"""What reviews say of an item: pieces of evidence, and which of them personas are written from."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from offline.quoting import quoted
from offline.records import Item
from offline.sentences import cut
from reranker.records import Vector

PIECE_CHARACTERS = 500
"""Of one review: about 120 tokens; the aspects of one of the bundled catalogue have 85 characters, at most 149."""

PROMPT_CHARACTERS = 10_000
"""Of all pieces that are put forward, tags included: about 2,500 tokens. In a context of 8,192 they leave 850 for the
item, 600 for what is asked and its schema, and 4,200 for an answer that needs twice the room it was given first."""

LOW_SHARE = 0.4
"""Of the scale of ratings: up to there a review is critical, e.g. one and two of five stars."""

FEW_CRITICAL = 3
"""Critical pieces that are always put forward, however few they are among the others."""

SPREAD_PER_PERSONA = 1.5
"""Effectively different pieces of evidence that make one persona. Measured: the bundled catalogue gets 3.8 an item,
where a large model that was free to choose wrote 4.2 (correlation over items 0.78)."""

LEAST_PERSONAS, MOST_PERSONAS = 2, 7
"""Of an item with several reviews (eq. 3)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one review says of the item."""

    review_id: str
    text: str
    """What is put forward: its aspects (eq. 2), joined; where none were extracted, its own words, cut at a sentence."""
    words: str
    """All that is known of it: its aspects and its own words."""
    user_id: str | None = None
    critical: bool = False
    """Its rating is low on the dataset's scale."""


@dataclass(frozen=True, slots=True)
class ItemEvidence:
    """An item, and what reviews say of it."""

    item: Item
    summary: str
    pieces: tuple[Piece, ...]
    """At least one, in the order of the file; one a review."""

    @property
    def about(self) -> str:
        """What everybody may know of the item: title, metadata and summary."""
        item = self.item
        return " ".join((item.title, item.description, self.summary, *item.categories, *item.attributes.values()))


def put_forward(pieces: Sequence[Piece], vectors: Vector, characters: int = PROMPT_CHARACTERS) -> list[int]:
    """Return the places of the pieces to write personas from: all, or if they are too long, one of every cluster.

    They are too long where, quoted, they take more than `characters`. There are as many clusters (k-means) as pieces
    fit, two at least; the piece nearest to its centre stands for each. Critical pieces are clustered on their own, with
    their share of the places and three at least, so that no praise drowns them.
    """
    sizes = [len(shown(len(pieces), piece)) + 1 for piece in pieces]
    if sum(sizes) <= characters:
        return list(range(len(pieces)))
    room = int(characters * len(pieces) / sum(sizes))
    while True:
        room = max(LEAST_PERSONAS, room)
        places = _of_every_cluster(pieces, vectors, room)
        taken = sum(sizes[place] for place in places)
        if taken <= characters or room == LEAST_PERSONAS:
            return places
        # Less by twice what was too much, as those that stand for fewer clusters may be longer again.
        room = min(room - 1, int(room * (characters / taken) ** 2))


def shown(number: int, piece: Piece) -> str:
    """Return a piece as it stands in a prompt, where it is cited by its number, from 1."""
    opinion = {"opinion": "critical"} if piece.critical else {}
    return quoted("review", piece.text, number=str(number), **opinion)


def _of_every_cluster(pieces: Sequence[Piece], vectors: Vector, room: int) -> list[int]:
    critical = [place for place, piece in enumerate(pieces) if piece.critical]
    others = [place for place, piece in enumerate(pieces) if not piece.critical]
    for_critical = min(len(critical), max(FEW_CRITICAL, round(room * len(critical) / len(pieces))))
    for_others = max(room - for_critical, min(1, len(others)))
    return sorted(_representatives(critical, vectors, for_critical) + _representatives(others, vectors, for_others))


def clusters(vectors: Vector, count: int) -> list[list[int]]:
    """Return the places of vectors by cluster (k-means), `count` at most, none empty, in order of first place."""
    # Here, because it takes seconds to load, and whoever only reads evidence has no use for it.
    from sklearn.cluster import KMeans

    count = min(count, len(np.unique(vectors, axis=0)))
    labels = KMeans(count, n_init=4, random_state=0).fit_predict(vectors)
    found: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        found[label].append(place)
    return list(found.values())


def central(vectors: Vector, places: Sequence[int]) -> int:
    """Return that of the places whose vector is nearest to the mean of all."""
    chosen = vectors[list(places)]
    return places[int(np.argmax(chosen @ chosen.mean(axis=0)))]


def persona_count(vectors: Vector) -> int:
    """Return how many personas evidence is good for: one for a single piece, else 2 to 7 by its diversity.

    Diversity is the Vendi score (Friedman and Dieng, TMLR 2023), the effective number of different pieces: n for n
    pieces that share nothing, 1 for n that say the same. `vectors` are of unit length, shape (pieces, dimension).
    """
    if len(vectors) == 1:
        return 1
    # Either product has the eigenvalues of the other, but for noughts: the smaller one, of thousands of reviews.
    product = vectors @ vectors.T if len(vectors) <= vectors.shape[1] else vectors.T @ vectors
    shares = np.linalg.eigvalsh(product / len(vectors)).clip(min=1e-12)
    spread = np.exp(-(shares * np.log(shares)).sum())
    return int(np.clip(round(spread / SPREAD_PER_PERSONA), LEAST_PERSONAS, min(MOST_PERSONAS, len(vectors))))


def _representatives(places: list[int], vectors: Vector, count: int) -> list[int]:
    if count >= len(places) or not count:
        return places[:count]
    return [places[central(vectors[places], cluster)] for cluster in clusters(vectors[places], count)]


def piece(review_id: str, said: str, words: str, user_id: str | None, *, critical: bool) -> Piece:
    """Return a review as evidence; `said`: its aspects joined or, without any, its own `words`."""
    known = f"{said} {words}" if words != said else said
    return Piece(review_id, cut(said, PIECE_CHARACTERS), known, user_id, critical)


def joined(aspects: Mapping[str, str | None]) -> str:
    """Return what a review says, slot after slot."""
    return "; ".join(said.strip() for said in aspects.values() if said and said.strip())


def low_rating(ratings: Iterable[float]) -> float:
    """Return the rating up to which a review is critical; the scale is what occurs."""
    scale = set(ratings)
    return min(scale) + LOW_SHARE * (max(scale) - min(scale)) if len(scale) > 1 else -np.inf
