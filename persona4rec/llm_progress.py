"""How far the calls to an LLM are: a bar on a terminal, a line now and then in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from offline.progress import Progress, Report

LINE_SECONDS = 30.0
"""Between two lines in a log: a night's run leaves a thousand."""


@contextmanager
def llm_progress(stage: str, console: Console) -> Iterator[Report]:
    """Yield what to hand to `LlmClient.run` as its `report`. The last state is printed when the block ends, however."""
    shown = _bar(stage, console) if console.is_terminal else _lines(stage, console)
    last = Progress()

    try:
        with shown as show:

            def report(progress: Progress) -> None:
                nonlocal last
                last = progress
                show(progress)

            yield report
    finally:
        # Behind the bar, which takes its last line with it when it goes.
        if last.done:
            console.print(f"{stage}: {described(last)}", highlight=False)


def described(progress: Progress) -> str:
    """Return a progress in one line, e.g. "120 of 500 (30 cached, 4 rejected), 9.3/s, 0:00:41 left, cost 0.12"."""
    of = "" if progress.total is None else f" of {progress.total:,}"
    parts = [f"{progress.done:,}{of} ({progress.cached:,} cached, {progress.rejected:,} rejected)"]
    if progress.rate:
        parts.append(f"{progress.rate:.3g}/s")
    if progress.seconds_left:
        parts.append(f"{timedelta(seconds=round(progress.seconds_left))} left")
    if progress.usage.asks:
        parts.append(f"{progress.usage.input_tokens:,} + {progress.usage.output_tokens:,} tokens")
    if progress.cost:
        parts.append(f"cost {progress.cost:.4g}")
    return ", ".join(parts)


@contextmanager
def _bar(stage: str, console: Console) -> Iterator[Report]:
    columns = (TextColumn(stage), BarColumn(), TextColumn("{task.fields[state]}"))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(stage, total=None, state="")
        yield lambda progress: bar.update(
            task, total=progress.total, completed=progress.done, state=described(progress)
        )


@contextmanager
def _lines(stage: str, console: Console) -> Iterator[Report]:
    due = time.monotonic() + LINE_SECONDS

    def report(progress: Progress) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + LINE_SECONDS
            console.print(f"{stage}: {described(progress)}", highlight=False)

    yield report
