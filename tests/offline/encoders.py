"""Encoders that watch or take the place of the real one where a test needs it."""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from offline.encoder import BothSidesAlike, Encoder
from reranker.records import Vector


@dataclass
class Counting(BothSidesAlike):
    """An encoder that notes what it is asked for, and can be interrupted."""

    encoder: Encoder
    asked: list[str] = field(default_factory=list)
    interrupt_after: int | None = None

    @property
    def space(self) -> str:
        return self.encoder.space

    @property
    def dimension(self) -> int:
        return self.encoder.dimension

    def encode(self, texts: Sequence[str]) -> Vector:
        if self.interrupt_after is not None and len(self.asked) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.asked += texts
        return self.encoder.encode(texts)


@dataclass(frozen=True)
class Hashed(BothSidesAlike):
    """Stands for a model where only which text it was matters: every text has a direction of its own."""

    space: str = "hashed"
    dimension: int = 8

    def encode(self, texts: Sequence[str]) -> Vector:
        seeds = [zlib.crc32(f"{self.space}{text}".encode()) for text in texts]
        drawn = [np.random.default_rng(seed).normal(size=self.dimension) for seed in seeds]
        vectors = np.array(drawn).reshape(len(texts), self.dimension)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@dataclass(frozen=True)
class Worded(BothSidesAlike):
    """Stands for a model where texts that share words have to be near: the sum of their words' directions."""

    space: str = "worded"
    dimension: int = 64

    def encode(self, texts: Sequence[str]) -> Vector:
        words = [re.findall(r"\w{3,}", text.casefold()) or [""] for text in texts]
        sums = [np.sum([_direction(word, self.dimension) for word in of_text], axis=0) for of_text in words]
        vectors = np.array(sums).reshape(len(texts), self.dimension)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@cache
def _direction(word: str, dimension: int) -> Vector:
    return np.asarray(np.random.default_rng(zlib.crc32(word.encode())).normal(size=dimension), np.float32)


@dataclass(frozen=True)
class Absent:
    """Stands for a model that need not be loaded, since every vector of it is cached."""

    space: str
    dimension: int

    def encode(self, texts: Sequence[str]) -> Vector:
        raise AssertionError(f"{len(texts)} texts are not cached, e.g. {texts[0]!r}")
