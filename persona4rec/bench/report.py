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
from persona4rec.bench.run import EVENTS, TOP_K, Measured


def table(measured: Sequence[Measured]) -> RenderableType:
    """Show latency and throughput by catalogue size, each beside the echo of the same run."""
    return Group(_latency(measured), _throughput(measured), *_notes(measured))


def write_json(measured: Sequence[Measured], path: Path) -> None:
    path.write_text(json.dumps([asdict(one) for one in measured], indent=1) + "\n", encoding="utf-8")


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
