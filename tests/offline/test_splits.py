from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from offline.records import Interaction
from offline.splits import cross_validation, hold_out
from reranker.feedback import Feedback

ids = st.sampled_from("abcdef")
ratings = st.sampled_from([None, 1.0, 2.5, 3.0, 5.0])
interactions = st.lists(st.builds(Interaction, ids, ids, ratings, st.none() | st.integers(0, 9)), max_size=40)
pairs = st.lists(st.tuples(ids, ids))
folds = st.integers(2, 5)
seeds = st.integers(0, 99)


def pair(interaction: Interaction) -> tuple[str, str]:
    return interaction.user_id, interaction.item_id


def liked(found: list[Interaction]) -> set[tuple[str, str]]:
    """Those that some interaction does not speak against."""
    return {pair(interaction) for interaction in found if not 1 <= (interaction.rating or 5) < 3}


@given(interactions, pairs)
def test_held_out_pairs_are_gone_and_nothing_else_is(found: list[Interaction], test: list[tuple[str, str]]) -> None:
    fold = hold_out(found, iter(test))
    assert list(fold.train) == [interaction for interaction in found if pair(interaction) not in test]
    disliked = set(map(pair, found)) - liked(found)
    assert list(fold.test) == [one for one in dict.fromkeys(test) if one not in disliked]


@given(interactions, folds, seeds)
def test_no_pair_is_tested_and_trained_on(found: list[Interaction], n: int, seed: int) -> None:
    for fold in cross_validation(found, n, seed):
        assert not {pair(interaction) for interaction in fold.train} & set(fold.test)
        # However often a pair is there, it goes as one.
        assert len(fold.train) == sum(pair(interaction) not in fold.test for interaction in found)


@given(interactions, folds, seeds)
def test_every_pair_of_a_user_who_likes_several_items_is_tested_once(
    found: list[Interaction], n: int, seed: int
) -> None:
    distinct = liked(found)
    items = Counter(user_id for user_id, _ in distinct)
    tested = Counter(tested for fold in cross_validation(found, n, seed) for tested in fold.test)
    assert tested == Counter(one for one in distinct if items[one[0]] > 1)


@given(interactions, folds, seeds)
def test_a_users_items_are_dealt_evenly(found: list[Interaction], n: int, seed: int) -> None:
    dealt = [Counter(user_id for user_id, _ in fold.test) for fold in cross_validation(found, n, seed)]
    for user_id in {interaction.user_id for interaction in found}:
        counts = [of_fold[user_id] for of_fold in dealt]
        assert max(counts) - min(counts) <= 1


@given(interactions, folds, seeds)
def test_the_same_seed_makes_the_same_folds(found: list[Interaction], n: int, seed: int) -> None:
    assert cross_validation(found, n, seed) == cross_validation(found, n, seed)


def test_another_seed_makes_other_folds() -> None:
    found = [Interaction(user_id, item_id) for user_id in "abcdef" for item_id in "abcdef"]
    assert len({tuple(fold.test for fold in cross_validation(found, 3, seed)) for seed in range(5)}) == 5


def test_every_user_keeps_a_history_to_be_judged_by() -> None:
    found = [Interaction("u", item_id) for item_id in "ab"]
    for fold in cross_validation(found, 2, 0):
        assert len(fold.train) == len(fold.test) == 1


def test_what_a_scale_means_is_said_by_the_settings() -> None:
    """Of a scale of 0 and 1, what was bought is no dislike."""
    bought = [Interaction("u", item_id, 1.0) for item_id in "ab"]
    assert [fold.test for fold in cross_validation(bought, 2, 0)] == [(), ()]
    ours = Feedback.model_construct(disliked_ratings=(0.0, 0.5))
    assert sum(len(fold.test) for fold in cross_validation(bought, 2, 0, ours)) == 2
    assert hold_out(bought, [("u", "a")], ours).test == (("u", "a"),)
