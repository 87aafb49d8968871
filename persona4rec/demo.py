"""The demo: a small bundled catalogue through every real piece, in a temporary folder that is gone afterwards."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from candidate_gen.implicit_models import DEFAULTS, train
from candidate_gen.interactions import Interactions
from offline.dataset import Dataset
from offline.encoder import Embedder, load_encoder
from offline.evaluate import Choice, Evaluation, Materials, evaluate, evaluation_index
from offline.histories import aspect_vectors, events_by_user
from offline.publish import documents, publish
from offline.records import Interaction
from offline.splits import Fold, cross_validation
from offline.tuning import tune
from offline.vector_cache import CachedEncoder
from persona4rec import demo_streaming, tables
from persona4rec.milvus_lite import milvus_at
from reranker.client import RerankerClient
from reranker.errors import Persona4RecError
from reranker.histories_sqlite import SqliteHistoryStore
from reranker.personas_milvus import MilvusPersonaStore
from reranker.records import Event, event_id
from reranker.v1 import reranker_pb2 as pb

CATALOGUE = Path(__file__).parent / "demo_catalogue"
READERS = ("hana", "priya", "kofi")
SHOWN = 5
# Of 64 books: enough to rerank, few enough that a reader's taste shows among them.
CANDIDATES = 40
SEED = 0
FOLDS = 4
# The server reads the index and warms up in a few seconds; a busy machine takes several times as long.
READY_SECONDS = 120.0

# What the reader of the third act does: three books of another kind than this reader's others.
NEW_INTERACTIONS = ("the-hound-of-the-baskervilles", "the-moonstone", "the-sign-of-the-four")


class Stopwatch:
    """Times the stages of the demo."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self.seconds[stage] = perf_counter() - started


def run(console: Console) -> None:
    """Run the demo on this console."""
    watch = Stopwatch()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="persona4rec-demo-")))
        console.print(Rule("Persona4Rec: rerank, and say why"))
        with console.status("loading the encoder"), watch.timing("load the encoder"):
            encoder = CachedEncoder(load_encoder(), folder)
        dataset = Dataset.open(CATALOGUE)
        interactions = list(dataset.interactions())
        _introduce(console, dataset, interactions)
        milvus = f"http://127.0.0.1:{_free_port()}"
        stack.enter_context(milvus_at(milvus, folder / "milvus"))
        with console.status("embedding and publishing personas to Milvus"), watch.timing("embed and publish personas"):
            _publish(dataset, milvus, encoder)
        with console.status("training candidates"), watch.timing("train the candidate generator"):
            _train(interactions, folder / "als")
        with console.status("loading histories"), watch.timing("embed aspects, load histories"):
            _load_histories(dataset, interactions, encoder, folder / "histories.sqlite")
        with console.status("judging on held-out interactions"), watch.timing("tune and judge"):
            evaluation, choice = _judge(dataset, interactions, encoder)
        missing = demo_streaming.broker_missing()
        kafka = None if missing else stack.enter_context(demo_streaming.broker(folder, _free_port()))
        with console.status("starting the server"), watch.timing("start the server"):
            client = stack.enter_context(_served(folder, milvus, choice, kafka))
        if kafka:
            # They are ready when they are needed.
            stack.enter_context(demo_streaming.consumers(folder, kafka, milvus, CATALOGUE))
        _readers(console, client)
        _before_and_after(console, client, folder / "histories.sqlite")
        _control(console, evaluation, choice)
        if kafka:
            with watch.timing("a review through Kafka to the next ranking"):
                _journey(console, client, kafka)
        else:
            console.print(f"\nLeft out: the streaming act; {missing}.", style="dim")
        _where_time_went(console, watch, client)


def _introduce(console: Console, dataset: Dataset, interactions: Sequence[Interaction]) -> None:
    personas = [len(item.personas) for item in dataset.personas()]
    readers = len({interaction.user_id for interaction in interactions})
    console.print(
        f"{len(personas)} public-domain classics, {readers} invented readers with {len(interactions)} interactions, "
        f"{sum(1 for _ in dataset.reviews())} reviews written for this project, and {sum(personas)} personas that a "
        "large language model wrote from them offline."
    )


def _publish(dataset: Dataset, milvus: str, encoder: Embedder) -> None:
    store = MilvusPersonaStore(milvus)
    publish(documents(dataset), store, encoder)
    store.close()


def _train(interactions: Sequence[Interaction], path: Path) -> None:
    train(Interactions.from_pairs((i.user_id, i.item_id) for i in interactions), DEFAULTS["als"]).save(path)


def _load_histories(dataset: Dataset, interactions: Sequence[Interaction], encoder: Embedder, path: Path) -> None:
    vectors = aspect_vectors(dataset, documents(dataset), encoder)
    store = SqliteHistoryStore(path)
    store.merge(events_by_user(interactions, vectors, encoder.space))
    store.close()


def _judge(dataset: Dataset, interactions: Sequence[Interaction], encoder: Embedder) -> tuple[Evaluation, Choice]:
    """Cross-validate with settings chosen within each training part; then choose those to serve with on everything."""
    found = documents(dataset)
    materials = Materials(evaluation_index(found, encoder), aspect_vectors(dataset, found, encoder))
    start = Choice(DEFAULTS["als"], weight=0.5, gamma=0.9, history_length=20)

    def choose(fold: Fold) -> Choice:
        return tune(materials, fold, start, CANDIDATES, SEED).choice

    folds = cross_validation(interactions, FOLDS, SEED)
    evaluation = evaluate(materials, folds, choose, candidates=CANDIDATES, ks=(5, 10), seed=SEED)
    return evaluation, choose(Fold(tuple(interactions), ()))


@contextmanager
def _served(folder: Path, milvus: str, choice: Choice, kafka: str | None) -> Iterator[RerankerClient]:
    """Run the real server as a process of its own, as `persona4rec serve` does."""
    port = _free_port()
    flags = {
        "grpc-port": port,
        "metrics-port": 0,
        "milvus": milvus,
        "histories": folder / "histories.sqlite",
        "generator": folder / "als",
        "index": folder / "index",
        "workers": 1,
        "fusion-weight": choice.weight,
        "gamma": choice.gamma,
        "history-length": choice.history_length,
    }
    command = [sys.executable, "-m", "persona4rec", "serve", *(f"--{name}={value}" for name, value in flags.items())]
    with (
        (folder / "server.log").open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=_environment(kafka)) as server,
    ):
        try:
            with RerankerClient(f"127.0.0.1:{port}") as client:
                _wait_until_ready(client, server, folder / "server.log")
                yield client
        finally:
            server.terminate()


def _environment(kafka: str | None) -> dict[str, str]:
    """Return the environment of a server that follows the change feed there, if there is one."""
    return {**os.environ, **({"PERSONA4REC_KAFKA_BOOTSTRAP": kafka} if kafka else {})}


def _journey(console: Console, client: RerankerClient, kafka: str) -> None:
    reader = demo_streaming.READER
    items = client.recommend(reader, CANDIDATES, candidates=CANDIDATES).ranking.items
    candidates = [(i.item_id, i.first_stage_score) for i in items if i.item_id != demo_streaming.BOOK]
    titles = _titles(client, [demo_streaming.BOOK, *(item_id for item_id, _ in candidates)])
    book = titles[demo_streaming.BOOK]
    before, after = demo_streaming.journey(console, client, kafka, [*candidates], book)
    console.print(f"The next ranking for {reader}, same candidates:")
    console.print(_changed(before.ranking, after.ranking, titles, "after the review"))


def _wait_until_ready(client: RerankerClient, server: "subprocess.Popen[bytes]", output: Path) -> None:
    try:
        client.wait_until_ready(READY_SECONDS)
    except Persona4RecError as error:
        # Killed, it could delete neither its workers nor its temporary files.
        server.terminate()
        server.wait()
        raise Persona4RecError(f"the demo's server did not start; it said:\n{output.read_text()}") from error


def _readers(console: Console, client: RerankerClient) -> None:
    for reader in READERS:
        response = client.recommend(reader, CANDIDATES, candidates=CANDIDATES).ranking
        titles = _titles(client, [item.item_id for item in response.items])
        console.print()
        console.print(f"[bold]{reader}[/] has lately read {_history(client, reader)}.")
        console.print(
            tables.side_by_side(
                response, titles, SHOWN, f"What the first stage would show {reader}, and the reranked list"
            )
        )


def _before_and_after(console: Console, client: RerankerClient, histories: Path) -> None:
    reader = READERS[0]
    before = client.recommend(reader, CANDIDATES, candidates=CANDIDATES).ranking
    candidates = [
        (item.item_id, item.first_stage_score) for item in before.items if item.item_id not in NEW_INTERACTIONS
    ]
    old = client.rerank(reader, candidates)
    _interact(histories, reader, old.profile_watermark)
    new = client.rerank(reader, candidates)
    titles = _titles(client, [*NEW_INTERACTIONS, *(item_id for item_id, _ in candidates)])
    read = ", ".join(titles[item_id] for item_id in NEW_INTERACTIONS)
    console.print()
    console.print(f"[bold]{reader}[/] now reads {read}. Same candidates, next request:")
    console.print(_changed(old, new, titles, "after three interactions"))


def _interact(histories: Path, reader: str, now: int) -> None:
    day = 24 * 3600 * 1000
    times = [now + day * number for number in range(1, len(NEW_INTERACTIONS) + 1)]
    store = SqliteHistoryStore(histories)
    store.merge(
        {
            reader: [
                Event(event_id(item_id, at), item_id, at, kind="read")
                for item_id, at in zip(NEW_INTERACTIONS, times, strict=True)
            ]
        }
    )
    store.close()


def _changed(old: pb.RerankResponse, new: pb.RerankResponse, titles: dict[str, str], after: str) -> Table:
    places = {item.item_id: item.rank for item in old.items}
    table = Table(header_style="bold", pad_edge=False, expand=True)
    table.add_column("#", justify="right")
    table.add_column("before", ratio=2)
    table.add_column(after, ratio=2)
    table.add_column("was", justify="right")
    table.add_column("because", ratio=4)
    for was, item in list(zip(old.items, new.items, strict=True))[:SHOWN]:
        row = titles[was.item_id], titles[item.item_id], str(places[item.item_id])
        table.add_row(str(item.rank), *map(Text, row), tables.explanation(item))
    return table


def _control(console: Console, evaluation: Evaluation, choice: Choice) -> None:
    console.print()
    console.print(
        f"[bold]Does it help?[/] {FOLDS}-fold cross-validation; settings are chosen within each training part. "
        "[italic]shuffled[/] deals every book another book's personas: it must lose what [italic]fused[/] gains."
    )
    console.print(tables.measured(evaluation))
    console.print(
        f"The readers' tastes were invented, so these figures show that the parts work together, no more. "
        f"The server above runs with what was chosen on all of them: {tables.choice(choice)}.",
        style="dim",
    )


def _where_time_went(console: Console, watch: Stopwatch, client: RerankerClient) -> None:
    console.print()
    console.print("[bold]Where the time went[/]")
    table = Table(show_header=False, box=None, pad_edge=False)
    for stage, seconds in watch.seconds.items():
        table.add_row(stage, f"{seconds:.1f} s")
    console.print(table)
    round_trips, inside = _latencies(client, READERS[0], 200)
    console.print(
        f"One Rerank of {CANDIDATES} candidates over gRPC: median {np.median(round_trips):.2f} ms round trip, "
        f"of which {np.median(inside):.2f} ms in the service (p95 {np.percentile(round_trips, 95):.2f} ms), "
        f"over {len(round_trips)} calls."
    )


def _latencies(client: RerankerClient, reader: str, calls: int) -> tuple[list[float], list[float]]:
    items = client.recommend(reader, CANDIDATES, candidates=CANDIDATES).ranking.items
    candidates = [(item.item_id, item.first_stage_score) for item in items]
    round_trips, inside = [], []
    for _ in range(calls):
        started = perf_counter()
        response = client.rerank(reader, candidates, top_k=10)
        round_trips.append((perf_counter() - started) * 1000)
        inside.append(response.timings.total_us / 1000)
    return round_trips, inside


def _history(client: RerankerClient, reader: str) -> str:
    newest = [shared.event.item_id for shared in client.user_profile(reader).events[:4]]
    titles = _titles(client, newest)
    return ", ".join(titles[item_id] for item_id in newest)


def _titles(client: RerankerClient, item_ids: Sequence[str]) -> dict[str, str]:
    return {item.item_id: item.title or item.item_id for item in client.item_personas(item_ids).items}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
