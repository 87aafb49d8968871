"""Item summaries: two or three neutral sentences that an LLM writes from an item's metadata (eq. 1)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, field_validator

from offline.calls import Call
from offline.dataset import Dataset, Kind
from offline.domains import Domain
from offline.fingerprints import fingerprint
from offline.quoting import messages, quoted
from offline.records import Item, ItemSummary
from offline.sentences import cut
from offline.stages import Made, Problem, Stage

LONGEST_DESCRIPTION = 3000
"""Characters, about 700 tokens: what comes later in a description is advertising, quotes and contents as a rule."""

LONGEST_TITLE = 300
"""Characters. Of 1,269 titles at hand the longest has 146."""

LONGEST_CATEGORIES = 300
"""Characters of all categories. Of 1,269 items at hand the longest have 69."""

MOST_ATTRIBUTES = 20
LONGEST_NAME = 100
LONGEST_ATTRIBUTE = 200
"""Characters of an attribute and of its name. Together 6,000 at most and with all else 10,000, about 2,500 tokens, so
that a prompt keeps within the 8,192 of a local LLM's slot."""

MOST_TOKENS = 200
"""Of an answer: 80 words, which the prompt allows, take about 110 with the JSON around them."""

MOST_WORDS = 120
"""Half as many again as the prompt allows: a longer text is no summary, and is asked for again."""

TASK = 'Write the summary of this {item} as JSON: {{"summary": "..."}}'


class Summary(BaseModel):
    """What an LLM answers."""

    summary: str

    @field_validator("summary")
    @classmethod
    def _is_short(cls, text: str) -> str:
        words = len(text.split())
        if not 1 <= words <= MOST_WORDS:
            raise ValueError(f"a summary has 1 to {MOST_WORDS} words, not {words}")
        return " ".join(text.split())


@dataclass(frozen=True)
class SummariesStage(Stage[Item, Summary]):
    """One call an item; an item without any metadata has nothing to be summarised."""

    name: ClassVar[str] = "summarize"
    kind: ClassVar[Kind] = "summaries"

    domain: Domain

    def subjects(self, dataset: Dataset) -> Iterator[Item]:
        return dataset.items()

    def key(self, subject: Item) -> str:
        return subject.item_id

    def done(self, dataset: Dataset) -> Iterable[tuple[str, str]]:
        return ((summary.item_id, summary.fingerprint) for summary in dataset.summaries())

    def fingerprint(self, subject: Item) -> str:
        return fingerprint(subject)

    def calls(self, subject: Item) -> Sequence[Call[Summary]]:
        metadata = described(subject)
        if not metadata:
            return ()
        prompt = messages(
            self.domain.prompt("summary"), quoted("metadata", metadata), TASK.format(item=self.domain.item), "metadata"
        )
        return (Call(subject.item_id, prompt, Summary, MOST_TOKENS),)

    def made(self, subject: Item, answers: Sequence[Summary]) -> Made:
        if not answers:
            return _without_metadata()
        return Made(ItemSummary(subject.item_id, answers[0].summary, fingerprint(subject)))

    def extracted(self, subject: Item) -> Made:
        # Here, because its list of words comes with scikit-learn, which takes seconds to load.
        from offline.extractive import extractive_summary

        if not described(subject):
            return _without_metadata()
        return Made(ItemSummary(subject.item_id, extractive_summary(subject), fingerprint(subject)))


def described(item: Item) -> str:
    """Return an item's metadata as lines of "name: value", long ones cut; "" where it has none but its id."""
    attributes = list(item.attributes.items())[:MOST_ATTRIBUTES]
    lines = (
        ("title", cut(item.title, LONGEST_TITLE)),
        ("categories", cut(", ".join(item.categories), LONGEST_CATEGORIES)),
        *((cut(name, LONGEST_NAME), cut(value, LONGEST_ATTRIBUTE)) for name, value in attributes),
        ("description", cut(item.description, LONGEST_DESCRIPTION)),
    )
    return "\n".join(f"{name}: {value}" for name, value in lines if value.strip())


def _without_metadata() -> Made:
    return Made(None, (Problem("no metadata", "the item has neither title nor description, categories or attributes"),))
