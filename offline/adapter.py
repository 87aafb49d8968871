"""A low-rank adapter over a frozen encoder: two residual heads, one for each side of the similarity.

A head is linear and cheap to train where the encoder is neither, and it is applied where vectors are made, so it costs
nothing online. Its results are of unit length like the encoder's own, so whatever reads vectors need not know of it:
the profile (eq. 7) averages them and the persona score (eq. 10) is a cosine as before.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offline.encoder import Encoder
from reranker.errors import EmbeddingSpaceError
from reranker.records import Vector


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The map v -> v + v @ down @ up, brought back to unit length. Where `up` is 0, nothing changes."""

    down: Vector
    """Shape (dimension, rank)."""
    up: Vector
    """Shape (rank, dimension)."""

    def __call__(self, vectors: Vector) -> Vector:
        """Map vectors, float32, shape (n, dimension)."""
        moved = vectors + (vectors @ self.down) @ self.up
        lengths = np.linalg.norm(moved, axis=1, keepdims=True)
        return np.asarray(moved / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Both heads, and the space of the encoder that they were trained over."""

    base_space: str
    personas: Head
    """Of persona texts: p + pCD."""
    interactions: Head
    """Of interaction texts: u + uAB."""

    @property
    def space(self) -> str:
        """The id of the space that the heads map into: other weights, another space."""
        digest = hashlib.sha256()
        for part in (self.personas.down, self.personas.up, self.interactions.down, self.interactions.up):
            digest.update(str(part.shape).encode())
            digest.update(part.astype("<f4").tobytes())
        return f"{self.base_space}+adapter:{digest.hexdigest()[:12]}"

    def require_space(self, space: str) -> None:
        """Raise EmbeddingSpaceError unless vectors of this space are what the adapter was trained over."""
        if space != self.base_space:
            raise EmbeddingSpaceError(
                f"the adapter was trained over embedding space {self.base_space}, the encoder is of {space}: use the "
                "encoder that it was trained over, or train an adapter over this one"
            )


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedEncoder:
    """An `Embedder`: an encoder with an adapter of its space.

    Raises EmbeddingSpaceError if the adapter was trained over another encoder.
    """

    encoder: Encoder
    adapter: Adapter

    def __post_init__(self) -> None:
        self.adapter.require_space(self.encoder.space)

    @property
    def space(self) -> str:
        return self.adapter.space

    @property
    def dimension(self) -> int:
        return self.encoder.dimension

    def personas(self, texts: Sequence[str]) -> Vector:
        return self.adapter.personas(self.encoder.encode(texts))

    def interactions(self, texts: Sequence[str]) -> Vector:
        return self.adapter.interactions(self.encoder.encode(texts))
