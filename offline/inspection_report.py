"""The quality report as one HTML file: plots are SVG within it, and every text of the dataset is escaped."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from offline.inspection import Aligned, Inspection
from offline.persona_checks import ALIKE, SUPPORT

COLOUR, FAINT, ALERT = "#3b6ea5", "#b8c4d0", "#b5532f"
SIZE = (5.2, 2.6)
"""Inches of a plot, two of which stand side by side."""

BINS = 30

_STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8894a0",
    # Letters as letters: searched and read aloud, and a third of the bytes.
    "svg.fonttype": "none",
    # The ids within a plot are a hash of this: the same figures give the same file.
    "svg.hashsalt": "persona4rec",
}

Draw = Callable[[Axes], None]

# It tells that it has made its list of fonts, the first time.
logging.getLogger("matplotlib").setLevel(logging.WARNING)


def rendered(found: Inspection) -> str:
    """Return the report of an inspection."""
    environment = Environment(
        loader=PackageLoader("offline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = lambda value: "n/a" if value != value else f"{value:.1%}"
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment.get_template("report.html").render(
        found=found, plots=_plots(found), support_threshold=SUPPORT, alike_threshold=ALIKE
    )


def _plots(found: Inspection) -> dict[str, Markup]:
    draws: dict[str, Draw] = {
        "personas per item": lambda axes: _bars(axes, found.per_item, "personas", "items"),
        "evidence per persona": lambda axes: _bars(axes, found.evidence_per_persona, "reviews", "personas"),
    }
    if found.quality.support:
        draws["support"] = lambda axes: _distribution(axes, found.quality.support, SUPPORT, "support", below=True)
    if found.quality.nearest:
        draws["likeness"] = lambda axes: _distribution(axes, found.quality.nearest, ALIKE, "cosine", below=False)
    if found.aligned and found.aligned.judged:
        aligned = found.aligned
        draws["alignment by position"] = lambda axes: _positions(axes, aligned)
    return {title: _svg(title, draw) for title, draw in draws.items()}


def _svg(title: str, draw: Draw) -> Markup:
    with rc_context(_STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.subplots())
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = text.getvalue()
    body = re.sub(
        r'(<svg [^>]*?)width="[\d.]+pt" height="[\d.]+pt"|(<svg [^>]*?)height="[\d.]+pt"',
        r"\1\2",
        svg[svg.index("<svg") :],
    )
    # Only numbers and our own words are drawn, so the SVG is safe; the label is escaped.
    return Markup(body.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))  # noqa: S704


def _bars(axes: Axes, values: Sequence[int], what: str, of: str) -> None:
    counts = Counter(min(value, 12) for value in values)
    axes.bar(list(counts), list(counts.values()), color=COLOUR, width=0.75)
    axes.set_xlabel(what if not values or max(values) <= 12 else f"{what} (12: and more)")
    axes.set_ylabel(of)
    axes.set_xticks(range(min(counts, default=0), max(counts, default=1) + 1))


def _distribution(axes: Axes, values: Sequence[float], threshold: float, what: str, *, below: bool) -> None:
    _, edges, patches = axes.hist(values, bins=BINS, range=(min(0.0, *values), 1.0), color=COLOUR)
    patches_list: Any = patches
    for edge, patch in zip(edges, patches_list, strict=False):
        if (edge < threshold) == below:
            patch.set_facecolor(ALERT)
    axes.axvline(threshold, color="#333333", linewidth=1, linestyle="--")
    axes.set_xlabel(what)
    axes.set_ylabel("personas")


def _positions(axes: Axes, aligned: Aligned) -> None:
    places = [place for place, _, _ in aligned.by_position]
    axes.bar(places, [chosen for _, chosen, _ in aligned.by_position], color=COLOUR, width=0.75, label="chosen")
    expected = [chance for _, _, chance in aligned.by_position]
    axes.plot(places, expected, color=ALERT, marker="o", markersize=4, linewidth=1, label="by chance")
    axes.set_xlabel("place of the persona in its item")
    axes.set_ylabel("alignments")
    axes.set_xticks(places)
    axes.legend(frameon=False)
