import json
from pathlib import Path

import pytest

from offline.errors import TooManyRejectsError
from offline.rejects import RAW_LIMIT, REJECTS, Rejects


def finish(directory: Path, file: str, reasons: list[str], *, lines: int = 1000, share: float = 0.05) -> None:
    with Rejects(directory, file) as rejects:
        for number, reason in enumerate(reasons, start=1):
            rejects.add(number, reason, b"{" + b"x" * 3000)
        rejects.finish(lines, len(reasons), share)


def entries(directory: Path) -> list[tuple[str, str]]:
    path = directory / REJECTS
    return [(entry["file"], entry["reason"]) for entry in map(json.loads, path.read_text().splitlines())]


def test_each_file_replaces_its_own_rejects_and_an_empty_list_goes(tmp_path: Path) -> None:
    finish(tmp_path, "items.jsonl", ["one", "two"])
    finish(tmp_path, "reviews.jsonl", ["three"])
    finish(tmp_path, "items.jsonl", ["four"])
    assert entries(tmp_path) == [("reviews.jsonl", "three"), ("items.jsonl", "four")]
    finish(tmp_path, "reviews.jsonl", [])
    assert entries(tmp_path) == [("items.jsonl", "four")]
    finish(tmp_path, "items.jsonl", [])
    assert list(tmp_path.iterdir()) == []


def test_a_long_line_is_cut(tmp_path: Path) -> None:
    finish(tmp_path, "items.jsonl", ["long"])
    assert len(json.loads((tmp_path / REJECTS).read_text())["raw"]) == RAW_LIMIT


@pytest.mark.parametrize(
    ("lines", "bad", "ends"),
    [(0, 0, False), (20, 1, False), (20, 2, True), (100, 5, False), (100, 6, True), (19, 18, False), (19, 19, True)],
)
def test_what_share_ends_a_run(tmp_path: Path, lines: int, bad: int, ends: bool) -> None:
    if not ends:
        finish(tmp_path, "items.jsonl", ["bad"] * bad, lines=lines)
        return
    with pytest.raises(TooManyRejectsError, match=rf"items\.jsonl: {bad} of {lines} .*max_bad_share = 0\.05.*bad"):
        finish(tmp_path, "items.jsonl", ["bad"] * bad, lines=lines)
    assert len(entries(tmp_path)) == bad


def test_a_read_only_directory_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o555)
    try:
        finish(tmp_path, "items.jsonl", ["bad"])
        assert list(tmp_path.iterdir()) == []
    finally:
        tmp_path.chmod(0o755)
    assert f"would have gone to {tmp_path / REJECTS}" in caplog.text
