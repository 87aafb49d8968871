"""What every training has in common: users held out to say when it stops, points of its curve, going on when killed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import normalize

from offline.errors import DatasetError
from offline.measures import ndcg_of_ranks
from offline.training_data import Batch, Deal, TrainingData, UserEvents, batch_of
from offline.training_states import StateFile

# Of all users: enough that trials differ by more than the noise of a hundred users' ranks, little to train without.
HELD_OUT = 0.2
# A fifth of fewer is a handful, and a handful chooses at random.
MIN_USERS = 20
# Deals of each held-out user's items: the curve of a single one is so rough that trainings stop on noise.
EXAMS = 4
# Of profiles to personas, in memory at a time: half a GB of float32, more than a thousand users' of 20,000 items.
EXAM_SIMILARITIES = 1 << 27
# Targets are dealt between these shares of a user's items: short histories are met as often as long ones.
TARGETS = (0.2, 0.8)


@dataclass(frozen=True, slots=True)
class Point:
    """One epoch."""

    epoch: int
    """Epochs trained; 0: the untouched encoder."""
    loss: float
    """Mean over the epoch's queries, nats; NaN before the first."""
    ndcg: float
    """Of held-out users' targets, each by its rank in the whole catalogue; NaN where nobody is held out.

    Uncut: at 10 most queries of a large catalogue score 0, and trainings stop on noise.
    """


def best_of(points: Sequence[Point]) -> Point:
    """Return the epoch at which held-out users did best, the earlier of equals."""
    return max(points, key=lambda point: point.ndcg)


def finished(points: Sequence[Point], epochs: int, patience: int) -> bool:
    """Return whether all epochs are trained, or held-out users have gained nothing for `patience` epochs."""
    epoch = points[-1].epoch
    return epoch >= epochs or epoch - best_of(points).epoch >= patience


class Fit(Protocol):
    """One training in progress."""

    points: list[Point]

    @property
    def key(self) -> str:
        """What a state must have been saved with to be gone on from."""
        ...

    @property
    def finished(self) -> bool: ...

    def advance(self) -> None:
        """Train an epoch. Its randomness depends on seed and epoch alone, so that a resumed training repeats it."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that a resumed training needs."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


def run(fit: Fit, state: StateFile | None, report: Callable[[Point], None]) -> None:
    """Train to the end, from the state that is kept, if there is one of this very training."""
    if state and (kept := state.read(fit.key)):
        fit.restore(kept)
    report(fit.points[-1])
    while not fit.finished:
        fit.advance()
        if state:
            state.write(fit.state())
        report(fit.points[-1])


def split(users: Sequence[UserEvents], seed: int) -> tuple[list[UserEvents], list[UserEvents]]:
    """Return the users held out to choose by, and the others."""
    order = np.random.default_rng(seed).permutation(len(users))
    held = round(HELD_OUT * len(users))
    return [users[place] for place in order[:held]], [users[place] for place in order[held:]]


def require_users(data: TrainingData, what: str) -> None:
    """Raise DatasetError if there are too few users to hold some out."""
    if len(data.users) < MIN_USERS:
        raise DatasetError(
            f"too few users to train {what}: {len(data.users)} like two items of the index or more, and it takes "
            f"{MIN_USERS}. Add interactions; say by [feedback] of the server's settings which ratings speak against an "
            f"item, if it is not those below 3; or go on without {what}"
        )


def contested(data: TrainingData, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the vectors of the batch's items, and the place in `batch.items` of the item of each."""
    starts, counts = data.offsets[batch.items], np.diff(data.offsets)[batch.items]
    heads = np.cumsum(counts) - counts
    rows = np.arange(counts.sum()) + np.repeat(starts - heads, counts)
    return torch.from_numpy(rows), torch.from_numpy(np.repeat(np.arange(len(batch.items)), counts))


def profiles_of(batch: Batch, events: torch.Tensor) -> torch.Tensor:
    """Return the unit profiles (eq. 6-7) from the vectors of `batch.vectors`, shape (profiles, dimension)."""
    return normalize(torch.from_numpy(batch.shares).to(events.device) @ events, dim=1)


def best_by_item(similarities: torch.Tensor, owners: torch.Tensor, items: int) -> torch.Tensor:
    """Return the best similarity of each item (eq. 10), shape (profiles, items)."""
    nothing = torch.full((len(similarities), items), -torch.inf)
    return nothing.scatter_reduce(1, owners.expand(len(similarities), -1), similarities, "amax")


def exams_of(data: TrainingData, held_out: Sequence[UserEvents], deal: Deal, seed: int) -> list[Batch]:
    """Deal the items of each held-out user several times, in pieces whose similarities fit the memory."""
    random = np.random.default_rng(seed)
    competing = int(data.offsets[-1] * min(1, deal.competitors / data.items))
    users = max(1, EXAM_SIMILARITIES // max(1, competing))
    asked = [*held_out] * EXAMS
    return [batch_of(data, asked[start : start + users], deal, random) for start in range(0, len(asked), users)]


def ndcg_of(bests: Iterable[tuple[torch.Tensor, Batch]], items: int) -> float:
    """Return the NDCG of the targets of all exams, by the best similarity of each item."""
    return ndcg_of_ranks((rank for best, exam in bests for rank in _ranks(best, exam)), items)


def _ranks(best: torch.Tensor, exam: Batch) -> Iterator[int]:
    """Yield the rank of each target, from 1; items of the user do not compete."""
    profiles, targets = torch.from_numpy(exam.profiles), torch.from_numpy(exam.targets)
    others, found = best.masked_fill(torch.from_numpy(exam.seen), -torch.inf), best[profiles, targets]
    queries = max(1, EXAM_SIMILARITIES // 8 // best.shape[1])
    for start in range(0, len(profiles), queries):
        piece = slice(start, start + queries)
        yield from (1 + (others[profiles[piece]] > found[piece, None]).sum(1)).tolist()
