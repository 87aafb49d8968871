from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

import offline.tuning
from candidate_gen.implicit_models import DEFAULTS, GRID, Hyperparameters
from offline.evaluate import Choice, Materials, evaluate
from offline.records import Interaction
from offline.splits import Fold, cross_validation
from offline.tuning import CUT_OFF, FOLDS, GAMMAS, HISTORY_LENGTHS, WEIGHTS, Tuned, tune, tune_profile

START = Choice(DEFAULTS["als"], weight=0.123, gamma=0.456, history_length=7)
CANDIDATES = 30
SEED = 3


class Forbidden:
    """Held-out pairs that nobody may look at."""

    def __iter__(self) -> Iterator[tuple[str, str]]:
        raise AssertionError("tuning looked at what is held out")

    __len__ = __getitem__ = __bool__ = __contains__ = cast("Any", __iter__)


@pytest.fixture(scope="module")
def train(interactions: tuple[Interaction, ...]) -> tuple[Interaction, ...]:
    return cross_validation(interactions, 3, seed=0)[0].train


@pytest.fixture(scope="module")
def tuned(materials: Materials, train: tuple[Interaction, ...]) -> Tuned:
    """What is chosen, without a look at what is held out."""
    return tune(materials, Fold(train, cast("Any", Forbidden())), START, CANDIDATES, SEED)


@pytest.fixture
def two_generators(monkeypatch: pytest.MonkeyPatch) -> tuple[Hyperparameters, ...]:
    """Little to choose from: a generator that has learnt nothing, and one that has."""
    grid = (replace(DEFAULTS["als"], iterations=1, factors=1), DEFAULTS["als"])
    monkeypatch.setattr(offline.tuning, "GRID", {"als": grid})
    monkeypatch.setattr(offline.tuning, "GAMMAS", (0.9,))
    monkeypatch.setattr(offline.tuning, "HISTORY_LENGTHS", (5,))
    return grid


def test_the_forbidden_is_forbidden(materials: Materials, train: tuple[Interaction, ...]) -> None:
    with pytest.raises(AssertionError, match="held out"):
        list(materials.shortlists(Fold(train, cast("Any", Forbidden())), cast("Any", None), CANDIDATES))


def test_what_is_chosen_is_one_of_what_is_offered(tuned: Tuned) -> None:
    assert tuned.choice.hyperparameters in GRID["als"]
    assert tuned.choice.weight in WEIGHTS
    assert tuned.choice.gamma in GAMMAS
    assert tuned.choice.history_length in HISTORY_LENGTHS


def ndcg(materials: Materials, train: tuple[Interaction, ...], choice: Choice, ranker: str = "fused") -> float:
    """Judge a choice within training as the reported figures are judged."""
    found = evaluate(
        materials,
        cross_validation(train, FOLDS, SEED),
        lambda _: choice,
        candidates=CANDIDATES,
        ks=[CUT_OFF],
        seed=SEED,
    )
    (figure,) = [m.value for m in found.measured if (m.ranker, m.metric) == (ranker, "NDCG")]
    return figure


def test_a_choice_is_judged_as_the_reported_figures_are(
    tuned: Tuned, materials: Materials, train: tuple[Interaction, ...]
) -> None:
    assert ndcg(materials, train, tuned.choice) == pytest.approx(tuned.ndcg, abs=1e-6)


@pytest.mark.parametrize(
    "change", [{"weight": 0.0}, {"weight": 1.0}, {"gamma": 1.0}, {"history_length": 5}, {"history_length": 50}]
)
def test_no_neighbour_does_better(
    change: dict[str, Any], tuned: Tuned, materials: Materials, train: tuple[Interaction, ...]
) -> None:
    assert ndcg(materials, train, replace(tuned.choice, **change)) <= tuned.ndcg + 1e-6


def test_the_generator_is_the_best_by_itself(
    materials: Materials, train: tuple[Interaction, ...], two_generators: tuple[Hyperparameters, ...]
) -> None:
    worse, better = (ndcg(materials, train, replace(START, hyperparameters=h), "generator") for h in two_generators)
    assert worse < better
    chosen = tune(materials, Fold(train, ()), START, CANDIDATES, SEED).choice
    assert chosen.hyperparameters == two_generators[1]


def test_personas_that_say_nothing_get_little_weight(
    materials: Materials, train: tuple[Interaction, ...], tuned: Tuned, two_generators: tuple[Hyperparameters, ...]
) -> None:
    segment = materials.index.single
    noise = np.random.default_rng(0).standard_normal(segment.arrays.vectors.shape, dtype=np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    noisy = replace(segment, arrays=replace(segment.arrays, vectors=noise))
    meaningless = replace(materials, index=replace(materials.index, segments=(noisy,)))
    chosen = tune(meaningless, Fold(train, ()), START, CANDIDATES, SEED)
    assert chosen.choice.weight < tuned.choice.weight
    assert chosen.ndcg < tuned.ndcg


def test_a_model_is_tuned_within_its_own_grid(
    materials: Materials,
    train: tuple[Interaction, ...],
    two_generators: tuple[Hyperparameters, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = tuple(replace(h, iterations=5, factors=4) for h in GRID["bpr"][:2])
    monkeypatch.setattr(offline.tuning, "GRID", {"bpr": quick})
    start = replace(START, hyperparameters=DEFAULTS["bpr"])
    assert tune(materials, Fold(train, ()), start, CANDIDATES, SEED).choice.hyperparameters in quick


def test_a_choice_may_be_left_to_some_users(materials: Materials, train: tuple[Interaction, ...]) -> None:
    """Their queries alone count, as if nobody else were asked."""
    asked: list[str] = []
    real = materials.shortlists

    class Watched:
        index, aspects, feedback = materials.index, materials.aspects, materials.feedback

        @staticmethod
        def shortlists(fold: Fold, *others: Any) -> Iterator[Any]:
            asked.extend(user_id for user_id, _ in fold.test)
            return real(fold, *others)

    some = {"ada", "hana"}
    tune_profile(lambda _: cast("Materials", Watched), Fold(train, ()), START, CANDIDATES, SEED, some)
    assert set(asked) == some
