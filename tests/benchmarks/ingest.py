"""Ingest against a real broker: events a second, produced to used by a Rerank, memory.

Run: python -m tests.benchmarks.ingest. Each figure is of `persona4rec ingest` as a process of its own, fed by this one;
broker, Redis, Milvus and server are processes of the same machine. Of the events a tenth are aspects with vectors of
384 dimensions. With more processes, each number up to it is measured over the same events, and told as a ratio to one.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from offline.dataset import Dataset
from offline.encoder import load_encoder
from offline.publish import documents, publish
from offline.vector_cache import CachedEncoder, default_folder
from persona4rec.demo import CATALOGUE
from reranker.kafka import KafkaSettings, producer
from reranker.personas_milvus import MilvusPersonaStore
from tests.integration.processes import milvus_process, serving
from tests.integration.streaming import IngestProcess, broker, ingesting
from tests.stores import redis_process

USERS = 20_000
# Ids and times as platforms have them, so that the bytes to parse are as many.
START = 1_735_689_600_000
# Far below what saturates anything, so that the latency is the path's and not a queue's.
LATENCY_RATE = 50
PATIENCE_SECONDS = 1_200.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=["sqlite", "redis"], default="sqlite")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--calls", type=int, default=1_000, help="events that are sent one at a time")
    given = parser.parse_args()
    with TemporaryDirectory() as name, broker(Path(name)) as running, ExitStack() as stack:
        folder, kafka = Path(name), running.settings()
        # With a number behind it: a file, or a database of Redis.
        where = str(folder / "histories-")
        if given.store == "redis":
            redis = stack.enter_context(redis_process(folder / "redis", "--appendfsync", "everysec"))
            where = redis.url.removesuffix("0")
        fill(kafka, given.events)
        figures: dict[str, Any] = {"store": given.store, "events": given.events}
        for count in range(1, given.processes + 1):
            figures[f"processes_{count}"] = emptied(folder, kafka, f"{where}{count}", count, given.events)
        if given.processes > 1:
            one, all_of_them = (figures[f"processes_{count}"]["events_per_second"] for count in (1, given.processes))
            figures["ratio"] = round(all_of_them / one, 2)
        with ingesting(folder, kafka, f"{where}1", name="bench1"):
            figures |= used_by_rerank(folder, kafka, f"{where}1", given.calls)
        print(json.dumps(figures, indent=1))  # noqa: T201


def emptied(folder: Path, kafka: KafkaSettings, where: str, count: int, events: int) -> dict[str, float]:
    """Have a group of so many processes take in all events from the beginning."""
    with ExitStack() as stack:
        group = f"bench{count}"
        processes = [stack.enter_context(ingesting(folder, kafka, where, name=group)) for _ in range(count)]
        return throughput(processes, events)


def fill(kafka: KafkaSettings, events: int) -> None:
    """Put the events into the broker before anything reads them."""
    draw = random.Random(0)
    vector = [round(draw.uniform(-1, 1), 7) for _ in range(384)]
    with producing(kafka) as sender:
        for number in range(events):
            user_id = f"user-{draw.randrange(USERS)}"
            fields: dict[str, Any] = {
                "eventId": f"event-{number}",
                "userId": user_id,
                "itemId": f"item-{draw.randrange(10_000)}",
                "eventTime": str(START + number),
            }
            if number % 10:
                sender.send(kafka.topic("interactions"), encoded(fields | {"kind": "purchase"}), user_id.encode())
            else:
                aspects = {"vector": vector, "embeddingSpace": "space"}
                sender.send(kafka.topic("aspects"), encoded(fields | aspects), user_id.encode())


class Sample(NamedTuple):
    """How far the processes were at some moment."""

    seconds: float
    events: float
    cpu_seconds: float
    megabytes: float


def throughput(processes: list[IngestProcess], events: int) -> dict[str, float]:
    """Watch the processes empty the topics, from the last moment at which none had written an event."""
    samples = [sample(processes)]
    while samples[-1].events < events:
        assert samples[-1].seconds - samples[0].seconds < PATIENCE_SECONDS, samples[-1]
        time.sleep(0.2)
        samples.append(sample(processes))
    first, last = next(one for one in reversed(samples) if not one.events), samples[-1]
    memory = [one.megabytes for one in samples if one.events]
    return {
        "events_per_second": round(last.events / (last.seconds - first.seconds)),
        "events_per_cpu_second": round(last.events / (last.cpu_seconds - first.cpu_seconds)),
        "megabytes_first": memory[0],
        "megabytes_middle": memory[len(memory) // 2],
        "megabytes_last": memory[-1],
    }


def sample(processes: list[IngestProcess]) -> Sample:
    done = sum(process.metric("ingest_events_total") for process in processes)
    busy = sum(map(cpu_seconds, processes))
    return Sample(time.monotonic(), done, busy, max(map(resident_megabytes, processes)))


def used_by_rerank(folder: Path, kafka: KafkaSettings, where: str, calls: int) -> dict[str, float]:
    """Send events one at a time, each of a new user, and ask for that user's ranking until it rests on the event."""
    found: list[float] = []
    with milvus_process(folder / "milvus") as milvus:
        item_ids = published(milvus.uri)
        candidates = [(item_id, 0.0) for item_id in item_ids]
        with serving(folder, milvus.uri, where, workers=1) as server, producing(kafka, linger_seconds=0) as sender:
            for number in range(calls):
                user_id = f"latency-{number}"
                event = {"eventId": "e", "userId": user_id, "itemId": item_ids[0], "eventTime": START}
                started = time.perf_counter()
                sender.send(kafka.topic("interactions"), encoded(event), user_id.encode())
                while server.client.rerank(user_id, candidates).degraded:
                    time.sleep(0.0005)
                found.append(time.perf_counter() - started)
                time.sleep(max(0.0, 1 / LATENCY_RATE - found[-1]))
    centiles = statistics.quantiles(found, n=100)
    return {
        "used_ms_p50": round(centiles[49] * 1000, 1),
        "used_ms_p99": round(centiles[98] * 1000, 1),
        "used_ms_max": round(max(found) * 1000, 1),
    }


def published(milvus: str) -> list[str]:
    """Publish the demo's catalogue; return its items that have personas."""
    encoder = CachedEncoder(load_encoder(), default_folder())
    found = list(documents(Dataset.open(CATALOGUE)))
    with closing(MilvusPersonaStore(milvus)) as store:
        publish(found, store, encoder)
    return [document.item.item_id for document in found if document.personas]


def cpu_seconds(process: IngestProcess) -> float:
    """Return the time that the process has computed for: on a machine that is shared it says more than the clock."""
    assert process.process
    fields = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_megabytes(process: IngestProcess) -> float:
    assert process.process
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return round(int(kilobytes) / 1024, 1)


@contextmanager
def producing(kafka: KafkaSettings, linger_seconds: float = 0.02) -> Iterator[Any]:
    sender = producer(kafka, linger_seconds)
    try:
        yield sender
        sender.flush()
    finally:
        sender.close()


def encoded(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


if __name__ == "__main__":
    main()
