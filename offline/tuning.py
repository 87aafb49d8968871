"""Choose settings by cross-validation within training interactions; held-out pairs are never seen here."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from candidate_gen.implicit_models import GRID, Hyperparameters
from offline.evaluate import Choice, Materials, Shortlist, profile_of, trained
from offline.measures import ndcg_of_ranks
from offline.splits import Fold, cross_validation
from reranker.feedback import ORDINARY, Feedback
from reranker.scoring import Scores, best_of_index, fuse

# Three folds leave each model two thirds of the interactions; more folds cost more and chose the same.
FOLDS = 3
# Settings are compared at one cut-off, the usual length of a shown list.
CUT_OFF = 10

WEIGHTS = tuple(np.linspace(0.0, 1.0, 11).round(1).tolist())
GAMMAS = (0.8, 0.9, 1.0)
HISTORY_LENGTHS = (5, 10, 20, 50)


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best choice and how it did within training."""

    choice: Choice
    ndcg: float


def tune(materials: Materials, fold: Fold, start: Choice, candidates: int, seed: int) -> Tuned:
    """Choose the generator by its own NDCG first, so that the gain is over a strong one; then profile and weight.

    `fold.test` is not read. Ties go to the earlier of GAMMAS, HISTORY_LENGTHS and WEIGHTS.
    """
    inner = cross_validation(fold.train, FOLDS, seed, materials.feedback)
    hyperparameters = _best_generator(materials, inner, start.hyperparameters, candidates)
    start = replace(start, hyperparameters=hyperparameters)
    return tune_profile(lambda _: materials, fold, start, candidates, seed, feedback=materials.feedback)


def tune_profile(
    prepare: Callable[[Fold], Materials],
    fold: Fold,
    start: Choice,
    candidates: int,
    seed: int,
    users: Collection[str] | None = None,
    feedback: Feedback = ORDINARY,
) -> Tuned:
    """Choose profile and weight for the generator of `start`.

    prepare: returns the materials of an inner fold, made of its training interactions alone: vectors that were trained
    on what the weight is chosen by would seem better than they are.
    users: the choice is made by their queries alone; None: by everybody's.
    feedback: that of the materials.
    """
    inner = [_asked_by(users, f) for f in cross_validation(fold.train, FOLDS, seed, feedback)]
    found = [ranked for f in inner for ranked in _shortlists(prepare(Fold(f.train, ())), f, start, candidates)]
    tuned = [
        tuned
        for gamma, length in product(GAMMAS, HISTORY_LENGTHS)
        for tuned in _weighed(found, replace(start, weight=0.0, gamma=gamma, history_length=length))
    ]
    return max(tuned, key=lambda candidate: candidate.ndcg)


def _asked_by(users: Collection[str] | None, fold: Fold) -> Fold:
    return fold if users is None else Fold(fold.train, tuple(pair for pair in fold.test if pair[0] in users))


def _shortlists(
    materials: Materials, fold: Fold, choice: Choice, candidates: int
) -> Iterator[tuple[Materials, Shortlist]]:
    for shortlist in materials.shortlists(fold, trained(fold, choice.hyperparameters), candidates):
        yield materials, shortlist


def _best_generator(
    materials: Materials, inner: Sequence[Fold], start: Hyperparameters, candidates: int
) -> Hyperparameters:
    def ndcg(hyperparameters: Hyperparameters) -> float:
        lists = (s for fold in inner for s in materials.shortlists(fold, trained(fold, hyperparameters), candidates))
        return ndcg_of_ranks((rank for s in lists for rank in _ranks(s, s.scores)), CUT_OFF)

    return max(GRID[start.model], key=ndcg)


def _weighed(found: Sequence[tuple[Materials, Shortlist]], choice: Choice) -> Iterator[Tuned]:
    """Judge every weight; similarities are computed once, since the weight does not touch them."""
    scored = [(shortlist, _persona_scores(shortlist, materials, choice)) for materials, shortlist in found]
    for weight in WEIGHTS:
        ranks = (rank for s, persona in scored for rank in _ranks(s, fuse(persona, s.scores, weight)))
        yield Tuned(replace(choice, weight=weight), ndcg_of_ranks(ranks, CUT_OFF))


def _persona_scores(shortlist: Shortlist, materials: Materials, choice: Choice) -> Scores:
    profile = profile_of(shortlist, materials, choice)
    if profile is None:
        return np.full(len(shortlist.item_ids), np.nan, np.float32)
    return best_of_index(materials.index, profile, shortlist.places)[0]


def _ranks(shortlist: Shortlist, scores: Scores) -> list[int]:
    """Return the rank of each held-out item by these scores, from 1; beyond the cut-off if it is not a candidate."""
    ranks = np.empty(len(scores), np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    places = shortlist.target_places
    return [int(ranks[place]) if place >= 0 else CUT_OFF + 1 for place in places]
