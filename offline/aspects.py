"""Aspects: what one review says of its author, slot by slot of the domain, each text or null (eq. 2)."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import BaseModel, create_model

from offline.calls import Call, review_tag, user_tag
from offline.dataset import Dataset, Kind
from offline.domains import Domain
from offline.fingerprints import fingerprint
from offline.orders import holds_orders
from offline.quoting import messages, quoted
from offline.records import Review, ReviewAspects
from offline.sentences import cut
from offline.stages import Made, Problem, Stage

LONGEST_REVIEW = 4000
"""Characters, about 900 tokens. Of 573 book reviews one is longer, and half have less than 200."""

TOKENS_PER_SLOT = 60
"""Of an answer: 20 words, which the prompt allows, take about 27, the slot's name and JSON 10."""

MOST_NULLS = 0.75
"""Share of null slots above which a review leaves the pool: it says nothing that a persona could be made of."""

REPEATS = 0.8
"""Share of the words of two slots that they have in common (Jaccard) from which the second repeats the first."""

_NOTHING = frozenset({
    "", "null", "none", "nil", "na", "n a", "no", "nothing", "unknown", "unspecified", "not mentioned", "not specified",
    "not stated", "not applicable", "not given", "not provided", "not available",
})  # fmt: skip
"""What models write where they mean null."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class AspectsStage(Stage[Review, BaseModel]):
    """One call a review."""

    name: ClassVar[str] = "aspects"
    kind: ClassVar[Kind] = "aspects"

    domain: Domain

    def subjects(self, dataset: Dataset) -> Iterator[Review]:
        return dataset.reviews()

    def key(self, subject: Review) -> str:
        return subject.review_id

    def done(self, dataset: Dataset) -> Iterable[tuple[str, str]]:
        return ((aspects.review_id, aspects.fingerprint) for aspects in dataset.aspects())

    def fingerprint(self, subject: Review) -> str:
        return fingerprint(subject)

    def calls(self, subject: Review) -> Sequence[Call[BaseModel]]:
        if not _readable(subject):
            return ()
        slots = tuple(self.domain.slots)
        instruction = self.domain.prompt("aspects", slots=_described(self.domain.slots))
        review = quoted("review", _shown(subject))
        task = f"Fill the fields {', '.join(slots)} from this review alone, as JSON; null where it says nothing."
        prompt = messages(instruction, review, task, "review")
        tags = user_tag(subject.user_id), review_tag(subject.review_id)
        return (Call(subject.review_id, prompt, aspects_schema(slots), TOKENS_PER_SLOT * len(slots), tags),)

    def made(self, subject: Review, answers: Sequence[BaseModel]) -> Made:
        return self._made(subject, answers[0].model_dump() if answers else {})

    def extracted(self, subject: Review) -> Made:
        # Here, because its list of words comes with scikit-learn, which takes seconds to load.
        from offline.extractive import extractive_aspects

        return self._made(subject, extractive_aspects(subject, self.domain) if _readable(subject) else {})

    def _made(self, review: Review, answer: Mapping[str, str | None]) -> Made:
        if not answer:
            return Made(None, (Problem("speaks to a language model" if review.text.strip() else "no text"),))
        given = {slot: _text(answer.get(slot)) for slot in self.domain.slots}
        own = without_inventions(given, _shown(review))
        aspects = without_repeats(own)
        nulls = _nulls(aspects)
        counts = {
            "slots": len(aspects),
            "null slots": nulls,
            "slots the review does not support": _nulls(own) - _nulls(given),
            "slots that repeated another": nulls - _nulls(own),
            "reviews cut": int(len(_whole(review)) > LONGEST_REVIEW),
        }
        if nulls / len(aspects) > MOST_NULLS:
            little = Problem("says too little", f"{nulls} of {len(aspects)} slots are null", stays=True)
            return Made(None, (little,), counts)
        about = (review.user_id, review.rating, review.timestamp)
        record = ReviewAspects(review.review_id, review.item_id, aspects, *about, fingerprint(review))
        return Made(record, counts=counts)


@lru_cache
def aspects_schema(slots: tuple[str, ...]) -> type[BaseModel]:
    """Return what an LLM answers: every slot, each text or null."""
    fields: dict[str, Any] = dict.fromkeys(slots, (str | None, ...))
    return create_model("Aspects", **fields)


def without_inventions(aspects: Mapping[str, str | None], review: str) -> dict[str, str | None]:
    """Return the slots with those null none of whose telling words the review holds, if only by their first letters.

    Models fill in what sounds likely, or words of the question. Words in other scripts than Latin are not judged: there
    a word has no first letters.
    """
    said = review.casefold()
    return {slot: text if text and _supported(text, said) else None for slot, text in aspects.items()}


def _supported(text: str, said: str) -> bool:
    from offline.extractive import stems

    judged = [stem for stem in stems(text) if stem.isascii()]
    return not judged or any(stem in said for stem in judged)


def without_repeats(aspects: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the slots with those null that say no more than an earlier one does."""
    kept: dict[str, str | None] = {}
    for slot, text in aspects.items():
        earlier = (words for other in kept.values() if (words := _words(other)))
        kept[slot] = None if any(_repeats(_words(text), words) for words in earlier) else text
    return kept


def _readable(review: Review) -> bool:
    return bool(review.text.strip()) and not holds_orders(_whole(review))


def _whole(review: Review) -> str:
    return f"{review.title}\n{review.text}".strip()


def _shown(review: Review) -> str:
    return cut(_whole(review), LONGEST_REVIEW)


def _nulls(aspects: Mapping[str, str | None]) -> int:
    return sum(text is None for text in aspects.values())


def _repeats(words: frozenset[str], earlier: frozenset[str]) -> bool:
    return words <= earlier or len(words & earlier) / len(words | earlier) >= REPEATS


def _words(text: str | None) -> frozenset[str]:
    return frozenset(_WORD.findall((text or "").casefold()))


def _text(value: str | None) -> str | None:
    """Return a slot's text; None for what means that there is none."""
    text = " ".join((value or "").split())
    return None if " ".join(_WORD.findall(text.casefold())) in _NOTHING else text


def _described(slots: Mapping[str, str]) -> str:
    return "\n".join(f"- {slot}: {what}" for slot, what in slots.items())
