"""The contract of the first stage: who is asked for candidates, and what comes back."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["CandidateGenerator", "Candidates", "Source"]


class Source(StrEnum):
    """What a list of candidates was made from."""

    MODEL = "model"
    """The factors trained for this very user."""
    HISTORY = "history"
    """The items of the user's history: the user is unknown to the model, some of the items are not."""
    POPULAR = "popular"
    """The number of users of each item: nothing is known of this user."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The best items of the first stage for one user, best first."""

    item_ids: tuple[str, ...]
    scores: NDArray[np.float32]
    """First-stage scores, shape (len(item_ids),), descending; comparable within one list only."""
    source: Source

    @classmethod
    def best(
        cls,
        item_ids: Sequence[str],
        scores: NDArray[np.float32],
        banned: NDArray[np.intp],
        n: int,
        source: Source,
    ) -> Self:
        """Return the n best of a scored catalogue, fewer only if no more is left.

        `item_ids` and `scores`, shape (items,) and finite, are the catalogue; `banned` holds the positions that must
        not come back, in any order. Equal scores keep the order of the catalogue, so a shorter list is the head of a
        longer one.
        """
        allowed = scores.copy()
        allowed[banned] = -np.inf
        count = min(n, int(np.count_nonzero(allowed > -np.inf)))
        threshold = np.partition(allowed, -count)[-count]
        above = np.flatnonzero(allowed > threshold)
        tied = np.flatnonzero(allowed == threshold)[: count - len(above)]
        order = np.concatenate((above[np.argsort(-allowed[above], kind="stable")], tied))
        return cls(tuple(item_ids[position] for position in order), scores[order], source)


class CandidateGenerator(Protocol):
    """Proposes items for a user. One generator serves many threads."""

    @property
    def name(self) -> str:
        """The model's name, as configuration and metrics say it: "als", "bpr"."""
        ...

    def generate(
        self, user_id: str, n: int, *, history: Sequence[str] = (), exclude: Collection[str] = ()
    ) -> Candidates:
        """Return the n best items for the user, fewer only if the catalogue is exhausted.

        `history` is the item ids of the events known online, newest first. Neither an item that the user has in the
        training interactions nor one of `history` or `exclude` is returned; ids unknown to the model are no error.
        A user known to the model is served from the trained factors (Source.MODEL), another one from the items of
        `history` known to the model (Source.HISTORY), and without any by popularity (Source.POPULAR), where the score
        is log(1 + number of users). Raises ConfigurationError if n < 1.
        """
        ...
