"""What the Redis store does beside being a history store (test_histories.py): outages, formats, and a Cluster."""

import signal
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from redis import Redis

from reranker.errors import ConfigurationError, HistoryStoreError
from reranker.histories import WRITE_SECONDS, open_histories, shown_address
from reranker.histories_redis import RedisHistoryStore
from reranker.records import Event
from tests.integration.processes import eventually
from tests.stores import RedisProcess, redis_process

USERS = [f"user{number}" for number in range(100)]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    with redis_process(tmp_path / "redis") as running:
        yield running


@pytest.mark.parametrize("url", ["http://host", "redis://", "redis+cluster:///0", "amqp://host", "REDIS://host"])
def test_an_address_of_no_redis_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="redis://HOST"):
        open_histories(url)


def test_an_error_names_the_server_and_not_the_password() -> None:
    with pytest.raises(HistoryStoreError, match=r"127\.0\.0\.1:1: ConnectionError") as refused:
        RedisHistoryStore("redis://:secret@127.0.0.1:1/0").read("ann", 1)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("password", ["hunter/two", "678/90", "hunter?two", "hunter#two", "678?90"])
def test_a_password_that_is_not_escaped_is_refused_and_not_quoted(password: str) -> None:
    with pytest.raises(ConfigurationError, match="%2F") as refused:
        open_histories(f"redis://user:{password}@host:6379/0")
    told = "".join(traceback.format_exception(refused.value))
    assert not any(part in told for part in ("hunter", "two", "678", "90@"))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("histories.sqlite", "histories.sqlite"),
        ("redis://host:6380/2", "redis://host:6380/2"),
        ("rediss://user:secret@host", "rediss://host"),
        ("redis://:se@cret@host:6379/0", "redis://host:6379/0"),
        ("redis://host/0?password=secret", "redis://host/0"),
        ("redis://host/0?password=se@cret", "redis://***"),
        ("redis://user:se/cret@host:6379/0", "redis://***"),
        ("redis://user:1/cret@host:6379/0", "redis://***"),
        ("redis://user:1?cret@host:6379/0", "redis://***"),
        ("redis+cluster://:secret@[::1", "redis+cluster://***"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    assert shown_address(address) == shown


@pytest.mark.integration
def test_who_may_only_read_reads_and_cannot_write(redis: RedisProcess) -> None:
    with closing(RedisHistoryStore(redis.url)) as writer, Redis.from_url(redis.url) as client:
        writer.merge({"ann": [Event("e", "i", 1)]})
        client.execute_command("ACL", "SETUSER", "reader", "on", "nopass", "~*", "+@read", "+eval", "+hello", "+select")
    with closing(RedisHistoryStore(redis.url.replace("redis://", "redis://reader:any@"))) as reader:
        assert [event.event_id for event in reader.read("ann", 9) or ()] == ["e"]
        assert reader.count("ann") == 1
        with pytest.raises(HistoryStoreError, match="cannot write"):
            reader.merge({"ann": [Event("f", "i", 2)]})


@pytest.mark.integration
def test_a_store_may_be_opened_while_the_server_is_away_and_outlives_its_restarts(redis: RedisProcess) -> None:
    redis.stop(signal.SIGKILL)
    with closing(RedisHistoryStore(redis.url)) as store:
        with pytest.raises(HistoryStoreError, match="cannot read"):
            store.read("ann", 1)
        for number in range(3):
            redis.start()
            store.merge({"ann": [Event(f"e{number}", "i", number)]})
            redis.stop(signal.SIGKILL)
            with pytest.raises(HistoryStoreError, match="cannot write"):
                store.merge({"ann": [Event("lost", "i", 9)]})
        redis.start()
        assert [event.event_id for event in store.read("ann", 9) or ()] == ["e2", "e1", "e0"]


@pytest.mark.integration
def test_a_server_that_stands_still_costs_a_read_its_timeout_and_no_more(redis: RedisProcess) -> None:
    with closing(RedisHistoryStore(redis.url, timeout=0.1)) as store:
        store.merge({"ann": [Event("e", "i", 1)]})
        assert redis.process
        redis.process.send_signal(signal.SIGSTOP)
        with pytest.raises(HistoryStoreError, match="TimeoutError"):
            store.read("ann", 1)
        redis.process.send_signal(signal.SIGCONT)
        assert eventually(lambda: store.count("ann"), "the store's answer") == 1


@pytest.mark.integration
def test_histories_of_a_later_format_are_refused_by_name(redis: RedisProcess) -> None:
    with Redis.from_url(redis.url) as client:
        client.set("p4r:histories:format", 999)
    with closing(RedisHistoryStore(redis.url)) as store, pytest.raises(HistoryStoreError, match="format 999"):
        store.read("ann", 1)


@pytest.mark.integration
def test_no_key_holds_a_user_id_and_an_erased_user_leaves_only_the_fence(redis: RedisProcess) -> None:
    with closing(RedisHistoryStore(redis.url)) as store, Redis.from_url(redis.url) as client:
        store.merge({"somebody": [Event("e", "i", 5)]})
        assert not [key for key in client.scan_iter() if b"somebody" in key]
        store.erase({"somebody": 5})
        left = [key for key in client.scan_iter() if key.startswith(b"p4r:{")]
        assert [(key[-2:], client.get(key)) for key in left] == [(b":f", b"5")]


@pytest.mark.integration
def test_a_cluster_of_three_serves_all_users_and_one_of_its_nodes_may_restart(tmp_path: Path) -> None:
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                redis_process(tmp_path / str(n), "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
            )
            for n in range(3)
        ]
        join(nodes)
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        store = stack.enter_context(closing(RedisHistoryStore(url, timeout=WRITE_SECONDS)))
        store.merge({user_id: [Event("a", "i", 1), Event("b", "i", 2)] for user_id in USERS})
        store.erase({USERS[0]: 1})
        assert [event.event_id for event in store.read(USERS[0], 9) or ()] == ["b"]
        assert [store.count(user_id) for user_id in USERS[1:]] == [2] * 99
        for node in nodes:
            with Redis(port=node.port) as client:
                assert client.dbsize() > 0
        assert (tries := tries_of_a_read(url, nodes[2])) <= 2, tries
        nodes[1].stop()
        with pytest.raises(HistoryStoreError):
            store.merge({user_id: [Event("c", "i", 3)] for user_id in USERS})
        nodes[1].start()
        eventually(lambda: written(store), "a merge of all users after the restart")
        assert [store.count(user_id) for user_id in USERS] == [2, *[3] * 99]


def join(nodes: list[RedisProcess]) -> None:
    """Make a cluster of empty nodes, a third of the slots each, and wait until all of them know it."""
    slots = [range(number * 16384 // 3, (number + 1) * 16384 // 3) for number in range(3)]
    for node, own in zip(nodes, slots, strict=True):
        with Redis(port=node.port) as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", own.start, own.stop - 1)
            for other in nodes:
                client.execute_command("CLUSTER MEET", "127.0.0.1", other.port)
    eventually(lambda: all(knows_cluster(node.port) for node in nodes), "a cluster of three")


def knows_cluster(port: int) -> bool:
    with Redis(port=port) as client:
        told = client.execute_command("CLUSTER INFO")
    return (told["cluster_state"], told["cluster_known_nodes"]) == ("ok", "3")


def written(store: RedisHistoryStore) -> bool:
    try:
        store.merge({user_id: [Event("c", "i", 3)] for user_id in USERS})
    except HistoryStoreError:
        return False
    return True


def tries_of_a_read(url: str, node: RedisProcess) -> int:
    """Return how often a read is tried at a node of a Cluster that stands still: each on a connection of its own."""
    with closing(RedisHistoryStore(url, timeout=0.1)) as store, Redis(port=node.port) as client:
        assert all(store.read(user_id, 1) for user_id in USERS)
        before = connections(client)
        assert node.process
        node.process.send_signal(signal.SIGSTOP)
        with pytest.raises(HistoryStoreError, match="cannot read"):
            [store.read(user_id, 1) for user_id in USERS]
        node.process.send_signal(signal.SIGCONT)
        # Those that came meanwhile are taken up, though nobody waits any more.
        return eventually(lambda: connections(client) - before, "what was asked meanwhile")


def connections(client: Redis) -> int:
    return int(client.info("stats")["total_connections_received"])
