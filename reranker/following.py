"""When the index is to be looked after: as the change feed says, or at an interval."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from reranker.config import ServerSettings
from reranker.errors import BrokerUnavailableError, ConfigurationError

# A host that has no brokers does not have kafka-python.
if TYPE_CHECKING:
    from reranker.feed import Feed

log = logging.getLogger(__name__)

# How long a poll of the feed waits, which records end at once: bounds how late a stop is heeded.
POLL_SECONDS = 0.2

Told = Mapping[str, int] | None
"""Items and their generations, as the feed names them; empty to see that Milvus answers, and with which version; None
to look for every newer manifest."""


class Follower:
    """Says when Milvus is to be asked."""

    def __init__(self, settings: ServerSettings) -> None:
        """Follow what the settings name. Raises ConfigurationError for brokers without a client to reach them."""
        self._settings = settings
        self._connect = _feed_of(settings.kafka_bootstrap)
        self._trouble = ""

    def looks(self, stop: threading.Event) -> Iterator[Told]:
        """Yield until told to stop; what is yielded must have been done before going on.

        Without brokers, or while they are away: None every refresh_seconds. With them: what the feed tells, as it
        comes; every refresh_seconds nothing, so that other versions and a Milvus that is away are noticed; and every
        scan_seconds None, since a publisher may have died between a manifest and its record, or found no broker.
        """
        while not stop.is_set():
            feed = self._opened()
            if feed is None:
                if not stop.wait(self._settings.refresh_seconds):
                    yield None
                continue
            with closing(feed):
                # The feed has noted where it begins: what was stored before is found now, what comes later is told.
                yield None
                yield from self._followed(feed, stop)

    def _followed(self, feed: "Feed", stop: threading.Event) -> Iterator[Told]:
        scanned = asked = time.monotonic()
        while not stop.is_set():
            try:
                if told := feed.poll(POLL_SECONDS):
                    yield told
                if time.monotonic() - asked > self._settings.refresh_seconds:
                    feed.ask()
                    yield {}
                    asked = time.monotonic()
            except BrokerUnavailableError as error:
                self._tell(error)
                return
            if time.monotonic() - scanned > self._settings.scan_seconds:
                yield None
                scanned = time.monotonic()

    def _opened(self) -> "Feed | None":
        try:
            feed = self._connect()
        except BrokerUnavailableError as error:
            self._tell(error)
            return None
        if feed:
            self._trouble = ""
            log.info("following the change feed at %s", self._settings.kafka_bootstrap)
        return feed

    def _tell(self, error: BrokerUnavailableError) -> None:
        # Once, however often it is tried.
        if not self._trouble:
            log.warning("newer manifests are looked for every %g s: %s", self._settings.refresh_seconds, error)
        self._trouble = str(error)


def _feed_of(bootstrap: str | None) -> "Callable[[], Feed | None]":
    """Return what opens the feed of some brokers, and raises BrokerUnavailableError; without any it returns None."""
    if bootstrap is None:
        return lambda: None
    try:
        from reranker.feed import Feed
        from reranker.kafka import KafkaSettings
    except ImportError as error:
        raise ConfigurationError(
            f"kafka_bootstrap is {bootstrap}, but {error.name} is not installed: install persona4rec[kafka]"
        ) from error
    # The library tells of every broken connection, over and over.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    return lambda: Feed(KafkaSettings(bootstrap=bootstrap))
