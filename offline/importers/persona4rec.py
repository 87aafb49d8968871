"""Makes a dataset of the files that the authors of the method publish.

Read, any of them absent: `1_aspects`, `2_summary`, `2.5_grouped`, `3_personas`, `3.5_persona_with_summary`,
`3.5_history_loo`, `3.5_history`, `4_selected_personas`, `*candidate*` and `*gt`, all `.jsonl`, of either of their
domains (`item_id` or `business_id`). Of the slots, those named `_reason` are left out, and one saying "null" is null.

Written: the files of a dataset, and beside them `candidates.csv` (user_id, item_id, score) and `test.csv` (user_id,
item_id), whatever of it there is something for; `items.jsonl` has every item that another file of the dataset names.

Where the files leave something open:

- Their personas name no evidence. The reviews of the item are what their prompt was given, so the known ones, at most
  `EVIDENCE_LIMIT`, become the evidence. Where none is known the item's personas say `"evidence_known": false`.
- A history event has no review id. It gets that of the review with the same user, item and time, or else
  `<user>/<item>/<time>`.
- What is to be predicted is kept out of `interactions.csv`: the pairs of `*gt`, and what `3.5_history` holds of a user
  beyond their `3.5_history_loo`. Such events are counted as left out.
- A selected persona is found by its own text among the item's, else by its number. Where no file holds personas of the
  item, the selected one becomes one, so that every alignment names a persona that is there.
"""

import hashlib
import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Generic, TypeVar

from offline.errors import DatasetError
from offline.importers import persona4rec_formats as formats
from offline.importers.accounting import ImportReport, Outcome, Refused, SourceReport, account_for
from offline.importers.staging import staged
from offline.lines import INTERACTION_COLUMNS, csv_line, interaction_line, json_line, read_lines
from offline.records import (
    MAX_ID_BYTES,
    Alignment,
    Interaction,
    Item,
    ItemPersonas,
    ItemSummary,
    Review,
    ReviewAspects,
)
from offline.rejects import Rejects, reason_of
from reranker.records import Persona

EVIDENCE_LIMIT = 50
"""Review ids that an imported persona carries at most: they travel with every ranked item, and some have thousands."""


def import_files(source: Path, out: Path, max_bad_share: float = 0.05) -> ImportReport:
    """Make a dataset in `out` of the authors' files in `source`.

    Files that are written take the place of earlier ones, all at the end; others in `out` are left alone. Bad entries
    go to `out/rejects.jsonl`.

    Raises:
        DatasetError: `source` holds none of the authors' files, or one cannot be read, or `out` cannot be written.
        TooManyRejectsError: of more than `max_bad_share` (0 to 1) of a file's lines nothing could be kept.

    """
    found = [(path, take) for pattern, take in _SOURCES for path in sorted(source.glob(pattern))]
    if not found:
        patterns = ", ".join(pattern for pattern, _ in _SOURCES)
        raise DatasetError(f"{source} holds none of the files that can be imported: {patterns}")
    with staged(out) as staging, ExitStack() as files:
        draft = _Draft.in_directory(staging, files)
        sources = tuple(_import_file(path, take, draft, out, max_bad_share) for path, take in found)
        _add_selected_personas(draft)
        _add_named_items(draft)
    return ImportReport(sources, draft.counts(), tuple(_notes(draft, sources)))


# ---- the dataset in the making ---------------------------------------------------------------------------------------

T = TypeVar("T")


@dataclass
class _Output(Generic[T]):
    """One file of the dataset: opened with its first record, it holds every key once."""

    path: Path
    to_line: Callable[[T], str]
    files: ExitStack
    header: str = ""
    keys: set[Hashable] = field(default_factory=set)
    file: IO[str] | None = None

    def add(self, key: Hashable, record: T) -> Outcome:
        if key in self.keys:
            return Outcome.DUPLICATE
        if self.file is None:
            self.file = self.files.enter_context(self.path.open("w", encoding="utf-8", newline=""))
            self.file.write(self.header)
        self.file.write(self.to_line(record))
        self.keys.add(key)
        return Outcome.WRITTEN


@dataclass
class _Draft:
    """The files being written, and the ids by which later files refer to earlier ones. Texts are not kept."""

    items: _Output[Item]
    reviews: _Output[Review]
    summaries: _Output[ItemSummary]
    aspects: _Output[ReviewAspects]
    interactions: _Output[Interaction]
    personas: _Output[ItemPersonas]
    alignments: _Output[Alignment]
    candidates: _Output[tuple[str, str, float]]
    test: _Output[tuple[str, str]]
    named_items: dict[str, None] = field(default_factory=dict)
    """Every item that a record names, in order."""
    evidence: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By item: its first reviews."""
    review_of: dict[tuple[str, str, int | None], str] = field(default_factory=dict)
    """By user, item and time."""
    persona_ids: dict[str, dict[str, str]] = field(default_factory=dict)
    """By item: persona ids by the authors' number, `P1`."""
    selected: dict[str, dict[str, Persona]] = field(default_factory=dict)
    """By item of which no file holds personas: those that selections show, by id."""
    leave_one_out_users: set[str] = field(default_factory=set)
    contradictions: int = 0
    """Selections whose reasoning ends with another persona than they name."""
    without_evidence: int = 0
    """Items whose personas were written from reviews that are not known."""

    @classmethod
    def in_directory(cls, staging: Path, files: ExitStack) -> "_Draft":
        return cls(
            items=_Output(staging / "items.jsonl", json_line, files),
            reviews=_Output(staging / "reviews.jsonl", json_line, files),
            summaries=_Output(staging / "summaries.jsonl", json_line, files),
            aspects=_Output(staging / "aspects.jsonl", json_line, files),
            interactions=_Output(staging / "interactions.csv", interaction_line, files, csv_line(INTERACTION_COLUMNS)),
            personas=_Output(staging / "personas.jsonl", json_line, files),
            alignments=_Output(staging / "alignments.jsonl", json_line, files),
            candidates=_Output(staging / "candidates.csv", csv_line, files, csv_line(("user_id", "item_id", "score"))),
            test=_Output(staging / "test.csv", csv_line, files, csv_line(("user_id", "item_id"))),
        )

    def counts(self) -> dict[str, int]:
        outputs = (value for value in vars(self).values() if isinstance(value, _Output))
        return {output.path.name: len(output.keys) for output in outputs if output.keys}


# ---- line by line ----------------------------------------------------------------------------------------------------

_Take = Callable[[bytes, _Draft], Iterator[Outcome | Refused]]
"""Takes what one line holds into the draft, entry by entry. Raises ValueError before the first if the line is bad."""


def _import_file(path: Path, take: _Take, draft: _Draft, out: Path, max_bad_share: float) -> SourceReport:
    with Rejects(out, path.name) as rejects:
        return account_for(path.name, read_lines(path), lambda raw: take(raw, draft), rejects, max_bad_share)


def _each(entries: Sequence[object], take: Callable[[object], Outcome]) -> Iterator[Outcome | Refused]:
    """Take the entries of a line one by one, so that a bad one loses none beside it."""
    for entry in entries:
        try:
            outcome: Outcome | Refused = take(entry)
        except ValueError as error:
            outcome = Refused(reason_of(error), json.dumps(entry, ensure_ascii=False).encode())
        yield outcome


def _take_review(raw: bytes, draft: _Draft) -> Iterator[Outcome | Refused]:
    yield _add_review(draft, formats.REVIEW.validate_json(raw))


def _take_group(raw: bytes, draft: _Draft) -> Iterator[Outcome | Refused]:
    group = formats.GROUP.validate_json(raw)
    _add_description(draft, group)
    yield from _each(group.aspects, lambda entry: _add_review(draft, formats.REVIEW.validate_python(entry)))


def _take_summary(raw: bytes, draft: _Draft) -> Iterator[Outcome | Refused]:
    described = formats.DESCRIBED.validate_json(raw)
    if not described.summary.strip():
        raise ValueError("item_summary: is empty")
    yield _add_description(draft, described)


def _take_personas(raw: bytes, draft: _Draft) -> Iterator[Outcome | Refused]:
    line = formats.PERSONAS.validate_json(raw)
    _add_description(draft, line)
    known = draft.persona_ids.get(line.item_id)
    if known is not None:
        yield from _each(line.personas, partial(_repeated_persona, draft, line.item_id, known))
        return
    evidence = draft.evidence.get(line.item_id, ())
    numbers: dict[str, str] = {}
    kept: dict[str, Persona] = {}
    yield from _each(line.personas, partial(_new_persona, draft, line.item_id, evidence, numbers, kept))
    if kept:
        _add_personas(draft, line.item_id, kept)
        draft.persona_ids[line.item_id] = numbers


def _take_pair(raw: bytes, draft: _Draft) -> Iterator[Outcome | Refused]:
    pair = formats.PAIR.validate_json(raw)
    key = (pair.user_id, pair.item_id)
    yield draft.test.add(key, key)


def _take_history(raw: bytes, draft: _Draft, *, leave_one_out: bool) -> Iterator[Outcome | Refused]:
    history = formats.HISTORY.validate_json(raw)
    nothing_new = not leave_one_out and history.user_id in draft.leave_one_out_users
    yield from _each(history.reviews, partial(_add_event, draft, history.user_id, nothing_new))
    if leave_one_out:
        draft.leave_one_out_users.add(history.user_id)


def _take_selection(raw: bytes, draft: _Draft) -> Iterator[Outcome | Refused]:
    selection = formats.SELECTION.validate_json(raw)
    chosen = _selected_persona_id(draft, selection)
    draft.contradictions += re.findall(r"_(P\d+)\b", selection.reasoning)[-1:] not in ([], [selection.number])
    alignment = Alignment(selection.user_id, selection.item_id, chosen, selection.reasoning.strip())
    yield draft.alignments.add((selection.user_id, selection.item_id, chosen), alignment)


def _take_candidates(raw: bytes, draft: _Draft) -> Iterator[Outcome | Refused]:
    candidates = formats.CANDIDATES.validate_json(raw)
    yield from _each(candidates.results, partial(_add_candidate, draft, candidates.user_id))


_SOURCES: tuple[tuple[str, _Take], ...] = (
    # In this order: reviews before the personas they are evidence of, personas before what selects them, and what is
    # to be predicted before the histories that may hold it.
    ("1_aspects.jsonl", _take_review),
    ("2.5_grouped.jsonl", _take_group),
    ("2_summary.jsonl", _take_summary),
    ("3_personas.jsonl", _take_personas),
    ("3.5_persona_with_summary.jsonl", _take_personas),
    ("*gt.jsonl", _take_pair),
    ("3.5_history_loo.jsonl", partial(_take_history, leave_one_out=True)),
    ("3.5_history.jsonl", partial(_take_history, leave_one_out=False)),
    ("4_selected_personas.jsonl", _take_selection),
    ("*candidate*.jsonl", _take_candidates),
)

# ---- entry by entry --------------------------------------------------------------------------------------------------


def _add_description(draft: _Draft, described: formats.Described) -> Outcome:
    """Add the item, if something is said of it, and its summary. Return what became of the summary."""
    draft.named_items[described.item_id] = None
    if described.title or described.description:
        draft.items.add(described.item_id, Item(described.item_id, described.title, described.description))
    return _add_summary(draft, described.item_id, described.summary)


def _add_summary(draft: _Draft, item_id: str, summary: str) -> Outcome:
    return draft.summaries.add(item_id, ItemSummary(item_id, summary)) if summary.strip() else Outcome.DUPLICATE


def _add_review(draft: _Draft, review: formats.SourceReview) -> Outcome:
    outcome = draft.reviews.add(review.review_id, review.as_review())
    if outcome is Outcome.WRITTEN:
        draft.named_items[review.item_id] = None
        draft.review_of[review.user_id, review.item_id, review.timestamp] = review.review_id
        known = draft.evidence.get(review.item_id, ())
        draft.evidence[review.item_id] = (*known, review.review_id)[:EVIDENCE_LIMIT]
    _add_aspects(draft, review.review_id, review.user_id, review)
    return outcome


def _add_event(draft: _Draft, user_id: str, nothing_new: bool, entry: object) -> Outcome:
    event = formats.EVENT.validate_python(entry)
    draft.named_items[event.item_id] = None
    _add_summary(draft, event.item_id, event.summary)
    key = (user_id, event.item_id, event.timestamp)
    if key not in draft.interactions.keys and (nothing_new or key[:2] in draft.test.keys):
        return Outcome.LEFT_OUT
    _add_aspects(draft, draft.review_of.get(key) or _event_review_id(*key), user_id, event)
    return draft.interactions.add(key, Interaction(user_id, event.item_id, event.rating, event.timestamp))


def _add_aspects(draft: _Draft, review_id: str, user_id: str, said: formats.SourceReview | formats.SourceEvent) -> None:
    if said.aspects is not None:
        record = ReviewAspects(review_id, said.item_id, said.aspects, user_id, said.rating, said.timestamp)
        draft.aspects.add(review_id, record)


def _event_review_id(user_id: str, item_id: str, timestamp: int | None) -> str:
    review_id = f"{user_id}/{item_id}/{'undated' if timestamp is None else timestamp}"
    too_long = len(review_id.encode()) > MAX_ID_BYTES
    return hashlib.sha256(review_id.encode()).hexdigest() if too_long else review_id


def _new_persona(
    draft: _Draft,
    item_id: str,
    evidence: tuple[str, ...],
    numbers: dict[str, str],
    kept: dict[str, Persona],
    entry: object,
) -> Outcome:
    source = formats.PERSONA.validate_python(entry)
    _add_summary(draft, item_id, source.item_summary)
    persona = source.of_item(item_id, evidence)
    numbers.setdefault(source.number, persona.persona_id)
    is_new = kept.setdefault(persona.persona_id, persona) is persona
    return Outcome.WRITTEN if is_new else Outcome.DUPLICATE


def _repeated_persona(draft: _Draft, item_id: str, known: Mapping[str, str], entry: object) -> Outcome:
    source = formats.PERSONA.validate_python(entry)
    _add_summary(draft, item_id, source.item_summary)
    if source.of_item(item_id, ()).persona_id not in known.values():
        raise ValueError("is not among the personas of the item that an earlier line has")
    return Outcome.DUPLICATE


def _add_personas(draft: _Draft, item_id: str, personas: Mapping[str, Persona]) -> None:
    evidence_known = item_id in draft.evidence
    draft.without_evidence += not evidence_known
    draft.named_items[item_id] = None
    draft.personas.add(item_id, ItemPersonas(item_id, tuple(personas.values()), evidence_known))


def _selected_persona_id(draft: _Draft, selection: formats.Selection) -> str:
    evidence = draft.evidence.get(selection.item_id, ())
    shown = selection.persona and selection.persona.of_item(selection.item_id, evidence)
    known = draft.persona_ids.get(selection.item_id)
    if known is None and shown:
        draft.selected.setdefault(selection.item_id, {})[shown.persona_id] = shown
        return shown.persona_id
    if known and shown and shown.persona_id in known.values():
        return shown.persona_id
    if known and selection.number in known:
        return known[selection.number]
    raise ValueError("selects a persona that is not known, neither by its number nor by its text")


def _add_candidate(draft: _Draft, user_id: str, entry: object) -> Outcome:
    candidate = formats.CANDIDATE.validate_python(entry)
    key = (user_id, candidate.item_id)
    return draft.candidates.add(key, (*key, candidate.score))


# ---- at the end ------------------------------------------------------------------------------------------------------


def _add_selected_personas(draft: _Draft) -> None:
    for item_id, personas in draft.selected.items():
        _add_personas(draft, item_id, personas)


def _add_named_items(draft: _Draft) -> None:
    """Add the items that are only named; for those already there this changes nothing."""
    for item_id in draft.named_items:
        draft.items.add(item_id, Item(item_id))


def _notes(draft: _Draft, sources: Sequence[SourceReport]) -> Iterator[str]:
    personas = len(draft.personas.keys)
    if personas:
        yield (
            "The authors' personas name no evidence; the known reviews of the item stand for it, "
            f"at most {EVIDENCE_LIMIT}."
        )
    if draft.without_evidence:
        yield (
            f"Of {draft.without_evidence} of the {personas} items with personas no review is known: "
            "their personas are kept without evidence."
        )
    if draft.selected:
        yield f"{len(draft.selected)} items have only the personas that selections show; no file holds their others."
    if draft.contradictions:
        yield (
            f"{draft.contradictions} of {len(draft.alignments.keys)} alignments name another persona than the one "
            "their reasoning ends with. They are kept as they are named; think twice before training on them."
        )
    held_out = sum(source.left_out for source in sources)
    if held_out:
        yield f"{held_out} history events are to be predicted and were left out of interactions.csv."
