"""What a worker does four times a second beside its requests: look at the files it follows, and tell how it is."""

import asyncio
from collections.abc import Callable, Sequence
from time import process_time

from reranker.metrics import Metrics

# Four looks a second keep every change visible within one, at a few microseconds a look.
BEAT_SECONDS = 0.25


async def pulse(looks: Sequence[Callable[[], None]], metrics: Metrics) -> None:
    """Call each look at every beat, for ever, and measure how late the beat was: what every request waits too."""
    loop, busy = asyncio.get_running_loop(), process_time()
    while True:
        due = loop.time() + BEAT_SECONDS
        await asyncio.sleep(BEAT_SECONDS)
        metrics.loop_lag.observe(max(0.0, loop.time() - due))
        metrics.busy.inc(process_time() - busy)
        busy = process_time()
        for look in looks:
            look()
