"""Adapters as variants of an evaluation: one that exists, or one trained anew within each fold."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from offline.adapter import Adapter
from offline.adapter_data import training_data
from offline.evaluate import Choice, Materials, Prepare, Variant, adapted
from offline.records import Alignment
from offline.splits import Fold
from offline.train_adapter import GRID, Settings, train_adapter, train_with
from offline.tuning import tune_profile

NAME = "adapter"

Tune = Callable[[Callable[[Fold], Materials], Fold, Choice], Choice]
"""Chooses profile and weight from materials by inner fold; or leaves the choice as it is."""


def tuning(candidates: int, seed: int) -> Tune:
    """Choose as `offline.tuning` does."""
    return lambda prepare, fold, start: tune_profile(prepare, fold, start, candidates, seed).choice


def untuned(_: Callable[[Fold], Materials], __: Fold, start: Choice) -> Choice:
    return start


def given(materials: Materials, adapter: Adapter, tune: Tune) -> Variant:
    """Judge an adapter that was trained elsewhere: honestly only if its training saw no held-out interaction."""
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
    return Variant(NAME, _prepare(materials, alignments, tune, seed, grid))


def _prepare(
    materials: Materials, alignments: Sequence[Alignment], tune: Tune, seed: int, grid: Sequence[Settings]
) -> Prepare:
    def prepare(fold: Fold, start: Choice) -> tuple[Materials, Choice]:
        found = train_adapter(training_data(materials, fold.train, alignments), grid, seed)
        settings = replace(found.chosen.settings, epochs=found.chosen.best.epoch)

        def within(inner: Fold) -> Materials:
            return adapted(materials, train_with(training_data(materials, inner.train, alignments), settings, seed))

        return adapted(materials, found.adapter), tune(within, fold, start)

    return prepare
