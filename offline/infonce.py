"""InfoNCE over a batch's personas (eq. 8-9), without negatives that are none."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from offline.training_data import Batch, Rows, TrainingData


@dataclass(frozen=True, slots=True, eq=False)
class Contest:
    """Who competes for each query of a batch."""

    personas: Rows
    """The personas that take part, each once, ascending, as rows of persona_vectors."""
    profiles: Rows
    """The profile of each query, shape (queries,)."""
    positives: Rows
    """The place in `personas` of what each query must find."""
    competing: NDArray[np.bool_]
    """Which of `personas` each query chooses among, its positive included, shape (queries, personas)."""


def contest_of(data: TrainingData, batch: Batch, positives: Rows) -> Contest:
    """Let every query's positive compete with those of the others, and with the rest of its item if it was judged.

    positives: the persona of each query, as a row of persona_vectors.

    A persona of an item that the user has is no negative, whoever's positive it is: the user chose that item too. The
    exception is the query's own item where a judge chose among its personas: the others are the hardest negatives
    there are. Where the positive is merely the nearest of now, nothing says that the others are worse.
    """
    owners = np.searchsorted(data.offsets, np.arange(data.offsets[-1]), side="right") - 1
    items = batch.items[batch.targets]
    judged = batch.judged >= 0
    personas = np.union1d(positives, np.flatnonzero(np.isin(owners, items[judged])))
    own = owners[personas][None, :] == items[:, None]
    had = batch.seen[:, np.searchsorted(batch.items, owners[personas])][batch.profiles]
    right = personas[None, :] == positives[:, None]
    return Contest(
        personas=personas,
        profiles=batch.profiles,
        positives=np.searchsorted(personas, positives),
        competing=np.where(own, right | judged[:, None], ~had),
    )


def info_nce(profiles: torch.Tensor, personas: torch.Tensor, contest: Contest, temperature: float) -> torch.Tensor:
    """Return the mean over queries of -log softmax of the positive's similarity, in nats.

    profiles: unit vectors, shape (profiles, dimension); personas: those of `contest.personas`.
    """
    device = personas.device
    similarities = (profiles @ personas.T / temperature)[torch.from_numpy(contest.profiles).to(device)]
    among = similarities.masked_fill(torch.from_numpy(~contest.competing).to(device), -torch.inf)
    return cross_entropy(among, torch.from_numpy(contest.positives).to(device))
