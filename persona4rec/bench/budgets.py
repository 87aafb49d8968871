"""What the online path may cost, and whether it does: every budget is a ratio within one run."""

from collections.abc import Sequence
from dataclasses import dataclass

from persona4rec.bench.run import Measured

# What the budget of throughput is set for.
BUDGETED_IN_FLIGHT = 32


@dataclass(frozen=True, slots=True)
class Budget:
    """One line of the table."""

    what: str
    measured: float
    must: float
    aim: float
    at_least: bool = False
    """The measured value is to be as great as these; otherwise no greater."""
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self._within(self.must)

    @property
    def reached(self) -> bool:
        """Whether the aim is."""
        return self._within(self.aim)

    def _within(self, bound: float) -> bool:
        return self.measured >= bound if self.at_least else self.measured <= bound


def budgets(measured: Sequence[Measured]) -> list[Budget]:
    """Return the budgets that these sizes tell of; the first size is the one that others are compared with."""
    found = [budget for one in measured for budget in _of_size(one)]
    small, large = measured[0], measured[-1]
    if large is not small:
        growth = large.latency["rerank"].quantiles[50.0] / small.latency["rerank"].quantiles[50.0]
        found.append(Budget(f"p50, {large.items:,} items against {small.items:,}", growth, 1.5, 1.2))
    return found


def _of_size(one: Measured) -> list[Budget]:
    echo, rerank = one.latency["echo"].quantiles, one.latency["rerank"].quantiles
    pairs = zip(one.throughput["rerank"], one.throughput["echo"], strict=True)
    shares = {mine.in_flight: mine.per_second / empty.per_second for mine, empty in pairs}
    size = f"{one.items:,} items"
    return [
        Budget(f"{size}: p50 against the echo", rerank[50.0] / echo[50.0], 2.0, 1.5),
        Budget(f"{size}: p99 against the echo", rerank[99.0] / echo[99.0], 2.5, 2.0),
        *(
            Budget(f"{size}: throughput at {in_flight} in flight", share, 0.45, 0.60, at_least=True)
            for in_flight, share in shares.items()
            if in_flight == BUDGETED_IN_FLIGHT
        ),
        Budget(f"{size}: scoring alone, hot rows", one.scoring.hot, 60, 60, unit="us"),
        Budget(f"{size}: scoring alone against touching the rows", one.scoring.random / one.scoring.touching, 2.0, 1.3),
        Budget(f"{size}: ready from a snapshot", one.ready_seconds, 5.0, 5.0, unit="s"),
        Budget(f"{size}: memory against the vectors", one.memory_share, 1.3, 1.3),
    ]
