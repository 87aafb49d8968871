"""The commands around Kafka: `ingest`, `worker`, `worker-export`, `produce`, and `dlq` for what could not be used."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from reranker.errors import ConfigurationError

# Imported where they are used: a host that only serves does not have kafka-python.
if TYPE_CHECKING:
    from reranker.dead_letters import DeadLetter, DeadLetters
    from reranker.kafka import KafkaSettings

commands = typer.Typer()
dlq = typer.Typer(help="Dead letters: records that ingest or the worker could not use.", no_args_is_help=True)
commands.add_typer(dlq, name="dlq")

out = Console()

Bootstrap = Annotated[
    str | None,
    typer.Option(
        "--kafka", help="host:port of a Kafka broker.", show_default="PERSONA4REC_KAFKA_BOOTSTRAP or 127.0.0.1:9092"
    ),
]
Replay = Annotated[
    str | None,
    typer.Option(help="Go back to: earliest, 2h (ago), or a time in ISO 8601.", show_default="committed"),
]
LetterIds = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="As `dlq list` shows them: topic/partition/offset.")
]
METRICS_PORT = "Of /metrics and /health. A second process on this host needs another one: 0 takes a free port."
All = Annotated[bool, typer.Option("--all", help="Every dead letter of --topic, or of all topics.")]
OfTopic = Annotated[str | None, typer.Option("--topic", help="Of this input topic only.")]


@commands.command("ingest")
def ingest(
    kafka: Bootstrap = None,
    histories: Annotated[
        str | None, typer.Option(help="A SQLite file, or redis://HOST:PORT/DB.", show_default="histories.sqlite")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Consumer group.", show_default="persona4rec-ingest")] = None,
    replay: Replay = None,
    metrics_port: Annotated[int | None, typer.Option(help=METRICS_PORT, show_default="9465")] = None,
) -> None:
    """Take interactions, aspects and erasures from Kafka into the user histories until SIGTERM or Ctrl-C.

    More processes of one group share the partitions. Every setting can also be an environment variable:
    PERSONA4REC_INGEST_... (reranker/config.py) and PERSONA4REC_KAFKA_... (reranker/kafka.py).

    /health is for readiness probes, not for liveness: it is 503 until this process has joined its group, and while
    broker or histories are away, which no restart mends. It listens on 127.0.0.1, or on PERSONA4REC_INGEST_HOST.
    """
    from persona4rec.arguments import from_flags
    from reranker.config import IngestSettings
    from reranker.ingest_process import ingest as ingest_until_stopped

    # The library tells of every broken connection at this level, over and over; health and our own words tell it once.
    logging.getLogger("kafka").setLevel(logging.ERROR)
    given = {"histories": histories, "group": group, "replay": replay, "metrics_port": metrics_port}
    ingest_until_stopped(from_flags(IngestSettings, given), _kafka(kafka))


@commands.command("worker")
def worker(
    llm: Annotated[
        str | None,
        typer.Option(
            envvar="PERSONA4REC_LLM",
            metavar="URL|local=PATH|none",
            help="An OpenAI-compatible endpoint, a GGUF model file that is served meanwhile, or none.",
        ),
    ] = None,
    kafka: Bootstrap = None,
    milvus: Annotated[
        str | None, typer.Option(help="Where Milvus answers.", show_default="http://127.0.0.1:19530")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="A SQLite file, shared by the workers of a host.", show_default="worker.sqlite")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Take over what is new here, and heed the editor's decisions.")
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="books, restaurants, movies, generic.", show_default="generic"),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="As the index was published with.")] = None,
    adapter: Annotated[Path | None, typer.Option(metavar="PATH", help="As the index was published with.")] = None,
    group: Annotated[str | None, typer.Option(help="Consumer group.", show_default="persona4rec-worker")] = None,
    replay: Replay = None,
    metrics_port: Annotated[int | None, typer.Option(help=METRICS_PORT, show_default="9466")] = None,
) -> None:
    """Take reviews, items and erasures from Kafka; keep aspects, summaries and personas up with them until SIGTERM.

    More processes of one group and state share the partitions. Every setting can also be an environment variable:
    PERSONA4REC_WORKER_... (offline/worker_settings.py), PERSONA4REC_KAFKA_... and PERSONA4REC_LLM_... but for its
    budgets, which are of one run of a stage: PERSONA4REC_WORKER_TOKENS_PER_HOUR bounds what is rewritten.

    /health is for readiness probes, not for liveness: it is 503 until this process has joined its group, and while LLM,
    broker or Milvus is away, which no restart mends. It listens on 127.0.0.1, or on PERSONA4REC_WORKER_HOST.
    """
    kafka_settings = _kafka(kafka)
    from offline.llm_settings import LlmSettings
    from offline.worker_process import work
    from offline.worker_settings import WorkerSettings
    from persona4rec.arguments import from_flags

    logging.getLogger("kafka").setLevel(logging.ERROR)
    given = {
        "llm": llm,
        "milvus_uri": milvus,
        "state": state,
        "dataset": dataset,
        "domain": domain,
        "encoder": encoder,
        "adapter": adapter,
        "group": group,
        "replay": replay,
        "metrics_port": metrics_port,
    }
    work(from_flags(WorkerSettings, given), kafka_settings, from_flags(LlmSettings, {}))


@commands.command("worker-export")
def worker_export(
    target: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new directory, or an earlier export.")],
    state: Annotated[Path | None, typer.Option(help="As of the worker.", show_default="worker.sqlite")] = None,
    dataset: Annotated[
        Path | None, typer.Option(metavar="DIR", help="As of the worker: the editor's decisions come along.")
    ] = None,
) -> None:
    """Write what the worker's state holds as a dataset: from it `publish` undoes nothing, and a fresh state starts.

    The worker may go on meanwhile; what it publishes between this and a publish of DIR is overwritten by that.
    """
    from offline.worker_export import export
    from offline.worker_settings import WorkerSettings
    from persona4rec.arguments import from_flags
    from persona4rec.tables import exported

    settings = from_flags(WorkerSettings, {"state": state, "dataset": dataset})
    out.print(exported(export(settings.state, target, settings.dataset), target))


@commands.command("produce")
def produce(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="interactions.csv or reviews.jsonl of a dataset, or the topic's own JSON, one event a line (.jsonl).",
        ),
    ],
    topic: Annotated[str, typer.Option(help="interactions, reviews, aspects, erasures or items.")],
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Events a second.", show_default="as fast as it goes")
    ] = None,
    kafka: Bootstrap = None,
) -> None:
    """Send a file's events to a topic, in the file's order."""
    from persona4rec.producing import produce as send_all

    logging.getLogger("kafka").setLevel(logging.ERROR)
    report = send_all(file, topic, _kafka(kafka), rate)
    out.print(f"{report.sent:,} events sent to {topic} in {report.seconds:.1f} s", markup=False)
    if report.rejected:
        raise ConfigurationError(f"{report.rejected:,} lines of {file} were not sent, the first: {report.first_reason}")


@dlq.command("list")
def dlq_list(topic: OfTopic = None, kafka: Bootstrap = None) -> None:
    """Show what waits: id, error, and the beginning of each record."""
    from persona4rec.letters import letter_list

    out.print(letter_list(_pending(_open(_kafka(kafka)), topic)))


@dlq.command("show")
def dlq_show(letter_id: Annotated[str, typer.Argument(metavar="ID")], kafka: Bootstrap = None) -> None:
    """Show one dead letter whole. What it shows may be personal data."""
    from persona4rec.letters import whole_letter

    (letter,) = _chosen(_open(_kafka(kafka)), [letter_id], None, every=False)
    out.print(whole_letter(letter))


@dlq.command("redrive")
def dlq_redrive(
    letter_ids: LetterIds = None, topic: OfTopic = None, every: All = False, kafka: Bootstrap = None
) -> None:
    """Send dead letters to their topic again, as they were: for when the fault was ours and is mended."""
    letters = _open(_kafka(kafka))
    chosen = _chosen(letters, letter_ids or [], topic, every=every)
    letters.redrive(chosen)
    out.print(f"{len(chosen)} sent again")


@dlq.command("discard")
def dlq_discard(
    letter_ids: LetterIds = None, topic: OfTopic = None, every: All = False, kafka: Bootstrap = None
) -> None:
    """Settle dead letters for good. A replay that meets the same records brings them back."""
    letters = _open(_kafka(kafka))
    chosen = _chosen(letters, letter_ids or [], topic, every=every)
    letters.discard(chosen)
    out.print(f"{len(chosen)} discarded")


def _kafka(bootstrap: str | None) -> "KafkaSettings":
    try:
        from reranker.kafka import KafkaSettings
    except ImportError as error:
        raise ConfigurationError(f"{error.name} is not installed: install persona4rec[kafka]") from error
    from persona4rec.arguments import from_flags

    return from_flags(KafkaSettings, {"bootstrap": bootstrap})


def _open(settings: "KafkaSettings") -> "DeadLetters":
    from reranker.dead_letters import DeadLetters

    logging.getLogger("kafka").setLevel(logging.ERROR)
    return DeadLetters(settings)


def _pending(letters: "DeadLetters", topic: str | None) -> "list[DeadLetter]":
    from reranker.kafka import INPUTS

    if topic is not None and topic not in INPUTS:
        raise ConfigurationError(f"--topic is {topic!r}: choose of {', '.join(INPUTS)}")
    return list(letters.pending([topic] if topic else INPUTS))


def _chosen(letters: "DeadLetters", letter_ids: list[str], topic: str | None, *, every: bool) -> "list[DeadLetter]":
    if bool(letter_ids) == every:
        raise ConfigurationError("say which: either ids, or --all")
    pending = _pending(letters, topic)
    if every:
        return pending
    by_id = {letter.letter_id: letter for letter in pending}
    if missing := [letter_id for letter_id in letter_ids if letter_id not in by_id]:
        raise ConfigurationError(f"there is no dead letter {missing[0]}; `persona4rec dlq list` shows those there are")
    return [by_id[letter_id] for letter_id in letter_ids]
