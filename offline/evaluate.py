"""Judge the reranker on held-out interactions: generator, personas alone, fused, and a control that must lose the gain.

Lists are ranked by the functions the server ranks with, over the vectors that publishing would store.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from candidate_gen.generator import CandidateGenerator
from candidate_gen.implicit_models import Hyperparameters, train
from candidate_gen.interactions import Interactions
from offline.adapter import Adapter
from offline.dataset import Dataset
from offline.encoder import Embedder
from offline.errors import ConfigurationError
from offline.histories import AspectVectors, aspect_vectors, events_by_user
from offline.measures import Comparison, Measured, Query, Values, compare, measure, summarise
from offline.publish import Document, documents, embed
from offline.splits import Fold
from reranker.feedback import ORDINARY, Feedback
from reranker.index import Index, Places, build_index
from reranker.profile import build_profile
from reranker.records import Event, Vector
from reranker.scoring import Scores, rerank

RANKERS = ("generator", "persona", "fused", "shuffled")


@dataclass(frozen=True, slots=True)
class Choice:
    """Everything that may be tuned. Raises ConfigurationError for a weight or a decay out of range, NaN included."""

    hyperparameters: Hyperparameters
    weight: float
    """Of the persona score in the fused score, 0 to 1."""
    gamma: float
    """Decay of the profile (eq. 7)."""
    history_length: int
    """Events that make the profile (L in eq. 4)."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ConfigurationError(f"weight is {self.weight}: choose a share from 0 to 1")
        if not 0 < self.gamma <= 1:
            raise ConfigurationError(f"gamma is {self.gamma}: choose a decay above 0, up to 1")


@dataclass(frozen=True, slots=True)
class Shortlist:
    """What a user's queries of one fold have in common: the candidates and the history."""

    user_id: str
    targets: tuple[str, ...]
    """Held-out items, one a query."""
    item_ids: tuple[str, ...]
    """Candidates, best first."""
    scores: Scores
    places: Places
    """Of the candidates in the index."""
    target_places: tuple[int, ...]
    """Where each target stands among the candidates; -1: it does not."""
    events: tuple[Event, ...]
    """The user's training interactions, newest first."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found, and what it was found on."""

    measured: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]
    """Each ranker against the generator, and those of each variant against the same without it."""
    ceiling: float
    """Share of queries whose item is among the candidates at all: no reranker's HR can exceed it."""
    queries: int
    users: int
    choices: tuple[Choice, ...]
    """Of each fold."""
    variant_choices: tuple[tuple[str, tuple[Choice, ...]], ...] = ()
    """By name of each variant."""


@dataclass(frozen=True, slots=True)
class Materials:
    """What every fold shares: the index, what reviews said, and what events weigh."""

    index: Index
    aspects: AspectVectors
    feedback: Feedback = ORDINARY

    def shortlists(self, fold: Fold, generator: CandidateGenerator, candidates: int) -> Iterator[Shortlist]:
        """Generate each test user's candidates from the fold's training interactions."""
        histories = events_by_user(fold.train, self.aspects, self.index.space)
        for user_id, targets in _targets(fold.test).items():
            generated = generator.generate(user_id, candidates)
            events = tuple(histories.get(user_id, ()))
            places = {item_id: place for place, item_id in enumerate(generated.item_ids)}
            yield Shortlist(
                user_id=user_id,
                targets=targets,
                item_ids=generated.item_ids,
                scores=generated.scores,
                places=self.index.locate(generated.item_ids),
                target_places=tuple(places.get(target, -1) for target in targets),
                events=events,
            )


Prepare = Callable[[Fold, Choice], tuple[Materials, Choice]]
"""From a fold's training interactions (its `train`, no more) and the choice made without the variant, the variant's."""


@dataclass(frozen=True, slots=True)
class Variant:
    """The same candidates ranked by other vectors, as the rankers `persona+NAME`, `fused+NAME` and `shuffled+NAME`."""

    name: str
    prepare: Prepare


def adapted(materials: Materials, adapter: Adapter) -> Materials:
    """Return the materials as an encoder with this adapter would have made them. Raises EmbeddingSpaceError."""
    adapter.require_space(materials.index.space)
    segment = materials.index.single
    arrays = replace(
        segment.arrays,
        vectors=adapter.personas(segment.arrays.vectors),
        interactions=adapter.interactions(segment.arrays.interactions),
    )
    index = replace(materials.index, segments=(replace(segment, space=adapter.space, arrays=arrays),))
    pairs = list(materials.aspects)
    said = adapter.interactions(np.stack([materials.aspects[pair] for pair in pairs])) if pairs else ()
    return replace(materials, index=index, aspects=dict(zip(pairs, said, strict=True)))


def materials_of(dataset: Dataset, encoder: Embedder, feedback: Feedback = ORDINARY) -> Materials:
    """Embed a dataset's catalogue and what its reviews said."""
    found = documents(dataset)
    return Materials(evaluation_index(found, encoder), aspect_vectors(dataset, found, encoder), feedback)


def evaluation_index(found: Sequence[Document], encoder: Embedder) -> Index:
    """Embed a catalogue as publishing would, without a Milvus."""
    return build_index("evaluation", encoder.space, encoder.dimension, embed(found, encoder, 0))


def evaluate(
    materials: Materials,
    folds: Sequence[Fold],
    choose: Callable[[Fold], Choice],
    *,
    candidates: int,
    ks: Sequence[int],
    seed: int,
    variants: Sequence[Variant] = (),
    report: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Rank every query of every fold by every ranker and measure.

    choose: returns the settings of a fold and sees nothing but the fold's training interactions (its `train`).
    variants: judged beside, on the same candidates; they too are prepared from training interactions alone.
    report: told what is being done.
    Raises ConfigurationError if the held-out pairs are of fewer than two users.
    """
    _require_users(folds)
    rankings: dict[str, dict[Query, list[str]]] = defaultdict(dict)
    choices: dict[str, list[Choice]] = defaultdict(list)
    for number, fold in enumerate(folds, start=1):
        which = f"fold {number} of {len(folds)}: " if len(folds) > 1 else ""
        for suffix, prepared, choice in _prepared(materials, fold, choose, variants, _prefixed(report, which)):
            choices[suffix].append(choice)
            report(f"{which}ranking{suffix and ' with '}{suffix[1:]}")
            for ranker, query, items in _ranked(prepared, fold, choice, candidates, seed):
                rankings[ranker if ranker == RANKERS[0] else ranker + suffix][query] = items
    report("measuring")
    return _evaluation(rankings, choices, ks, seed)


def _prefixed(report: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda told: report(prefix + told)


def _prepared(
    materials: Materials,
    fold: Fold,
    choose: Callable[[Fold], Choice],
    variants: Sequence[Variant],
    report: Callable[[str], None],
) -> Iterator[tuple[str, Materials, Choice]]:
    """Yield what to rank a fold with: first as it is, then each variant, named by the suffix of its rankers."""
    seen = Fold(fold.train, ())
    report("choosing settings")
    choice = choose(seen)
    yield "", materials, choice
    for variant in variants:
        report(f"preparing {variant.name}")
        yield f"+{variant.name}", *variant.prepare(seen, choice)


def _require_users(folds: Sequence[Fold]) -> None:
    users = {user_id for fold in folds for user_id, _ in fold.test}
    if len(users) < 2:
        raise ConfigurationError(
            f"held out are interactions of {len(users)} users: intervals and tests compare users, so hold out those "
            "of two at least. Cross-validation takes users who like two items or more; [feedback] of the server's "
            "settings says which ratings speak against an item"
        )


def trained(fold: Fold, hyperparameters: Hyperparameters) -> CandidateGenerator:
    """Train a generator on a fold's training interactions, liked or not, as `persona4rec candidates train` does."""
    return train(Interactions.from_pairs((i.user_id, i.item_id) for i in fold.train), hyperparameters)


def profile_of(shortlist: Shortlist, materials: Materials, choice: Choice) -> Vector | None:
    """Return the user's profile as the server would make it."""
    events = shortlist.events[: choice.history_length]
    return build_profile(events, materials.index, choice.gamma, materials.feedback).vector


def _ranked(
    materials: Materials, fold: Fold, choice: Choice, candidates: int, seed: int
) -> Iterator[tuple[str, Query, list[str]]]:
    dealt = _derangement(materials.index.item_count, seed)
    generator = trained(fold, choice.hyperparameters)
    for shortlist in materials.shortlists(fold, generator, candidates):
        orders = _orders(shortlist, materials, choice, dealt)
        for ranker, order in zip(RANKERS, orders, strict=True):
            items = [shortlist.item_ids[place] for place in order]
            for target in shortlist.targets:
                yield ranker, (shortlist.user_id, target), items


def _orders(
    shortlist: Shortlist, materials: Materials, choice: Choice, dealt: NDArray[np.int64]
) -> tuple[NDArray[np.int64], ...]:
    index, profile = materials.index, profile_of(shortlist, materials, choice)
    # An evaluation's index has one segment, in which every item's row is its number.
    wrong = Places(shortlist.places.segments, dealt[shortlist.places.rows])
    return (
        np.arange(len(shortlist.item_ids)),
        rerank(index, profile, shortlist.places, shortlist.scores, 1.0).order,
        rerank(index, profile, shortlist.places, shortlist.scores, choice.weight).order,
        rerank(index, profile, wrong, shortlist.scores, choice.weight).order,
    )


def _derangement(n: int, seed: int) -> NDArray[np.int64]:
    """Return a permutation in which nothing stays in its place: the control deals each item another's personas."""
    order = np.random.default_rng(seed).permutation(n)
    dealt = np.empty(n, np.int64)
    dealt[order] = np.roll(order, 1)
    return dealt


def _targets(test: Iterable[tuple[str, str]]) -> Mapping[str, tuple[str, ...]]:
    targets: dict[str, list[str]] = defaultdict(list)
    for user_id, item_id in test:
        targets[user_id].append(item_id)
    return {user_id: tuple(item_ids) for user_id, item_ids in targets.items()}


def _evaluation(
    rankings: Mapping[str, Mapping[Query, Sequence[str]]],
    choices: Mapping[str, Sequence[Choice]],
    ks: Sequence[int],
    seed: int,
) -> Evaluation:
    values: dict[str, Values] = {ranker: measure(of_ranker, ks) for ranker, of_ranker in rankings.items()}
    lists = rankings["generator"]
    return Evaluation(
        measured=tuple(m for ranker, of_ranker in values.items() for m in summarise(ranker, of_ranker, seed)),
        comparisons=tuple(
            c
            for ranker, against in _compared(list(values))
            for c in compare(ranker, values[ranker], against, values[against], seed)
        ),
        ceiling=float(np.mean([item_id in items for (_, item_id), items in lists.items()])),
        queries=len(lists),
        users=len({user_id for user_id, _ in lists}),
        choices=tuple(choices[""]),
        variant_choices=tuple((suffix[1:], tuple(chosen)) for suffix, chosen in choices.items() if suffix),
    )


def _compared(rankers: Sequence[str]) -> Iterator[tuple[str, str]]:
    for ranker in rankers[1:]:
        yield ranker, "generator"
    for ranker in rankers:
        plain, plus, _ = ranker.partition("+")
        if plus:
            yield ranker, plain
