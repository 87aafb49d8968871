"""A dataset's interactions as the events of user histories, with the vectors of what each review said."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from offline.dataset import Dataset, Interaction
from offline.encoder import Embedder
from offline.publish import Document
from offline.text import interaction_text
from reranker.records import Event, Vector, event_id

AspectVectors = Mapping[tuple[str, str], Vector]
"""By user and item: the embedding of concat(item summary, aspects) (eq. 4)."""


def aspect_texts(dataset: Dataset, found: Iterable[Document]) -> dict[tuple[str, str], str]:
    """Return the text of every interaction whose review's aspects are known, by user and item."""
    by_item = {document.item.item_id: document for document in found}
    return {
        (record.user_id, record.item_id): interaction_text(document.item, document.summary, record.aspects)
        for record in dataset.aspects()
        if record.user_id and (document := by_item.get(record.item_id))
    }


def aspect_vectors(dataset: Dataset, found: Iterable[Document], encoder: Embedder) -> AspectVectors:
    """Embed every interaction whose review's aspects are known, together with its item's summary."""
    texts = aspect_texts(dataset, found)
    return dict(zip(texts, encoder.interactions(list(texts.values())), strict=True))


def events_by_user(
    interactions: Iterable[Interaction], aspects: AspectVectors, space: str | None
) -> dict[str, list[Event]]:
    """Group interactions into histories, newest event first: the order in which the store reads them."""
    events: dict[str, dict[str, Event]] = defaultdict(dict)
    for interaction in interactions:
        event = _event(interaction, aspects.get((interaction.user_id, interaction.item_id)), space)
        events[interaction.user_id][event.event_id] = event
    return {
        user_id: sorted(of_user.values(), key=lambda event: event.recency, reverse=True)
        for user_id, of_user in events.items()
    }


def _event(interaction: Interaction, vector: Vector | None, space: str | None) -> Event:
    event_time = interaction.timestamp or 0
    return Event(
        event_id=event_id(interaction.item_id, event_time),
        item_id=interaction.item_id,
        event_time=event_time,
        rating=interaction.rating,
        aspects_vector=vector,
        aspects_space=space if vector is not None else None,
    )
