"""Calls for the tests of the LLM client."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from offline.calls import Call, user_tag


class Verdict(BaseModel, frozen=True):
    verdict: str


def calls(count: int, first: int = 0) -> Iterator[Call[Verdict]]:
    """Yield calls of keys "0", "1", ..., whose prompt is their key, each of a user of the same name."""
    for number in range(first, first + count):
        yield Call(str(number), ({"role": "user", "content": str(number)},), Verdict, 100, (user_tag(str(number)),))


def asked(body: dict[str, Any]) -> str:
    """Return the key of the call that a request is for."""
    return str(body["messages"][0]["content"])
