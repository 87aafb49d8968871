"""Held-out interactions: what a ranking is judged by, kept away from everything it is made from."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from offline.dataset import Interaction
from reranker.feedback import ORDINARY, Feedback


@dataclass(frozen=True, slots=True)
class Fold:
    """One split. No pair of `test` is in `train`."""

    train: tuple[Interaction, ...]
    test: tuple[tuple[str, str], ...]
    """Pairs of user and item, each one leave-one-out query."""


def hold_out(
    interactions: Sequence[Interaction], test: Iterable[tuple[str, str]], feedback: Feedback = ORDINARY
) -> Fold:
    """Take the test pairs out of the interactions, wherever they stand in them.

    Of those that the interactions only speak against none is a query: a ranking that has them low down is right.
    """
    held = dict.fromkeys(test)
    train = tuple(i for i in interactions if (i.user_id, i.item_id) not in held)
    disliked = _disliked(interactions, feedback)
    return Fold(train, tuple(pair for pair in held if pair not in disliked))


def cross_validation(
    interactions: Sequence[Interaction], folds: int, seed: int, feedback: Feedback = ORDINARY
) -> list[Fold]:
    """Deal each user's liked items evenly over the folds, in random order; every such pair is tested once.

    A user who likes a single item has no history to be judged by, so the pair is trained on in every fold, as are all
    pairs that the interactions only speak against.
    """
    dealt: list[list[tuple[str, str]]] = [[] for _ in range(folds)]
    random = Random(seed)  # noqa: S311 - a split, not a secret
    disliked = _disliked(interactions, feedback)
    liked = (i for i in interactions if (i.user_id, i.item_id) not in disliked)
    for user_id, item_ids in _items_by_user(liked).items():
        random.shuffle(item_ids)
        if len(item_ids) > 1:
            first = random.randrange(folds)
            for place, item_id in enumerate(item_ids, start=first):
                dealt[place % folds].append((user_id, item_id))
    return [hold_out(interactions, pairs, feedback) for pairs in dealt]


def _disliked(interactions: Iterable[Interaction], feedback: Feedback) -> set[tuple[str, str]]:
    """Return the pairs of user and item that some interaction speaks against, and none for."""
    pairs: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
    for interaction in interactions:
        pairs[feedback.dislikes(interaction.rating)].add((interaction.user_id, interaction.item_id))
    return pairs[True] - pairs[False]


def _items_by_user(interactions: Iterable[Interaction]) -> dict[str, list[str]]:
    items: dict[str, dict[str, None]] = defaultdict(dict)
    for interaction in interactions:
        items[interaction.user_id][interaction.item_id] = None
    return {user_id: list(of_user) for user_id, of_user in items.items()}
