"""What the server says when it cannot start: one message, for the person who started it, and exit code 1."""

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.integration.conftest import Published
from tests.integration.processes import (
    PATIENCE_SECONDS,
    SERVE,
    environment,
    eventually,
    milvus_process,
    refusal,
    serving,
)

pytestmark = pytest.mark.integration


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def empty_milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with milvus_process(tmp_path_factory.mktemp("milvus") / "data") as milvus:
        yield milvus.uri


def test_milvus_does_not_answer(histories: Path, tmp_path: Path) -> None:
    # Not one of the addresses at which the command would start a Milvus Lite itself.
    uri = f"http://127.0.0.2:{free_port()}"
    told = refusal(tmp_path, histories, uri)
    assert uri in told
    assert "Is it running, and is the address right?" in told


def test_no_milvus_is_made_where_none_has_been(histories: Path, tmp_path: Path) -> None:
    data = tmp_path / "never"
    told = refusal(tmp_path, histories, f"http://127.0.0.1:{free_port()}", f"--milvus-data={data}")
    assert "Is it running, and is the address right?" in told
    assert not data.exists()


def test_a_signal_ends_the_wait_for_a_milvus_that_says_nothing(histories: Path, taken: int, tmp_path: Path) -> None:
    options = [f"--milvus=http://127.0.0.1:{taken}", f"--histories={histories}", f"--index={tmp_path}"]
    ports = ["--grpc-port=0", "--metrics-port=0"]
    with subprocess.Popen([*SERVE, *options, *ports], env=environment({}), stderr=subprocess.PIPE) as server:
        eventually((tmp_path / "lock").exists, "the index directory to be taken")
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE_SECONDS) == 128 + signal.SIGTERM


@pytest.mark.skipif(not has_ipv6(), reason="needs ::1, which this machine does not have")
def test_a_host_of_ipv6(histories: Path, published: Published, tmp_path: Path) -> None:
    with serving(tmp_path, published.uri, histories, "--host=::1") as server:
        assert server.client.info().items == len(published.item_ids)
        assert server.stop() == 0


def test_what_is_no_address(histories: Path, tmp_path: Path) -> None:
    told = refusal(tmp_path, histories, "localhost:19530")
    assert "'localhost:19530'" in told
    assert "http://HOST:PORT" in told


def test_milvus_holds_no_index(histories: Path, empty_milvus: str, tmp_path: Path) -> None:
    told = refusal(tmp_path, histories, empty_milvus)
    assert f"{empty_milvus} holds no index" in told
    assert "persona4rec publish" in told


def test_an_index_of_another_embedding_space(histories: Path, published: Published, tmp_path: Path) -> None:
    told = refusal(tmp_path, histories, published.uri, "--space=other:space")
    assert published.uri in told
    assert f"{published.index.space} and other:space" in told
    assert "Publish the whole dataset with one encoder" in told


@pytest.mark.parametrize("setting", ["grpc_port", "metrics_port"])
def test_a_port_in_use(histories: Path, published: Published, taken: int, setting: str, tmp_path: Path) -> None:
    told = refusal(tmp_path, histories, published.uri, f"--{setting.replace('_', '-')}={taken}")
    assert f"{setting} {taken} on 127.0.0.1" in told
    assert "another process has it" in told
    assert f"set another {setting}" in told


def test_a_host_of_another_machine(histories: Path, published: Published, tmp_path: Path) -> None:
    told = refusal(tmp_path, histories, published.uri, "--host=192.0.2.1")
    assert "on 192.0.2.1" in told


def test_no_generator_where_one_was_named(histories: Path, published: Published, tmp_path: Path) -> None:
    told = refusal(tmp_path, histories, published.uri, f"--generator={tmp_path / 'nothing'}")
    assert str(tmp_path / "nothing") in told
    assert "is missing" in told
    assert "train it again or name another" in told


def test_a_torn_generator(histories: Path, published: Published, generator: Path, tmp_path: Path) -> None:
    torn = Path(shutil.copytree(generator, tmp_path / "torn"))
    arrays = torn / "arrays.npz"
    arrays.write_bytes(arrays.read_bytes()[:-100])
    told = refusal(tmp_path, histories, published.uri, f"--generator={torn}")
    assert str(torn) in told
    assert "arrays.npz is not the file" in told
    assert "train it again" in told


@pytest.mark.parametrize(
    ("name", "bad", "says"),
    [
        ("FUSION_WEIGHT", "1.5", "less than or equal to 1"),
        ("GRPC_PORT", "65536", "less than or equal to 65535"),
        ("MAX_CANDIDATES", "0", "greater than or equal to 1"),
    ],
)
def test_a_setting_that_cannot_be_used(
    histories: Path, published: Published, tmp_path: Path, name: str, bad: str, says: str
) -> None:
    # A flag goes before the environment, so that of the ports the one in question must not be given as one.
    options = [f"--milvus={published.uri}", f"--histories={histories}", f"--index={tmp_path}"]
    done = subprocess.run(
        [*SERVE, *options], capture_output=True, text=True, env=environment({name: bad}), timeout=PATIENCE_SECONDS
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert f"PERSONA4REC_{name}" in done.stderr
    assert f"'{bad}'" in done.stderr
    assert says in done.stderr


def test_histories_that_cannot_be_opened(published: Published, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no histories" * 500)
    told = refusal(tmp_path, tmp_path / "notes.txt", published.uri)
    assert str(tmp_path / "notes.txt") in told
    assert "cannot open the histories" in told
