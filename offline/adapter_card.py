"""What people read of an adapter: a model card, and a plot of its training."""

from io import BytesIO

from offline.adapter_data import TrainingData
from offline.train_adapter import HELD_OUT, Settings, Trained, Trial


def card(trained: Trained, data: TrainingData, picture: str) -> str:
    """Return the model card, Markdown; `picture` is the name of the plot's file."""
    chosen, adapter = trained.chosen, trained.adapter
    rows = "\n".join(_row(trial, trial is chosen) for trial in trained.trials)
    return f"""# A Persona4Rec adapter

Two residual heads of rank {chosen.settings.rank} over a frozen encoder: `u + uAB` for interaction texts, `p + pCD` for
persona texts, each brought back to unit length. Use it wherever the encoder is used: `persona4rec publish --adapter`
and `persona4rec histories load --adapter`. Its vectors are of a space of their own; the two are never mixed.

| | |
|---|---|
| encoder's space | `{adapter.base_space}` |
| adapter's space | `{adapter.space}` |
| data | fingerprint `{data.fingerprint}` |
| interactions | {data.events:,} of {len(data.users):,} users, {data.items:,} items in the catalogue |
| alignments | {data.alignments:,} used, {data.alignments_left_out:,} left out |
| seed | {trained.seed} |

## How it was chosen

Each setting was trained without {HELD_OUT:.0%} of the users, who then judged every epoch: from a random half of their
items, how well are the others found in the whole catalogue (NDCG, uncut)? The best setting was then trained on all
users for its best number of epochs. The figure that chose is a little too good for having been chosen; for one that is
not, run `persona4rec evaluate --train-adapter`.

| rank | temperature | weight decay | epochs | NDCG before | NDCG | |
|---|---|---|---|---|---|---|
{rows}

![NDCG of held-out users by epoch]({picture})
"""


def plot(trained: Trained) -> bytes:
    """Return a PNG: loss of training, and NDCG of held-out users, by epoch and trial."""
    from matplotlib.figure import Figure  # takes half a second, and who reads an adapter does not draw

    figure = Figure(figsize=(9, 4), layout="constrained")
    loss, ndcg = figure.subplots(1, 2)
    for trial in trained.trials:
        epochs = [point.epoch for point in trial.points]
        style = {"linewidth": 2.5 if trial is trained.chosen else 1.0, "label": _name(trial.settings)}
        loss.plot(epochs, [point.loss for point in trial.points], **style)
        ndcg.plot(epochs, [point.ndcg for point in trial.points], **style)
    best = trained.chosen.best
    ndcg.plot([best.epoch], [best.ndcg], "o", color="black", label="chosen")
    loss.set(title="Training loss", xlabel="epoch", ylabel="nats")
    ndcg.set(title="Held-out users", xlabel="epoch", ylabel="NDCG")
    ndcg.legend(fontsize="small")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def _row(trial: Trial, chosen: bool) -> str:
    settings, best = trial.settings, trial.best
    cells = (
        settings.rank,
        f"{settings.temperature:g}",
        f"{settings.weight_decay:g}",
        best.epoch,
        f"{trial.points[0].ndcg:.4f}",
        f"{best.ndcg:.4f}",
        "chosen" if chosen else "",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _name(settings: Settings) -> str:
    return f"rank {settings.rank}, temperature {settings.temperature:g}, decay {settings.weight_decay:g}"
