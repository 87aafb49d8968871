"""A local LLM: any GGUF model file, served by a child process (llama.cpp) for the time of a command."""

import hashlib
import importlib.util
import logging
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from offline.errors import LocalLlmError

log = logging.getLogger(__name__)

GGUF = b"GGUF"
"""The first bytes of every model file of the kind."""

HEADER_BYTES = 1 << 20
"""Hashed for the fingerprint, from either end: metadata and tensor table, and the weights of the last layer."""

READY_SECONDS = 600.0
"""2 to 6 s for 1 GB from a warm disk; 70 GB at 200 MB/s take 350."""

STOP_SECONDS = 10.0
"""A server that was told to stop takes less than one second; then it is killed, as it has nothing to lose."""

TAIL_BYTES = 1500
"""Of the server's log in an error message: its last dozen lines."""

PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
"""Waiting threads sleep instead of spinning: on busy cores, spinning takes nine tenths of the speed."""


def fingerprint(path: Path) -> str:
    """Return a name for a model file that another quantisation or fine-tuning does not share.

    Raises LocalLlmError if the file cannot be read, or is not GGUF.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - HEADER_BYTES))
            digest.update(head + file.read() + str(size).encode())
    except OSError as error:
        raise LocalLlmError(f"model file {path} cannot be read: {error.strerror}") from error
    if not head.startswith(GGUF):
        raise LocalLlmError(f"{path} is not a GGUF model file: it begins with {head[:4]!r} instead of {GGUF!r}")
    return f"{path.stem}:{digest.hexdigest()[:12]}"


@contextmanager
def serving(path: Path, slots: int, context: int) -> Iterator[str]:
    """Yield the base URL at which the model is served while the block runs.

    `slots` requests are worked on at once, each with `context` tokens. The child ends with the block, and also when
    this process is killed. Raises LocalLlmError, with the end of the server's log, if it cannot be started.
    """
    name = fingerprint(path)
    if importlib.util.find_spec("xllamacpp") is None:
        raise LocalLlmError(
            f"{path} needs xllamacpp, which is not installed, to be served: install persona4rec[local-llm]"
        )
    with tempfile.TemporaryFile() as output:
        child = _started(path, name, slots, context, output)
        try:
            url = _ready(child, path, output)
            log.info("%s is served at %s for the time of this command", name, url)
            yield url
        finally:
            _stop(child)


def _started(path: Path, name: str, slots: int, context: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "offline.local_llm_server", str(path), name, str(slots), str(context)]
    # The child ends when its stdin does, which the system closes however this process ends.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, env=os.environ | PASSIVE
    )


def _ready(child: subprocess.Popen[bytes], path: Path, output: IO[bytes]) -> str:
    """Wait for the one line that the child writes when it is ready: its base URL."""
    assert child.stdout is not None  # noqa: S101  (piped above)
    if not select.select([child.stdout], [], [], READY_SECONDS)[0]:
        raise LocalLlmError(f"{path} was not ready to be served after {READY_SECONDS:g} s:\n{_tail(output)}")
    url = child.stdout.readline().decode().strip()
    if not url:
        raise LocalLlmError(f"{path} cannot be served (exit code {child.wait()}):\n{_tail(output)}")
    return url


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - TAIL_BYTES))
    return output.read().decode(errors="replace").strip()


def _stop(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe:
            pipe.close()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
