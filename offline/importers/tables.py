"""Makes a dataset of a platform's own tables: CSV, TSV, Parquet or JSON lines, with a mapping from its columns.

A table is of items, of reviews or of interactions. A field of a record takes the column of its own name, or the one
that it is mapped to: `review.text=body`. Columns that nothing takes are left out; those that tell something of an item
are kept as attributes by name: `item.attributes.brand=Brand`. A cell of categories that is not a list already is split.

Reviews without a `review_id` column get an id of what tells them apart. HTML stays as it is: only the platform knows
whether its texts are HTML.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import TypeAdapter
from pydantic_core import from_json

from offline.errors import ConfigurationError, DatasetError
from offline.importers.accounting import WRONG_FILE_LINES, ImportReport
from offline.importers.selection import Selection
from offline.importers.sources import Report, SourceFile, Sources, import_sources, review_id_of
from offline.lines import read_lines
from offline.records import Interaction, Item, Record, Review

Table = Literal["item", "review", "interaction"]
TimeUnit = Literal["ms", "s"]

FIELDS: Mapping[Table, tuple[str, ...]] = {
    "item": ("item_id", "title", "description", "categories"),
    "review": ("review_id", "user_id", "item_id", "text", "title", "rating", "timestamp"),
    "interaction": ("user_id", "item_id", "rating", "timestamp"),
}
"""The fields of a record that a column can be mapped to; of items also `attributes.` and any name."""

REQUIRED: Mapping[Table, tuple[str, ...]] = {
    "item": ("item_id",),
    "review": ("user_id", "item_id", "text"),
    "interaction": ("user_id", "item_id"),
}
"""The fields that a table must have a column for."""

ATTRIBUTES = "attributes."

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Mapped:
    """How the columns are to be read.

    Raises:
        ConfigurationError: `columns` names a field that there is not.

    """

    columns: Mapping[str, str] = field(default_factory=dict)
    """Column by field, as in `{"review.text": "body"}`."""
    time_unit: TimeUnit = "ms"
    """What times that are numbers count since 1970; others are ISO 8601."""
    category_separator: str = ","

    def __post_init__(self) -> None:
        for name in self.columns:
            table, _, record_field = name.partition(".")
            if not any(table == known and _is_field(known, record_field) for known in FIELDS):
                accepted = [f"{known}.{one}" for known, names in FIELDS.items() for one in names]
                accepted.append("item.attributes.NAME")
                raise ConfigurationError(
                    f"there is no field {name!r} to map a column to; there are {', '.join(accepted)}"
                )

    def of(self, table: Table) -> dict[str, str]:
        """Return column by field, of the fields of one table that are mapped."""
        prefix = f"{table}."
        return {name.removeprefix(prefix): to for name, to in self.columns.items() if name.startswith(prefix)}


def _is_field(table: Table, name: str) -> bool:
    is_attribute = table == "item" and name.startswith(ATTRIBUTES) and name != ATTRIBUTES
    return name in FIELDS[table] or is_attribute


def import_files(
    tables: Mapping[Table, Path],
    out: Path,
    mapped: Mapped | None = None,
    selection: Selection | None = None,
    max_bad_share: float = 0.05,
    report: Report = lambda _: None,
) -> ImportReport:
    """Make a dataset in `out` of the selected part of the tables.

    Raises:
        ConfigurationError: there is no table, or a mapping for one that is not given.
        DatasetError: a table lacks a column that is required or mapped, and else as `import_sources` raises.

    """
    mapped = mapped or Mapped()
    _check_tables(tables, mapped)
    sources = Sources(
        items=_source(tables, "item", mapped, _item),
        reviews=_source(tables, "review", mapped, _review),
        interactions=_source(tables, "interaction", mapped, _interaction),
    )
    return import_sources(sources, out, selection, max_bad_share, report)


def _check_tables(tables: Mapping[Table, Path], mapped: Mapped) -> None:
    if not tables:
        raise ConfigurationError("there is nothing to import: name a table of items, of reviews or of interactions")
    for table in get_args(Table):
        if mapped.of(table) and table not in tables:
            raise ConfigurationError(
                f"a column is mapped to {table}.{next(iter(mapped.of(table)))}, but no {table}s are given"
            )


# ---- columns ---------------------------------------------------------------------------------------------------------

_Values = dict[str, Any]
_Make = Callable[[_Values, Mapped], R]


def _source(tables: Mapping[Table, Path], table: Table, mapped: Mapped, make: _Make[R]) -> SourceFile[R] | None:
    path = tables.get(table)
    if path is None:
        return None
    columns = _columns(path, table, mapped.of(table))

    def parse(raw: bytes) -> R:
        row = _row(raw)
        return make({name: row[column] for name, column in columns.items() if column in row}, mapped)

    return SourceFile(path, parse)


def _columns(path: Path, table: Table, mapped: Mapping[str, str]) -> dict[str, str]:
    """Return column by field. Raises DatasetError, naming the columns that are there, if one is not.

    Fields that are not required have theirs whether the first lines show it or not: JSON lines leave out what is null.
    """
    there = column_names(path)
    columns = {name: name for name in FIELDS[table]} | dict(mapped)
    missing = [f"{table}.{name}" for name in REQUIRED[table] if columns[name] not in there and name not in mapped]
    missing += [f"{table}.{name} ({column})" for name, column in mapped.items() if column not in there]
    if missing:
        raise DatasetError(
            f"{path} has no column for {', '.join(missing)}. Its columns are {', '.join(there) or 'none'}: "
            f"map one with --map {table}.FIELD=COLUMN"
        )
    return columns


def column_names(path: Path) -> list[str]:
    """Return the names of a table's columns; of JSON lines, those of the good ones of the first `WRONG_FILE_LINES`.

    Raises DatasetError if the table cannot be read or there is no good line among these.
    """
    problem = "it has no row below its header"
    names: dict[str, None] = {}
    for line in islice(read_lines(path), WRONG_FILE_LINES):
        try:
            names |= dict.fromkeys(_row(line.json))
        except ValueError as error:
            problem = line.problem or str(error)
    if not names:
        raise DatasetError(f"{path} is not a table that can be read: {problem}")
    return list(names)


def _row(raw: bytes) -> dict[str, Any]:
    row = from_json(raw)
    if not isinstance(row, dict):
        raise ValueError("expected an object with a value for each column")  # noqa: TRY004 - bad input, not a bug
    return row


# ---- records ---------------------------------------------------------------------------------------------------------

_ITEM = TypeAdapter(Item)
_REVIEW = TypeAdapter(Review)
_INTERACTION = TypeAdapter(Interaction)


def _item(values: _Values, mapped: Mapped) -> Item:
    attributes = {
        name.removeprefix(ATTRIBUTES): value
        for name, value in values.items()
        if name.startswith(ATTRIBUTES) and value != ""
    }
    own = {name: value for name, value in values.items() if not name.startswith(ATTRIBUTES)}
    own["categories"] = _split(own.get("categories"), mapped.category_separator)
    return _ITEM.validate_python(own | {"attributes": attributes})


def _split(value: object, separator: str) -> object:
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(separator) if part.strip()]


def _review(values: _Values, mapped: Mapped) -> Review:
    has_ids = "review_id" in values
    given = {
        "review_id": "to be derived",
        **values,
        "text": values.get("text") or "",
        "timestamp": _time(values, mapped),
    }
    review = _REVIEW.validate_python(given)
    if has_ids:
        return review
    own_id = review_id_of(review.user_id, review.item_id, review.timestamp, review.title, review.text)
    return replace(review, review_id=own_id)


def _interaction(values: _Values, mapped: Mapped) -> Interaction:
    return _INTERACTION.validate_python({**values, "timestamp": _time(values, mapped)})


def _time(values: _Values, mapped: Mapped) -> object:
    time = values.get("timestamp")
    if mapped.time_unit == "ms":
        return time
    try:
        return round(float(time) * 1000) if isinstance(time, str | int | float) and time != "" else None
    except (ValueError, OverflowError):
        return time  # ISO 8601, or whatever the record says of it
