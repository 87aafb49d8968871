"""The texts that training data stands for, row for row: an encoder in training embeds them anew at every step."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from offline.publish import Document
from offline.training_data import TrainingData
from reranker.index import Index


@dataclass(frozen=True, slots=True)
class Texts:
    """By the templates that publishing and histories use."""

    personas: tuple[str, ...]
    """One a row of TrainingData.persona_vectors."""
    events: tuple[str, ...]
    """One a row of TrainingData.event_vectors."""


def texts_of(
    data: TrainingData, index: Index, found: Iterable[Document], aspects: Mapping[tuple[str, str], str]
) -> Texts:
    """Return the texts of data that was made of this index, which was made of these documents.

    aspects: by user and item, as `offline.histories.aspect_texts` has them.
    """
    by_item = {document.item.item_id: document for document in found}
    documents = [by_item[index.single.item(row).item_id] for row in range(data.items)]
    return Texts(
        personas=tuple(text for document in documents for text in document.rows),
        events=(*(document.itself for document in documents), *(aspects[pair] for pair in data.said)),
    )
