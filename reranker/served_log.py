"""What was answered, sampled: the record that training and experiments start from.

Never in the way of an answer: the service only puts references on a bounded queue, a thread makes records of them and
writes, and what the queue does not hold is dropped and counted.
"""

import logging
import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from queue import Empty, Full, Queue
from typing import Any, Literal, Protocol

import orjson

from reranker.config import ServedLogSettings
from reranker.index import Index
from reranker.metrics import Metrics
from reranker.replies import Ranked
from reranker.scoring import Scores
from reranker.v1 import reranker_pb2 as pb

log = logging.getLogger(__name__)

# Looked up once: it is read from the package's files.
VERSION = version("persona4rec")
# Between writes: records of so long go to the file or the brokers together.
WRITE_SECONDS = 0.1
# What is left when the server stops is written if it can be within this.
CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """One answer, as the service had it; arrays are in the order of the request."""

    request_id: str
    user_id: str
    variant: str
    fusion: "pb.Fusion.ValueType"
    weight: float
    top_k: int
    item_ids: Sequence[str]
    first_stage: Scores
    degraded: Sequence["pb.Degradation.ValueType"]
    index: Index
    ranked: Ranked | None
    """None where nothing was scored."""


class Sink(Protocol):
    """Where records go. Methods raise OSError, or Persona4RecError, if they cannot."""

    def write(self, lines: Sequence[bytes]) -> None:
        """Take JSON objects, one each and without a line's end."""

    def close(self) -> None: ...


class ServedLog:
    """Samples answers and writes them to a sink in a thread of its own."""

    def __init__(self, settings: ServedLogSettings, sink: Sink, metrics: Metrics) -> None:
        self._settings = settings
        self._sink = sink
        self._queue: Queue[tuple[float, Serving]] = Queue(settings.queue)
        self._dropped = metrics.served_log.labels("dropped")
        self._written = metrics.served_log.labels("written")
        self._failed = metrics.served_log.labels("failed")
        self._stop = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="served-log", daemon=True)
        self._thread.start()

    def wants(self) -> bool:
        """Return whether this answer is one of the sample."""
        return random.random() < self._settings.share  # noqa: S311 - a sample, not a secret

    def offer(self, serving: Serving) -> None:
        """Have an answer recorded, or drop it if too many wait."""
        try:
            self._queue.put_nowait((time.time(), serving))
        except Full:
            self._dropped.inc()

    def close(self) -> None:
        """Write what waits, for no longer than CLOSE_SECONDS."""
        self._stop.set()
        self._thread.join(CLOSE_SECONDS)
        self._dropped.inc(self._queue.qsize())

    def _run(self) -> None:
        while not self._stop.wait(WRITE_SECONDS):
            self._write_waiting()
        self._write_waiting()
        with suppress(OSError):
            self._sink.close()

    def _write_waiting(self) -> None:
        waiting = []
        with suppress(Empty):
            while True:
                waiting.append(self._queue.get_nowait())
        if waiting:
            self._write(waiting)

    def _write(self, waiting: Sequence[tuple[float, Serving]]) -> None:
        try:
            self._sink.write([self._line(at, serving) for at, serving in waiting])
        except Exception as error:
            # Whatever it is (a torn index, too), it must not end what would write the log once that can be.
            self._failed.inc(len(waiting))
            if not self._failing:
                log.warning("the served log cannot be written, until further notice: %s", error)
            self._failing = True
            return
        self._written.inc(len(waiting))
        if self._failing:
            log.info("the served log is written again")
        self._failing = False

    def _line(self, at: float, serving: Serving) -> bytes:
        key = self._settings.hash_key.get_secret_value().encode()
        told = {"time": round(at * 1000), "user": told_user(serving.user_id, self._settings.users, key)}
        return orjson.dumps(told | record(serving), option=orjson.OPT_SERIALIZE_NUMPY)


def told_user(user_id: str, how: Literal["hashed", "given", "none"], key: bytes) -> str | None:
    """Return how a record tells the user: the id, 16 bytes of its keyed BLAKE2b in hex, or None (or for no id)."""
    if how == "none" or not user_id:
        return None
    return user_id if how == "given" else blake2b(user_id.encode(), digest_size=16, key=key[:64]).hexdigest()


def record(serving: Serving) -> dict[str, Any]:
    """Return all of a record but its time and user. Lists are in the order of the request; null: there is none."""
    ranked = serving.ranked
    return {
        "request_id": serving.request_id,
        "variant": serving.variant,
        "fusion": pb.Fusion.Name(serving.fusion or pb.FUSION_BLEND).removeprefix("FUSION_").lower(),
        "fusion_weight": serving.weight,
        "top_k": serving.top_k,
        "degraded": [pb.Degradation.Name(reason).removeprefix("DEGRADATION_").lower() for reason in serving.degraded],
        "server_version": VERSION,
        "embedding_space": serving.index.space,
        "index_version": serving.index.version,
        "index_generation": serving.index.generation,
        "item_ids": list(serving.item_ids),
        "first_stage_scores": serving.first_stage,
        "scores": ranked.ranking.scores if ranked else None,
        "persona_scores": ranked.ranking.persona_scores if ranked else None,
        "persona_ids": persona_ids(ranked) if ranked else None,
        "order": ranked.ranking.order if ranked else (-serving.first_stage).argsort(kind="stable"),
    }


def persona_ids(ranked: Ranked) -> list[str | None]:
    """Return the winning persona of each candidate; None where no persona was used."""
    places = zip(ranked.places.segments.tolist(), ranked.ranking.winners.tolist(), strict=True)
    return [_persona_id(ranked.index, segment, winner) for segment, winner in places]


def _persona_id(index: Index, segment: int, winner: int) -> str | None:
    if winner < 0:
        return None
    return pb.Persona.FromString(index.segments[segment].persona(winner)).persona_id or None
