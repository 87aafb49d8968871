import sqlite3
from collections import Counter
from contextlib import closing
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from offline.importers.disk_ids import DiskCore, DiskIds

names = st.text(st.characters(codec="utf-8"), max_size=3)
interactions = st.lists(st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdef")), max_size=60)


@settings(deadline=None, max_examples=50)
@given(st.lists(names), names)
def test_a_set_is_a_set(texts: list[str], other: str) -> None:
    with TemporaryDirectory() as folder, DiskIds(Path(folder)) as ids:
        found = ids.new_set("found")
        known: set[str] = set()
        for text in texts:
            assert found.add(text) is (text not in known)
            known.add(text)
        assert (other in found) is (other in known)


def peeled(pairs: list[tuple[str, str]], min_per_item: int, min_per_user: int) -> list[tuple[str, str]]:
    """Take the rare away, one user or item at a time, until there are none."""
    while True:
        users, items = Counter(user for user, _ in pairs), Counter(item for _, item in pairs)
        left = next(
            (
                [pair for pair in pairs if pair[0] != user and pair[1] != item]
                for user, item in [(user, "") for user, count in users.items() if count < min_per_user]
                + [("", item) for item, count in items.items() if count < min_per_item]
            ),
            None,
        )
        if left is None:
            return pairs
        pairs = left


@settings(deadline=None, max_examples=150)
@given(interactions, st.integers(0, 4), st.integers(0, 4))
def test_the_core_is_what_no_order_of_peeling_takes_away(
    pairs: list[tuple[str, str]], min_per_item: int, min_per_user: int
) -> None:
    expected = peeled(pairs, min_per_item, min_per_user)
    with TemporaryDirectory() as folder, DiskIds(Path(folder)) as ids:
        core = ids.new_core()
        for user_id, item_id in pairs:
            core.add(user_id, item_id)
        assert core.prune(min_per_item, min_per_user) == len(expected)
        assert {user for user in "uvwxyz" if core.has_user(user)} == {user for user, _ in expected}
        assert {item for item in "abcdef" if core.has_item(item)} == {item for _, item in expected}


def steps(length: int) -> int:
    """Return the steps, in hundreds, that SQLite takes to peel a chain of users and items from its ends."""
    counted = count()
    with closing(sqlite3.connect("", isolation_level=None)) as database:
        core = DiskCore(database)
        for n in range(length):
            core.add(f"u{n}", f"i{n}")
            core.add(f"u{n}", f"i{n + 1}")
        database.set_progress_handler(lambda: next(counted) < 0, 100)
        assert core.prune(2, 2) == 0
    return next(counted)


def test_a_chain_of_twice_the_length_takes_about_twice_the_work() -> None:
    assert steps(1000) < 3 * steps(500)


def test_nothing_is_left_on_disk(tmp_path: Path) -> None:
    with DiskIds(tmp_path) as ids:
        ids.new_set("found").add("a")
        assert list(tmp_path.iterdir()) == []
