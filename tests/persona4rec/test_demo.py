"""`persona4rec demo` as people run it, to its end and not."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from offline.dataset import Dataset
from persona4rec import demo_streaming
from persona4rec.demo import CATALOGUE, NEW_INTERACTIONS, READERS
from tests.persona4rec.running import environment, eventually, processes_of

# On a free machine the demo takes a minute.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

HASTY = """
import sys
import persona4rec.demo
from candidate_gen.implicit_models import DEFAULTS
from offline.evaluate import Choice
from persona4rec.cli import main

# What this test is about comes after the judging, which takes most of the demo's time.
persona4rec.demo._judge = lambda *_: (None, Choice(DEFAULTS["als"], weight=0.5, gamma=0.9, history_length=10))
sys.argv = ["persona4rec", "demo"]
main()
"""


@dataclass(frozen=True)
class Demo:
    process: "subprocess.Popen[str]"
    temporary: Path

    def children(self, words: str) -> list[int]:
        """Return the processes that the demo has started with these words in their command."""
        found = processes_of(self.process.pid)
        return [process for process, command in found.items() if process != self.process.pid and words in command]

    def ended(self) -> tuple[int, str, str]:
        """Wait for the end, check that nothing is left of the demo, and return code, output and errors.

        torch may leave an empty folder of its own.
        """
        output, errors = self.process.communicate()
        assert processes_of(self.process.pid) == {}
        assert list(self.temporary.glob("persona4rec*")) == []
        return self.process.returncode, output, errors


@pytest.fixture
def demo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Demo]:
    command: list[str] = getattr(request, "param", ["-m", "persona4rec", "demo"])
    temporary, home = tmp_path / "temporary", tmp_path / "home"
    temporary.mkdir()
    home.mkdir()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=home,
        env=environment(TMPDIR=str(temporary), HOME=str(home), COLUMNS="200"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background of a shell, Ctrl-C is ignored, and that would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    yield Demo(process, temporary)
    if processes_of(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_every_act_is_shown_and_nothing_is_left(demo: Demo) -> None:
    code, output, errors = demo.ended()
    assert code == 0, errors
    assert "Traceback" not in output + errors
    titles = {item.item_id: item.title for item in Dataset.open(CATALOGUE).items()}
    book = titles[demo_streaming.BOOK]
    journey = [
        f"{demo_streaming.READER} reviews {book}, into Kafka",
        "new personas after",
        f"The next ranking for {demo_streaming.READER}, same candidates",
        "after the review",
    ]
    if demo_streaming.broker_missing():
        journey = ["Left out: the streaming act"]
    acts = [
        "Persona4Rec: rerank, and say why",
        f"{len(titles)} public-domain classics",
        *(f"{reader} has lately read" for reader in READERS),
        f"{READERS[0]} now reads {', '.join(titles[item_id] for item_id in NEW_INTERACTIONS)}",
        "after three interactions",
        "Does it help?",
        "shuffled",
        "NDCG@10",
        *journey,
        "Where the time went",
        "median",
    ]
    spoken = " ".join(output.split())
    places = [spoken.find(act) for act in acts]
    assert all(place >= 0 for place in places), dict(zip(acts, places, strict=True))
    assert places == sorted(places)
    # Every list of a reader has moves and reasons in it, and none had to do without.
    assert len(re.findall(r"[▲▼]\d", output)) > len(READERS)
    assert "without: " not in output
    assert list((demo.temporary.parent / "home").iterdir()) == []


def test_ctrl_c_in_its_midst_leaves_nothing(demo: Demo) -> None:
    eventually(lambda: bool(demo.children("milvus_lite")), "a Milvus of the demo")
    # A terminal sends it to every process of the foreground.
    os.killpg(demo.process.pid, signal.SIGINT)
    code, _, errors = demo.ended()
    assert code != 0
    assert "Traceback" not in errors


@pytest.mark.parametrize("demo", [["-c", HASTY]], indirect=True, ids=["hasty"])
def test_sigterm_while_it_serves_leaves_nothing(demo: Demo) -> None:
    eventually(lambda: bool(demo.children("persona4rec serve")), "a server of the demo")
    assert demo.children("milvus_lite")
    demo.process.send_signal(signal.SIGTERM)
    code, _, errors = demo.ended()
    assert code == 128 + signal.SIGTERM
    assert "Traceback" not in errors
