"""Files that change under a running server: settings of TLS, tokens, and the switch."""

import logging
import os
from pathlib import Path

import pytest

from reranker.errors import ConfigurationError
from reranker.switch import Switch, switch_off, switch_on
from reranker.tokens import read_tokens
from reranker.watched import Watched

ONE, OTHER = "one-token-of-sixteen", "other-token-of-sixteen"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "tokens"
    found.write_text(ONE)
    return found


@pytest.fixture
def watched(path: Path) -> Watched[str]:
    def read() -> str:
        text = path.read_text() if path.exists() else ""
        if not text:
            raise ConfigurationError("nothing there")
        return text

    return Watched(read, path)


def test_what_is_written_shows_at_the_next_look(watched: Watched[str], path: Path) -> None:
    path.write_text("two")
    assert watched.current == ONE
    watched.look()
    assert watched.current == "two"


def test_a_file_put_in_place_of_another_shows_though_it_is_as_old_and_as_long(
    watched: Watched[str], path: Path
) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(ONE[::-1])
    os.utime(beside, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    beside.rename(path)
    watched.look()
    assert watched.current == ONE[::-1]


def test_what_cannot_be_used_leaves_what_was_there_and_is_told_once(
    watched: Watched[str], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.unlink()
    watched.look()
    watched.look()
    assert watched.current == ONE
    (told,) = caplog.records
    assert str(path) in told.getMessage()
    assert told.levelno == logging.WARNING
    path.write_text("three")
    watched.look()
    assert watched.current == "three"


def test_the_switch_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "later" / "switched-off"
    switch = Switch(path)
    assert not switch.off
    with pytest.raises(FileNotFoundError):
        switch_off(path)
    path.parent.mkdir()
    switch_off(path)
    switch_off(path)
    switch.look()
    assert switch.off
    assert Switch(path).off, "a worker that starts later knows, too"
    switch_on(path)
    switch_on(path)
    switch.look()
    assert not switch.off


def test_a_switch_that_cannot_be_looked_for_stays_as_it_is_and_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A name that is too long for the file system: root is refused nothing.
    switch = Switch(tmp_path / ("n" * 300))
    switch.look()
    switch.look()
    assert not switch.off
    (told,) = caplog.records
    assert "the switch stays on" in told.getMessage()


@pytest.mark.parametrize(
    ("text", "line"),
    [("short", 1), (f"{ONE}\n\nwith spaces between them", 3), (f"# {ONE}\n{'é' * 16}", 2)],
)
def test_a_token_that_is_none_is_named_by_its_line_and_not_quoted(path: Path, text: str, line: int) -> None:
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=f"line {line}: a token is 16 ASCII") as error:
        read_tokens(path)
    assert not any(token in str(error.value) for token in text.splitlines() if token)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n\n"])
def test_a_file_without_tokens_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="holds no token"):
        read_tokens(path)


def test_tokens_are_kept_as_hashes(path: Path) -> None:
    path.write_text(f"# of two services\n{ONE}\n\n  {OTHER}  \n")
    assert [len(digest) for digest in read_tokens(path)] == [32, 32]
