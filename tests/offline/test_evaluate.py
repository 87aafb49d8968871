from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candidate_gen.implicit_models import DEFAULTS, Hyperparameters, ImplicitGenerator, train
from candidate_gen.interactions import Interactions
from offline.errors import ConfigurationError
from offline.evaluate import (
    RANKERS,
    Choice,
    Evaluation,
    Materials,
    Shortlist,
    _derangement,
    evaluate,
    evaluation_index,
    trained,
)
from offline.publish import Document
from offline.records import Interaction, Item
from offline.splits import Fold, cross_validation, hold_out
from offline.vector_cache import CachedEncoder
from reranker.feedback import Feedback
from reranker.index import Index
from reranker.profile import Profile, build_profile
from reranker.records import Event

# Shorter than most histories of the demo's readers, so that its length shows.
CHOICE = Choice(DEFAULTS["als"], weight=0.5, gamma=0.9, history_length=3)
CANDIDATES = 40
PLANTED = "held-out-book-of-nobody-else"


def figures(evaluation: Evaluation) -> dict[tuple[str, str, int], float]:
    return {(m.ranker, m.metric, m.k): m.value for m in evaluation.measured}


@pytest.fixture(scope="module")
def folds(interactions: tuple[Interaction, ...]) -> list[Fold]:
    return cross_validation(interactions, 3, seed=0)


@pytest.fixture(scope="module")
def evaluated(materials: Materials, folds: list[Fold]) -> Evaluation:
    return evaluate(materials, folds, lambda _: CHOICE, candidates=CANDIDATES, ks=[5, 10], seed=0)


# ---- what is tested stays unseen -------------------------------------------------------------------------------------


@pytest.fixture
def planted(interactions: tuple[Interaction, ...]) -> Fold:
    """A fold whose test pairs hold a book that one reader alone has, as the newest interaction."""
    last = max(interaction.timestamp or 0 for interaction in interactions)
    test = [("ada", PLANTED), ("hana", "emma")]
    found = (Interaction("ada", PLANTED, 5, last + 1), *interactions, Interaction("ada", PLANTED, 5, last + 2))
    return hold_out(found, test)


@pytest.fixture
def unique_book(materials: Materials, books: tuple[Document, ...], encoder: CachedEncoder) -> Materials:
    """The catalogue with that book in it, and with what the reader said of it."""
    book = Document(Item(PLANTED, "A Book of Nobody Else"), "A unique book.", ())
    vector = encoder.encode(["A Book of Nobody Else, unlike any other."])[0]
    return Materials(evaluation_index([*books, book], encoder), {**materials.aspects, ("ada", PLANTED): vector})


def test_held_out_interactions_reach_neither_generator_nor_profile_nor_choice(
    unique_book: Materials, planted: Fold, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: list[Interactions] = []
    profiled: list[Event] = []
    chosen_on: list[Fold] = []

    def watched_train(found: Interactions, hyperparameters: Hyperparameters) -> ImplicitGenerator:
        trained_on.append(found)
        return train(found, hyperparameters)

    def watched_profile(events: tuple[Event, ...], index: Index, gamma: float, feedback: Feedback) -> Profile:
        profiled.extend(events)
        return build_profile(events, index, gamma, feedback)

    def choose(fold: Fold) -> Choice:
        chosen_on.append(fold)
        return CHOICE

    monkeypatch.setattr("offline.evaluate.train", watched_train)
    monkeypatch.setattr("offline.evaluate.build_profile", watched_profile)
    evaluate(unique_book, [planted], choose, candidates=CANDIDATES, ks=[5], seed=0)

    (found,), (fold,) = trained_on, chosen_on
    assert found.item_column(PLANTED) is None
    assert found.matrix.nnz == len({(i.user_id, i.item_id) for i in planted.train})
    assert profiled
    assert PLANTED not in {event.item_id for event in profiled}
    assert fold.test == ()
    assert PLANTED not in {interaction.item_id for interaction in fold.train}


def test_no_test_item_is_in_its_readers_history_nor_a_training_item_among_the_candidates(
    materials: Materials, folds: list[Fold]
) -> None:
    for fold in folds:
        history: dict[str, set[str]] = {}
        for interaction in fold.train:
            history.setdefault(interaction.user_id, set()).add(interaction.item_id)
        for shortlist in materials.shortlists(fold, trained(fold, CHOICE.hyperparameters), CANDIDATES):
            assert {event.item_id for event in shortlist.events} == history[shortlist.user_id]
            assert not history[shortlist.user_id] & {*shortlist.targets, *shortlist.item_ids}


def test_candidates_do_not_depend_on_what_is_held_out(materials: Materials, folds: list[Fold]) -> None:
    """Told of other test items, the same training gives the same lists, histories and scores."""

    def shortlists(fold: Fold) -> Iterator[Shortlist]:
        return materials.shortlists(fold, trained(fold, CHOICE.hyperparameters), CANDIDATES)

    fold = folds[0]
    users = dict.fromkeys(user_id for user_id, _ in fold.test)
    for one, other in zip(
        shortlists(fold), shortlists(Fold(fold.train, tuple((user_id, PLANTED) for user_id in users))), strict=True
    ):
        assert (one.user_id, one.item_ids, one.events) == (other.user_id, other.item_ids, other.events)
        assert one.scores.tolist() == other.scores.tolist()
        assert set(other.target_places) == {-1}


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_every_ranker_is_measured_at_every_cut_off(evaluated: Evaluation, folds: list[Fold]) -> None:
    assert set(figures(evaluated)) == {(r, m, k) for r in RANKERS for m in ("HR", "MRR", "NDCG") for k in (5, 10)}
    assert evaluated.queries == sum(len(fold.test) for fold in folds)
    assert evaluated.users == len({user_id for fold in folds for user_id, _ in fold.test})
    assert evaluated.choices == (CHOICE,) * len(folds)
    assert {(c.ranker, c.against) for c in evaluated.comparisons} == {(r, "generator") for r in RANKERS[1:]}


def test_no_hit_rate_exceeds_the_ceiling(materials: Materials, folds: list[Fold]) -> None:
    short = evaluate(materials, folds, lambda _: CHOICE, candidates=15, ks=[15], seed=0)
    assert 0 < short.ceiling < 1
    for ranker in RANKERS:
        # The whole shortlist counts, so every ranker reaches it and none can exceed it.
        assert figures(short)[ranker, "HR", 15] == pytest.approx(short.ceiling)


def test_shuffled_personas_lose_what_personas_gain(
    evaluated: Evaluation, materials: Materials, folds: list[Fold]
) -> None:
    found = figures(evaluated)
    for metric in ("HR", "MRR", "NDCG"):
        assert found["shuffled", metric, 10] < found["fused", metric, 10]
    surely_worse = {(c.metric, c.k) for c in evaluated.comparisons if c.ranker == "shuffled" and c.p < 0.05}
    assert ("NDCG", 10) in surely_worse
    alone = evaluate(materials, folds, lambda _: replace(CHOICE, weight=1.0), candidates=CANDIDATES, ks=[10], seed=0)
    personas = {m.ranker: m for m in alone.measured if m.metric == "NDCG"}
    assert personas["fused"].value == personas["persona"].value
    assert personas["shuffled"].high < personas["persona"].low


def test_with_no_weight_nothing_is_reranked(materials: Materials, folds: list[Fold]) -> None:
    generator = evaluate(materials, folds, lambda _: replace(CHOICE, weight=0.0), candidates=20, ks=[10], seed=0)
    for metric in ("HR", "MRR", "NDCG"):
        values = {ranker: figures(generator)[ranker, metric, 10] for ranker in ("generator", "fused", "shuffled")}
        assert len(set(values.values())) == 1, values


def test_the_same_seed_gives_the_same_figures_and_another_gives_others(
    evaluated: Evaluation, materials: Materials, folds: list[Fold]
) -> None:
    def again(seed: int) -> Evaluation:
        return evaluate(materials, folds, lambda _: CHOICE, candidates=CANDIDATES, ks=[5, 10], seed=seed)

    assert again(0) == evaluated
    other = figures(again(1))
    assert {key for key, value in figures(evaluated).items() if value != other[key]} == {
        key for key in other if key[0] == "shuffled"
    }


def test_each_fold_is_ranked_with_its_own_choice(materials: Materials, folds: list[Fold]) -> None:
    weights = iter([0.0, 0.3, 1.0])
    found = evaluate(materials, folds, lambda _: replace(CHOICE, weight=next(weights)), candidates=20, ks=[5], seed=0)
    assert [choice.weight for choice in found.choices] == [0.0, 0.3, 1.0]


@pytest.mark.parametrize("test", [(), (("ada", "emma"), ("ada", "dracula"))])
def test_less_than_two_users_cannot_be_compared(
    test: tuple[tuple[str, str], ...], materials: Materials, interactions: tuple[Interaction, ...]
) -> None:
    with pytest.raises(ConfigurationError, match=f"interactions of {len(test) // 2} users: .* two at least"):
        evaluate(materials, [hold_out(interactions, test)], lambda _: CHOICE, candidates=20, ks=[5], seed=0)


# ---- the rankers, worked out by hand ---------------------------------------------------------------------------------


def standardised(scores: list[float]) -> list[float]:
    mean = sum(scores) / len(scores)
    spread = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
    return [(score - mean) / spread for score in scores]


def ranks_by_hand(shortlist: Shortlist, materials: Materials, seed: int) -> dict[str, int]:
    """Work out the rank of the one held-out item by each ranker: eq. 4 to 10 one number at a time."""
    index, aspects, arrays = materials.index, materials.aspects, materials.index.single.arrays
    profile = np.zeros(index.dimension)
    liked = [e for e in shortlist.events[: CHOICE.history_length] if e.rating is None or e.rating >= 3]
    for age, event in enumerate(liked):
        vector = aspects.get((shortlist.user_id, event.item_id))
        if vector is None:
            vector = arrays.interactions[index.locate([event.item_id]).rows[0]]
        profile += CHOICE.gamma**age * vector.astype(float)

    def best(row: int) -> float:
        personas = arrays.vectors[arrays.offsets[row] : arrays.offsets[row + 1]].astype(float)
        return max(float(persona @ profile) for persona in personas) / float(np.linalg.norm(profile))

    def rank(scores: list[float]) -> int:
        mine = scores[shortlist.item_ids.index(shortlist.targets[0])]
        return 1 + sum(score > mine for score in scores)

    dealt = _derangement(index.item_count, seed)
    rows = index.locate(shortlist.item_ids).rows.tolist()
    first = standardised(shortlist.scores.astype(float).tolist())
    right, wrong = ([best(row) for row in of] for of in (rows, [int(dealt[row]) for row in rows]))

    def fused(personas: list[float]) -> list[float]:
        return [
            CHOICE.weight * persona + (1 - CHOICE.weight) * score
            for persona, score in zip(standardised(personas), first, strict=True)
        ]

    return {
        "generator": rank(first),
        "persona": rank(right),
        "fused": rank(fused(right)),
        "shuffled": rank(fused(wrong)),
    }


def test_the_rankers_are_those_worked_out_by_hand(materials: Materials, interactions: tuple[Interaction, ...]) -> None:
    fold = hold_out(interactions, [("hana", "emma"), ("kofi", "middlemarch"), ("priya", "the-moonstone")])
    shortlists = list(materials.shortlists(fold, trained(fold, CHOICE.hyperparameters), 30))
    by_hand = [
        ranks_by_hand(shortlist, materials, seed=5) for shortlist in shortlists if shortlist.target_places[0] >= 0
    ]
    assert len(by_hand) > 1
    assert len({tuple(ranks.values()) for ranks in by_hand}) > 1
    found = figures(evaluate(materials, [fold], lambda _: CHOICE, candidates=30, ks=[30], seed=5))
    for ranker in RANKERS:
        expected = sum(1 / ranks[ranker] for ranks in by_hand) / len(shortlists)
        assert found[ranker, "MRR", 30] == pytest.approx(expected), ranker


@given(st.integers(2, 300), st.integers(0, 99))
def test_the_control_deals_every_item_anothers_personas(n: int, seed: int) -> None:
    dealt = _derangement(n, seed)
    assert sorted(dealt.tolist()) == list(range(n))
    assert (dealt != np.arange(n)).all()
    assert (dealt == _derangement(n, seed)).all()


@pytest.mark.parametrize("name", ["weight", "gamma"])
@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.1])
def test_a_choice_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is {value}"):
        replace(CHOICE, **{name: value})  # type: ignore[arg-type]  # only the two numbers are meant
