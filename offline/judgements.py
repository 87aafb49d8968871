"""What is to be judged by an alignment: one interaction, and what the user chose before it."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from offline.dataset import Dataset
from offline.errors import DatasetError
from offline.records import Interaction, Item, ItemPersonas, ReviewAspects
from offline.sentences import cut
from offline.text import summary_of
from reranker.records import Persona

LONGEST_SUMMARY = 400
"""Characters of an item summary in a prompt: its two or three sentences, or the first of a description."""

MOST_PERSONAS = 26
"""Of an item that are judged: each has a letter in the prompt. Stages write 7 at most, other files may more."""


@dataclass(frozen=True, slots=True)
class Event:
    """One interaction of a profile: the item, and what the user said of it."""

    item_id: str
    text: str
    """Title, summary and aspects: as in eq. 4, in words for the model."""
    review_ids: tuple[str, ...] = ()
    """Whose words are in it."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One interaction to be explained."""

    user_id: str
    target: Event
    """Without aspects: what the user said of the target is not to be looked at."""
    personas: tuple[Persona, ...]
    """Of the item, in their own order."""
    history: tuple[Event, ...]
    """The newest last."""

    @property
    def key(self) -> str:
        return f"{self.user_id}\n{self.target.item_id}"


def judgements(dataset: Dataset, history_length: int) -> Iterator[Judgement]:
    """Yield one for each user and item with personas that they interacted with, with `history_length` events at most.

    Without interactions the reviews count as such. An interaction before the target is told with what its user said of
    it last, but for what is known to have been said after the target was chosen. Memory holds the summaries and
    personas, and the interactions and aspects by user. Raises DatasetError if there are neither interactions nor
    reviews, or no personas.
    """
    if not (dataset.has("interactions") or dataset.has("reviews")):
        raise DatasetError(f"{dataset.path} has no interactions and no reviews, whose reasons could be judged")
    personas = {entry.item_id: entry for entry in dataset.personas() if entry.personas}
    if not personas:
        raise DatasetError(f"{dataset.path} has no personas: write them first (persona4rec personas)")
    words = _Words.of(dataset)
    for interactions in _by_user(_interactions(dataset)).values():
        for target in interactions.values():
            if entry := personas.get(target.item_id):
                history = earlier(target, interactions.values(), history_length)
                yield _judgement(target, entry, history, words)


def _interactions(dataset: Dataset) -> Iterator[Interaction]:
    if dataset.has("interactions"):
        yield from dataset.interactions()
    else:
        for review in dataset.reviews():
            yield Interaction(review.user_id, review.item_id, review.rating, review.timestamp)


def earlier(target: Interaction, interactions: Iterable[Interaction], most: int) -> tuple[Interaction, ...]:
    """Return a user's last `most` interactions with other items before the target, the newest last.

    Where the target has a time, only what has a time before it counts: of the rest nobody knows. Without, all count, in
    their order.
    """
    others = [one for one in interactions if one.item_id != target.item_id]
    if target.timestamp is not None:
        timed = [(one.timestamp, one) for one in others if one.timestamp is not None]
        before = sorted((pair for pair in timed if pair[0] < target.timestamp), key=lambda pair: pair[0])
        others = [one for _, one in before]
    return tuple(others[-most:])


@dataclass(frozen=True)
class _Words:
    """What is said of items, and what users said of them."""

    items: dict[str, Item]
    summaries: dict[str, str]
    said: dict[tuple[str, str], list[ReviewAspects]] = field(default_factory=dict)
    """By user and item, the newest last; those without a time, of which nobody knows, first, in the file's order."""

    @classmethod
    def of(cls, dataset: Dataset) -> "_Words":
        items = {item.item_id: item for item in dataset.items()}
        return cls(items, {one.item_id: one.summary for one in dataset.summaries()}, _said(dataset))

    def target(self, item_id: str) -> Event:
        item = self.items.get(item_id, Item(item_id))
        summary = cut(summary_of(item, self.summaries.get(item_id)), LONGEST_SUMMARY)
        return Event(item_id, summary if item.title in summary else f"{item.title}. {summary}")

    def event(self, interaction: Interaction, until: int | None) -> Event:
        """Tell an interaction with the newest that its user had said of the item by a time; None: at any."""
        plain = self.target(interaction.item_id)
        known = self.said.get((interaction.user_id, interaction.item_id), ())
        said = next((one for one in reversed(known) if not _is_later(one, until)), None)
        points = "; ".join(text for text in said.aspects.values() if text) if said else ""
        if not said or not points:
            return plain
        return Event(plain.item_id, f"{plain.text} Said of it: {points}", (said.review_id,))


def _said(dataset: Dataset) -> dict[tuple[str, str], list[ReviewAspects]]:
    found: dict[tuple[str, str], list[ReviewAspects]] = defaultdict(list)
    for one in dataset.aspects():
        if one.user_id:
            found[one.user_id, one.item_id].append(one)
    times = _times_of_reviews(
        dataset, {one.review_id for of_pair in found.values() for one in of_pair if _untimed(one)}
    )
    return {pair: sorted((_timed(one, times) for one in of_pair), key=_age) for pair, of_pair in found.items()}


def _times_of_reviews(dataset: Dataset, wanted: Collection[str]) -> dict[str, int | None]:
    """Return when reviews were written: other people's aspects may not say it, and their reviews may."""
    if not wanted:
        return {}
    return {review.review_id: review.timestamp for review in dataset.reviews() if review.review_id in wanted}


def _untimed(said: ReviewAspects) -> bool:
    return said.timestamp is None


def _timed(said: ReviewAspects, times: Mapping[str, int | None]) -> ReviewAspects:
    return replace(said, timestamp=times.get(said.review_id)) if _untimed(said) else said


def _age(said: ReviewAspects) -> int:
    return -1 if said.timestamp is None else said.timestamp


def _is_later(said: ReviewAspects, until: int | None) -> bool:
    return said.timestamp is not None and until is not None and said.timestamp > until


def _by_user(interactions: Iterable[Interaction]) -> dict[str, dict[str, Interaction]]:
    """Return each user's interactions by item, the first where there are several, in the file's order."""
    found: dict[str, dict[str, Interaction]] = defaultdict(dict)
    for one in interactions:
        known = found[one.user_id].setdefault(one.item_id, one)
        if known.timestamp is not None and one.timestamp is not None and one.timestamp < known.timestamp:
            found[one.user_id][one.item_id] = one
    return found


def _judgement(target: Interaction, entry: ItemPersonas, history: Iterable[Interaction], words: _Words) -> Judgement:
    events = tuple(words.event(one, target.timestamp) for one in history)
    return Judgement(target.user_id, words.target(target.item_id), entry.personas[:MOST_PERSONAS], events)
