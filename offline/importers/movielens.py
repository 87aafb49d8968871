"""Makes a dataset of MovieLens (https://grouplens.org/datasets/movielens), in its editions as CSV, and of reviews.

`movies.csv` has the items, `ratings.csv` the interactions. MovieLens itself has no reviews: they are a table of one's
own (CSV, TSV, Parquet or JSON lines) with the columns movieId, userId and text, and where known title, rating,
timestamp and review_id. Times are seconds since 1970, as in the ratings, or ISO 8601.
"""

from pathlib import Path

from offline.errors import DatasetError
from offline.importers.accounting import ImportReport
from offline.importers.selection import Selection
from offline.importers.sources import Report
from offline.importers.tables import Mapped, Table
from offline.importers.tables import import_files as import_tables

_FILES: dict[Table, str] = {"item": "movies.csv", "interaction": "ratings.csv"}

_COLUMNS = {
    "item.item_id": "movieId",
    "item.categories": "genres",
    "interaction.item_id": "movieId",
    "interaction.user_id": "userId",
}
_REVIEW_COLUMNS = {"review.item_id": "movieId", "review.user_id": "userId"}


def import_files(
    source: Path,
    reviews: Path | None,
    out: Path,
    selection: Selection | None = None,
    max_bad_share: float = 0.05,
    report: Report = lambda _: None,
) -> ImportReport:
    """Make a dataset in `out` of the selected part of the MovieLens files in `source` and, if given, of reviews.

    Raises DatasetError if one of the files is not there, and else as the import of tables does.
    """
    tables = {table: source / name for table, name in _FILES.items()}
    if not all(path.is_file() for path in tables.values()):
        raise DatasetError(
            f"{source} must hold {' and '.join(_FILES.values())}, unpacked from an edition of MovieLens as CSV; "
            "the older ones with .dat files are not read"
        )
    columns = _COLUMNS
    if reviews:
        tables["review"] = reviews
        columns = _COLUMNS | _REVIEW_COLUMNS
    mapped = Mapped(columns, time_unit="s", category_separator="|")
    return import_tables(tables, out, mapped, selection, max_bad_share, report)
