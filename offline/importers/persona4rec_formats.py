"""What the files of the method's authors hold: the shape of their lines, in both of their domains.

What a line lists is read entry by entry, so it is `list[Any]` here and has a shape of its own.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, FiniteFloat, StringConstraints, TypeAdapter

from offline.records import Id, Rating, Review, Text, Timestamp, as_text
from reranker.records import Persona, persona_id

PADDING = "[PAD]"
"""What the authors' first stage calls the empty place of a batch. It is ranked like an item and is none."""


def _no_padding(item_id: str) -> str:
    if item_id == PADDING:
        raise ValueError(f"{PADDING} is padding, not an item")
    return item_id


def _slots(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    return {slot: _slot_text(text) for slot, text in value.items() if not slot.endswith("_reason")}


def _slot_text(value: object) -> str | None:
    text = "" if value is None else as_text(value).strip()
    return None if text.lower() in {"", "null", "none"} else text


def _persona_number(value: object) -> object:
    """Return `P1` for `P1` and for `<item>_P1`."""
    number = re.search(r"(?:^|_)(P\d+)$", value.strip()) if isinstance(value, str) else None
    return number[1] if number else value


ItemId = Annotated[Id, AfterValidator(_no_padding), Field(validation_alias=AliasChoices("item_id", "business_id"))]
TargetId = Annotated[
    Id,
    AfterValidator(_no_padding),
    Field(validation_alias=AliasChoices("target_item_id", "target_business_id", "item_id", "business_id")),
]
Title = Annotated[Text, Field(validation_alias=AliasChoices("item_title", "business_name", "name"))]
Description = Annotated[Text, Field(validation_alias=AliasChoices("item_description", "business_description"))]
Summary = Annotated[Text, Field(validation_alias=AliasChoices("item_summary", "business_summary"))]
Slots = Annotated[dict[str, str | None], BeforeValidator(_slots)]
Number = Annotated[str, BeforeValidator(_persona_number), StringConstraints(pattern=r"^P\d+$")]


@dataclass(frozen=True, slots=True)
class SourceReview:
    """An entry of `1_aspects`, and of the groups of `2.5_grouped`: a review and what was extracted from it."""

    review_id: Id
    item_id: ItemId
    user_id: Id
    review_text: Text
    aspects: Annotated[Slots | None, Field(validation_alias="extracted_aspects")] = None
    review_title: Text = ""
    rating: Rating = None
    timestamp: Timestamp = None

    def as_review(self) -> Review:
        """Return the review without what was extracted from it."""
        return Review(
            review_id=self.review_id,
            user_id=self.user_id,
            item_id=self.item_id,
            text=self.review_text,
            title=self.review_title,
            rating=self.rating,
            timestamp=self.timestamp,
        )


@dataclass(frozen=True, slots=True)
class Described:
    """A line of `2_summary`, and what other files say of an item beside their own matter."""

    item_id: ItemId
    title: Title = ""
    description: Description = ""
    summary: Summary = ""


@dataclass(frozen=True, slots=True)
class Group(Described):
    """A line of `2.5_grouped`: the reviews of an item."""

    aspects: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SourcePersona:
    """An entry of the lines of `3_personas` and `3.5_persona_with_summary`."""

    name: Annotated[str, StringConstraints(min_length=1), Field(validation_alias="Name")]
    description: Annotated[str, Field(validation_alias="Description")]
    preference_rationale: Annotated[str, Field(validation_alias="Preference_Rationale")]
    number: Annotated[Number, Field(validation_alias="ID")]
    item_summary: Annotated[Text, Field(validation_alias="Item_Summary")] = ""

    def of_item(self, item_id: str, evidence: tuple[str, ...]) -> Persona:
        """Return it as a persona of the item, under the id of its text."""
        own_id = persona_id(item_id, self.name, self.description, self.preference_rationale)
        return Persona(own_id, self.name, self.description, self.preference_rationale, evidence)


@dataclass(frozen=True, slots=True)
class Personas(Described):
    """A line of `3_personas` or `3.5_persona_with_summary`."""

    personas: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """An entry of a history."""

    item_id: ItemId
    summary: Text = ""
    aspects: Annotated[Slots | None, Field(validation_alias=AliasChoices("extracted", "extracted_aspects"))] = None
    rating: Rating = None
    timestamp: Timestamp = None


@dataclass(frozen=True, slots=True)
class History:
    """A line of `3.5_history` or `3.5_history_loo`."""

    user_id: Id
    reviews: list[Any]


@dataclass(frozen=True, slots=True)
class Selection:
    """A line of `4_selected_personas`: which persona of the item explains that the user chose it."""

    user_id: Id
    item_id: TargetId
    number: Annotated[Number, Field(validation_alias="selected_persona_id")]
    persona: Annotated[SourcePersona | None, Field(validation_alias="selected_persona")] = None
    reasoning: Annotated[Text, Field(validation_alias="selection_reasoning")] = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A line of `*gt`: the item that is to be predicted for the user."""

    user_id: Id
    item_id: ItemId


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry of the lines of `*candidate*`."""

    item_id: ItemId
    score: FiniteFloat


@dataclass(frozen=True, slots=True)
class Candidates:
    """A line of `*candidate*`: the first stage's items for a user."""

    user_id: Id
    results: list[Any]


REVIEW = TypeAdapter(SourceReview)
DESCRIBED = TypeAdapter(Described)
GROUP = TypeAdapter(Group)
PERSONA = TypeAdapter(SourcePersona)
PERSONAS = TypeAdapter(Personas)
EVENT = TypeAdapter(SourceEvent)
HISTORY = TypeAdapter(History)
SELECTION = TypeAdapter(Selection)
PAIR = TypeAdapter(Pair)
CANDIDATE = TypeAdapter(Candidate)
CANDIDATES = TypeAdapter(Candidates)
