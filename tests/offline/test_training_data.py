from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.evaluate import Materials
from offline.histories import events_by_user
from offline.records import Alignment, Interaction
from offline.splits import cross_validation
from offline.training_data import Deal, TrainingData, UserEvents, batch_of, training_data
from reranker.feedback import Feedback
from reranker.profile import build_profile
from reranker.v1 import reranker_pb2 as pb

ALL = 1_000_000


@pytest.fixture(scope="session")
def data(materials: Materials, interactions: tuple[Interaction, ...]) -> TrainingData:
    return training_data(materials, interactions)


def rows(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def items_of(materials: Materials) -> list[pb.ItemPersonas]:
    """Return the items of the index in the order of their rows."""
    return [materials.index.single.item(row) for row in range(materials.index.item_count)]


def ones(n: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.ones(n, np.float32)


def test_users_are_their_interactions(
    data: TrainingData, materials: Materials, interactions: tuple[Interaction, ...]
) -> None:
    ids = [item.item_id for item in items_of(materials)]
    pairs = sorted(sorted({ids[item] for item in user.items}) for user in data.users)
    users = {i.user_id for i in interactions}
    assert pairs == sorted(sorted({i.item_id for i in interactions if i.user_id == user}) for user in users)


def test_an_event_has_the_vector_of_its_aspects_else_of_its_item(
    materials: Materials, interactions: tuple[Interaction, ...]
) -> None:
    one, other = interactions[:2]
    said = materials.aspects[one.user_id, one.item_id]
    found = training_data(
        Materials(materials.index, {(one.user_id, one.item_id): said}),
        [replace(one, timestamp=2), replace(other, user_id=one.user_id, timestamp=1)],
    )
    assert len(found.users) == 1
    vectors = found.event_vectors[found.users[0].vectors]
    own = materials.index.weighted(materials.index.locate([other.item_id]), np.ones(1, np.float32))
    assert np.array_equal(vectors, [said, own])


def test_users_of_one_known_item_teach_nothing(materials: Materials, interactions: tuple[Interaction, ...]) -> None:
    one = interactions[0]
    again = replace(one, timestamp=(one.timestamp or 0) + 1)
    assert training_data(materials, [one, again, replace(one, item_id="unheard of")]).users == ()


def test_a_batch_has_the_profile_of_the_server(materials: Materials, interactions: tuple[Interaction, ...]) -> None:
    """With events of all ratings: one that speaks against its item is neither aimed at nor known the user by."""
    mine = [replace(i, user_id="ada", rating=float(n % 5 + 1)) for n, i in enumerate(interactions[:40])]
    mine = list({i.item_id: i for i in mine}.values())
    found = training_data(materials, mine)
    batch = batch_of(found, found.users, Deal(0.3, 20, 0.7, ALL), np.random.default_rng(3))
    names = [item.item_id for item in items_of(materials)]
    targets = {names[item] for item in batch.items[batch.targets]}
    disliked = {i.item_id for i in mine if i.rating and i.rating < 3}
    assert disliked
    assert not targets & disliked
    liked = [i for i in mine if i.item_id not in targets | disliked]
    events = events_by_user(liked, materials.aspects, materials.index.space)["ada"][:20]
    served = build_profile(events, materials.index, 0.7).vector
    profile = batch.shares[0] @ found.event_vectors[batch.vectors]
    assert profile / np.linalg.norm(profile) == pytest.approx(served, abs=1e-6)
    assert set(batch.items[batch.seen[0]]) == {names.index(i.item_id) for i in mine}


def test_what_is_held_out_is_in_no_alignment(materials: Materials, interactions: tuple[Interaction, ...]) -> None:
    """Neither as what was judged nor as what it was judged by."""
    persona = {item.item_id: item.personas[0].persona_id for item in items_of(materials)}
    items: dict[str, list[str]] = {}
    for i in interactions:
        items.setdefault(i.user_id, []).append(i.item_id)
    alignments = [
        Alignment(user, item_id, persona[item_id], "", tuple(o for o in of_user if o != item_id)[:1])
        for user, of_user in items.items()
        for item_id in of_user
    ]
    assert training_data(materials, interactions, alignments).alignments_left_out == 0
    fold = cross_validation(interactions, 4, 0)[0]
    held = set(fold.test)
    clean = [a for a in alignments if not held & {(a.user_id, i) for i in (a.item_id, *a.history)}]
    found = training_data(materials, fold.train, alignments)
    assert found.fingerprint == training_data(materials, fold.train, clean).fingerprint
    assert 0 < found.alignments == len(clean) < len(alignments)
    assert found.alignments_left_out == len(alignments) - len(clean)


def test_a_judged_event_names_the_persona(materials: Materials, interactions: tuple[Interaction, ...]) -> None:
    one = interactions[0]
    last = materials.index.item(one.item_id).personas[-1]
    alignment = Alignment(one.user_id, one.item_id, last.persona_id, "")
    judged = np.concatenate([user.judged for user in training_data(materials, interactions, [alignment]).users])
    (row,) = judged[judged >= 0]
    assert pb.Persona.FromString(materials.index.single.persona(int(row))) == last


def test_an_alignment_that_names_another_items_persona_is_left_out(
    materials: Materials, interactions: tuple[Interaction, ...]
) -> None:
    mine = {i.item_id: i for i in interactions if i.user_id == interactions[0].user_id}
    one, other = list(mine.values())[:2]
    right, wrong = (materials.index.item(i.item_id).personas[0].persona_id for i in (one, other))
    alignments = [Alignment(one.user_id, one.item_id, wrong, "")]
    found = training_data(materials, interactions, alignments)
    assert (found.alignments, found.alignments_left_out) == (0, 1)
    alignments += [Alignment(one.user_id, one.item_id, right, "")] * 2
    again = [replace(one, timestamp=number) for number in (1, 2)]
    found = training_data(materials, [*interactions, *again], alignments)
    assert (found.alignments, found.alignments_left_out) == (1, 0), "however often the pair is there"


def test_which_ratings_speak_against_an_item_is_said_by_the_settings(
    materials: Materials, interactions: tuple[Interaction, ...]
) -> None:
    bought = [replace(i, rating=1.0) for i in interactions]
    assert training_data(materials, bought).users == ()
    ours = replace(materials, feedback=Feedback.model_construct(disliked_ratings=(0.0, 0.5)))
    assert len(training_data(ours, bought).users) == len({i.user_id for i in interactions})


def test_other_data_has_another_fingerprint(
    data: TrainingData, materials: Materials, interactions: tuple[Interaction, ...]
) -> None:
    prints = {
        data.fingerprint,
        training_data(materials, interactions[1:]).fingerprint,
        training_data(Materials(materials.index, {}), interactions).fingerprint,
        replace(data, space="another").fingerprint,
    }
    assert len(prints) == 4
    assert training_data(materials, interactions).fingerprint == data.fingerprint


users = st.lists(st.integers(0, 9), min_size=2, max_size=12).filter(lambda items: len(set(items)) > 1)


@given(st.lists(users, min_size=1, max_size=5), st.floats(0, 1), st.integers(1, 12), st.integers(1, 12), st.data())
def test_a_deal_asks_for_what_the_history_does_not_have(
    items: list[list[int]], share: float, length: int, competitors: int, draw: st.DataObject
) -> None:
    found = tuple(UserEvents(rows(*own), rows(*own), rows(*[-1] * len(own)), ones(len(own))) for own in items)
    data = TrainingData("space", np.eye(10, dtype=np.float32), np.arange(11), np.eye(10, dtype=np.float32), found, 0, 0)
    seed = draw.draw(st.integers(0, 2**32 - 1))
    batch = batch_of(data, found, Deal(share, length, 0.5, competitors), np.random.default_rng(seed))
    assert batch.shares.sum(1) == pytest.approx(1, abs=1e-6)
    assert set(batch.profiles) == set(range(len(items)))
    for profile, own in enumerate(items):
        history = set(batch.vectors[batch.shares[profile] > 0])
        targets = set(batch.items[batch.targets[batch.profiles == profile]])
        assert targets
        assert not history & targets
        assert history | targets <= set(own)
        assert len(history) <= length
        assert set(batch.items[batch.seen[profile]]) == set(own) & set(batch.items)
    assert len(batch.items) >= min(competitors, 10)


def test_a_history_is_the_newest_events_with_decay() -> None:
    user = UserEvents(rows(0, 1, 2, 3), rows(0, 1, 2, 3), rows(-1, -1, -1, -1), ones(4))
    eye = np.eye(4, dtype=np.float32)
    data = TrainingData("space", eye, np.arange(5), eye, (user,), 0, 0)
    batch = batch_of(data, [user], Deal(0.25, 2, 0.5, ALL), np.random.default_rng(0))
    (target,) = batch.targets
    kept = [item for item in range(4) if item != target][:2]
    assert list(batch.vectors) == kept
    assert batch.shares[0] == pytest.approx([2 / 3, 1 / 3])
