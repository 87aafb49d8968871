"""What an editor has decided about personas: kept beside the dataset, applied whenever they are written or read.

`decisions.jsonl` is only ever appended to: one line a decision, {action, item_id, persona {...}, replacement {...}?,
at, by?, why?}, with the words of the persona as they were. So a decision holds for what a refresh writes anew, which
has other words and so other ids. Decisions are applied in the order of the file; a later one goes before an earlier.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from offline.appending import appending
from offline.dataset import Dataset
from offline.errors import DatasetError
from offline.extractive import stems
from offline.lines import read_lines
from offline.records import Id, ItemPersonas
from offline.rejects import reason_of
from reranker.records import Persona, persona_id

DECISIONS = "decisions.jsonl"

SAME_WORDS = 0.6
"""Share of the telling words of two personas that they have in common (Jaccard) from which they are alike, where no
encoder is at hand. Of the bundled catalogue's personas, no two of an item have more than 0.15."""

Action = Literal["block", "pin", "edit"]
Alike = Callable[[Persona, Persona], bool]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of one persona of an item."""

    action: Action
    item_id: Id
    persona: Persona
    """As it was when the decision was taken."""
    replacement: Persona | None = None
    """Of an edit: what takes its place, with its evidence."""
    at: str = ""
    """ISO 8601."""
    by: str = ""
    why: str = ""

    @property
    def result(self) -> Persona:
        """What the item has by it, unless it is a block."""
        return self.replacement or self.persona


_DECISION = TypeAdapter(Decision)


def decide(directory: Path, decision: Decision) -> None:
    """Append a decision. Raises DatasetError if it cannot be written, or another process is writing."""
    path = directory / DECISIONS
    with appending(path) as file:
        try:
            file.append(_DECISION.dump_json(decision, exclude_defaults=True) + b"\n")
        except OSError as error:
            raise DatasetError(f"{path} cannot be written: {error.strerror}") from error


def decisions(directory: Path) -> Iterator[Decision]:
    """Yield the decisions of a dataset directory, oldest first.

    Raises DatasetError, naming the line, if one cannot be read: what an editor has blocked must not pass unnoticed.
    """
    path = directory / DECISIONS
    if not path.exists():
        return
    for line in read_lines(path):
        try:
            yield _DECISION.validate_json(line.json)
        except ValueError as error:
            raise DatasetError(
                f"{path}, line {line.number}: {reason_of(error)}. Mend or delete the line: personas are not read "
                "without what an editor decided"
            ) from error


def decisions_by_item(directory: Path) -> dict[str, tuple[Decision, ...]]:
    """Return the decisions by item, oldest first. Raises DatasetError as `decisions` does."""
    found: dict[str, list[Decision]] = defaultdict(list)
    for decision in decisions(directory):
        found[decision.item_id].append(decision)
    return {item_id: tuple(of_item) for item_id, of_item in found.items()}


def edited(item_id: str, persona: Persona, name: str, description: str, rationale: str) -> Persona:
    """Return what takes the place of a persona: its evidence under new words, and so under a new id."""
    own_id = persona_id(item_id, name, description, rationale)
    return Persona(own_id, name, description, rationale, persona.evidence)


def decided(
    personas: Sequence[Persona], taken: Sequence[Decision], known: Collection[str] | None, alike: Alike
) -> tuple[Persona, ...]:
    """Return an item's personas as an editor wants them. Applying decisions again changes nothing.

    A blocked persona goes, and so does whatever is alike. A pinned one stays, or comes back in place of what is alike,
    with the evidence of both. An edited one is replaced, or what is alike is. What was pinned or edited never counts as
    alike; a later decision about the same persona takes the place of what an edit made of it.

    known: the reviews that exist; evidence that is gone is taken away, and a persona that has lost all of it goes.
    Words that came out of reviews come back only while all of these exist: one may be gone because its user is erased.
    None: it cannot be told which do.
    """
    found = list(personas)
    own = {decision.result.persona_id for decision in taken if decision.action != "block"}
    for place, decision in enumerate(taken):
        if known is not None and not _may_be_shown(decision, known):
            continue
        made = _made_of(decision.persona.persona_id, taken[:place])
        same = [p for p in found if p.persona_id in made or _meant(p, decision, own, alike)]
        found = [p for p in found if p not in same]
        if decision.action != "block":
            found = _with(decision.result, found, same)
    if known is None:
        return tuple(found)
    there = [replace(p, evidence=tuple(r for r in p.evidence if r in known)) for p in found]
    return tuple(persona for persona in there if persona.evidence)


def _may_be_shown(decision: Decision, known: Collection[str]) -> bool:
    """Return whether what a decision brings is the editor's own words, or rests on nothing that is gone."""
    about, result = decision.persona, decision.result
    own_words = about.description != result.description and about.preference_rationale != result.preference_rationale
    return decision.action == "block" or own_words or all(review in known for review in result.evidence)


def _made_of(persona_id: str, earlier: Sequence[Decision]) -> frozenset[str]:
    """Return the ids of what edits made of a persona, and of what further edits made of that."""
    made = {persona_id}
    for decision in earlier:
        if decision.replacement and decision.persona.persona_id in made:
            made.add(decision.replacement.persona_id)
    return frozenset(made)


def _meant(persona: Persona, decision: Decision, own: Collection[str], alike: Alike) -> bool:
    return persona.persona_id not in own and alike(persona, decision.persona)


def _with(result: Persona, found: Sequence[Persona], same: Sequence[Persona]) -> list[Persona]:
    """Return personas with one more, which has the evidence of those that it takes the place of."""
    before = [p for p in found if p.persona_id == result.persona_id]
    evidence = (*result.evidence, *(review for p in (*same, *before) for review in p.evidence))
    others = [p for p in found if p.persona_id != result.persona_id]
    return [*others, replace(result, evidence=tuple(dict.fromkeys(evidence)))]


def same_words(one: Persona, other: Persona) -> bool:
    """Return whether two personas share most of their telling words: `Alike` without an encoder."""
    first, second = (stems(f"{p.name} {p.description} {p.preference_rationale}") for p in (one, other))
    return len(first & second) >= SAME_WORDS * max(1, len(first | second))


def decided_personas(dataset: Dataset) -> Iterator[ItemPersonas]:
    """Yield a dataset's personas as an editor wants them, item by item; last, items that have only pinned ones.

    Raises DatasetError as `decisions` does.
    """
    taken = decisions_by_item(dataset.path)
    known = _existing(dataset, taken)
    for found in dataset.personas():
        of_item = taken.pop(found.item_id, ())
        personas = decided(found.personas, of_item, known if found.evidence_known else None, same_words)
        yield replace(found, personas=personas) if of_item else found
    for item_id, of_item in taken.items():
        if personas := decided((), of_item, known, same_words):
            yield ItemPersonas(item_id, personas)


def _existing(dataset: Dataset, taken: dict[str, tuple[Decision, ...]]) -> frozenset[str] | None:
    """Return the reviews of the items that decisions are about, or None if the dataset does not say which there are."""
    if not taken or not (dataset.has("reviews") or dataset.has("aspects")):
        return None
    records = (record for kind in (dataset.reviews(), dataset.aspects()) for record in kind)
    return frozenset(record.review_id for record in records if record.item_id in taken)
