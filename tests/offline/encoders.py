"""Encoders that watch or take the place of the real one where a test needs it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
class Absent:
    """Stands for a model that need not be loaded, since every vector of it is cached."""

    space: str
    dimension: int

    def encode(self, texts: Sequence[str]) -> Vector:
        raise AssertionError(f"{len(texts)} texts are not cached, e.g. {texts[0]!r}")
