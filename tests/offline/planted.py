"""A catalogue whose tastes are planted where the encoder hardly looks, and a training of it as a process of its own."""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline.adapter_files import States, write
from offline.train_adapter import Settings, train_adapter
from offline.training_data import Rows, TrainingData, UserEvents
from reranker.records import Vector

GRID = (Settings(rank=4, epochs=6), Settings(rank=8, epochs=6))


def planted(users: int = 40, judged: bool = False) -> TrainingData:
    """60 items of six tastes, two vectors each; a user has six items of one taste."""
    random = np.random.default_rng(0)
    tastes = np.arange(60) % 6
    said = 0.3 * np.eye(32)[tastes] + 0.2 * random.normal(size=(60, 32))
    personas = np.repeat(said, 2, axis=0) + 0.1 * random.normal(size=(120, 32))
    return TrainingData(
        space="planted",
        persona_vectors=unit(personas),
        offsets=np.arange(0, 121, 2),
        event_vectors=unit(said),
        users=tuple(user(random.permutation(np.flatnonzero(tastes == n % 6))[:6], judged) for n in range(users)),
        alignments=6 * users if judged else 0,
        alignments_left_out=0,
    )


def user(items: Rows, judged: bool) -> UserEvents:
    of_items = 2 * items + 1 if judged else np.full(len(items), -1)
    return UserEvents(items, items, of_items, np.ones(len(items), np.float32))


def unit(vectors: NDArray[np.float64]) -> Vector:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def train(path: Path) -> None:
    data = planted()
    write(train_adapter(data, GRID, states=States(path)), data, path)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
