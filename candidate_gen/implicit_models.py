"""Matrix factorisation by the `implicit` package: ALS and BPR.

ALS: Hu, Koren, Volinsky, *Collaborative Filtering for Implicit Feedback Datasets*, ICDM 2008.
BPR: Rendle et al., *BPR: Bayesian Personalized Ranking from Implicit Feedback*, UAI 2009.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from implicit.recommender_base import ModelFitError
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from candidate_gen import stored
from candidate_gen.errors import CandidateModelError, ConfigurationError
from candidate_gen.generator import Candidates, Source
from candidate_gen.interactions import Interactions

__all__ = ["DEFAULTS", "GRID", "Hyperparameters", "ImplicitGenerator", "Model", "load", "train"]

Model = Literal["als", "bpr"]
Factors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """How to train a model. Raises ConfigurationError for a value out of range."""

    model: Model
    factors: int
    """Length of a user's and an item's vector; >= 1. BPR adds one for the item's bias."""
    iterations: int
    """Passes over the interactions; >= 1."""
    regularization: float
    """Weight of the squared factors in the loss; >= 0. ALS sums its loss over a user's items, BPR counts each sample by
    itself, so their useful values lie two orders of magnitude apart."""
    alpha: float = 1.0
    """ALS alone: confidence in an interaction where its absence has confidence 1; > 0."""
    learning_rate: float = 0.05
    """BPR alone: step of the gradient descent; > 0."""
    seed: int = 0
    """Of the first random factors and of BPR's samples; >= 0. The same seed trains the same model."""

    def __post_init__(self) -> None:
        if self.model not in ("als", "bpr"):
            raise ConfigurationError(f"model is {self.model!r}: choose 'als' or 'bpr'")
        for name, least in (("factors", 1), ("iterations", 1), ("regularization", 0), ("seed", 0)):
            _require(getattr(self, name) >= least, name, getattr(self, name), f">= {least}")
        for name in ("alpha", "learning_rate"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "> 0")


def _require(holds: bool, name: str, value: float, accepted: str) -> None:
    if not holds:
        raise ConfigurationError(f"{name} is {value!r}: choose a value {accepted}")


def _als(factors: int, regularization: float, alpha: float) -> Hyperparameters:
    return Hyperparameters(model="als", factors=factors, iterations=15, regularization=regularization, alpha=alpha)


def _bpr(factors: int, iterations: int, regularization: float, learning_rate: float) -> Hyperparameters:
    return Hyperparameters(
        model="bpr",
        factors=factors,
        iterations=iterations,
        regularization=regularization,
        learning_rate=learning_rate,
    )


GRID: Mapping[Model, tuple[Hyperparameters, ...]] = {
    # Fewer factors and more regularization for sparse data, the opposite for dense. Much regularization with little
    # alpha drives all factors to zero on small data, so the two rise together.
    "als": (_als(32, 10, 5), _als(16, 10, 5), _als(64, 30, 10), _als(128, 30, 10), _als(32, 1, 5), _als(64, 1, 20)),
    # 100 iterations or a step of 0.01 have not converged on tens of thousands of interactions.
    "bpr": (
        _bpr(64, 200, 0.05, 0.05),
        _bpr(32, 200, 0.05, 0.05),
        _bpr(128, 200, 0.05, 0.05),
        _bpr(64, 300, 0.1, 0.02),
        _bpr(64, 200, 0.01, 0.05),
    ),
}
"""The settings worth trying on a validation split; each model's first is its default."""

DEFAULTS: Mapping[Model, Hyperparameters] = {model: settings[0] for model, settings in GRID.items()}
"""Within 0.02 of the best recall@100 on validation splits of a thousand items, twenty interactions a user; the best
settings there were unsound on tiny data (ALS) or half as slow again (BPR)."""


class ImplicitGenerator:
    """A trained model as a `CandidateGenerator`: immutable, so threads may share it."""

    def __init__(
        self, interactions: Interactions, hyperparameters: Hyperparameters, user_factors: Factors, item_factors: Factors
    ) -> None:
        """Take factors of shape (users, width) and (items, width); width is `factors`, for BPR `factors + 1`."""
        self.interactions = interactions
        self.hyperparameters = hyperparameters
        self.user_factors = user_factors
        self.item_factors = item_factors
        self._fold_in = _FOLD_IN[hyperparameters.model](hyperparameters, item_factors)
        self._popularity = np.log1p(interactions.users_per_item).astype(np.float32)

    @property
    def name(self) -> str:
        """The model's name: "als" or "bpr"."""
        return self.hyperparameters.model

    def generate(
        self, user_id: str, n: int, *, history: Sequence[str] = (), exclude: Collection[str] = ()
    ) -> Candidates:
        """Return the n best items for the user, as `CandidateGenerator.generate` says."""
        _require(n >= 1, "n", n, ">= 1")
        row = self.interactions.user_row(user_id)
        recent = self.interactions.item_columns(history)
        scores, source = self._scores(row, recent)
        taken = self.interactions.columns_of(user_id)
        banned = np.concatenate((taken, recent, self.interactions.item_columns(exclude)))
        return Candidates.best(self.interactions.item_ids, scores, banned, n, source)

    def save(self, path: Path) -> None:
        """Write the model to the directory `path`, all or not at all; a model already there is replaced.

        Raises ConfigurationError if `path` holds anything else or cannot be written.
        """
        factors = {"user_factors": self.user_factors, "item_factors": self.item_factors}
        stored.write(
            stored.StoredModel(self.name, asdict(self.hyperparameters), self.interactions, factors),
            path,
        )

    def _scores(self, row: int | None, recent: NDArray[np.intp]) -> tuple[Factors, Source]:
        if row is not None:
            return self.item_factors @ self.user_factors[row], Source.MODEL
        if recent.size:
            return self.item_factors @ self._fold_in(recent), Source.HISTORY
        return self._popularity, Source.POPULAR


def train(interactions: Interactions, hyperparameters: Hyperparameters) -> ImplicitGenerator:
    """Train a model; the same interactions and hyperparameters give the same one on the same machine.

    Raises ConfigurationError if the hyperparameters let the training diverge.
    """
    model = _untrained(hyperparameters)
    try:
        with threadpool_limits(1, "blas"):
            model.fit(interactions.matrix, show_progress=False)
    except ModelFitError as error:
        raise ConfigurationError(
            f"training diverged with {hyperparameters}: lower learning_rate or raise regularization"
        ) from error
    return ImplicitGenerator(interactions, hyperparameters, model.user_factors, model.item_factors)


def load(path: Path) -> ImplicitGenerator:
    """Load what `ImplicitGenerator.save` wrote.

    Raises CandidateModelError, naming path and cause, if it is missing, torn or of another format.
    """
    saved = stored.read(path)
    if saved.model not in GRID:
        raise CandidateModelError(f"candidate model {path} is of kind {saved.model!r}: name one of {', '.join(GRID)}")
    try:
        hyperparameters = TypeAdapter(Hyperparameters).validate_python(saved.hyperparameters)
    except (ValueError, ConfigurationError) as error:
        raise CandidateModelError(f"candidate model {path} has unusable hyperparameters: {error}") from error
    return ImplicitGenerator(
        saved.interactions, hyperparameters, saved.arrays["user_factors"], saved.arrays["item_factors"]
    )


def _untrained(hyperparameters: Hyperparameters) -> Any:
    shared = {
        "factors": hyperparameters.factors,
        "iterations": hyperparameters.iterations,
        "regularization": hyperparameters.regularization,
        "random_state": hyperparameters.seed,
        "use_gpu": False,
    }
    if hyperparameters.model == "bpr":
        # Threads would race on the shared factors, and no two trainings be equal.
        return BayesianPersonalizedRanking(learning_rate=hyperparameters.learning_rate, num_threads=1, **shared)
    # implicit's ALS brings its own threads, and warns where BLAS would add others.
    with threadpool_limits(1, "blas"):
        return AlternatingLeastSquares(alpha=hyperparameters.alpha, **shared)


FoldIn = Callable[[NDArray[np.intp]], Factors]
"""From the columns of a history's items, shape (n,) and n >= 1, to a user vector of shape (width,)."""


def _als_fold_in(hyperparameters: Hyperparameters, item_factors: Factors) -> FoldIn:
    """Solve for the user whose items these are, items held fixed: Hu et al. 2008, eq. 4."""
    model = _untrained(hyperparameters)
    model.item_factors = item_factors
    model.num_threads = 1  # one user is too little work to share
    with threadpool_limits(1, "blas"):
        _ = model.YtY  # computed once and kept by implicit: not by the first request

    def fold_in(columns: NDArray[np.intp]) -> Factors:
        ones = np.ones(len(columns), dtype=np.float32)
        row = csr_matrix((ones, columns.astype(np.int32), [0, len(columns)]), shape=(1, len(item_factors)))
        vector: Factors = model.recalculate_user(0, row)
        return vector

    return fold_in


def _bpr_fold_in(_: Hyperparameters, item_factors: Factors) -> FoldIn:
    """Take the mean of the items' factors: BPR has no closed form for a user."""

    def fold_in(columns: NDArray[np.intp]) -> Factors:
        vector: Factors = item_factors[columns].mean(axis=0)
        vector[-1] = 1.0  # multiplies the items' bias, and is 1 for every trained user
        return vector

    return fold_in


_FOLD_IN: Mapping[Model, Callable[[Hyperparameters, Factors], FoldIn]] = {"als": _als_fold_in, "bpr": _bpr_fold_in}
