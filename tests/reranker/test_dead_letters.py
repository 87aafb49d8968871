"""Dead letters in a topic that is compacted; tests/integration has them in a real broker, which does not compact."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from reranker import dead_letters
from reranker.dead_letters import DeadLetter, DeadLetters
from reranker.kafka import KafkaSettings
from reranker.sending import Message


@dataclass
class Compacted:
    """Topics of which only the last record of each key is left, and that only if it has a value."""

    sent: list[Message] = field(default_factory=list)

    def send(self, messages: Iterable[Message]) -> None:
        self.sent += messages

    def records(self, settings: KafkaSettings, topic: str) -> Iterator[Any]:
        last = {message.key: message for message in self.sent if message.topic == topic}
        for message in last.values():
            if message.value is not None:
                yield SimpleNamespace(key=message.key, value=message.value, headers=message.headers)


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> Compacted:
    found = Compacted()
    monkeypatch.setattr(dead_letters, "Sender", lambda settings: found)
    monkeypatch.setattr(dead_letters, "_all_records", found.records)
    return found


@pytest.mark.parametrize("value", [None, b"", b"rubbish"])
def test_a_letter_is_kept_until_it_is_settled_and_goes_back_with_the_value_that_it_had(
    topics: Compacted, value: bytes | None
) -> None:
    letters = DeadLetters(KafkaSettings())
    letter = DeadLetter("interactions", 1, 2, 3, b"ann", value, (("trace", b"t"),), "E", "why")
    letters.put([letter])
    assert list(letters.pending(["interactions"])) == [letter]
    letters.redrive([letter])
    assert Message("interactions", value, b"ann", (("trace", b"t"),), 3) in topics.sent
    assert list(letters.pending(["interactions"])) == []
