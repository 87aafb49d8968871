"""What was measured, as a table and as JSON."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from persona4rec.arguments import CANDIDATES
from persona4rec.bench.alternatives import Alternative
from persona4rec.bench.budgets import budgets
from persona4rec.bench.run import EVENTS, TOP_K, Measured


def table(measured: Sequence[Measured], alternatives: Sequence[Alternative] = ()) -> RenderableType:
    """Show latency and throughput by catalogue size, each beside the echo of the same run, and the budgets."""
    others = [_alternatives(alternatives)] if alternatives else []
    return Group(_latency(measured), _throughput(measured), *others, _budgets(measured), *_notes(measured))


def write_json(measured: Sequence[Measured], alternatives: Sequence[Alternative], path: Path) -> None:
    """Write the figures: {sizes, alternatives, budgets}."""
    told = {
        "sizes": [asdict(one) for one in measured],
        "alternatives": [asdict(one) for one in alternatives],
        "budgets": [{**asdict(one), "met": one.met} for one in budgets(measured)],
    }
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _budgets(measured: Sequence[Measured]) -> Table:
    shown = Table(title="Budgets", title_justify="left", header_style="bold")
    for column in ("", "measured", "must", "aim", ""):
        shown.add_column(column, justify="left" if not column else "right")
    for budget in budgets(measured):
        verdict = Text("missed", "red") if not budget.met else Text("aim reached" if budget.reached else "met", "green")
        numbers = [_amount(value, budget.unit) for value in (budget.measured, budget.must, budget.aim)]
        bound = ">= " if budget.at_least else "<= "
        shown.add_row(budget.what, numbers[0], bound + numbers[1], bound + numbers[2], verdict)
    return shown


def _amount(value: float, unit: str) -> str:
    return f"{value:.0f} us" if unit == "us" else f"{value:.2f} {unit}"


def _alternatives(alternatives: Sequence[Alternative]) -> Table:
    ours = alternatives[0].quantiles[50.0]
    shown = Table(title="Other ways to the same personas, milliseconds", title_justify="left", header_style="bold")
    for column in ("way", "p50", "p95", "against ours", "requests"):
        shown.add_column(column, justify="left" if column == "way" else "right")
    for one in alternatives:
        p50, p95 = one.quantiles[50.0], one.quantiles[95.0]
        shown.add_row(one.name, f"{p50:,.2f}", f"{p95:,.2f}", f"{p50 / ours:,.1f} x", str(one.requests))
    return shown


def _latency(measured: Sequence[Measured]) -> Table:
    shown = Table(title="One client, milliseconds: rerank / echo = ratio", title_justify="left", header_style="bold")
    shown.add_column("items", justify="right")
    for quantile in measured[0].latency["echo"].quantiles:
        shown.add_column(f"p{quantile:g}", justify="right")
    shown.add_column("server CPU", justify="right")
    for one in measured:
        echo, rerank = one.latency["echo"], one.latency["rerank"]
        cells = [_ratio(rerank.quantiles[q], echo.quantiles[q]) for q in echo.quantiles]
        shown.add_row(f"{one.items:,}", *cells, _ratio(rerank.cpu, echo.cpu))
    return shown


def _throughput(measured: Sequence[Measured]) -> Table:
    shown = Table(title="One worker, calls a second: rerank / echo", title_justify="left", header_style="bold")
    shown.add_column("items", justify="right")
    for loop in measured[0].throughput["echo"]:
        shown.add_column(f"{loop.in_flight} in flight", justify="right")
    for one in measured:
        pairs = zip(one.throughput["rerank"], one.throughput["echo"], strict=True)
        cells = [f"{r.per_second:,.0f} / {e.per_second:,.0f} = {r.per_second / e.per_second:.0%}" for r, e in pairs]
        shown.add_row(f"{one.items:,}", *cells)
    return shown


def _notes(measured: Sequence[Measured]) -> list[Text]:
    request = f"{CANDIDATES} candidates with scores, top {TOP_K}, explained, a history of {EVENTS} events in SQLite"
    sizes = "; ".join(
        f"{one.items:,} items: ready in {one.ready_seconds:.1f} s, memory {one.memory_share:.2f} x the vectors"
        for one in measured
    )
    return [
        Text(f"Request: {request}. Echo: the request parsed, a ready reply of the same bytes.", style="dim"),
        Text(
            f"{sizes}. {platform.processor() or platform.machine()}, Python {platform.python_version()}.", style="dim"
        ),
    ]


def _ratio(rerank: float, echo: float) -> str:
    return f"{rerank:.2f} / {echo:.2f} = {rerank / echo:.2f}"
