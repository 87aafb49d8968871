"""Whose words a dead letter holds: an erasure takes them away, and lets no replay put them back."""

import json
import re
from collections.abc import Callable, Iterator

from reranker.dead_letters import DeadLetter
from reranker.errors import InvalidEventError
from reranker.events import LATEST_TIME
from reranker.kafka import ASPECTS, ERASURES, INTERACTIONS
from reranker.payloads import json_of

KEYED_BY_USER = frozenset({INTERACTIONS, ASPECTS, ERASURES})

# The value need not be JSON, nor the id a string: both are what a record may have died of.
_USER = re.compile(r'"user_?[iI]d"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)')


def is_erased(letter: DeadLetter, erased_until: Callable[[str], int | None], topic_prefix: str = "") -> bool:
    """Return whether a letter is of a user who was erased after it was sent.

    erased_until: gives the time up to which a user is erased, milliseconds since the epoch; None or below 0 for none.
    A letter whose timestamp is no time (a producer's microseconds, or none at all) counts as older than any erasure.
    """
    sent = letter.timestamp if 0 <= letter.timestamp <= LATEST_TIME else 0
    untils = map(erased_until, users_of(letter, topic_prefix))
    return any(until is not None and sent <= until for until in untils)


def users_of(letter: DeadLetter, topic_prefix: str = "") -> frozenset[str]:
    """Return whose words a dead letter holds, as far as its key and its value say so."""
    return frozenset(_of_key(letter, topic_prefix)) | frozenset(_of_value(letter, topic_prefix))


def _of_key(letter: DeadLetter, topic_prefix: str) -> Iterator[str]:
    if letter.key and letter.topic.removeprefix(topic_prefix) in KEYED_BY_USER:
        yield letter.key.decode(errors="replace")


def _of_value(letter: DeadLetter, topic_prefix: str) -> Iterator[str]:
    try:
        value = json_of(letter.topic.removeprefix(topic_prefix), letter.value, letter.headers)
    except InvalidEventError:
        value = letter.value
    if found := _USER.search((value or b"").decode(errors="replace")):
        try:
            user_id = str(json.loads(found[1]))
            # Half of a surrogate pair is JSON, but no text, and so no id of anybody.
            user_id.encode()
        except ValueError:
            return
        yield user_id
