import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offline import appending
from offline.errors import DatasetError

records = st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=8), max_size=3), min_size=1, max_size=5)


@given(records, st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_file_torn_anywhere_keeps_its_whole_lines(tmp_path: Path, written: list[object], data: st.DataObject) -> None:
    path = tmp_path / "records.jsonl"
    lines = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in written]
    whole = b"".join(lines)
    end = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:end])
    with appending.appending(path) as output:
        output.append(b'{"new": 1}\n')
    *kept, new = path.read_bytes().splitlines(keepends=True)
    assert new == b'{"new": 1}\n'
    assert kept == lines[: len(kept)]
    # A line that lacks only its line break is whole.
    ends = [len(b"".join(lines[: number + 1])) - 1 for number in range(len(lines))]
    assert kept == [line for line, line_end in zip(lines, ends, strict=True) if line_end <= end]


def test_a_last_line_longer_than_a_block_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "BLOCK", 8)
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 100)
    with appending.appending(path):
        pass
    assert path.read_bytes() == b'{"a": 1}\n'


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with appending.appending(path), pytest.raises(DatasetError, match="is being written by another process"):
        appending.appending(path).__enter__()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"records\.jsonl cannot be written: No such file"):
        appending.appending(tmp_path / "none" / "records.jsonl").__enter__()


FULL = """
import sys
from pathlib import Path
from offline.appending import appending
with appending(Path(sys.argv[1])) as output:
    for number in range(100):
        try:
            output.append(b'{"number": %03d}\\n' % number)
        except OSError as error:
            sys.exit(error.errno)
"""


def test_a_full_disk_takes_whole_lines_or_none(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    # As on a full disk, the last write is short: 16 bytes a line do not divide 100.
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # noqa: E731
    result = subprocess.run([sys.executable, "-c", FULL, path], preexec_fn=limit)
    assert os.strerror(result.returncode) in {"No space left on device", "File too large"}
    assert path.read_bytes() == b"".join(b'{"number": %03d}\n' % number for number in range(100 // 16))


def test_a_file_that_got_no_line_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "aspects.jsonl"
    with appending.appending(path):
        assert path.exists()
    assert not path.exists()
    with pytest.raises(DatasetError, match="refused"), appending.appending(path):
        raise DatasetError("refused")
    assert not path.exists()
