"""What is trained on: vectors of the encoder as it is, and for each user which items go with which events."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from offline.evaluate import Materials
from offline.histories import events_by_user
from offline.records import Alignment, Interaction
from reranker.feedback import Feedback
from reranker.index import Index
from reranker.profile import decay_weights
from reranker.records import Event, Vector

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class UserEvents:
    """One user's events, newest first; all arrays of shape (events,)."""

    items: Rows
    """The item of each event, as a row of the index."""
    vectors: Rows
    """The vector of each event, as a row of TrainingData.event_vectors."""
    judged: Rows
    """The persona that was judged to explain the event (eq. 5), as a row of persona_vectors; -1: not judged."""
    strengths: NDArray[np.float32]
    """What each event says for its item (`reranker.feedback`); 0: nothing, so it is neither history nor target."""
    user_id: str = ""

    @property
    def likes(self) -> Rows:
        """The items that some event speaks for, ascending, each once."""
        return np.unique(self.items[self.strengths > 0])


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Frozen vectors and who took what."""

    space: str
    """Of the encoder."""
    persona_vectors: Vector
    """Every vector an item can be found by, contiguous by item, shape (vectors, dimension)."""
    offsets: Rows
    """Item i owns the vectors offsets[i] to offsets[i + 1], shape (items + 1,)."""
    event_vectors: Vector
    """What profiles are made of: a vector an item, then those of aspects, shape (n, dimension)."""
    users: tuple[UserEvents, ...]
    """Those who like two items of the index or more: one to aim at, one to know the user by."""
    alignments: int
    """Judged pairs of user and item among them."""
    alignments_left_out: int
    """Pairs whose item or history is not all in the user's interactions, or whose persona is not the item's."""
    said: tuple[tuple[str, str], ...] = ()
    """User and item of each vector of aspects, in the order of those rows of event_vectors."""

    @property
    def items(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def events(self) -> int:
        return sum(len(user.items) for user in self.users)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all of it, to the last bit: training on other data is another training.

        A text's vector differs by about 1e-7 with the texts that it was embedded beside, so where a part of them was
        cached, one dataset may have another fingerprint.
        """
        digest = hashlib.sha256(self.space.encode())
        for vectors in (self.persona_vectors, self.event_vectors):
            digest.update(vectors.astype("<f4").tobytes())
        for rows in (self.offsets, *(rows for user in self.users for rows in (user.items, user.vectors, user.judged))):
            digest.update(rows.astype("<i8").tobytes())
            digest.update(b";")
        for user in self.users:
            digest.update(user.strengths.astype("<f4").tobytes())
        return digest.hexdigest()[:12]


def training_data(
    materials: Materials, interactions: Iterable[Interaction], alignments: Iterable[Alignment] = ()
) -> TrainingData:
    """Gather what the interactions say of the items of an index.

    An alignment counts if its persona is one of its item's, and its item and all of its history are among the user's
    interactions. So whatever was held out of the interactions is held out of the alignments too: a judge that saw a
    held-out item tells of it by its choice.
    """
    histories = events_by_user(interactions, materials.aspects, materials.index.space)
    given = tuple(alignments)
    judged = dict(_judged(given, histories, materials.index))
    arrays = materials.index.single.arrays
    vectors = list(arrays.interactions)
    said: list[tuple[str, str]] = []
    users = [
        _user_events(user_id, events, materials.index, judged, vectors, said, materials.feedback)
        for user_id, events in histories.items()
    ]
    kept = tuple(user for user in users if len(user.likes) > 1)
    taught = {user.user_id for user in kept}
    return TrainingData(
        space=materials.index.space,
        persona_vectors=arrays.vectors,
        offsets=arrays.offsets,
        event_vectors=np.stack(vectors) if vectors else arrays.interactions,
        users=kept,
        alignments=sum(user_id in taught for user_id, _ in judged),
        alignments_left_out=len({(a.user_id, a.item_id) for a in given}) - len(judged),
        said=tuple(said),
    )


def _judged(
    alignments: Sequence[Alignment], histories: Mapping[str, Sequence[Event]], index: Index
) -> Iterator[tuple[tuple[str, str], int]]:
    rows, offsets = index.single.persona_rows(), index.single.arrays.offsets
    taken = {user_id: {event.item_id for event in events} for user_id, events in histories.items()}
    for alignment, item in zip(alignments, index.locate([a.item_id for a in alignments]).rows.tolist(), strict=True):
        row = rows.get(alignment.persona_id)
        if row is None or not offsets[item] <= row < offsets[item + 1]:
            continue
        if {alignment.item_id, *alignment.history} <= taken.get(alignment.user_id, set()):
            yield (alignment.user_id, alignment.item_id), row


def _user_events(
    user_id: str,
    events: Sequence[Event],
    index: Index,
    judged: Mapping[tuple[str, str], int],
    vectors: list[Vector],
    said: list[tuple[str, str]],
    feedback: Feedback,
) -> UserEvents:
    """Give each event its vector as `reranker.profile` would: its aspects', added to `vectors`, or its item's.

    `said` is told whose the added ones are.
    """
    places = index.locate([event.item_id for event in events])
    known = [event for event, held in zip(events, places.held.tolist(), strict=True) if held]
    items = places.rows[places.held]
    rows = items.copy()
    for number, event in enumerate(known):
        if event.aspects_vector is not None:
            rows[number] = len(vectors)
            vectors.append(event.aspects_vector)
            said.append((user_id, event.item_id))
    return UserEvents(
        items=items,
        vectors=rows,
        judged=np.array([judged.get((user_id, event.item_id), -1) for event in known], np.int64),
        strengths=np.array(feedback.weights(known), np.float32),
        user_id=user_id,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Profiles, and what each is asked to find."""

    vectors: Rows
    """The event vectors that its profiles are made of, each once."""
    shares: NDArray[np.float32]
    """Share of each of `vectors` in each profile, rows adding up to 1, shape (profiles, vectors)."""
    items: Rows
    """The items that compete, ascending: all, or a sample with every target in it."""
    seen: NDArray[np.bool_]
    """Which of `items` each user has, liked or not: they compete with none, shape (profiles, items)."""
    profiles: Rows
    """The profile of each query, shape (queries,)."""
    targets: Rows
    """The item of each query, as a place in `items`."""
    judged: Rows
    """The judged persona of each query, as a row of persona_vectors; -1: the item's best is meant."""


@dataclass(frozen=True, slots=True)
class Deal:
    """How a user's items are dealt into a history and the targets that it must find."""

    targets: float
    """Share of the user's items, 0 to 1; at least one is a target and one is history."""
    history_length: int
    gamma: float
    competitors: int
    """At most so many items compete, drawn at random; targets compete always."""
    most: int | None = None
    """Targets of a user at most; None: any number."""


def batch_of(data: TrainingData, users: Sequence[UserEvents], deal: Deal, random: np.random.Generator) -> Batch:
    """Deal each user's items at random. No target is in its own history."""
    dealt = [_dealt(user, deal, random) for user in users]
    histories = [
        (user.vectors[history], user.strengths[history]) for user, (history, _) in zip(users, dealt, strict=True)
    ]
    targets = np.concatenate([user.items[target] for user, (_, target) in zip(users, dealt, strict=True)])
    vectors, shares = _shares(histories, deal.gamma)
    items = _competing(data.items, targets, deal.competitors, random)
    return Batch(
        vectors=vectors,
        shares=shares,
        items=items,
        seen=np.stack([np.isin(items, user.items) for user in users]),
        profiles=np.repeat(np.arange(len(users)), [len(target) for _, target in dealt]),
        targets=np.searchsorted(items, targets),
        judged=np.concatenate([user.judged[target] for user, (_, target) in zip(users, dealt, strict=True)]),
    )


def _dealt(user: UserEvents, deal: Deal, random: np.random.Generator) -> tuple[Rows, Rows]:
    """Return the events of the history, newest first, and one event of each target."""
    liked = np.flatnonzero(user.strengths > 0)
    distinct, firsts = np.unique(user.items[liked], return_index=True)
    count = min(max(round(deal.targets * len(distinct)), 1), len(distinct) - 1)
    aimed = random.permutation(len(distinct))[:count]
    history = liked[~np.isin(user.items[liked], distinct[aimed])]
    return history[: deal.history_length], liked[firsts[aimed[: deal.most]]]


def _shares(histories: Sequence[tuple[Rows, NDArray[np.float32]]], gamma: float) -> tuple[Rows, NDArray[np.float32]]:
    """Return the vectors of all histories, each once, and their shares in each profile, as `reranker.profile` has them.

    histories: the vectors of each and what its events say, newest first.
    """
    vectors, places = np.unique(np.concatenate([rows for rows, _ in histories]), return_inverse=True)
    shares = np.zeros((len(histories), len(vectors)), np.float32)
    profiles = np.repeat(np.arange(len(histories)), [len(rows) for rows, _ in histories])
    weights = np.concatenate([decay_weights(len(rows), gamma) * strengths for rows, strengths in histories])
    np.add.at(shares, (profiles, places), weights)
    return vectors, shares / shares.sum(axis=1, keepdims=True)


def _competing(items: int, targets: Rows, competitors: int, random: np.random.Generator) -> Rows:
    if items <= competitors:
        return np.arange(items)
    return np.union1d(random.choice(items, competitors, replace=False), targets)
