"""Alignment: which persona of an item best explains that a user chose it, judged by an LLM from the user's profile.

The profile is the user's last interactions before the choice (eq. 4), the judgement eq. 5. Personas are shown in an
order drawn from the seed, since models prefer places: how often each place was chosen is counted (`offline.places`).
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, create_model

from offline.calls import Call, Likelihood, review_tag, user_tag
from offline.dataset import Dataset, Kind
from offline.domains import Domain
from offline.fingerprints import digest
from offline.judgements import Judgement, judgements
from offline.places import chosen_place
from offline.quoting import messages, neutral, quoted
from offline.records import Alignment
from offline.sentences import cut
from offline.stages import Made, Stage
from reranker.records import Persona

Judge = Literal["choice", "orders", "likelihood"]
"""How it is judged: by one choice; by a choice for each rotation of the personas, so that each stands at each place
once; or by how likely the history is, given each persona (needs an endpoint with log-probabilities of the prompt)."""

HISTORY = 10
"""Interactions of a profile: about 100 tokens each, so that history and seven personas fit 2,000 tokens."""

LONGEST_EVENT = 1000
"""Characters of an interaction: title, summary and aspects of 11,435 at hand have 450 at most. Ten of them and seven
personas then fit 5,000 tokens whatever files say."""

PERSONAS_CHARACTERS = 7500
"""Of all personas: seven that are as long as `persona_checks` lets any be, name, description and rationale. Where more
are to be judged, as files of others may have, or longer ones, each is cut to its share."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""What personas are called in a prompt: one token each, and no order to be guessed from an id."""

MOST_TOKENS = 150
"""Of an answer: one sentence takes about 50."""

TASK = (
    "Which persona best explains that this {person} chose the {item} <target>? Answer as JSON: first the letter of the "
    "persona, then, in one sentence, the reason: what in the history speaks for it."
)


@dataclass(frozen=True)
class AlignmentStage(Stage[Judgement, BaseModel]):
    """A judgement for each user and item that has personas, where the user chose other items before.

    An item with one persona is judged by nobody: that one explains every choice. Memory holds the summaries and
    personas, and the interactions and aspects by user.
    """

    name: ClassVar[str] = "align"
    kind: ClassVar[Kind] = "alignments"

    domain: Domain
    judge: Judge = "choice"
    history_length: int = HISTORY
    seed: int = 0

    def subjects(self, dataset: Dataset) -> Iterator[Judgement]:
        return judgements(dataset, self.history_length)

    def key(self, subject: Judgement) -> str:
        return subject.key

    def done(self, dataset: Dataset) -> Iterable[tuple[str, str]]:
        return ((f"{one.user_id}\n{one.item_id}", one.fingerprint) for one in dataset.alignments())

    def fingerprint(self, subject: Judgement) -> str:
        return _made_from(subject)

    def calls(self, subject: Judgement) -> Sequence[Call[BaseModel]]:
        if not subject.history or len(subject.personas) == 1:
            return ()
        if self.judge == "likelihood":
            return [self._scored(subject, persona) for persona in subject.personas]
        return [self._choice(subject, number, order) for number, order in enumerate(self.orders(subject))]

    def orders(self, judgement: Judgement) -> list[tuple[Persona, ...]]:
        """Return the orders that the personas are shown in: drawn from the seed, and by `orders` every rotation."""
        shuffled = list(judgement.personas)
        drawn = hashlib.sha256(f"{self.seed}\n{judgement.key}".encode()).digest()
        random.Random(drawn).shuffle(shuffled)  # noqa: S311
        turns = len(shuffled) if self.judge == "orders" else 1
        return [tuple(shuffled[turn:] + shuffled[:turn]) for turn in range(turns)]

    def made(self, subject: Judgement, answers: Sequence[BaseModel]) -> Made:
        if not subject.history:
            return Made(None, counts={"interactions with none before them": 1})
        if not answers:
            return Made(_aligned(subject, subject.personas[0], "the only persona of the item"))
        if self.judge == "likelihood":
            return self._likeliest(subject, answers)
        return self._most_chosen(subject, [answer.model_dump() for answer in answers])

    def _choice(self, judgement: Judgement, number: int, order: tuple[Persona, ...]) -> Call[BaseModel]:
        letters = LETTERS[: len(order)]
        personas = (
            quoted("persona", _described(one, len(order)), letter=name)
            for name, one in zip(letters, order, strict=True)
        )
        data = "\n".join((_history(judgement), quoted("target", cut(judgement.target.text, LONGEST_EVENT)), *personas))
        words = {"item": self.domain.item, "person": self.domain.person}
        prompt = messages(self.domain.prompt("alignment"), data, TASK.format(**words), "history", "target", "persona")
        key = f"{judgement.key}\n{number}"
        return Call(key, prompt, choice_schema(len(order)), MOST_TOKENS, _tags(judgement))

    def _most_chosen(self, judgement: Judgement, answers: list[dict[str, Any]]) -> Made:
        places = [LETTERS.index(answer["persona"]) for answer in answers]
        chosen = [order[place] for order, place in zip(self.orders(judgement), places, strict=True)]
        # Of as many votes each, the one that stands first in the order that was drawn.
        winner = Counter(chosen).most_common(1)[0][0]
        reason = answers[chosen.index(winner)]["reason"]
        counts = Counter(chosen_place(place + 1, len(judgement.personas)) for place in places)
        if len(set(chosen)) > 1:
            counts["judgements that changed with the order"] += 1
        return Made(_aligned(judgement, winner, " ".join(reason.split())), counts=counts)

    def _scored(self, judgement: Judgement, persona: Persona) -> Call[BaseModel]:
        """Ask how likely the history is behind a persona: plain text, as a chat has no place for it."""
        given = (
            f"One type of {self.domain.person}:\n{neutral(_described(persona, len(judgement.personas)))}\n\n"
            f"What a {self.domain.person} of this type chose, and said of it, one {self.domain.item} a line:\n"
        )
        history = "\n".join(" ".join(neutral(cut(event.text, LONGEST_EVENT)).split()) for event in judgement.history)
        key = f"{judgement.key}\n{persona.persona_id}"
        return Call(key, ({"role": "user", "content": given},), Likelihood, 1, _tags(judgement), continuation=history)

    def _likeliest(self, judgement: Judgement, answers: Sequence[BaseModel]) -> Made:
        scores = [answer.log_likelihood for answer in answers if isinstance(answer, Likelihood)]
        best, second = sorted(scores, reverse=True)[:2]
        winner = judgement.personas[scores.index(best)]
        reason = f"the history is {best - second:.1f} nats likelier given this persona than given the next"
        return Made(_aligned(judgement, winner, reason))


@lru_cache
def choice_schema(personas: int) -> type[BaseModel]:
    """Return what an LLM answers that chooses among so many personas: the letter, then why.

    Endpoints write the fields in this order. The letter comes first as small models that had to give a reason first
    chose no better than by chance: 5 of 20 easy cases, and 14 with the letter (Qwen2.5-Coder 1.5B).
    """
    letters: Any = Literal[tuple(LETTERS[:personas])]
    return create_model("Choice", persona=(letters, ...), reason=(str, ...))


def _aligned(judgement: Judgement, persona: Persona, reason: str) -> Alignment:
    history = tuple(event.item_id for event in judgement.history)
    return Alignment(
        judgement.user_id, judgement.target.item_id, persona.persona_id, reason, history, _made_from(judgement)
    )


def _made_from(judgement: Judgement) -> str:
    """Return a digest of the personas alone: a choice among them stands though the user goes on choosing items."""
    return digest(judgement.key, [persona.persona_id for persona in judgement.personas])


def _history(judgement: Judgement) -> str:
    return "\n".join(quoted("history", cut(event.text, LONGEST_EVENT)) for event in judgement.history)


def _described(persona: Persona, of: int) -> str:
    """Return a persona in words; `of`: how many share the prompt."""
    return cut(f"{persona.name}. {persona.description} {persona.preference_rationale}", PERSONAS_CHARACTERS // of)


def _tags(judgement: Judgement) -> tuple[str, ...]:
    reviews = (review_id for event in judgement.history for review_id in event.review_ids)
    return user_tag(judgement.user_id), *map(review_tag, reviews)
