"""Item ids as a request works on them: bytes of one buffer and their hashes, no Python object an id."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self, overload

import numpy as np
import xxhash
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class ItemIds(Sequence[str]):
    """A sequence of ids, each made a string where it is asked for."""

    text: NDArray[np.uint8]
    """The ids in UTF-8, with whatever else stands between them."""
    starts: NDArray[np.int64]
    """Where each id starts in `text`, shape (n,)."""
    ends: NDArray[np.int64]
    hashes: Hashes
    """Of each id, shape (n,): see `hash_ids`."""

    @classmethod
    def of(cls, item_ids: Sequence[str]) -> Self:
        """Lay strings out; what is laid out already is returned as it is."""
        if isinstance(item_ids, cls):
            return item_ids
        encoded = [item_id.encode() for item_id in item_ids]
        edges = np.fromiter(accumulate(map(len, encoded), initial=0), np.int64, len(encoded) + 1)
        text = np.frombuffer(b"".join(encoded), np.uint8)
        return cls(text, edges[:-1], edges[1:], hash_ids(item_ids, len(encoded)))

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: "slice | NDArray[np.bool_]") -> Self: ...
    def __getitem__(self, at: "int | slice | NDArray[np.bool_]") -> "str | Self":
        if isinstance(at, int):
            return self.text[self.starts[at] : self.ends[at]].tobytes().decode()
        return type(self)(self.text, self.starts[at], self.ends[at], self.hashes[at])


def hash_ids(item_ids: Iterable[str], count: int) -> Hashes:
    """Return the ids' hashes, shape (count,): XXH64 of their UTF-8."""
    return np.fromiter(map(xxhash.xxh64_intdigest, item_ids), np.uint64, count)
