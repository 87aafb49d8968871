"""What a run of a stage did, as a table of counters."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from persona4rec.plain import plain

if TYPE_CHECKING:
    from offline.batch_files import Imported
    from offline.places import Place
    from offline.progress import Progress
    from offline.stages import StageReport

SHARE_OF = dict.fromkeys(("null slots", "slots the review does not support", "slots that repeated another"), "slots")
"""Counts that tell more as a share of another one."""


def stage_done(report: "StageReport", progress: "Progress | None" = None) -> RenderableType:
    """Show what became of each subject, what the stage counted, and what was used."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value, style in (*_fates(report), *_counts(report), *_used(progress)):
        table.add_row(Text(plain(name)), Text(plain(value), style=style))
    return Group(Text(f"{report.stage}: {report.path}", style="bold"), table, *_bias(report))


def results_imported(found: "Imported") -> RenderableType:
    """Show what a batch brought, and why some of it was of no use."""
    told = f"results: {found.answered:,} calls answered, {found.known:,} known before, {found.open:,} still open"
    problems = (Text(plain(f"of no use, {count:,} x: {why}"), style="yellow") for why, count in found.problems)
    return Group(Text(told), *problems)


Row = tuple[str, str, str]


def _fates(report: "StageReport") -> Iterator[Row]:
    yield "done", f"{report.done:,} ({report.before:,} before)", ""
    if report.stale:
        yield "stale", f"{report.stale:,} of what has changed since; each stays until it is made anew", ""
    if report.gone:
        yield "gone", f"{report.gone:,} of what is there no more; they were taken away", ""
    for reason, count in sorted(report.rejected.items()):
        yield f"rejected, {reason}", f"{count:,}", "yellow"
    for reason, count in sorted(report.left_out.items()):
        yield f"left out of records, {reason}", f"{count:,}", "yellow"
    if report.open:
        yield "open", f"{report.open:,} whose answers are not there", "yellow"


def _counts(report: "StageReport") -> Iterator[Row]:
    from offline.places import is_place

    for name, count in report.counts.items():
        whole = report.counts.get(SHARE_OF.get(name, ""), 0)
        if not is_place(name):
            yield name, f"{count:,}" + (f" ({count / whole:.1%})" if whole else ""), ""


def _used(progress: "Progress | None") -> Iterator[Row]:
    if progress is None:
        return
    usage = progress.usage
    yield "calls", f"{progress.done:,} ({progress.cached:,} cached), {usage.asks:,} requests", ""
    yield "tokens", f"{usage.input_tokens:,} in, {usage.output_tokens:,} out", ""
    yield "cost", f"{progress.cost:.4g}", ""


def _bias(report: "StageReport") -> Iterator[Text]:
    from offline.places import position_bias

    places = position_bias(report.counts)
    if places:
        told = ", ".join(map(_place, places))
        yield Text(f"places chosen (expected of a judge that prefers none): {told}")


def _place(place: "Place") -> str:
    return f"{place.place}: {place.share:.0%} ({place.expected:.0%})"
