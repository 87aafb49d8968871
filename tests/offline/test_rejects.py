import json
import resource
from pathlib import Path

import pytest

from offline.errors import TooManyRejectsError
from offline.rejects import RAW_LIMIT, REJECTS, Rejects, SubjectRejects
from offline.rejects import entries as standing


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


# ---- of a stage ------------------------------------------------------------------------------------------------------


def run(directory: Path, visited: dict[str, list[str]], there: str = "abc", stage: str = "aspects") -> None:
    """Do as a run of a stage does that meets these subjects, and visits some."""
    with SubjectRejects(directory, stage) as rejects:
        for key in rejects.meeting(there, str):
            if key in visited:
                rejects.visited(key, visited[key])


def told(directory: Path) -> list[tuple[str, str]]:
    return [(entry.raw, entry.reason) for entry in standing(directory / REJECTS)]


def test_what_a_stage_told_stands_until_its_subject_is_visited_again_or_gone(tmp_path: Path) -> None:
    run(tmp_path, {"a": ["one", "two"], "b": ["three"], "c": ["four"]})
    finish(tmp_path, "reviews.jsonl", ["of a file"])
    run(tmp_path, {"c": ["of another stage"]}, stage="personas")
    run(tmp_path, {})
    assert told(tmp_path)[:4] == [("a", "one"), ("a", "two"), ("b", "three"), ("c", "four")]
    run(tmp_path, {"a": ["five"], "b": []})
    assert [reason for _, reason in entries(tmp_path)] == ["four", "of a file", "of another stage", "five"]
    run(tmp_path, {}, there="ab")
    assert [reason for _, reason in entries(tmp_path)] == ["of a file", "of another stage", "five"]


def test_a_run_that_was_stopped_early_takes_nothing_away_that_it_did_not_reach(tmp_path: Path) -> None:
    run(tmp_path, {"a": ["one"], "c": ["two"]})
    with SubjectRejects(tmp_path, "aspects") as rejects:
        rejects.visited(next(rejects.meeting("abc", str)), [])
    assert told(tmp_path) == [("c", "two")]


def test_what_a_killed_run_told_is_there_and_told_once(tmp_path: Path) -> None:
    run(tmp_path, {"a": ["one"], "b": ["two"], "c": ["three"]})
    killed = SubjectRejects(tmp_path, "aspects")
    killed.__enter__()
    killed.visited("a", [])
    killed.visited("b", ["two"])
    assert told(tmp_path) == [("c", "three"), ("b", "two")]
    with (tmp_path / REJECTS).open("a") as file:
        file.write('{"file": "aspects", "line": 0, "rea')
    assert told(tmp_path) == [("c", "three"), ("b", "two")]
    finish(tmp_path, "reviews.jsonl", ["of a file"])
    run(tmp_path, {"c": ["four"]})
    assert [reason for _, reason in entries(tmp_path)] == ["two", "of a file", "four"]


def test_a_torn_line_takes_none_with_it(tmp_path: Path) -> None:
    run(tmp_path, {"a": ["one"]})
    with (tmp_path / REJECTS).open("a") as file:
        file.write('{"file": "aspects", "line": 0, "rea')
    run(tmp_path, {"b": ["two"]})
    assert [reason for _, reason in entries(tmp_path)] == ["one", "two"]


def test_a_full_disk_is_told_once_and_leaves_no_half_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, {"a": ["one"]})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / REJECTS).stat().st_size + 9, hard))
    try:
        run(tmp_path, {"b": ["two"], "c": ["three"]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told(tmp_path) == [("a", "one")]
    assert caplog.text.count(f"would have gone to {tmp_path / REJECTS}") == 1
