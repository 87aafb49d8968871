"""Adapters as variants of an evaluation: one that exists, or one trained anew within each fold."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

from offline.adapter import Adapter
from offline.evaluate import Choice, Materials, Variant, adapted
from offline.records import Alignment
from offline.splits import Fold
from offline.train_adapter import GRID, Settings, train_adapter, train_with
from offline.training_data import training_data
from offline.tuning import tune_profile
from reranker.feedback import ORDINARY, Feedback

NAME = "adapter"


class Tune(Protocol):
    """Chooses profile and weight from materials by inner fold; or leaves the choice as it is."""

    def __call__(
        self, prepare: Callable[[Fold], Materials], fold: Fold, start: Choice, users: Collection[str] | None = None
    ) -> Choice:
        """users: choose by their queries alone; None: by everybody's."""
        ...


def tuning(candidates: int, seed: int, feedback: Feedback = ORDINARY) -> Tune:
    """Choose as `offline.tuning` does."""

    def tune(
        prepare: Callable[[Fold], Materials], fold: Fold, start: Choice, users: Collection[str] | None = None
    ) -> Choice:
        return tune_profile(prepare, fold, start, candidates, seed, users, feedback).choice

    return tune


def untuned(
    prepare: Callable[[Fold], Materials],  # noqa: ARG001 - a Tune is told all of this
    fold: Fold,  # noqa: ARG001
    start: Choice,
    users: Collection[str] | None = None,  # noqa: ARG001
) -> Choice:
    return start


def given(materials: Materials, adapter: Adapter, tune: Tune) -> Variant:
    """Judge an adapter that was trained elsewhere: honestly only if its training saw no held-out interaction.

    Where it saw the training interactions of the fold, a weight that is tuned on them is too high.
    """
    its = adapted(materials, adapter)
    return Variant(NAME, lambda fold, start: (its, tune(lambda _: its, fold, start)))


def trained_within(
    materials: Materials,
    alignments: Sequence[Alignment],
    tune: Tune,
    seed: int,
    grid: Sequence[Settings] = GRID,
) -> Variant:
    """Train an adapter on each fold's training interactions, and on no alignment that knows of others.

    Its settings are chosen by held-out users of them. To choose the weight, adapters of these settings are trained
    within the inner folds too: on what it was trained on, an adapter seems better than it is.
    """
    return Variant(NAME, lambda fold, start: train_over(materials, fold, start, alignments, tune, seed, grid=grid))


def train_over(
    materials: Materials,
    fold: Fold,
    start: Choice,
    alignments: Sequence[Alignment],
    tune: Tune,
    seed: int,
    *,
    grid: Sequence[Settings] = GRID,
    users: Collection[str] | None = None,
) -> tuple[Materials, Choice]:
    """Train an adapter over materials on a fold; `users` are those whose queries choose the weight, None: everybody."""
    found = train_adapter(training_data(materials, fold.train, alignments), grid, seed)
    settings = replace(found.chosen.settings, epochs=found.chosen.best.epoch)

    def within(inner: Fold) -> Materials:
        return adapted(materials, train_with(training_data(materials, inner.train, alignments), settings, seed))

    return adapted(materials, found.adapter), tune(within, fold, start, users)
