"""What a request comes in: what answers need to know of a call beside its message."""

import math
from typing import NamedTuple

from reranker.tracing import Trace


class Call(NamedTuple):
    """The envelope of one request."""

    request_id: str = ""
    """What logs and the answer call it."""
    seconds_left: float = math.inf
    """Until the caller stops waiting; infinite without a deadline."""
    trace: Trace | None = None
    """What is told what was done, if this request is traced."""


UNTIMED = Call()
"""A call that nobody named and nobody hurries."""
