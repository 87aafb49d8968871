"""Items that are due, from what the state knows of them to their place in the index."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offline.calls import review_tag
from offline.decisions import Decision, decided, decisions_by_item
from offline.encoder import Encoder
from offline.errors import LlmError
from offline.evidence import ItemEvidence
from offline.extractive import extractive_summary
from offline.item_publisher import ItemPublisher
from offline.personas import PersonasStage, Subject
from offline.publish import Document
from offline.reasoning import Reasoning
from offline.records import ItemPersonas, ItemSummary
from offline.rewriting import Thresholds, Why, kept, resting_places, text_changed, verdict
from offline.summaries import SummariesStage
from offline.text import summary_of
from offline.worker_metrics import WorkerMetrics
from offline.worker_state import Due, KnownItem, KnownReviews, WorkerState
from reranker.records import Persona, Vector

HOUR = 3_600_000
"""Milliseconds."""

PUT_OFF = 60_000
"""Milliseconds until an item that found the hour used up is looked at again: the bound frees up bit by bit."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What rewrites of one hour may be and take, over all processes."""

    rewrites: int
    tokens: int | None
    """None: no limit."""

    def refusal(self, rewrites: int, tokens: int, more: int) -> Why | None:
        """Return why one more rewrite of `more` tokens has to wait, after so many of this hour; None: it need not."""
        if rewrites >= self.rewrites:
            return Why.HOURLY_BOUND
        if self.tokens is not None and tokens + more > self.tokens:
            return Why.TOKEN_BUDGET
        return None


@dataclass(frozen=True, slots=True)
class Refresh:
    """Summarises, rewrites where the evidence warrants it, and publishes."""

    state: WorkerState
    reasoning: Reasoning
    summaries: SummariesStage
    personas: PersonasStage
    publisher: ItemPublisher
    metrics: WorkerMetrics
    thresholds: Thresholds
    bounds: Bounds
    decisions: Path | None = None
    """The dataset directory with an editor's decisions."""

    def refresh(self, due: Sequence[Due], tell: Callable[[Sequence[str]], None]) -> None:
        """Do what is due of items; done twice, it is as if done once.

        tell: called with the items once they have summaries. Raises LlmError, WorkerStateError, what publishing raises,
        and what `tell` raises; what was done by then is kept.
        """
        with self.metrics.refresh_seconds.time():
            self._summarise([one.item_id for one in due])
            tell([one.item_id for one in due])
            put_off = self._rewrite(due)
            self.publish([one.item_id for one in due])
        for one in due:
            if one in put_off:
                self.state.postpone(one, _now() + PUT_OFF)
            else:
                self.state.done(one)

    def publish(self, item_ids: Sequence[str]) -> None:
        """Bring the index in line with what the state has of items."""
        now = self._known(item_ids)
        while True:
            written = now
            self.metrics.published.inc(self.publisher.publish(*written))
            # Another process may have been faster with something newer, which is then overwritten.
            if (now := self._known(item_ids)) == written:
                return

    def _known(self, item_ids: Sequence[str]) -> tuple[list[Document], list[str]]:
        """Return what the state has of items, and which of them are gone."""
        known = {item_id: self.state.item(item_id) for item_id in item_ids}
        documents = [
            Document(found.item, summary_of(found.item, found.summary), self.state.personas(item_id))
            for item_id, found in known.items()
            if found and not found.deleted
        ]
        return documents, [item_id for item_id, found in known.items() if found and found.deleted]

    def _summarise(self, item_ids: Sequence[str]) -> None:
        found = [self.state.item(item_id) for item_id in item_ids]
        items = [one.item for one in found if one and not one.deleted and one.summary is None]
        for item, made in zip(items, self.reasoning.made(self.summaries, items), strict=True):
            # What an LLM has no summary for still has words of its own, and few enough for the index.
            written = made.record.summary if isinstance(made.record, ItemSummary) else extractive_summary(item)
            self.state.keep_summary(item, written)
            self.metrics.summaries.inc()

    def _rewrite(self, due: Sequence[Due]) -> list[Due]:
        """Write personas anew where it is warranted; return the items for which the hour has no room left."""
        by_item = decisions_by_item(self.decisions) if self.decisions else {}
        bookings: dict[int, Subject] = {}
        put_off = []
        for one in due:
            subject, why = self._verdict(one, by_item.get(one.item_id, ()))
            if subject is None or why is None:
                continue
            tokens = self.reasoning.tokens(self.personas, subject)
            refusal = self.bounds.refusal(*self.state.rewrites(_now() - HOUR), tokens)
            self.metrics.count_verdict(refusal or why, put_off=refusal is not None)
            if refusal:
                put_off.append(one)
            else:
                bookings[self.state.book(_now(), tokens)] = subject
        self._write(bookings)
        return put_off

    def _write(self, bookings: Mapping[int, Subject]) -> None:
        subjects = list(bookings.values())
        try:
            all_made = self.reasoning.made(self.personas, subjects)
        except LlmError:
            # Or an endpoint that is away for an hour would use up the hour's bounds with nothing written.
            self.state.cancel(bookings)
            raise
        for subject, made in zip(subjects, all_made, strict=True):
            if isinstance(made.record, ItemPersonas):
                self._keep(subject, made.record.personas)
            else:
                # One review that an LLM or a check refuses must not take away what others said.
                self.metrics.unusable.inc()
                self._keep(subject, self.state.personas(subject.evidence.item.item_id))

    def _verdict(self, due: Due, taken: tuple[Decision, ...]) -> tuple[Subject | None, Why | None]:
        known = self.state.item(due.item_id)
        if known is None or known.deleted:
            return None, None
        reviews = self.state.reviews(due.item_id)
        vectors = self._vectors(reviews)
        places = {piece.review_id: place for place, piece in enumerate(reviews.pieces)}
        resting = resting_places(self.state.personas(due.item_id), places)
        why = verdict(vectors, reviews.new, resting, self.thresholds, withdrawn=due.withdrawn)
        if why.rewrite:
            return subject_of(known, reviews, taken), why
        self.metrics.count_verdict(why)
        return None, None

    def _vectors(self, reviews: KnownReviews) -> Vector:
        """Return the vectors of what reviews say; those that were not embedded yet are stored."""
        missing = {p.review_id: p.text for p, v in zip(reviews.pieces, reviews.vectors, strict=True) if v is None}
        found = dict(zip(missing, self.encoder.encode(list(missing.values())), strict=True))
        if found:
            self.state.keep_vectors(found)
        known = zip(reviews.pieces, reviews.vectors, strict=True)
        vectors = [found[piece.review_id] if vector is None else vector for piece, vector in known]
        return np.stack(vectors) if vectors else np.empty((0, self.encoder.dimension), np.float32)

    def _keep(self, subject: Subject, written: Sequence[Persona]) -> None:
        item_id = subject.evidence.item.item_id
        review_ids = [piece.review_id for piece in subject.evidence.pieces]
        old = self.state.personas(item_id)
        known = {review_id for persona in old for review_id in persona.evidence}
        own = {d.result.persona_id for d in subject.decisions if d.action != "block"}
        joined = kept(old, written, known, own, self.personas.alike)
        final = decided(joined, subject.decisions, review_ids, self.personas.alike)
        for review_id in self.state.keep_personas(item_id, final, review_ids):
            # Withdrawn while the LLM was asked: the reply was made of its words. The item is due again already.
            self.reasoning.forget(review_tag(review_id))
        self.metrics.text_changed.observe(text_changed(old, final))

    @property
    def encoder(self) -> Encoder:
        return self.personas.encoder


def subject_of(known: KnownItem, reviews: KnownReviews, taken: tuple[Decision, ...]) -> Subject:
    """Return what an item's personas are written from."""
    found = ItemEvidence(known.item, summary_of(known.item, known.summary), reviews.pieces)
    return Subject(found, taken)


def _now() -> int:
    return time.time_ns() // 1_000_000
