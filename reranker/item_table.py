"""Item ids to rows in arrays that processes can share: a million ids cost 20 MB once, not a dict a process.

Sorted 64-bit hashes with a directory of their leading bits, so that a lookup reads one short window of hashes an id,
for all ids in one pass. Ids are known by their hash alone; building refuses two ids of one hash, so an item of the
catalogue is never taken for another. A foreign id is taken for one of a million items with probability 5e-14.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reranker import kernels
from reranker.item_ids import Hashes


@dataclass(frozen=True, slots=True, eq=False)
class ItemTable:
    """Where each item is. Arrays only, so that they may be mapped from a file."""

    hashes: Hashes
    """Ascending, shape (items,)."""
    rows: NDArray[np.int32]
    """Row of each hash, shape (items,)."""
    starts: NDArray[np.int32]
    """The first hash with these leading bits, shape (2 ** bits + 1,)."""

    def find(self, hashes: Hashes) -> NDArray[np.int64]:
        """Return the row of each hash, shape (n,); -1 where no item has it."""
        return kernels.find(hashes, self.hashes, self.rows, self.starts, self.shift)

    @property
    def shift(self) -> int:
        """How far right to shift a hash for the number of its window."""
        return 64 - (len(self.starts) - 2).bit_length()


def build_table(hashes: Hashes) -> ItemTable:
    """Return the table in which the i-th hash leads to row i. Raises ValueError if two are equal."""
    order = np.argsort(hashes)
    ordered = hashes[order]
    if (ordered[1:] == ordered[:-1]).any():
        raise ValueError("an item id stands in the catalogue twice, or two ids have one 64-bit hash")
    # Twice as many entries as items: the fullest of a million windows then holds about 8 hashes, a cache line.
    bits = max(1, len(hashes).bit_length() + 1)
    edges = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    starts = np.append(np.searchsorted(ordered, edges), len(ordered)).astype(np.int32)
    return ItemTable(ordered, order.astype(np.int32), starts)
