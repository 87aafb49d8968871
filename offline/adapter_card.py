"""What people read of an adapter: a model card, and a plot of its training."""

from offline.train_adapter import Settings, Trained, Trial
from offline.training import HELD_OUT
from offline.training_data import TrainingData
from offline.training_plot import Curve
from offline.training_plot import plot as plot_curves


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
    """Return a PNG of all trials."""
    curves = [Curve(_name(trial.settings), trial.points) for trial in trained.trials]
    return plot_curves(curves, curves[trained.trials.index(trained.chosen)])


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
