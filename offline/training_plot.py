"""A picture of how trainings went."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from offline.training import Point, best_of


@dataclass(frozen=True, slots=True)
class Curve:
    """One training."""

    name: str
    points: Sequence[Point]


def plot(curves: Sequence[Curve], chosen: Curve) -> bytes:
    """Return a PNG: loss of training, and NDCG of held-out users, by epoch and training."""
    from matplotlib.figure import Figure  # takes half a second, and who reads a model does not draw

    figure = Figure(figsize=(9, 4), layout="constrained")
    loss, ndcg = figure.subplots(1, 2)
    for curve in curves:
        epochs = [point.epoch for point in curve.points]
        style = {"linewidth": 2.5 if curve is chosen else 1.0, "label": curve.name, "marker": "."}
        loss.plot(epochs, [point.loss for point in curve.points], **style)
        ndcg.plot(epochs, [point.ndcg for point in curve.points], **style)
    best = best_of(chosen.points)
    ndcg.plot([best.epoch], [best.ndcg], "o", color="black", label="chosen")
    loss.set(title="Training loss", xlabel="epoch", ylabel="nats")
    ndcg.set(title="Held-out users", xlabel="epoch", ylabel="NDCG")
    ndcg.legend(fontsize="small")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
