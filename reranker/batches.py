"""What a handful of records means for the history store, as plain data."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from reranker.dead_letters import DeadLetter, dead_letter
from reranker.errors import InvalidEventError
from reranker.events import LATEST_TIME, Erase, UserChange, read_change
from reranker.payloads import json_of
from reranker.records import Update


@dataclass(frozen=True, slots=True)
class Batch:
    """Records, sorted by what has to be done about them. The parts commute, so their order is nobody's concern."""

    updates: dict[str, list[Update]] = field(default_factory=lambda: defaultdict(list))
    """By user."""
    fences: dict[str, int] = field(default_factory=dict)
    """By user: erase up to this time, milliseconds since the epoch."""
    dead: list[DeadLetter] = field(default_factory=list)
    dated_ahead: Counter[str] = field(default_factory=Counter)
    """By the brokers' topic: how many were dated after they were sent."""

    def add(self, topic: str, found: UserChange) -> None:
        """Take up what a record of `topic` means."""
        if found.dated_ahead:
            self.dated_ahead[topic] += 1
        if isinstance(found.change, Erase):
            self.fences[found.user_id] = max(found.change.until, self.fences.get(found.user_id, 0))
        else:
            self.updates[found.user_id].append(found.change)


def sort_out(records: Iterable[Any], topic_prefix: str = "") -> Batch:
    """Return what consumed records mean; `topic_prefix` is what the brokers put before the contract's topic names."""
    batch = Batch()
    for record in records:
        try:
            topic = record.topic.removeprefix(topic_prefix)
            found = read_change(topic, json_of(topic, record.value, record.headers), sent_at(record))
            batch.add(record.topic, found)
        except InvalidEventError as error:
            batch.dead.append(dead_letter(record, error))
    return batch


def sent_at(record: Any) -> int:
    """Return a record's timestamp, milliseconds since the epoch; now, if it has none, or one that is no time."""
    return int(record.timestamp) if 0 < record.timestamp <= LATEST_TIME else time.time_ns() // 1_000_000
