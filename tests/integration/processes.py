"""The real processes that the tests talk to: a Milvus Lite server, and `persona4rec serve`."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from reranker.client import PLAIN, Access, RerankerClient
from reranker.errors import IndexUnavailableError
from reranker.personas_milvus import MilvusPersonaStore
from tests.conftest import free_port

# A busy machine takes several times as long as the few seconds that anything here needs.
PATIENCE_SECONDS = 90.0

T = TypeVar("T")


def eventually(
    look: Callable[[], T], what: str, until: Callable[[T], object] = bool, seconds: float = PATIENCE_SECONDS
) -> T:
    """Look again and again until what is seen is as hoped, and return it; fail naming `what` after long patience."""
    deadline = time.monotonic() + seconds
    while not until(seen := look()):
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:g} s; last seen: {seen}"
        time.sleep(0.02)
    return seen


@dataclass
class MilvusProcess:
    """A Milvus Lite server that can be killed and started again on the same data and port."""

    data: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    host: str = "127.0.0.1"

    @property
    def uri(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        options = ["--data-dir", str(self.data), "--host", self.host, "--port", str(self.port)]
        with self.data.with_suffix(".log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "milvus_lite", "server", *options], stdout=output, stderr=output
            )
        eventually(self._answers, f"an answer of Milvus at {self.uri}")

    def signal(self, number: int) -> None:
        """Send a signal; SIGKILL and SIGTERM are waited for."""
        assert self.process
        self.process.send_signal(number)
        if number in {signal.SIGKILL, signal.SIGTERM}:
            self.process.wait(PATIENCE_SECONDS)

    def _answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self.data.with_suffix(".log").read_text()
        try:
            MilvusPersonaStore(self.uri, timeout=5).version()
        except IndexUnavailableError:
            return False
        return True


@contextmanager
def milvus_process(data: Path, host: str = "127.0.0.1") -> Iterator[MilvusProcess]:
    milvus = MilvusProcess(data, host=host)
    try:
        milvus.start()
        yield milvus
    finally:
        if milvus.process:
            milvus.process.kill()
            milvus.process.wait()


@dataclass(frozen=True)
class Server:
    """A running `persona4rec serve`."""

    process: "subprocess.Popen[bytes]"
    address: str
    metrics_url: str
    client: RerankerClient
    histories: Path | str
    index: Path
    output: Path

    def stop(self) -> int:
        """Ask the server to stop and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this environment with the given settings of the server, and none of its own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PERSONA4REC_")}
    # Messages of the server are not broken into lines of a terminal's width.
    return own | {"COLUMNS": "1000"} | {f"PERSONA4REC_{name}": value for name, value in settings.items()}


SERVE = [sys.executable, "-m", "persona4rec", "serve"]


@contextmanager
def serving(
    folder: Path,
    milvus: str,
    histories: Path | str,
    *flags: str,
    command: list[str] = SERVE,
    workers: int = 2,
    access: Access = PLAIN,
    **settings: str,
) -> Iterator[Server]:
    """Run the real server on free ports until the block ends, its index in `folder`; `settings` are of the environment.

    It has all its workers when this returns. `access` is of the client that is given with it.
    """
    output, index = folder / "server.log", folder / "index"
    where = ["--grpc-port=0", "--metrics-port=0", f"--index={index}", f"--workers={workers}"]
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [*command, *where, f"--milvus={milvus}", f"--histories={histories}", *flags],
            stdout=sink,
            stderr=sink,
            # What a killed server leaves behind is left here.
            env=environment(settings) | {"TMPDIR": str(folder)},
        )
    try:
        address, metrics_url = eventually(lambda: _announced(process, output), "the server's announcement", until=any)
        with RerankerClient(address, PATIENCE_SECONDS, access) as client:
            client.wait_until_ready(PATIENCE_SECONDS)
            yield Server(process, address, metrics_url, client, histories, index, output)
    finally:
        process.kill()
        process.wait()


def _announced(process: "subprocess.Popen[bytes]", output: Path) -> tuple[str, str]:
    said = output.read_text()
    assert process.poll() is None, f"the server ended with code {process.returncode}:\n{said}"
    found = re.search(r"serving gRPC on (\S+) (?:over TLS )?with \d+ workers?, metrics on (\S+)", said)
    return (found[1], found[2]) if found else ("", "")


def last_words(folder: Path, histories: Path | str, milvus: str, *flags: str, **settings: str) -> list[str]:
    """Start a server that cannot start, its index in `folder`, and return the lines that it says."""
    where = [f"--index={folder / 'index'}", "--workers=2", "--grpc-port=0", "--metrics-port=0"]
    options = [f"--milvus={milvus}", f"--histories={histories}", *where, *flags]
    done = subprocess.run(
        [*SERVE, *options], capture_output=True, text=True, env=environment(settings), timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


def refusal(folder: Path, histories: Path | str, milvus: str, *flags: str, **settings: str) -> str:
    """Start a server that cannot start, its index in `folder`, and return the one line that it says."""
    said = last_words(folder, histories, milvus, *flags, **settings)
    assert len(said) == 1, said
    assert said[0].startswith("error: ")
    return said[0]
