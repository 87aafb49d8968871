"""Versions, leases and verification on a real Milvus: who may write, what is taken along, what is refused."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, repeat
from unittest.mock import patch

import pytest

from offline.errors import VerificationError
from offline.item_publisher import ItemPublisher
from offline.publish import Document, publish
from offline.version_writer import tell_nobody
from offline.versions import roll_back
from reranker import leases
from reranker.errors import ConfigurationError, IndexBusyError
from reranker.leases import REBUILDING, WRITING, Lease, Process, leased, this_process
from reranker.personas_milvus import MilvusPersonaStore
from tests.offline.encoders import Hashed
from tests.offline.reading import loaded
from tests.offline.test_publish import renamed

pytestmark = pytest.mark.integration

ONE, TWO = Hashed("one"), Hashed("two")


@pytest.fixture(scope="module")
def few(books: tuple[Document, ...]) -> tuple[Document, ...]:
    return books[:4]


def names(store: MilvusPersonaStore, found: Sequence[Document]) -> list[list[str]]:
    index = loaded(store)
    return [[persona.name for persona in index.item(document.item.item_id).personas] for document in found]


def named(found: Sequence[Document]) -> list[list[str]]:
    return [[persona.name for persona in document.personas] for document in found]


# ---- going back ------------------------------------------------------------------------------------------------------


def test_going_back_takes_along_what_changed_since(store: MilvusPersonaStore, few: tuple[Document, ...]) -> None:
    old = publish(few, store, ONE).version
    publish([renamed(document) for document in few], store, ONE, rebuild=True)
    later = [renamed(few[0]), renamed(renamed(few[1])), renamed(few[2])]
    publish(later, store, ONE, prune=True)
    report = roll_back(store)
    assert (report.version, store.version(), report.replayed, report.left) == (old, old, 2, ())
    assert names(store, few) == [*named([few[0], later[1], few[2]]), []], "the rest is as it was"
    with pytest.raises(ConfigurationError, match="no version to go back to"):
        roll_back(store)


def test_to_another_space_only_deletions_are_taken_along_and_the_others_are_named(
    store: MilvusPersonaStore, few: tuple[Document, ...]
) -> None:
    publish(few, store, ONE)
    publish(few, store, TWO, rebuild=True)
    publish([renamed(few[0]), *few[1:3]], store, TWO, prune=True)
    report = roll_back(store)
    assert (report.replayed, report.left) == (1, (few[0].item.item_id,))
    assert names(store, few) == [*named(few[:3]), []]
    assert loaded(store).space == "one"


def test_a_rebuild_takes_along_what_others_publish_meanwhile_and_old_versions_go(
    store: MilvusPersonaStore, few: tuple[Document, ...]
) -> None:
    oldest = publish(few, store, ONE).version
    old = publish(few, store, ONE, rebuild=True).version
    changed = [few[0], renamed(few[1])]

    def meanwhile(_: int) -> None:
        publish(changed, store, ONE)

    report = publish(few, store, ONE, rebuild=True, report=meanwhile)
    assert names(store, few) == named([few[0], changed[1], *few[2:]])
    assert [(v.name, v.in_use) for v in store.versions()] == [(old, False), (report.version, True)]
    assert oldest not in {version.name for version in store.versions()}


def test_a_rebuild_takes_along_what_is_not_in_the_dataset(store: MilvusPersonaStore, few: tuple[Document, ...]) -> None:
    publish(few, store, ONE)
    publish(few[1:], store, ONE, prune=True)
    report = publish([renamed(few[1]), few[2]], store, ONE, rebuild=True)
    assert (report.written, report.kept, report.deleted, report.left) == (2, 1, 0, ())
    assert names(store, few) == [[], *named([renamed(few[1]), *few[2:]])], "and nothing that was deleted comes back"


def test_a_rebuild_leaves_out_what_the_dataset_lacks_only_when_asked_to(
    store: MilvusPersonaStore, few: tuple[Document, ...]
) -> None:
    publish(few, store, ONE)
    report = publish(few[1:], store, ONE, rebuild=True, prune=True)
    assert (report.written, report.kept, report.deleted) == (3, 0, 1)
    assert names(store, few) == [[], *named(few[1:])]


def test_a_rebuild_in_another_space_names_what_it_cannot_take_along(
    store: MilvusPersonaStore, few: tuple[Document, ...]
) -> None:
    publish(few, store, ONE)
    report = publish(few[1:], store, TWO, rebuild=True)
    assert (report.kept, report.left) == (0, (few[0].item.item_id,))
    assert names(store, few) == [[], *named(few[1:])]


def test_who_waited_for_the_first_publisher_adds_to_what_that_one_wrote(
    store: MilvusPersonaStore, few: tuple[Document, ...]
) -> None:
    publish(few[:2], store, ONE)
    with asked_before_the_first(store):
        publish(few[2:3], store, ONE)
    publisher = ItemPublisher(store, ONE, tell_nobody)
    with asked_before_the_first(store):
        assert publisher.publish(few[3:], [few[0].item.item_id]) == 2
    assert names(store, few) == [[], *named(few[1:])]


@contextmanager
def asked_before_the_first(store: MilvusPersonaStore) -> Iterator[None]:
    """Let the next publisher have asked for the version in use before there was one."""
    versions = chain([None], repeat(store.version()))
    with patch.object(store, "version", lambda: next(versions)):
        yield


def test_fewer_versions_than_are_kept_all_stay(store: MilvusPersonaStore, few: tuple[Document, ...]) -> None:
    published = [publish(few[:1], store, ONE, rebuild=True, keep_versions=3).version for _ in range(3)]
    assert [version.name for version in store.versions()] == published


def test_a_version_that_is_not_what_was_published_is_not_put_in_use(
    store: MilvusPersonaStore, few: tuple[Document, ...]
) -> None:
    old = publish(few, store, ONE).version

    def damage(_: int) -> None:
        new = store.versions()[-1].name
        store.collect(new, list(store.row_ids(new))[:1])

    with pytest.raises(VerificationError, match=r"was not put in use.*rows, and it holds"):
        publish(few, store, ONE, rebuild=True, report=damage)
    assert store.version() == old
    publish(few, store, ONE, rebuild=True)
    assert [version.generation is None for version in store.versions()] == [False, False], "the refused one is gone"


# ---- one publisher at a time -----------------------------------------------------------------------------------------


def test_a_second_publisher_is_refused_by_name(store: MilvusPersonaStore, few: tuple[Document, ...]) -> None:
    publish(few, store, ONE)
    with leased(store.milvus, WRITING), pytest.raises(IndexBusyError, match=r"by process \d+ on .*wait for it"):
        publish([renamed(few[0])], store, ONE)
    with leased(store.milvus, REBUILDING), pytest.raises(IndexBusyError, match="in use for rebuilding"):
        publish(few, store, ONE, rebuild=True)
    assert publish([renamed(few[0])], store, ONE).written == 1


def test_the_lease_of_a_dead_process_and_one_that_ran_out_are_taken_over(store: MilvusPersonaStore) -> None:
    dead = Process(this_process().place, 2**22 + 1)
    with patch.object(leases, "this_process", lambda: dead):
        Lease(store.milvus, WRITING).take(0)
    with leased(store.milvus, WRITING):
        pass
    elsewhere = Process("another machine", 1)
    with (
        patch.object(leases, "this_process", lambda: elsewhere),
        patch.object(leases, "LEASE_SECONDS", -leases.SKEW_SECONDS - 1),
    ):
        Lease(store.milvus, WRITING).take(0)
    with leased(store.milvus, WRITING):
        pass


def test_a_lease_that_was_not_renewed_in_time_is_lost(store: MilvusPersonaStore) -> None:
    with (
        patch.object(leases, "LEASE_SECONDS", 0.0),
        leased(store.milvus, WRITING) as lease,
        pytest.raises(IndexBusyError, match="was lost"),
    ):
        lease.check()


def test_of_many_that_want_a_lease_at_once_no_two_have_it(store: MilvusPersonaStore) -> None:
    inside: list[int] = []

    def want(number: int) -> bool:
        try:
            with leased(store.milvus, WRITING, wait_seconds=5):
                inside.append(number)
                assert inside == [number]
                inside.remove(number)
        except IndexBusyError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool, patch.object(leases, "RETRY_SECONDS", 0.05):
        assert any(pool.map(want, range(12)))


def test_a_row_is_another_one_as_soon_as_anything_of_it_is(
    store: MilvusPersonaStore, few: tuple[Document, ...]
) -> None:
    """A title is in the vector but not in persona_id."""
    version = publish(few[:1], store, ONE).version
    before = set(store.row_ids(version))
    publish([replace(few[0], item=replace(few[0].item, title="Another"))], store, ONE)
    assert before.isdisjoint(store.row_ids(version))
