"""Personas: the types of people who would engage with one item, each with the reviews that say so (eq. 3)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import BaseModel, Field, create_model

from offline.calls import Call, review_tag, user_tag
from offline.dataset import Dataset, Kind
from offline.decisions import Decision, decided, decisions_by_item
from offline.domains import Domain
from offline.encoder import Encoder
from offline.errors import ConfigurationError
from offline.evidence import LEAST_PERSONAS, ItemEvidence, Piece, persona_count, put_forward, shown
from offline.evidence_by_item import evidence
from offline.extractive_personas import extractive_personas
from offline.fingerprints import digest, fingerprint
from offline.persona_checks import ALIKE, UNSUPPORTED, admissible, checked, likeness
from offline.quoting import messages, quoted
from offline.records import ItemPersonas
from offline.sentences import cut
from offline.stages import Made, Problem, Stage
from offline.summaries import LONGEST_DESCRIPTION, LONGEST_TITLE
from offline.support_judge import SupportJudge, Verdict, question
from reranker.records import Persona, persona_id

TOKENS_PER_PERSONA = 300
"""Of an answer: name, description and rationale of the length asked for take about 80, JSON 30; small models ramble."""

TYPICAL_RATIONALE = "x" * 113
"""For an estimate: the rationales of 5,454 personas at hand have so many characters in the mean."""

TOO_FEW = "items with several reviews and only one persona left"


class PersonaAnswer(BaseModel, frozen=True):
    """One persona as a model writes it: the evidence first, so that the words follow from it."""

    evidence: list[int] = Field(min_length=1)
    """Numbers of the reviews in the prompt, from 1."""
    name: str
    description: str
    preference_rationale: str


@dataclass(frozen=True, slots=True)
class Subject:
    """An item, what reviews say of it, and what an editor has decided about its personas."""

    evidence: ItemEvidence
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True)
class PersonasStage(Stage[Subject, BaseModel]):
    """One call an item that has reviews."""

    name: ClassVar[str] = "personas"
    kind: ClassVar[Kind] = "personas"

    domain: Domain
    encoder: Encoder = field(repr=False)
    """Measures diversity, support and likeness; should be the one that publishes."""
    support_judge: SupportJudge = "similarity"

    def subjects(self, dataset: Dataset) -> Iterator[Subject]:
        by_item = decisions_by_item(dataset.path)
        return (Subject(found, by_item.get(found.item.item_id, ())) for found in evidence(dataset))

    def key(self, subject: Subject) -> str:
        return subject.evidence.item.item_id

    def done(self, dataset: Dataset) -> Iterable[tuple[str, str]]:
        return ((personas.item_id, personas.fingerprint) for personas in dataset.recorded_personas())

    def fingerprint(self, subject: Subject) -> str:
        # Neither the order of a file nor the scale of the dataset's ratings, which any one review may widen.
        said = sorted((piece.review_id, piece.words) for piece in subject.evidence.pieces)
        return digest(fingerprint(subject.evidence.item), subject.evidence.summary, said)

    def calls(self, subject: Subject) -> Sequence[Call[BaseModel]]:
        pieces, most = self._chosen(subject.evidence)
        least = min(most, LEAST_PERSONAS)
        instruction = self.domain.prompt("personas", least=str(least), most=str(most))
        task = f"Write {least} to {most} personas as JSON, each resting on review numbers from 1 to {len(pieces)}."
        prompt = messages(instruction, _data(subject.evidence, pieces), task, "item", "review")
        tags = [review_tag(piece.review_id) for piece in pieces]
        tags += [user_tag(piece.user_id) for piece in pieces if piece.user_id]
        schema = personas_schema(least, most)
        return (Call(self.key(subject), prompt, schema, TOKENS_PER_PERSONA * most, tuple(tags)),)

    def further(self, subject: Subject, answers: Sequence[BaseModel]) -> Sequence[Call[BaseModel]]:
        """Return what to ask the judge: one call for each persona that may be stored if its evidence bears it out."""
        if self.support_judge == "similarity":
            return ()
        pieces = {piece.review_id: piece for piece in subject.evidence.pieces}
        found = admissible(self._written(subject, answers[0]), _said(subject), subject.evidence.about).personas
        return [
            self._question(subject, place, persona.preference_rationale, [pieces[r] for r in persona.evidence])
            for place, persona in enumerate(found)
        ]

    def foreseen(self, subject: Subject) -> Sequence[Call[BaseModel]]:
        """Return what to ask the judge if as many personas come as there is evidence for, each resting on its share."""
        if self.support_judge == "similarity":
            return ()
        pieces, most = self._chosen(subject.evidence)
        return [self._question(subject, place, TYPICAL_RATIONALE, pieces[place::most]) for place in range(most)]

    def made(self, subject: Subject, answers: Sequence[BaseModel]) -> Made:
        verdicts = [answer for answer in answers[1:] if isinstance(answer, Verdict)]
        judged = [Problem(UNSUPPORTED, "as the LLM judges") if v.supported == "no" else None for v in verdicts]
        written = self._written(subject, answers[0])
        return self._made(subject, written, None if self.support_judge == "similarity" else judged)

    def extracted(self, subject: Subject) -> Made:
        if self.support_judge != "similarity":
            raise ConfigurationError(
                f"--support-judge is {self.support_judge!r}, and with --llm none there is no LLM to judge: leave it out"
            )
        return self._made(subject, extractive_personas(subject.evidence, self.domain, self.encoder))

    def _written(self, subject: Subject, answer: BaseModel) -> list[Persona]:
        pieces, _ = self._chosen(subject.evidence)
        numbers = {number: piece.review_id for number, piece in enumerate(pieces, start=1)}
        return [_persona(self.key(subject), persona, numbers) for persona in answer.model_dump()["personas"]]

    def _question(self, subject: Subject, place: int, rationale: str, pieces: Sequence[Piece]) -> Call[Any]:
        return question(f"{self.key(subject)}\n{place}", rationale, pieces, self.domain)

    def _chosen(self, found: ItemEvidence) -> tuple[list[Piece], int]:
        """Return the pieces that are put forward, and how many personas they are good for."""
        vectors = self.encoder.encode([piece.text for piece in found.pieces])
        places = put_forward(found.pieces, vectors)
        return [found.pieces[place] for place in places], persona_count(vectors[places])

    def _made(
        self, subject: Subject, personas: Sequence[Persona], unsupported: Sequence[Problem | None] | None = None
    ) -> Made:
        said = _said(subject)
        left = checked(personas, said, subject.evidence.about, self.encoder, unsupported)
        kept = decided(left.personas, subject.decisions, said, self.alike)
        if not kept:
            return Made(None, left.problems or (Problem("blocked by an editor", stays=True),))
        record = ItemPersonas(self.key(subject), kept, fingerprint=self.fingerprint(subject))
        counts = {"personas": len(kept), TOO_FEW: int(len(kept) == 1 < len(said))}
        return Made(record, left.problems, counts)

    def alike(self, one: Persona, other: Persona) -> bool:
        """Return whether two personas say the same (`persona_checks.ALIKE`)."""
        return bool(likeness([one, other], self.encoder)[0, 1] >= ALIKE)


@lru_cache(maxsize=16)
def personas_schema(least: int, most: int) -> type[BaseModel]:
    """Return what an answer of so many personas is."""
    return create_model("Personas", personas=(list[PersonaAnswer], Field(min_length=least, max_length=most)))


def _said(subject: Subject) -> dict[str, str]:
    return {piece.review_id: piece.words for piece in subject.evidence.pieces}


def _data(found: ItemEvidence, pieces: Sequence[Piece]) -> str:
    # The summary of an item that has none is its whole description.
    item = f"{cut(found.item.title, LONGEST_TITLE)}\n{cut(found.summary, LONGEST_DESCRIPTION)}"
    reviews = (shown(number, piece) for number, piece in enumerate(pieces, start=1))
    return "\n".join([quoted("item", item), *reviews])


def _persona(item_id: str, answer: Mapping[str, Any], numbers: Mapping[int, str]) -> Persona:
    """Return an answer as a persona; a number that was not in the prompt becomes an id that no review has."""
    name, description, rationale = (
        " ".join(str(answer[part]).split()) for part in ("name", "description", "preference_rationale")
    )
    cited = tuple(numbers.get(number, "") for number in answer["evidence"])
    return Persona(persona_id(item_id, name, description, rationale), name, description, rationale, cited)
