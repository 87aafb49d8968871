"""Position bias: how a judge's choices fall on the places that personas are shown at.

Personas are shown in orders drawn at random, so a judge that looks at nothing but them chooses each place as often.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

_NAME = re.compile(r"place (\d+) of (\d+) chosen")


def chosen_place(place: int, places: int) -> str:
    """Return the name that the choice of a place (from 1) is counted by in a stage's report."""
    return f"place {place} of {places} chosen"


@dataclass(frozen=True, slots=True)
class Place:
    """How often personas at one place of the prompt were chosen."""

    place: int
    """From 1."""
    chosen: int
    share: float
    """Of the choices among so many personas or more."""
    expected: float
    """That share for a judge without a preference for places, as personas are shuffled."""


def is_place(name: str) -> bool:
    """Return whether a count is of a place that was chosen."""
    return _NAME.fullmatch(name) is not None


def position_bias(counts: Mapping[str, int]) -> list[Place]:
    """Return what the counts of a run (`StageReport.counts`) say of the judge's preference for places."""
    by_size: dict[int, Counter[int]] = defaultdict(Counter)
    for name, count in counts.items():
        if found := _NAME.fullmatch(name):
            by_size[int(found[2])][int(found[1])] += count
    return [_place(place, by_size) for place in range(1, max(by_size, default=0) + 1)]


def _place(place: int, by_size: Mapping[int, Counter[int]]) -> Place:
    sizes = {size: places.total() for size, places in by_size.items() if size >= place}
    chosen, total = sum(by_size[size][place] for size in sizes), sum(sizes.values())
    return Place(place, chosen, chosen / total, sum(count / size for size, count in sizes.items()) / total)
