"""How good a dataset's personas are, in figures: pure counting over what the stages wrote."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from offline.dataset import Dataset, ItemPersonas
from offline.decisions import decided_personas
from offline.encoder import Encoder
from offline.evidence_by_item import evidence
from offline.llm_cache import CACHE_FILE, ResponseCache, Spending
from offline.persona_checks import ALIKE, SUPPORT, likeness, supports
from offline.rejects import NO_LINE, REJECTS, Entry, alike, entries
from reranker.records import Persona

SAMPLE_ITEMS = 200
"""Items whose personas are measured by vectors, a minute on two cores: 900 personas fix a rate of 5 % to 1.5 points."""

GENERIC = 20
"""Names that are listed."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of the catalogue's items have something."""

    what: str
    items: int
    of: int


@dataclass(frozen=True, slots=True)
class Quality:
    """What vectors tell of a sample of the items."""

    support: tuple[float, ...]
    """Of each persona whose evidence is at hand (`persona_checks.support`)."""
    nearest: tuple[float, ...]
    """Of each persona of an item with several: the cosine with the likest other one of the item."""
    items: int
    """In the sample: the first ones of the file."""

    @property
    def unsupported(self) -> float:
        """Share below the threshold of the check, 0 to 1; NaN without any."""
        return float(np.mean(np.array(self.support) < SUPPORT)) if self.support else float("nan")

    @property
    def duplicates(self) -> float:
        """Share with a near-duplicate in their item, 0 to 1; NaN without any."""
        return float(np.mean(np.array(self.nearest) >= ALIKE)) if self.nearest else float("nan")


@dataclass(frozen=True, slots=True)
class Aligned:
    """What the alignments chose, counted over those whose persona is there."""

    judged: int
    unknown: int
    """Alignments with a persona that is not there, e.g. as it was written anew."""
    by_position: tuple[tuple[int, int, float], ...]
    """Place of the persona in its item, how often it was chosen, how often by chance among the item's personas."""
    never: int
    """Personas of judged items that nobody was aligned with."""
    candidates: int
    """Personas of judged items."""
    most: tuple[tuple[str, str, int], ...]
    """Item, persona name, and how often it was chosen: the most chosen."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """All of it."""

    name: str
    items: int
    coverage: tuple[Coverage, ...]
    personas: int
    items_with_personas: int
    per_item: tuple[int, ...]
    """Personas of each item that has some."""
    evidence_per_persona: tuple[int, ...]
    quality: Quality
    names: tuple[tuple[str, int], ...]
    """The most generic ones: name, and how many items have a persona of it; only those of two items or more."""
    distinct_names: int
    aligned: Aligned | None
    rejects: tuple[tuple[str, str, int], ...]
    """File or stage, reason, count."""
    spending: tuple[Spending, ...]
    examples: tuple[tuple[str, ItemPersonas], ...]
    """Title and personas of a few items."""


def inspected(dataset: Dataset, encoder: Encoder) -> Inspection:
    """Return the figures of a dataset. Personas are as an editor wants them; raises as reading the dataset does."""
    titles = {item.item_id: item.title or item.item_id for item in dataset.items()}
    found = [of_item for of_item in decided_personas(dataset) if of_item.personas and of_item.item_id in titles]
    names = Counter(name for of_item in found for name in {persona.name.casefold() for persona in of_item.personas})
    shown = {persona.name.casefold(): persona.name for of_item in found for persona in of_item.personas}
    return Inspection(
        name=dataset.path.resolve().name,
        items=len(titles),
        coverage=tuple(_coverage(dataset, titles, found)),
        personas=sum(len(of_item.personas) for of_item in found),
        items_with_personas=len(found),
        per_item=tuple(len(of_item.personas) for of_item in found),
        evidence_per_persona=tuple(len(persona.evidence) for of_item in found for persona in of_item.personas),
        quality=_quality(dataset, found, encoder),
        names=tuple((shown[name], count) for name, count in names.most_common(GENERIC) if count > 1),
        distinct_names=len(names),
        aligned=_aligned(dataset, found, titles) if dataset.has("alignments") else None,
        rejects=tuple(_rejects(dataset)),
        spending=tuple(_spending(dataset)),
        examples=tuple((titles[of_item.item_id], of_item) for of_item in found[:3]),
    )


def _coverage(dataset: Dataset, titles: dict[str, str], personas: Sequence[ItemPersonas]) -> Iterator[Coverage]:
    """Say it of what the dataset has a file for."""
    have = {
        "reviews": {review.item_id for review in dataset.reviews()},
        "summary": {summary.item_id for summary in dataset.summaries()},
        "aspects": {aspects.item_id for aspects in dataset.aspects()},
        "personas": {of_item.item_id for of_item in personas},
    }
    for what, item_ids in have.items():
        if item_ids or what == "personas":
            yield Coverage(f"items with {what}", len(item_ids & titles.keys()), len(titles))
    if used := {interaction.item_id for interaction in dataset.interactions()} & titles.keys():
        yield Coverage("items with interactions that have personas", len(used & have["personas"]), len(used))


def _quality(dataset: Dataset, found: Sequence[ItemPersonas], encoder: Encoder) -> Quality:
    sample = found[:SAMPLE_ITEMS]
    chosen = {of_item.item_id for of_item in sample}
    said = _said(dataset, chosen) if dataset.has("aspects") or dataset.has("reviews") else {}
    grounded = [p for of_item in sample for p in of_item.personas if p.evidence and all(r in said for r in p.evidence)]
    nearest = (value for of_item in sample for value in _nearest(of_item.personas, encoder))
    return Quality(tuple(supports(grounded, said, encoder) if grounded else ()), tuple(nearest), len(sample))


def _said(dataset: Dataset, chosen: set[str]) -> dict[str, str]:
    of_items = (of_item for of_item in evidence(dataset) if of_item.item.item_id in chosen)
    return {piece.review_id: piece.words for of_item in of_items for piece in of_item.pieces}


def _nearest(personas: Sequence[Persona], encoder: Encoder) -> list[float]:
    if len(personas) == 1:
        return []
    similar = likeness(personas, encoder)
    np.fill_diagonal(similar, -1)
    return [float(value) for value in similar.max(axis=1)]


def _aligned(dataset: Dataset, found: Sequence[ItemPersonas], titles: dict[str, str]) -> Aligned:
    by_item = {of_item.item_id: of_item.personas for of_item in found}
    places = {p.persona_id: place for personas in by_item.values() for place, p in enumerate(personas, start=1)}
    names = {p.persona_id: p.name for personas in by_item.values() for p in personas}
    alignments = [(alignment.item_id, alignment.persona_id) for alignment in dataset.alignments()]
    owners = {p.persona_id: item_id for item_id, personas in by_item.items() for p in personas}
    known = [(item_id, chosen) for item_id, chosen in alignments if owners.get(chosen) == item_id]
    chosen = Counter(known)
    at_place = Counter(places[persona_id] for _, persona_id in known)
    expected: dict[int, float] = defaultdict(float)
    for item_id, _ in known:
        for place in range(1, len(by_item[item_id]) + 1):
            expected[place] += 1 / len(by_item[item_id])
    candidates = sum(len(by_item[item_id]) for item_id in {item_id for item_id, _ in known})
    return Aligned(
        judged=len(known),
        unknown=len(alignments) - len(known),
        by_position=tuple((place, at_place[place], expected[place]) for place in sorted(expected)),
        never=candidates - len(chosen),
        candidates=candidates,
        most=tuple((titles[item_id], names[p], count) for (item_id, p), count in chosen.most_common(10)),
    )


def _rejects(dataset: Dataset) -> Iterator[tuple[str, str, int]]:
    counts = Counter((entry.file, _reason(entry)) for entry in entries(dataset.path / REJECTS))
    for (file, reason), count in counts.most_common():
        yield file, reason, count


def _reason(entry: Entry) -> str:
    # A stage's reasons have the case's own detail after a colon, those of a file the field before it.
    return entry.reason.partition(": ")[0] if entry.line == NO_LINE else alike(entry.reason)


def _spending(dataset: Dataset) -> list[Spending]:
    path = dataset.path / CACHE_FILE
    if not path.exists():
        return []
    with ResponseCache(path) as cache:
        return cache.spending()
