"""Every text that gets embedded: one template each. A change here is a change of embedding space: raise TEMPLATES."""

from collections.abc import Mapping

from offline.records import Item
from reranker.records import Persona

TEMPLATES = 1
"""Version of the templates below, part of the embedding-space id."""


def identity_text(item: Item) -> str:
    """Say which item it is: title and categories."""
    return _sentences(item.title, ", ".join(item.categories))


def summary_of(item: Item, summary: str | None) -> str:
    """Return the item summary; without one, the best words there are for the item."""
    return summary or item.description or item.title or item.item_id


def persona_text(item: Item, summary: str, persona: Persona) -> str:
    """Persona with the identity of its item (eq. 8): a persona's own words alone were measured to rank far worse."""
    words = _sentences(persona.name, persona.description, persona.preference_rationale)
    return _sentences(identity_text(item), summary, words)


def interaction_text(item: Item, summary: str, aspects: Mapping[str, str | None] | None = None) -> str:
    """One interaction: concat(s_i, a_ui) (eq. 4), with the item's identity; without aspects, the item alone."""
    said = [text.strip() for _, text in sorted((aspects or {}).items()) if text and text.strip()]
    return _sentences(identity_text(item), summary, "; ".join(said))


def _sentences(*texts: str | None) -> str:
    return " ".join(_closed(text.strip()) for text in texts if text and text.strip())


def _closed(text: str) -> str:
    return text if text[-1] in ".!?" else f"{text}."
