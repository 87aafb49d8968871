"""`persona4rec import`: a command for each kind of files that a dataset can be made of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from reranker.errors import ConfigurationError

# Imported where they are used: a serving host has nothing of the offline side.
if TYPE_CHECKING:
    from offline.importers.accounting import ImportReport
    from offline.importers.selection import Selection

importing = typer.Typer(help="Make a dataset of other people's files.", no_args_is_help=True)

out = Console()
log = Console(stderr=True)

Source = Annotated[Path, typer.Argument(metavar="SRC")]
Target = Annotated[Path, typer.Option("--out", metavar="DIR", help="The dataset directory to write.")]
Since = Annotated[
    str, typer.Option(metavar="DATE", help="Only reviews and interactions at this ISO 8601 date or later.")
]
Until = Annotated[str, typer.Option(metavar="DATE", help="Only reviews and interactions before this ISO 8601 date.")]
Category = Annotated[
    list[str] | None, typer.Option(help="Only items of this category and what was said of them; may be repeated.")
]
MinPerItem = Annotated[
    int, typer.Option("--min-per-item", min=0, help="Only items with so many interactions by users who stay.")
]
MinPerUser = Annotated[
    int, typer.Option("--min-per-user", min=0, help="Only users with so many interactions with items that stay.")
]
MaxBadShare = Annotated[float, typer.Option(min=0, max=1, help="Share of a file's lines that may be bad.")]


@importing.command("persona4rec")
def import_persona4rec(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder with the paper's published files.")],
    target: Target,
) -> None:
    """Import the files that the authors of Persona4Rec publish, of either domain; any of them may be absent."""
    from offline.importers.persona4rec import import_files

    _show(import_files(source, target), target)


@importing.command("amazon")
def import_amazon(
    reviews: Annotated[Path, typer.Option(metavar="FILE", help="Reviews of a category, .jsonl or .jsonl.gz.")],
    target: Target,
    metadata: Annotated[
        Path | None, typer.Option("--meta", metavar="FILE", help="The category's metadata; else items have only ids.")
    ] = None,
    since: Since = "",
    until: Until = "",
    category: Category = None,
    min_per_item: MinPerItem = 0,
    min_per_user: MinPerUser = 0,
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Import Amazon Reviews 2023. Items are keyed by parent_asin."""
    from offline.importers.amazon import import_files

    selection = _selection(since, until, category, min_per_item, min_per_user)
    with _progress() as report:
        found = import_files(reviews, metadata, target, selection, max_bad_share, report)
    _show(found, target)


@importing.command("yelp")
def import_yelp(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The folder with business.json and review.json.")],
    target: Target,
    since: Since = "",
    until: Until = "",
    category: Category = None,
    min_per_item: MinPerItem = 0,
    min_per_user: MinPerUser = 0,
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Import the Yelp Open Dataset. Most want --category Restaurants: it lists every kind of business."""
    from offline.importers.yelp import import_files

    selection = _selection(since, until, category, min_per_item, min_per_user)
    with _progress() as report:
        found = import_files(source, target, selection, max_bad_share, report)
    _show(found, target)


@importing.command("movielens")
def import_movielens(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The folder with movies.csv and ratings.csv.")],
    target: Target,
    reviews: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A table of reviews with movieId, userId and text.")
    ] = None,
    since: Since = "",
    until: Until = "",
    category: Category = None,
    min_per_item: MinPerItem = 0,
    min_per_user: MinPerUser = 0,
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Import MovieLens, its ratings as interactions, and reviews of its films."""
    from offline.importers.movielens import import_files

    selection = _selection(since, until, category, min_per_item, min_per_user)
    with _progress() as report:
        found = import_files(source, reviews, target, selection, max_bad_share, report)
    _show(found, target)


@importing.command("table")
def import_table(
    target: Target,
    items: Annotated[Path | None, typer.Option(metavar="FILE", help="A table of items.")] = None,
    reviews: Annotated[Path | None, typer.Option(metavar="FILE", help="A table of reviews.")] = None,
    interactions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A table of interactions; else reviews are the interactions.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="FIELD=COLUMN", help="E.g. review.text=body or item.attributes.brand=Brand; repeated."
        ),
    ] = None,
    time_unit: Annotated[Literal["ms", "s"], typer.Option(help="What times that are numbers count since 1970.")] = "ms",
    category_separator: Annotated[str, typer.Option(help="What stands between the categories of a cell.")] = ",",
    since: Since = "",
    until: Until = "",
    category: Category = None,
    min_per_item: MinPerItem = 0,
    min_per_user: MinPerUser = 0,
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Import tables: CSV, TSV, Parquet or JSON lines. A field takes the column of its name, or the one mapped to it."""
    from offline.importers.tables import Mapped, Table, import_files

    given: dict[Table, Path | None] = {"item": items, "review": reviews, "interaction": interactions}
    tables = {table: path for table, path in given.items() if path}
    mapped = Mapped(dict(map(_mapping, columns or [])), time_unit, category_separator)
    selection = _selection(since, until, category, min_per_item, min_per_user)
    with _progress() as report:
        found = import_files(tables, target, mapped, selection, max_bad_share, report)
    _show(found, target)


def _selection(since: str, until: str, category: list[str] | None, min_per_item: int, min_per_user: int) -> "Selection":
    from offline.importers.selection import Selection

    return Selection(
        since=_moment("--since", since),
        until=_moment("--until", until),
        categories=tuple(category or ()),
        min_per_item=min_per_item,
        min_per_user=min_per_user,
    )


def _moment(option: str, text: str) -> int | None:
    """Return milliseconds since the epoch for an ISO 8601 date or time; without zone it is UTC, empty is None."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{option} is {text!r}: write a date like 2023-01-31, with a time if need be"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def _mapping(text: str) -> tuple[str, str]:
    """Return field and column of `review.text=body`."""
    field, equals, column = text.partition("=")
    if not (field and equals and column):
        raise ConfigurationError(f"--map is {text!r}: write FIELD=COLUMN, like review.text=body")
    return field.strip(), column.strip()


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show on a terminal which file is read, and how far; nothing in a log."""
    with log.status("reading") as status:
        yield status.update


def _show(report: "ImportReport", target: Path) -> None:
    from persona4rec.tables import imported

    out.print(imported(report, target))
