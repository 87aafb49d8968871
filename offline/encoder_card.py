"""The model card of a trained encoder."""

from offline.train_encoder import TrainedEncoder
from offline.training import HELD_OUT, Point
from offline.training_data import TrainingData


def card(trained: TrainedEncoder, data: TrainingData, base: str, picture: str) -> str:
    """Return Markdown; `base` is what was trained, `picture` the name of the plot's file."""
    settings, best = trained.settings, trained.best
    shape = settings.shape
    rows = "\n".join(f"| {p.epoch} | {_loss(p)} | {p.ndcg:.4f} |" for p in trained.points)
    return f"""---
library_name: sentence-transformers
base_model: {base}
tags: [sentence-transformers, sentence-similarity, recommender-systems]
---

# A Persona4Rec encoder

`{base}`, trained so that a user's profile finds the personas of the user's other items. A directory of
sentence-transformers like any other: `SentenceTransformer(PATH)`, `persona4rec publish --encoder PATH`. The low-rank
factors are merged into the weights; `lora/` keeps them as a peft adapter of the base. Its vectors are of an embedding
space of their own.

| | |
|---|---|
| base's space | `{data.space}` |
| data | fingerprint `{data.fingerprint}` |
| interactions | {data.events:,} of {len(data.users):,} users, {data.items:,} items in the catalogue |
| alignments | {data.alignments:,} used, {data.alignments_left_out:,} left out |
| LoRA | rank {shape.rank}, alpha {shape.alpha}, dropout {shape.dropout:g}, on {", ".join(trained.lora.targets)} |
| loss | InfoNCE of at most {settings.batch} pairs, temperature {settings.temperature:g}, decay {settings.gamma:g} |
| optimiser | AdamW, learning rate {settings.learning_rate:g}, weight decay {settings.weight_decay:g} |
| epochs | {best.epoch} kept of {trained.points[-1].epoch}, of at most {settings.steps} steps each |
| seed | {trained.seed} |

## How it was chosen

{HELD_OUT:.0%} of the users were not trained on and judged every epoch: from a random half of their items, how well are
the others found in the whole catalogue (NDCG, uncut)? The best epoch was kept. Its figure is a little too good for
having been chosen; for one that is not, run `persona4rec evaluate --train-lora`.

| epoch | loss | NDCG |
|---|---|---|
{rows}

![Loss, and NDCG of held-out users, by epoch]({picture})
"""


def _loss(point: Point) -> str:
    return f"{point.loss:.4f}" if point.epoch else "-"
