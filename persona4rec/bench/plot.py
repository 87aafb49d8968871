"""The measurement as a picture: how latency is spread, and what a worker answers with more callers."""

from collections.abc import Sequence
from pathlib import Path

from persona4rec.bench.run import CURVE, Measured

COLOURS = {"echo": "#8a8f98", "rerank": "#1f6feb"}


def plot(measured: Sequence[Measured], path: Path) -> None:
    """Write a PNG or SVG, by the path's ending: one row a catalogue size."""
    # Only for pictures, and half a second to import.
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(len(measured), 2, figsize=(11, 3.6 * len(measured)), squeeze=False)
    for (left, right), one in zip(rows, measured, strict=True):
        for name, latency in one.latency.items():
            # The last of the curve is the one slowest call, which would squeeze all others.
            left.plot(latency.curve[:-1], CURVE[:-1], color=COLOURS[name], label=name)
            loops = one.throughput[name]
            numbers = [loop.in_flight for loop in loops]
            right.plot(numbers, [loop.per_second for loop in loops], "o-", color=COLOURS[name], label=name)
        left.set(
            title=f"{one.items:,} items: one client", xlabel="milliseconds", ylabel="share of calls", xlim=(0, None)
        )
        right.set(
            title=f"{one.items:,} items: one worker", xlabel="in flight", ylabel="answers a second", ylim=(0, None)
        )
        for axes in (left, right):
            axes.grid(alpha=0.25)
            axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
