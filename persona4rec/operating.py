"""What those who run the server do beside running it: `serve --check`, and the kill switch."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from reranker.errors import ConfigurationError

if TYPE_CHECKING:
    from reranker.config import ServerSettings

commands = typer.Typer()
out = Console()


class State(StrEnum):
    """Of the kill switch."""

    ON = "on"
    OFF = "off"


def check(settings: "ServerSettings") -> None:
    """Print settings and what was found. Raises ConfigurationError naming every problem."""
    from reranker.check import findings, shown_settings

    out.print(_two_columns("setting", "value", list(shown_settings(settings).items())))
    found = list(findings(settings))
    out.print(_two_columns("looked at", "found", [(one.what, one.told) for one in found if not one.problem]))
    problems = [f"{one.what}: {one.told}" for one in found if one.problem]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigurationError("\n  ".join([f"{count} found", *problems]))


@commands.command("switch")
def switch(
    state: Annotated[State | None, typer.Argument(help="off: answer in the first stage's order. on: rerank.")] = None,
    switch_file: Annotated[
        Path | None, typer.Option(help="As given to `serve`.", show_default="index/switched-off")
    ] = None,
    index: Annotated[Path | None, typer.Option(help="The server's index directory.", show_default="index")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="The server's file with settings.")] = None,
) -> None:
    """Switch reranking off or on in all workers of this host, within a second; without a state, show it.

    Off, every answer is the first stage's order and says SWITCHED_OFF. It stays so over restarts.
    """
    from persona4rec import arguments
    from reranker.switch import switch_off, switch_on

    path = arguments.settings({"switch_file": switch_file, "index": index, "config": config}).switch_path
    try:
        if state is not None:
            (switch_off if state is State.OFF else switch_on)(path)
    except OSError as error:
        raise ConfigurationError(
            f"the switch {path} cannot be set: {error.strerror}. "
            "Give --index, --switch-file or --config as the server has it"
        ) from error
    out.print(f"reranking is {'off' if path.exists() else 'on'}: {path}", markup=False, soft_wrap=True)


def _two_columns(left: str, right: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(left, right, box=None, pad_edge=False)
    for one, other in rows:
        table.add_row(one, other)
    return table
