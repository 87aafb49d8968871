"""Reading the index against its checksums while it is served: what a disk has lost is found, and built anew."""

import logging
import os
import threading
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge

from reranker.errors import IndexUnavailableError
from reranker.indexer import Indexer

log = logging.getLogger(__name__)

# The lowest priority: the scheduler gives it what requests leave (sched(7): 15 shares where they have 1024).
NICENESS = 19


class Scrub:
    """Verifies an index now and at an interval. What is torn is built anew by the indexer's next refresh."""

    def __init__(self, indexer: Indexer, every: float, registry: CollectorRegistry) -> None:
        """every: seconds between the end of one scrub and the next."""
        self._indexer = indexer
        self._every = every
        self._torn = Counter(
            "reranker_index_torn", "Scrubs that found bytes of the index unlike their checksum.", registry=registry
        )
        self._verified = Gauge(
            "reranker_index_verified_timestamp_seconds",
            "When every byte of the index was last found to be what was written; 0 until then.",
            registry=registry,
        )

    def run(self, stop: threading.Event) -> None:
        """Scrub until told to stop, in a thread of its own, whose priority this lowers."""
        # A sandbox may forbid it.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not stop.is_set():
            self._once()
            stop.wait(self._every)

    def _once(self) -> None:
        try:
            if self._indexer.verify():
                self._verified.set_to_current_time()
        except IndexUnavailableError as error:
            self._torn.inc()
            log.error("%s", error)  # noqa: TRY400 - it names all there is to know
        except Exception:
            # A defect must not end the looking for good.
            log.exception("the index could not be verified")
