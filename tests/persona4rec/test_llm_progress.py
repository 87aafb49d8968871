import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from offline.progress import Progress
from offline.replies import Usage
from offline.spending import Estimate
from persona4rec import llm_progress, tables
from persona4rec.llm_progress import described

PROGRESS = Progress(
    total=10_000, done=1200, cached=300, rejected=4, usage=Usage(900, 2000, 500), cost=0.125, seconds=90
)
LINE = "1,200 of 10,000 (300 cached, 4 rejected), 10/s, 0:14:40 left, 2,000 + 500 tokens, cost 0.125"


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=200, color_system=None)


def written(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def test_a_line_says_it_all_and_nothing_that_is_not_known() -> None:
    assert described(PROGRESS) == LINE
    assert described(Progress(done=3, cached=3)) == "3 (3 cached, 0 rejected)"


def test_a_terminal_has_a_bar_while_the_run_lasts_and_a_line_after_it() -> None:
    shown = console(terminal=True)
    with llm_progress.llm_progress("aspects", shown) as report:
        report(PROGRESS)
    bar, _, rest = written(shown).rpartition("\x1b[2K")  # the last time that a line is wiped
    assert "aspects \u2501" in bar
    assert f"aspects: {LINE}\n" in rest


def test_a_dry_run_tells_what_is_asked_for_and_what_it_costs() -> None:
    found = Estimate(1000, 400, 90_000, 12_000, from_experience=True, cost=0.5, cost_at_most=1.25)
    assert tables.dry_run("aspects", found).plain == (
        "aspects: 600 calls to make (1,000 in all, 400 cached), about 90,000 + 12,000 tokens, cost about 0.5, at most "
        "1.25 if every first answer is good. Answers are taken to be as long as this stage's earlier ones."
    )
    assert "as long as they may be" in tables.dry_run("aspects", replace(found, from_experience=False)).plain
    assert "without an upper limit" in tables.dry_run("aspects", replace(found, cost_at_most=math.inf)).plain


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 4), (1000.0, 1)])
def test_a_log_has_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch, seconds: float, lines: int) -> None:
    monkeypatch.setattr(llm_progress, "LINE_SECONDS", seconds)
    shown = console(terminal=False)
    with llm_progress.llm_progress("aspects", shown) as report:
        for _ in range(3):
            report(PROGRESS)
    assert written(shown) == f"aspects: {LINE}\n" * lines


def test_the_last_state_is_told_also_when_the_run_fails() -> None:
    shown = console(terminal=False)

    def failing() -> None:
        with llm_progress.llm_progress("aspects", shown) as report:
            report(PROGRESS)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert written(shown) == f"aspects: {LINE}\n"
