"""The history stores, each on its real server, for the tests that hold for all of them."""

import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis import Redis, RedisError

from reranker.histories import WRITE_SECONDS
from reranker.histories_redis import RedisHistoryStore
from reranker.histories_sqlite import KEEP_EVENTS, SqliteHistoryStore
from reranker.records import HistoryStore
from tests.conftest import free_port
from tests.integration.processes import eventually


@dataclass
class RedisProcess:
    """A redis-server that can be stopped and started again on the same data and port; every write is synced."""

    folder: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        durable = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
        where = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder))
        with (self.folder / "redis.log").open("ab") as output:
            self.process = subprocess.Popen(
                ["redis-server", *where, *durable, *self.options], stdout=output, stderr=output
            )
        eventually(self._answers, f"an answer of Redis at {self.url}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process
        self.process.send_signal(number)
        self.process.wait()

    def _answers(self) -> bool:
        with suppress(RedisError), Redis(port=self.port) as client:
            return bool(client.ping())
        return False


@contextmanager
def redis_process(folder: Path, *options: str) -> Iterator[RedisProcess]:
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server, which is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    redis = RedisProcess(folder, options)
    try:
        redis.start()
        yield redis
    finally:
        if redis.process:
            redis.process.kill()
            redis.process.wait()


class Stores(ABC):
    """Opens stores of one kind."""

    def __init__(self) -> None:
        self._opened: list[HistoryStore] = []

    def fresh(self, keep: int = KEEP_EVENTS) -> HistoryStore:
        """Open an empty store that keeps the newest `keep` events of a user."""
        self._empty()
        return self.again(keep)

    def again(self, keep: int = KEEP_EVENTS) -> HistoryStore:
        """Open what `fresh` opened last once more, as another process would."""
        self._opened.append(self._open(keep))
        return self._opened[-1]

    def close(self) -> None:
        for store in self._opened:
            store.close()

    @abstractmethod
    def _empty(self) -> None: ...

    @abstractmethod
    def _open(self, keep: int) -> HistoryStore: ...


class SqliteStores(Stores):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._number = 0

    def _empty(self) -> None:
        self._number += 1

    def _open(self, keep: int) -> HistoryStore:
        return SqliteHistoryStore(self._folder / f"{self._number}.sqlite", keep)


class RedisStores(Stores):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def _empty(self) -> None:
        with Redis.from_url(self._url) as client:
            client.flushall()

    def _open(self, keep: int) -> HistoryStore:
        return RedisHistoryStore(self._url, keep, WRITE_SECONDS)


@contextmanager
def stores_of(kind: str, folder: Path) -> Iterator[Stores]:
    """Give the stores of a kind, "sqlite" or "redis", with their server running until the block ends."""
    with ExitStack() as stack:
        made: dict[str, Callable[[], Stores]] = {
            "sqlite": lambda: SqliteStores(folder),
            "redis": lambda: RedisStores(stack.enter_context(redis_process(folder)).url),
        }
        stores = made[kind]()
        stack.callback(stores.close)
        yield stores
