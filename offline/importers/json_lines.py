"""Parsing one line of JSON into the shape that a published file should have."""

import json
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from offline.rejects import reason_of

T = TypeVar("T")

NAMED_FIELDS = 20
"""How many of a line's fields are named beside one that is missing: enough to see which file it is."""


def parsed(shape: TypeAdapter[T], raw: bytes) -> T:
    """Return the line as `shape`. Raises ValueError; if a field is missing, it says which are there."""
    try:
        return shape.validate_json(raw)
    except ValidationError as error:
        if error.errors(include_url=False)[0]["type"] != "missing":
            raise
        names = ", ".join(list(json.loads(raw))[:NAMED_FIELDS])
        raise ValueError(f"{reason_of(error)}; the line has {names or 'nothing'}") from error
