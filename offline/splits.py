"""Held-out interactions: what a ranking is judged by, kept away from everything it is made from."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from offline.dataset import Interaction


@dataclass(frozen=True, slots=True)
class Fold:
    """One split. No pair of `test` is in `train`."""

    train: tuple[Interaction, ...]
    test: tuple[tuple[str, str], ...]
    """Pairs of user and item, each one leave-one-out query."""


def hold_out(interactions: Iterable[Interaction], test: Iterable[tuple[str, str]]) -> Fold:
    """Take the test pairs out of the interactions, wherever they stand in them."""
    pairs = tuple(dict.fromkeys(test))
    held = frozenset(pairs)
    return Fold(tuple(i for i in interactions if (i.user_id, i.item_id) not in held), pairs)


def cross_validation(interactions: Sequence[Interaction], folds: int, seed: int) -> list[Fold]:
    """Deal each user's items evenly over the folds, in random order; every pair is tested once.

    A user with a single item has no history to be judged by, so the pair is trained on in every fold.
    """
    dealt: list[list[tuple[str, str]]] = [[] for _ in range(folds)]
    random = Random(seed)  # noqa: S311 - a split, not a secret
    for user_id, item_ids in _items_by_user(interactions).items():
        random.shuffle(item_ids)
        if len(item_ids) > 1:
            first = random.randrange(folds)
            for place, item_id in enumerate(item_ids, start=first):
                dealt[place % folds].append((user_id, item_id))
    return [hold_out(interactions, pairs) for pairs in dealt]


def _items_by_user(interactions: Iterable[Interaction]) -> dict[str, list[str]]:
    items: dict[str, dict[str, None]] = defaultdict(dict)
    for interaction in interactions:
        items[interaction.user_id][interaction.item_id] = None
    return {user_id: list(of_user) for user_id, of_user in items.items()}
