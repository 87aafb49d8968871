"""A local LLM. The test that talks to a real one takes its model file from PERSONA4REC_TEST_GGUF."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import BaseModel

from offline.calls import Call
from offline.endpoints import opened
from offline.errors import LocalLlmError
from offline.llm import LlmClient
from offline.llm_cache import ResponseCache
from offline.llm_settings import LlmSettings, LocalGguf
from offline.local_llm import HEADER_BYTES, fingerprint, serving

MODEL = os.environ.get("PERSONA4REC_TEST_GGUF", "")


def gguf(path: Path, content: bytes = b"") -> Path:
    path.write_bytes(b"GGUF" + content)
    return path


def test_a_fingerprint_tells_files_apart_by_either_end_and_size(tmp_path: Path) -> None:
    padding = bytes(3 * HEADER_BYTES)
    contents = [b"a" + padding, b"b" + padding, padding + b"a", padding]
    found = {fingerprint(gguf(tmp_path / "model.gguf", content)) for content in contents}
    assert len(found) == 4
    assert all(name.startswith("model:") for name in found)


def test_what_is_no_model_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(LocalLlmError, match=r"model\.safetensors cannot be read: No such file"):
        fingerprint(path)
    with pytest.raises(LocalLlmError, match=r"cannot be read: Is a directory"):
        fingerprint(tmp_path)
    path.write_bytes(b"PK\3\4")
    with pytest.raises(LocalLlmError, match=r"is not a GGUF model file: it begins with b'PK\\x03\\x04'"):
        fingerprint(path)


def test_the_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LocalLlmError, match=r"install persona4rec\[local-llm\]"), serving(gguf(tmp_path / "m"), 1, 512):
        pass


@pytest.mark.integration
def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    path = gguf(tmp_path / "broken.gguf", b"garbage" * 100)
    with (
        pytest.raises(LocalLlmError, match=r"(?s)broken\.gguf cannot be served \(exit code .*gguf"),
        serving(path, 1, 512),
    ):
        pass


class Capital(BaseModel):
    city: str


SERVE = """
import sys, time
from pathlib import Path
from offline.local_llm import serving
with serving(Path(sys.argv[1]), 1, 512) as url:
    print(url, flush=True)
    time.sleep(600)
"""


@pytest.mark.soak
@pytest.mark.skipif(not MODEL, reason="PERSONA4REC_TEST_GGUF names no GGUF model file")
def test_a_real_model_answers_by_schema(tmp_path: Path) -> None:
    settings = LlmSettings(local_slots=2, local_context=1024, timeout_seconds=100)
    question = "What is the capital of France? Reply in JSON."
    call = Call("france", ({"role": "user", "content": question},), Capital, 40)
    with opened(LocalGguf(Path(MODEL)), settings) as endpoint, ResponseCache(tmp_path / "cache.sqlite") as cache:
        [outcome] = LlmClient(endpoint, cache, settings).run("test", [call])
        assert isinstance(outcome.result, Capital)
        assert cache.spending()[0].usage.output_tokens > 0


@pytest.mark.soak
@pytest.mark.skipif(not MODEL, reason="PERSONA4REC_TEST_GGUF names no GGUF model file")
def test_the_server_ends_with_its_parent_however_that_ends() -> None:
    parent = subprocess.Popen([sys.executable, "-c", SERVE, MODEL], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    assert parent.stdout.readline().startswith("http://127.0.0.1:")
    [child] = map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < end, "the server outlived its parent"
        time.sleep(0.1)
