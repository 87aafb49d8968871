"""What a request comes in: what answers need to know of a call beside its message."""

import math
from typing import NamedTuple


class Call(NamedTuple):
    """The envelope of one request."""

    request_id: str = ""
    """What logs and the answer call it."""
    seconds_left: float = math.inf
    """Until the caller stops waiting; infinite without a deadline."""


UNTIMED = Call()
"""A call that nobody named and nobody hurries."""
