"""The index in use, and the loop that keeps it up to date with Milvus."""

import asyncio
import logging
import time

from reranker.errors import Persona4RecError
from reranker.index import Index
from reranker.metrics import Metrics
from reranker.personas_milvus import MilvusPersonaStore

log = logging.getLogger(__name__)


class LiveIndex:
    """Holds one immutable index at a time. A request takes `current` once, so a swap never shows in its midst."""

    def __init__(self, index: Index, metrics: Metrics, stale_seconds: float) -> None:
        self.current = index
        self._metrics = metrics
        self._stale_seconds = stale_seconds
        self._checked_at = time.monotonic()
        self._use(index)

    @property
    def stale(self) -> bool:
        """Whether Milvus has not answered a refresh for too long."""
        return time.monotonic() - self._checked_at > self._stale_seconds

    async def follow(self, store: MilvusPersonaStore, refresh_seconds: float) -> None:
        """Look for newer manifests for ever. What fails is logged, counted, and tried again at the next turn."""
        while True:
            await asyncio.sleep(refresh_seconds)
            try:
                await self._refresh(store)
            except Persona4RecError as error:
                self._metrics.refresh_failures.inc()
                log.warning("index not refreshed, generation %d stays: %s", self.current.generation, error)

    async def _refresh(self, store: MilvusPersonaStore) -> None:
        newer = await asyncio.to_thread(_newer, store, self.current)
        if newer:
            self._use(newer)
            log.info("index %s: generation %d, %d items", newer.version, newer.generation, len(newer.manifests))
        self._checked_at = time.monotonic()
        self._metrics.index_checked.set_to_current_time()

    def _use(self, index: Index) -> None:
        self.current = index
        self._metrics.index_generation.set(index.generation)
        self._metrics.index_items.set(len(index.manifests))
        self._metrics.index_personas.set(index.persona_count)
        self._metrics.index_checked.set_to_current_time()


def _newer(store: MilvusPersonaStore, current: Index) -> Index | None:
    version = store.version()
    if version is None:
        return None
    if f"items_{version}" == current.version and not store.changed_since(version, current.generation):
        return None
    return store.load(version, current.space)
