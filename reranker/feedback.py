"""How much an event says for its item: what equation 7 of the method leaves open once events are not all alike.

The method counts every interaction alike, and so does the default for everything that is plainly positive. What departs
from that is reasoned, not measured, since no data at hand holds kinds or low ratings beside held-out choices:

- An event *against* its item weighs nothing: the profile is an average of what the user likes, and a disliked item must
  not pull it. It does not push either: subtracting is known to help little and to hurt where the dislike was for a
  reason of its own (Rocchio's negative weight is commonly set small or to 0; Manning, Raghavan, Schütze, *Introduction
  to Information Retrieval*, section 9.1.1).
- A look weighs half of a choice: implicit signals differ in the confidence they deserve (Hu, Koren, Volinsky 2008), and
  half is the mildest way to say so. Only histories of both kinds notice, since shares add up to 1.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property

from pydantic import Field, NonNegativeFloat
from pydantic_settings import SettingsConfigDict

from reranker.records import Event
from reranker.settings_table import Table

AGAINST = frozenset(
    {"dislike", "thumbs_down", "not_interested", "hide", "block", "report", "skip", "return", "refund", "unlike"}
)
"""Kinds that speak against their item."""

LOOKS: Mapping[str, float] = {"impression": 0.0, "view": 0.5, "click": 0.5}
"""Kinds that are less than a choice. Shown is not chosen, so an impression weighs nothing."""


class Feedback(Table):
    """What events weigh. Environment variables: PERSONA4REC_FEEDBACK_KINDS='{"view": 0.3}' and so on."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_FEEDBACK_", frozen=True)

    kinds: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """Weights of kinds, before those above; 1 is an ordinary positive event's, 0 leaves the event out."""
    disliked_ratings: tuple[float, float] = (1.0, 3.0)
    """Ratings from the first to below the second speak against the item: of 1 to 5 stars, those below the middle.
    Other ratings weigh as their kind does; for a scale that is not 1 to 5, set this."""

    def weights(self, events: Iterable[Event]) -> list[float]:
        """Return what each event says for its item, 0 or more; 1 for an ordinary positive event."""
        dislikes, weight_of = self.dislikes, self._weight_of_kind.get
        return [0.0 if dislikes(event.rating) else weight_of(event.kind.lower(), 1.0) for event in events]

    def dislikes(self, rating: float | None) -> bool:
        """Return whether a rating speaks against its item."""
        lowest, liked = self.disliked_ratings
        return rating is not None and lowest <= rating < liked

    @cached_property
    def _weight_of_kind(self) -> dict[str, float]:
        return {**LOOKS, **dict.fromkeys(AGAINST, 0.0), **self.kinds}


ORDINARY = Feedback.model_construct()
"""The defaults, whatever the environment says."""
