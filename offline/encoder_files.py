"""A trained encoder as a directory: a sentence-transformers model, the low-rank adapter beside it, and a card.

`model.safetensors` and its neighbours are what sentence-transformers writes, with the adapter merged; `lora/` is the
adapter as peft writes it; `training.json` says data, settings and figures; `README.md` and `training.png` are for
reading. `training/` is there while a training runs.
"""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError

from candidate_gen.directories import replacing
from offline.encoder_card import card
from offline.errors import ConfigurationError
from offline.train_encoder import TrainedEncoder
from offline.training_data import TrainingData
from offline.training_plot import Curve, plot
from offline.training_states import StateFile

META, CARD, PLOT, STATES = "training.json", "README.md", "training.png", "training"


def state_of(path: Path) -> StateFile:
    """Return where a training that writes to `path` keeps its state."""
    return StateFile(path / STATES / "encoder.pt")


def require_place(path: Path) -> None:
    """Raise ConfigurationError if `path` holds anything but a trained encoder, or a training of one."""
    if path.resolve() == Path.cwd():
        raise ConfigurationError(f"--out {path} is the current directory, which would be replaced: name one in it")
    if not path.exists():
        return
    entries = {entry.name for entry in path.iterdir()} if path.is_dir() else {path.name}
    if others := entries - {STATES} - _written(path):
        raise ConfigurationError(
            f"--out {path} holds something else than a trained encoder ({min(others)}): choose a new directory"
        )


def _written(path: Path) -> set[str]:
    """Return the names that the training of the encoder in a directory wrote there."""
    try:
        return set(json.loads((path / META).read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def write(trained: TrainedEncoder, data: TrainingData, base: str, path: Path) -> None:
    """Write the encoder, and remove the state of its training. What stood there is replaced when all is written.

    base: what was trained, by name or path. Afterwards `trained` cannot be trained on: its adapter is merged.
    Raises ConfigurationError if the directory cannot be written.
    """
    name = Path(base).name if Path(base).is_dir() else base  # where it lay on this machine is nobody's business
    try:
        with replacing(path) as fresh:
            _fill(fresh, trained, data, name)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"the encoder cannot be written to {path}: {error}") from error


def _fill(fresh: Path, trained: TrainedEncoder, data: TrainingData, base: str) -> None:
    (fresh / CARD).write_text(card(trained, data, base, PLOT), encoding="utf-8")
    curve = Curve("as trained", trained.points)
    (fresh / PLOT).write_bytes(plot([curve], curve))
    trained.lora.merge_and_save(fresh, base)
    files = sorted([META, *(entry.name for entry in fresh.iterdir())])
    meta = _meta(trained, data, base) | {"files": files}
    (fresh / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _meta(trained: TrainedEncoder, data: TrainingData, base: str) -> dict[str, object]:
    return {
        "base": base,
        "base_space": data.space,
        "seed": trained.seed,
        "settings": asdict(trained.settings) | {"epochs": trained.best.epoch},
        "data": {
            "fingerprint": data.fingerprint,
            "users": len(data.users),
            "items": data.items,
            "events": data.events,
            "alignments": data.alignments,
            "alignments_left_out": data.alignments_left_out,
        },
        "metrics": {"ndcg_before": trained.points[0].ndcg, "ndcg": trained.best.ndcg},
    }
