import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from offline.errors import DatasetError
from offline.importers import disk_ids
from offline.importers.disk_ids import DiskIds
from offline.importers.staging import STAGING, staged

NAMES = ("items.jsonl", "reviews.jsonl", "interactions.csv")


def fill(directory: Path, text: str) -> None:
    for name in NAMES:
        (directory / name).write_text(text)


def texts(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_all_files_take_their_places_at_the_end(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    (tmp_path / "personas.jsonl").write_text("kept")
    with staged(tmp_path) as staging:
        fill(staging, "new")
        assert (tmp_path / "items.jsonl").read_text() == "old"
    assert texts(tmp_path) == dict.fromkeys(NAMES, "new") | {"personas.jsonl": "kept"}


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    with pytest.raises(ZeroDivisionError), staged(tmp_path) as staging:
        fill(staging, str(1 / 0))
    assert texts(tmp_path) == dict.fromkeys(NAMES, "old")


def test_a_second_import_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    with staged(tmp_path) as staging:
        fill(staging, "first")
        with pytest.raises(DatasetError, match="another import is writing to"), staged(tmp_path):
            pytest.fail("was let in")
    assert texts(tmp_path) == dict.fromkeys(NAMES, "first")


def test_what_a_killed_import_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / STAGING).mkdir()
    (tmp_path / STAGING / "aspects.jsonl").write_text("half")
    with staged(tmp_path) as staging:
        fill(staging, "new")
    assert texts(tmp_path) == dict.fromkeys(NAMES, "new")


@pytest.mark.parametrize("renames", range(4))
def test_killed_while_files_change_places_there_is_no_mixed_dataset(tmp_path: Path, renames: int) -> None:
    fill(tmp_path, "old")
    script = f"""
import os, pathlib, signal
from offline.importers import disk_ids
from offline.importers.disk_ids import DiskIds
from offline.importers.staging import staged
rename, done = pathlib.Path.replace, []
def killed_after(self, target):
    if len(done) == {renames}: os.kill(os.getpid(), signal.SIGKILL)
    done.append(rename(self, target))
pathlib.Path.replace = killed_after
with staged(pathlib.Path({str(tmp_path)!r})) as staging:
    for name in {NAMES!r}: (staging / name).write_text("new")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    )
    assert done.returncode == (0 if renames == len(NAMES) else -signal.SIGKILL)
    found = {name: (tmp_path / name).read_text() for name in NAMES if (tmp_path / name).exists()}
    is_dataset = "items.jsonl" in found
    assert is_dataset is (renames == len(NAMES))
    assert not is_dataset or set(found.values()) == {"new"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"file cannot be written: .*File exists"), staged(tmp_path / "file"):
        pytest.fail("was let in")


def test_a_disk_that_is_full_of_ids_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_ids, "CACHE_KIB", 16)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel then refuses to write on, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DatasetError, match="cannot be written: disk"):
            add_ids(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def add_ids(out: Path) -> None:
    with staged(out) as staging, DiskIds(staging) as ids:
        found = ids.new_set("found")
        for number in range(10_000):
            found.add(f"{number:030}")
