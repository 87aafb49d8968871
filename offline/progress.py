"""How far a run of calls is, how fast it goes, and what it has cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from offline.flight import Outcome
from offline.replies import NOTHING, Rejected, Usage
from offline.spending import Ledger


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    total: int | None = None
    """Calls in all, where that is known."""
    done: int = 0
    cached: int = 0
    """Of `done`, those that the cache answered."""
    rejected: int = 0
    """Of `done`, those without an answer."""
    usage: Usage = NOTHING
    cost: float = 0.0
    """In the currency of the prices."""
    seconds: float = 0.0
    """Since the run began."""

    @property
    def rate(self) -> float:
        """Calls a second that the endpoint answers."""
        return (self.done - self.cached) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At this rate, if the cache answers none of the rest; None where it cannot be told."""
        return max(0, self.total - self.done) / self.rate if self.total is not None and self.rate else None

    def after(self, burst: Sequence[Outcome[Any]], ledger: Ledger, seconds: float) -> "Progress":
        """Return the progress once these outcomes, too, are there."""
        return replace(
            self,
            done=self.done + len(burst),
            cached=self.cached + sum(outcome.cached for outcome in burst),
            rejected=self.rejected + sum(isinstance(outcome.result, Rejected) for outcome in burst),
            usage=ledger.usage,
            cost=ledger.spent,
            seconds=seconds,
        )


Report = Callable[[Progress], None]
