"""The `persona4rec` command as a process of its own, and what is left of one when it ends."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, sleep

# A busy machine takes several times as long as anything here needs.
PATIENCE_SECONDS = 240.0


def environment(**changes: str) -> dict[str, str]:
    """Return this environment without the project's own settings, with a wide terminal, no model hub, and `changes`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PERSONA4REC_")}
    return own | {"COLUMNS": "1000", "HF_HUB_OFFLINE": "1"} | changes


def persona4rec(
    *arguments: str | Path, cwd: Path | None = None, settings: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end; `settings` are environment variables."""
    command = [sys.executable, "-m", "persona4rec", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**(settings or {})), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )


def succeeded(result: "subprocess.CompletedProcess[str]") -> str:
    """Check that a command ended well and return what it printed."""
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


def complaint(result: "subprocess.CompletedProcess[str]") -> str:
    """Check that a command ended with one message and no stack, and return the message."""
    assert result.returncode == 1, (result.returncode, result.stdout, result.stderr)
    assert "Traceback" not in result.stdout + result.stderr
    messages = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(messages) == 1, messages
    assert messages[0].startswith("error: ")
    return messages[0]


def usage(result: "subprocess.CompletedProcess[str]") -> str:
    """Check that a command was refused for its arguments, and return what it said."""
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("Error") == 1
    return result.stderr


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds; fail naming it after long patience."""
    deadline = monotonic() + PATIENCE_SECONDS
    while not holds():
        assert monotonic() < deadline, f"not within {PATIENCE_SECONDS:g} s: {what}"
        sleep(0.05)


def processes_of(session: int) -> dict[int, str]:
    """Return the command lines of the running processes of a session, by their id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # After the name in parentheses: state, parent, process group, session.
            state, _, _, of_session = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            command = (folder / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue  # it has ended meanwhile
        if int(of_session) == session and state != "Z":
            found[int(folder.name)] = command
    return found
