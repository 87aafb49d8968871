"""Reads histories, and leaves a store alone for a moment that has kept requests waiting in vain.

A worker answers one request at a time, so a store that hangs holds up all of them, each for its whole time-out; but the
first stage's order can be answered at once.
"""

import logging
from collections.abc import Sequence
from time import monotonic

from reranker.errors import HistoryStoreError
from reranker.records import Event, HistoryStore

log = logging.getLogger(__name__)

# For ten times as long as a read has failed: one that hangs for READ_SECONDS is tried again after 2.5 s, and the worker
# loses a tenth of its time at most; one that is refused within a millisecond is as good as never left alone.
RESTS_FOR = 10.0


class Breaker:
    """The reading side of a history store, for one thread."""

    def __init__(self, store: HistoryStore) -> None:
        self._store = store
        self._rests_until = 0.0
        self._why = ""

    def read(self, user_id: str, limit: int) -> Sequence[Event] | None:
        """Read as the store does. Raises HistoryStoreError likewise, and at once while the store is left alone."""
        begun = monotonic()
        if begun < self._rests_until:
            raise HistoryStoreError(f"left alone for a moment, having kept requests waiting in vain: {self._why}")
        try:
            return self._store.read(user_id, limit)
        except HistoryStoreError as error:
            ended = monotonic()
            self._rests_until, self._why = ended + RESTS_FOR * (ended - begun), str(error)
            log.warning("no history after %.0f ms: %s", 1000 * (ended - begun), error)
            raise
