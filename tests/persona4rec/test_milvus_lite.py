"""The Milvus that commands start for themselves."""

import importlib.util
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from persona4rec.milvus_lite import milvus_at
from reranker.errors import ConfigurationError, IndexUnavailableError
from reranker.personas_milvus import MilvusPersonaStore
from tests.conftest import free_port


@pytest.fixture
def uri() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list["subprocess.Popen[bytes]"]:
    """List the servers that are started."""
    found: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def noted(*arguments: object, **options: object) -> "subprocess.Popen[bytes]":
        server: subprocess.Popen[bytes] = popen(*arguments, **options)  # type: ignore[call-overload]
        found.append(server)
        return server

    monkeypatch.setattr(subprocess, "Popen", noted)
    return found


def answers(uri: str) -> bool:
    try:
        store = MilvusPersonaStore(uri, timeout=5)
        store.version()
    except IndexUnavailableError:
        return False
    store.close()
    return True


@pytest.mark.integration
def test_where_none_answers_one_is_started_and_stopped_at_the_end(
    uri: str, tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    with milvus_at(uri, tmp_path / "new" / "data"):
        assert answers(uri)
        (server,) = started
        assert server.poll() is None
    assert server.poll() is not None
    assert not answers(uri)
    assert (tmp_path / "new" / "data.log").exists()


@pytest.mark.integration
def test_what_was_written_is_there_when_it_is_started_again(uri: str, tmp_path: Path) -> None:
    with milvus_at(uri, tmp_path / "data"):
        store = MilvusPersonaStore(uri)
        version = store.create(dimension=8)
        store.use(version)
        store.close()
    with milvus_at(uri, tmp_path / "data"):
        assert MilvusPersonaStore(uri).version() == version


@pytest.mark.integration
def test_one_that_answers_is_used_and_left_running(
    uri: str, tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    with milvus_at(uri, tmp_path / "data"):
        with milvus_at(uri, tmp_path / "other"):
            assert answers(uri)
        assert len(started) == 1
        assert not (tmp_path / "other").exists()
        assert answers(uri)


@pytest.mark.integration
def test_it_is_stopped_also_when_the_command_fails(
    uri: str, tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    def fail() -> None:
        with milvus_at(uri, tmp_path / "data"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert started[0].poll() is not None
    assert not answers(uri)


@pytest.mark.integration
def test_a_data_directory_that_another_process_has_open_is_named(uri: str, tmp_path: Path) -> None:
    def second() -> None:
        with milvus_at(f"http://127.0.0.1:{free_port()}", tmp_path / "data"):
            pass

    with milvus_at(uri, tmp_path / "data"):
        with pytest.raises(IndexUnavailableError, match="One process at a time may open its data directory") as raised:
            second()
        assert str(tmp_path / "data.log") in str(raised.value)
        assert answers(uri)


def test_data_that_cannot_be_written_is_named(uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def start() -> None:
        with milvus_at(uri, tmp_path / "file" / "data"):
            pass

    with pytest.raises(ConfigurationError, match=r"cannot write .*file/data\.log: .*--milvus-data"):
        start()


def test_where_milvus_lite_is_not_installed_it_says_what_to_do(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    def start() -> None:
        with milvus_at(uri, tmp_path / "data"):
            pass

    with pytest.raises(IndexUnavailableError, match=f"no Milvus answers at {uri}, .*--milvus, or install"):
        start()


@pytest.mark.parametrize("host", ["milvus.invalid", "10.255.255.1"])
def test_on_another_machine_none_is_started(
    host: str, tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    with milvus_at(f"http://{host}:19530", tmp_path / "data"):
        assert started == []


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:19530",
        "127.0.0.1:19530",
        "localhost",
        "",
        "http://",
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999",
        "http://[::1:1",
        "./milvus.db",
    ],
)
def test_an_address_that_is_none_is_quoted(address: str, tmp_path: Path) -> None:
    def start() -> None:
        with milvus_at(address, tmp_path / "data"):
            pass

    with pytest.raises(ConfigurationError, match=re.escape(f"milvus address {address!r} is not of the form")):
        start()


@pytest.fixture
def refusing() -> Iterator[int]:
    """Give a port on which something listens that is no Milvus."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_hang_up, args=[listening], daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def _hang_up(listening: socket.socket) -> None:
    while True:
        try:
            listening.accept()[0].close()
        except OSError:
            return


def test_what_listens_there_and_is_no_milvus_is_named(refusing: int, tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{refusing}"
    with (
        milvus_at(uri, tmp_path / "data"),
        pytest.raises(IndexUnavailableError, match=f"Milvus at {uri} could not connect: .* is the address right"),
    ):
        MilvusPersonaStore(uri, timeout=3)
