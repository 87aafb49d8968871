"""A dataset's evidence item by item: what reviews say comes in no order of items, and need not fit into memory."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from offline.dataset import Dataset
from offline.errors import DatasetError
from offline.evidence import ItemEvidence, Piece, joined, low_rating, piece
from offline.orders import holds_orders
from offline.text import summary_of

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA cache_size = -65536;
CREATE TABLE reviews (item_id, review_id PRIMARY KEY, user_id, rating, words);
CREATE TABLE aspects (item_id, review_id, user_id, rating, said);
CREATE TABLE summaries (item_id PRIMARY KEY, summary) WITHOUT ROWID;
"""
"""Nobody reads it but the run that wrote it, so it need not survive one. 64 MB of it are kept in memory."""

_OF_REVIEWS = "CREATE VIEW pieces AS SELECT *, words AS said, rowid AS place FROM reviews"
_OF_ASPECTS = """
CREATE VIEW pieces AS SELECT a.*, coalesce(r.words, '') AS words, a.rowid AS place
FROM aspects a LEFT JOIN reviews r USING (review_id)
"""
_SCALE = "SELECT DISTINCT rating FROM pieces WHERE rating IS NOT NULL"
_PIECES = "SELECT review_id, said, words, user_id, rating FROM pieces WHERE item_id = ? ORDER BY place"
_SUMMARY = "SELECT summary FROM summaries WHERE item_id = ?"


def evidence(dataset: Dataset) -> Iterator[ItemEvidence]:
    """Yield the items that reviews say something of, in the order of the items.

    There is a piece for each review with aspects; without a file of aspects, for each review. Memory holds one item's:
    files are in no order of items, so they are sorted on disk first (in TMPDIR, about as large as the files).

    Raises DatasetError if the dataset has neither, or there is no room for that.
    """
    if not (dataset.has("aspects") or dataset.has("reviews")):
        raise DatasetError(f"{dataset.path} has neither aspects nor reviews: personas are written from these")
    with _sorted_by_item(dataset) as notes:
        low = low_rating(rating for (rating,) in notes.execute(_SCALE))
        for item in dataset.items():
            if pieces := _pieces(notes, item.item_id, low):
                (summary,) = notes.execute(_SUMMARY, (item.item_id,)).fetchone() or (None,)
                yield ItemEvidence(item, summary_of(item, summary), pieces)


@contextmanager
def _sorted_by_item(dataset: Dataset) -> Iterator[sqlite3.Connection]:
    """Yield what reviews say, in a file without a name that goes when it is closed."""
    notes = sqlite3.connect("")
    try:
        notes.executescript(_TABLES)
        _note(dataset, notes)
        yield notes
    except sqlite3.OperationalError as error:
        raise DatasetError(f"what reviews say in {dataset.path} cannot be sorted in TMPDIR: {error}") from error
    finally:
        notes.close()


def _note(dataset: Dataset, notes: sqlite3.Connection) -> None:
    reviews = (
        (r.item_id, r.review_id, r.user_id, r.rating, f"{r.title}. {r.text}" if r.title else r.text)
        for r in dataset.reviews()
    )
    aspects = ((a.item_id, a.review_id, a.user_id, a.rating, joined(a.aspects)) for a in dataset.aspects())
    notes.executemany("INSERT INTO reviews VALUES (?, ?, ?, ?, ?)", reviews)
    notes.executemany("INSERT INTO aspects VALUES (?, ?, ?, ?, ?)", aspects)
    summaries = ((s.item_id, s.summary) for s in dataset.summaries())
    notes.executemany("INSERT INTO summaries VALUES (?, ?)", summaries)
    of_aspects = dataset.has("aspects")
    notes.execute(_OF_ASPECTS if of_aspects else _OF_REVIEWS)
    notes.execute(f"CREATE INDEX by_item ON {'aspects' if of_aspects else 'reviews'} (item_id)")


def _pieces(notes: sqlite3.Connection, item_id: str, low: float) -> tuple[Piece, ...]:
    return tuple(
        piece(review_id, said, words, user_id, critical=rating is not None and rating <= low)
        for review_id, said, words, user_id, rating in notes.execute(_PIECES, (item_id,))
        # What has aspects has been looked through for them before.
        if said.strip() and not (said == words and holds_orders(words))
    )
