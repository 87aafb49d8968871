"""An adapter as a directory: its weights, what they were made from, and a card for people.

`adapter.safetensors` holds the four matrices; `meta.json` says format, embedding spaces, settings, data, figures and
the SHA-256 of the weights; `README.md` and `training.png` are for reading. `training/` is there while a training runs.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from offline.adapter import AdaptedEncoder, Adapter, Head
from offline.encoder import Embedder, load_encoder
from offline.errors import AdapterError, ConfigurationError

# Training takes seconds to load, and whoever only reads an adapter has no use for it.
if TYPE_CHECKING:
    from offline.train_adapter import Trained
    from offline.training_data import TrainingData
    from offline.training_states import StateFile

FORMAT = "persona4rec adapter"
VERSION = 1
WEIGHTS, META, CARD, PLOT, STATES = "adapter.safetensors", "meta.json", "README.md", "training.png", "training"


class _Meta(BaseModel):
    format: str
    version: int
    base_space: str
    space: str
    rank: int
    dimension: int
    sha256: str
    """Of the weights' file."""
    seed: int
    settings: dict[str, int | float]
    data: dict[str, str | int]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class States:
    """Where a training that writes to `path` keeps its stages' states."""

    path: Path

    def __call__(self, stage: str) -> "StateFile":
        from offline.training_states import StateFile

        return StateFile(self.path / STATES / f"{stage}.pt")


def require_place(path: Path) -> None:
    """Raise ConfigurationError if `path` holds anything but an adapter, or a training of one."""
    ours = {WEIGHTS, META, CARD, PLOT, STATES}
    if path.exists() and not (
        path.is_dir() and {entry.name.removesuffix(".writing") for entry in path.iterdir()} <= ours
    ):
        raise ConfigurationError(f"--out {path} holds something else than an adapter: choose a new or empty directory")


def write(trained: "Trained", data: "TrainingData", path: Path) -> None:
    """Write the adapter, and remove the states of its training.

    Weights and meta.json replace older ones one after the other: who reads between the two is told so.
    Raises ConfigurationError if the directory cannot be written.
    """
    from offline.adapter_card import card, plot

    weights = save_tensors(_tensors(trained.adapter))
    meta = _meta(trained, data, hashlib.sha256(weights).hexdigest())
    try:
        path.mkdir(parents=True, exist_ok=True)
        _replace(path / PLOT, plot(trained))
        _replace(path / CARD, card(trained, data, PLOT).encode())
        _replace(path / WEIGHTS, weights)
        _replace(path / META, meta.model_dump_json(indent=2).encode())
        shutil.rmtree(path / STATES, ignore_errors=True)
    except OSError as error:
        raise ConfigurationError(f"the adapter cannot be written to {path}: {error}") from error


def read(path: Path) -> Adapter:
    """Read an adapter back. Raises AdapterError, naming path and cause, if it is missing, torn or of another format."""
    try:
        meta = _read_meta(path)
        weights = (path / WEIGHTS).read_bytes()
        if hashlib.sha256(weights).hexdigest() != meta.sha256:
            raise ValueError(f"{WEIGHTS} is not the file that {META} was written with (its SHA-256 differs)")
        return _adapter(meta, load_tensors(weights))
    except FileNotFoundError as error:
        raise _unusable(path, _missing(path, error)) from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unusable(path, str(error)) from error


def load_embedder(encoder: str, adapter: Path | None) -> Embedder:
    """Load an encoder by name, with the adapter of a directory if one is given.

    Raises EncoderError, AdapterError, or EmbeddingSpaceError if the adapter is of another encoder.
    """
    heads = read(adapter) if adapter else None
    loaded = load_encoder(encoder)
    return AdaptedEncoder(loaded, heads) if heads else loaded


def _tensors(adapter: Adapter) -> dict[str, Any]:
    sides = {"personas": adapter.personas, "interactions": adapter.interactions}
    return {f"{side}.{part}": getattr(head, part) for side, head in sides.items() for part in ("down", "up")}


def _adapter(meta: _Meta, tensors: dict[str, Any]) -> Adapter:
    personas = Head(tensors["personas.down"], tensors["personas.up"])
    interactions = Head(tensors["interactions.down"], tensors["interactions.up"])
    for head in (personas, interactions):
        if (head.down.shape, head.up.shape) != ((meta.dimension, meta.rank), (meta.rank, meta.dimension)):
            raise ValueError(
                f"heads of shape {head.down.shape} are not of {meta.dimension} dimensions, rank {meta.rank}"
            )
    return Adapter(meta.base_space, personas, interactions)


def _meta(trained: "Trained", data: "TrainingData", sha256: str) -> _Meta:
    chosen = trained.chosen
    dimension, rank = trained.adapter.personas.down.shape
    return _Meta(
        format=FORMAT,
        version=VERSION,
        base_space=trained.adapter.base_space,
        space=trained.adapter.space,
        rank=rank,
        dimension=dimension,
        sha256=sha256,
        seed=trained.seed,
        settings=asdict(chosen.settings) | {"epochs": chosen.best.epoch},
        data={
            "fingerprint": data.fingerprint,
            "users": len(data.users),
            "items": data.items,
            "events": data.events,
            "alignments": data.alignments,
            "alignments_left_out": data.alignments_left_out,
        },
        metrics={"ndcg_before": chosen.points[0].ndcg, "ndcg": chosen.best.ndcg},
    )


def _read_meta(path: Path) -> _Meta:
    raw = json.loads((path / META).read_bytes())
    found = (raw.get("format"), raw.get("version")) if isinstance(raw, dict) else raw
    if found != (FORMAT, VERSION):
        raise ValueError(f"{META} says format and version {found!r}, this release reads {(FORMAT, VERSION)!r}")
    return _Meta.model_validate(raw)


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(f"{path.name}.writing")
    fresh.write_bytes(content)
    os.replace(fresh, path)  # noqa: PTH105 - named for what it promises: atomic


def _missing(path: Path, error: FileNotFoundError) -> str:
    unfinished = " (its training has not ended: run it again and it goes on)" if (path / STATES).exists() else ""
    return f"{error.filename} is missing{unfinished}"


def _unusable(path: Path, cause: str) -> AdapterError:
    return AdapterError(f"adapter {path} cannot be read: {cause}; train it again or name another one")
