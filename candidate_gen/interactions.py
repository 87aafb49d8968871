"""Who took what: the training data of every first-stage model."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from candidate_gen.errors import ConfigurationError

__all__ = ["Interactions"]


@dataclass(frozen=True, eq=False)
class Interactions:
    """Distinct user-item pairs, with the ids that their rows and columns stand for."""

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    matrix: "csr_matrix[np.float32]"
    """Shape (users, items), float32: 1.0 for each distinct pair, columns of a row ascending."""

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """Gather (user_id, item_id) pairs in any order and repetition; ids are sorted, so equal pairs give equal rows.

        Raises ConfigurationError if there are none.
        """
        distinct = sorted(set(pairs))
        if not distinct:
            raise ConfigurationError(
                "no interactions to train on: give at least one (user_id, item_id) pair, "
                "for instance as a line of the dataset's interactions.csv"
            )
        user_ids = sorted({user_id for user_id, _ in distinct})
        item_ids = sorted({item_id for _, item_id in distinct})
        rows = _positions(user_ids, (user_id for user_id, _ in distinct))
        columns = _positions(item_ids, (item_id for _, item_id in distinct))
        ones = np.ones(len(distinct), dtype=np.float32)
        matrix = csr_matrix((ones, (rows, columns)), shape=(len(user_ids), len(item_ids)))
        return cls(tuple(user_ids), tuple(item_ids), matrix)

    def user_row(self, user_id: str) -> int | None:
        """Return the user's row; None for an unknown user."""
        return self._row_of.get(user_id)

    def item_column(self, item_id: str) -> int | None:
        """Return the item's column; None for an unknown item."""
        return self._column_of.get(item_id)

    def item_columns(self, item_ids: Iterable[str]) -> NDArray[np.intp]:
        """Return the columns of the known ones among the items, each once, in the order given."""
        known = (self._column_of.get(item_id) for item_id in dict.fromkeys(item_ids))
        return np.array([column for column in known if column is not None], dtype=np.intp)

    def columns_of(self, user_id: str) -> NDArray[np.intp]:
        """Return the columns of the items that the user has, ascending; none for an unknown user."""
        row = self.user_row(user_id)
        if row is None:
            return np.array([], dtype=np.intp)
        start, end = self.matrix.indptr[row], self.matrix.indptr[row + 1]
        return self.matrix.indices[start:end].astype(np.intp)

    @cached_property
    def users_per_item(self) -> NDArray[np.intp]:
        """Number of users of each item, shape (items,)."""
        return np.bincount(self.matrix.indices, minlength=len(self.item_ids))

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {user_id: row for row, user_id in enumerate(self.user_ids)}

    @cached_property
    def _column_of(self) -> dict[str, int]:
        return {item_id: column for column, item_id in enumerate(self.item_ids)}


def _positions(ids: list[str], wanted: Iterable[str]) -> NDArray[np.int32]:
    position_of = {one: position for position, one in enumerate(ids)}
    return np.fromiter((position_of[one] for one in wanted), dtype=np.int32)
