import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offline.infonce import Contest, contest_of, info_nce
from offline.training_data import Deal, TrainingData, UserEvents, batch_of

users = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=8, unique=True), min_size=1, max_size=6)


def data_of(items: list[list[int]], judged: bool) -> TrainingData:
    """Ten items of three personas each; if judged, the last of them explains every choice."""
    eye = np.eye(30, dtype=np.float32)
    found = tuple(_user(np.array(own, np.int64), judged) for own in items)
    return TrainingData("space", eye, np.arange(0, 31, 3), eye[:10], found, 0, 0)


def _user(own: "np.ndarray[tuple[int], np.dtype[np.int64]]", judged: bool) -> UserEvents:
    return UserEvents(own, own, 3 * own + 2 if judged else np.full(len(own), -1), np.ones(len(own), np.float32))


@given(users, st.booleans(), st.integers(0, 99))
def test_no_negative_is_of_an_item_that_the_user_has(items: list[list[int]], judged: bool, seed: int) -> None:
    data = data_of(items, judged)
    batch = batch_of(data, data.users, Deal(0.5, 20, 0.9, 0), np.random.default_rng(seed))
    targets = batch.items[batch.targets]
    positives = 3 * targets + 2 if judged else 3 * targets + seed % 3
    contest = contest_of(data, batch, positives)
    assert len(set(contest.personas.tolist())) == len(contest.personas), "the same persona twice"
    assert contest.personas[contest.positives].tolist() == positives.tolist()
    for query, (profile, item) in enumerate(zip(batch.profiles, targets, strict=True)):
        negatives = set(contest.personas[contest.competing[query]].tolist()) - {int(positives[query])}
        assert contest.competing[query, contest.positives[query]]
        own = {persona for persona in negatives if persona // 3 == item}
        assert own == ({3 * item, 3 * item + 1} if judged else set()), "siblings compete where a judge chose"
        assert not {persona // 3 for persona in negatives - own} & set(items[profile])
        others = {int(p) for p in contest.personas if p // 3 not in items[profile]}
        assert negatives - own == others, "every persona of the others competes"


def test_the_loss_is_that_worked_out_by_hand() -> None:
    profiles = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    personas = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    competing = np.array([[True, True, False], [True, False, True]])
    contest = Contest(np.array([4, 5, 9]), np.array([0, 1]), np.array([0, 2]), competing)
    first = -np.log(np.exp(0.6 / 0.5) / (np.exp(0.6 / 0.5) + np.exp(1.0 / 0.5)))
    second = -np.log(np.exp(1.0 / 0.5) / (np.exp(1.0 / 0.5) + np.exp(0.8 / 0.5)))
    assert info_nce(profiles, personas, contest, 0.5).item() == pytest.approx((first + second) / 2)
