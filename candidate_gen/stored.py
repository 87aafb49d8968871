"""A trained model as a directory: written all or not at all, and read whole or not at all.

`meta.json` says format, model, hyperparameters, counts and the SHA-256 of the two other files; `arrays.npz` holds the
model's arrays and the interactions (no pickle); `ids.json` what their rows and columns stand for.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from scipy.sparse import csr_matrix

from candidate_gen.directories import replacing
from candidate_gen.errors import CandidateModelError, ConfigurationError
from candidate_gen.interactions import Interactions

FORMAT = "persona4rec candidate model"
VERSION = 1
META, ARRAYS, IDS = "meta.json", "arrays.npz", "ids.json"


@dataclass(frozen=True, eq=False)
class StoredModel:
    """What a model directory holds."""

    model: str
    hyperparameters: Mapping[str, str | int | float]
    interactions: Interactions
    arrays: Mapping[str, NDArray[np.float32]]
    """The model's own arrays by name."""


class _Meta(BaseModel):
    format: str
    version: int
    model: str
    hyperparameters: dict[str, str | int | float]
    users: int
    items: int
    interactions: int
    sha256: dict[str, str]


class _Ids(BaseModel):
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]


def write(stored: StoredModel, path: Path) -> None:
    """Write the model to `path`, replacing a model that stands there only once the new one is complete.

    Raises ConfigurationError, and leaves what is there alone, if `path` holds anything but a model or cannot be
    written.
    """
    target = path.resolve()
    _refuse_to_replace_others(target)
    try:
        with replacing(target) as fresh:
            _fill(fresh, stored)
    except OSError as error:
        raise ConfigurationError(
            f"model path {path} cannot be written ({error}): choose a directory that is writable and has room"
        ) from error


def read(path: Path) -> StoredModel:
    """Read a model directory back.

    Raises CandidateModelError, naming path and cause, if it is missing, torn or of another format.
    """
    try:
        meta = _read_meta(path)
        ids = _Ids.model_validate_json(_read_verified(path / IDS, meta))
        with np.load(BytesIO(_read_verified(path / ARRAYS, meta)), allow_pickle=False) as archive:
            arrays = dict(archive)
    except FileNotFoundError as error:
        raise _unusable(path, f"{error.filename} is missing") from error
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from error
    interactions = _interactions(ids, arrays.pop("indptr"), arrays.pop("indices"))
    return StoredModel(meta.model, meta.hyperparameters, interactions, arrays)


def _refuse_to_replace_others(target: Path) -> None:
    replaceable = not target.exists() or (
        target.is_dir() and {entry.name for entry in target.iterdir()} <= {META, ARRAYS, IDS}
    )
    if not replaceable:
        raise ConfigurationError(
            f"model path {target} holds something else than a candidate model: choose a new or empty directory"
        )


def _fill(directory: Path, stored: StoredModel) -> None:
    interactions = stored.interactions
    matrix = interactions.matrix
    np.savez(directory / ARRAYS, allow_pickle=False, indptr=matrix.indptr, indices=matrix.indices, **stored.arrays)
    ids = _Ids(user_ids=interactions.user_ids, item_ids=interactions.item_ids)
    (directory / IDS).write_text(ids.model_dump_json(), encoding="utf-8")
    meta = _Meta(
        format=FORMAT,
        version=VERSION,
        model=stored.model,
        hyperparameters=dict(stored.hyperparameters),
        users=len(interactions.user_ids),
        items=len(interactions.item_ids),
        interactions=matrix.nnz,
        sha256={name: _sha256((directory / name).read_bytes()) for name in (ARRAYS, IDS)},
    )
    (directory / META).write_text(meta.model_dump_json(indent=2), encoding="utf-8")


def _read_meta(path: Path) -> _Meta:
    try:
        raw = json.loads((path / META).read_bytes())
    except ValueError as error:
        raise ValueError(f"{META} is torn ({error})") from error
    found = (raw.get("format"), raw.get("version")) if isinstance(raw, dict) else raw
    if found != (FORMAT, VERSION):
        raise ValueError(f"{META} says format and version {found!r}, this release reads {(FORMAT, VERSION)!r}")
    return _Meta.model_validate(raw)


def _read_verified(path: Path, meta: _Meta) -> bytes:
    # The very bytes that are checked are used: a model replaced meanwhile is an error, never a mix of two.
    content = path.read_bytes()
    if _sha256(content) != meta.sha256.get(path.name):
        raise ValueError(f"{path.name} is not the file that {META} was written with (its SHA-256 differs)")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _interactions(ids: _Ids, indptr: NDArray[np.int32], indices: NDArray[np.int32]) -> Interactions:
    ones = np.ones(len(indices), dtype=np.float32)
    matrix = csr_matrix((ones, indices, indptr), shape=(len(ids.user_ids), len(ids.item_ids)))
    return Interactions(ids.user_ids, ids.item_ids, matrix)


def _unusable(path: Path, cause: str) -> CandidateModelError:
    return CandidateModelError(f"candidate model {path} cannot be read: {cause}; train it again or name another one")
