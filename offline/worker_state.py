"""What the worker knows of items and reviews, in one SQLite file that all workers of a host share.

A file, and a database: a change of one review costs one row among millions, and what was written survives the death of
the process at any moment, together with what is still to be done about it. Which of the processes does that is said by
Kafka: whoever has the partition that the change came from.

Records are merged like histories: of one id the latest event counts, and of equal times the greater content, so that
replays, duplicates and any order end in the same state. What is gone stays as an empty row, so that no replay brings it
back; an erased user's rows go altogether, and the fence (hash, time) keeps them away.
"""

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from offline.errors import WorkerStateError
from offline.evidence import Piece, joined, low_rating, piece
from offline.records import Item, Review, ReviewAspects
from offline.worker_events import Change, Erasure, ItemChange, Origin, ReviewChange
from reranker.halves import user_hash
from reranker.records import Persona, Vector
from reranker.sqlite_files import turn_log_on

BUSY_SECONDS = 30.0
"""How long one process waits for another's commit, which takes milliseconds: by then the other one hangs."""

FORMAT = 1

_SCHEMA = """
CREATE TABLE items (
    item_id TEXT PRIMARY KEY, event_time INTEGER NOT NULL, deleted INTEGER NOT NULL, content TEXT NOT NULL, summary TEXT
) WITHOUT ROWID;
CREATE TABLE reviews (
    review_id TEXT PRIMARY KEY, item_id TEXT NOT NULL, user_id TEXT NOT NULL, event_time INTEGER NOT NULL,
    deleted INTEGER NOT NULL, rating REAL, content TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX reviews_by_item ON reviews (item_id);
CREATE INDEX reviews_by_user ON reviews (user_id);
CREATE INDEX reviews_by_rating ON reviews (rating);
CREATE TABLE aspects (
    review_id TEXT PRIMARY KEY REFERENCES reviews ON DELETE CASCADE, slots TEXT, vector BLOB,
    considered INTEGER NOT NULL, sent INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE personas (item_id TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE fences (user_hash TEXT PRIMARY KEY, erased_until INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE due (
    item_id TEXT PRIMARY KEY, topic TEXT NOT NULL, partition INTEGER NOT NULL, since INTEGER NOT NULL,
    at INTEGER NOT NULL, withdrawn INTEGER NOT NULL, changes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE rewrites (at INTEGER NOT NULL, tokens INTEGER NOT NULL);
CREATE INDEX rewrites_by_time ON rewrites (at);
CREATE TABLE space (id TEXT NOT NULL);
"""
_MERGE_ITEM = """
INSERT INTO items VALUES (?, ?, ?, ?, NULL) ON CONFLICT (item_id) DO UPDATE SET
    event_time = excluded.event_time, deleted = excluded.deleted, content = excluded.content,
    summary = CASE WHEN content = excluded.content THEN summary END
WHERE (excluded.event_time, excluded.content) > (event_time, content)
"""
_MERGE_REVIEW = """
INSERT INTO reviews VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (review_id) DO UPDATE SET
    item_id = excluded.item_id, user_id = excluded.user_id, event_time = excluded.event_time,
    deleted = excluded.deleted, rating = excluded.rating, content = excluded.content
WHERE (excluded.event_time, excluded.content) > (event_time, content)
"""
# The quiet time starts anew with every change, up to a most since the first; what is due earlier stays so.
_DUE = """
INSERT INTO due VALUES (?1, ?2, ?3, ?4, ?5, ?7, random()) ON CONFLICT (item_id) DO UPDATE SET
    topic = ?2, partition = ?3, withdrawn = max(withdrawn, ?7), changes = random(),
    at = CASE WHEN ?5 <= ?4 THEN min(at, ?5) WHEN at <= since THEN at ELSE min(since + ?6, ?5) END
"""
_READY = """
SELECT item_id, withdrawn, changes, topic, partition FROM due WHERE at <= ? AND NOT EXISTS (
    SELECT 1 FROM reviews r WHERE r.item_id = due.item_id AND NOT r.deleted
    AND r.review_id NOT IN (SELECT review_id FROM aspects)
) ORDER BY at, item_id
"""
_ASPECTS = """
SELECT a.review_id, r.user_id, r.rating, r.content, a.slots, a.vector, a.considered
FROM aspects a JOIN reviews r USING (review_id) WHERE r.item_id = ? AND a.slots IS NOT NULL ORDER BY a.review_id
"""
_UNSENT = """
SELECT r.review_id, r.item_id, r.user_id, r.rating, r.event_time, a.slots FROM aspects a JOIN reviews r
USING (review_id) WHERE r.item_id = ? AND a.slots IS NOT NULL AND NOT a.sent ORDER BY a.review_id
"""
_MARK_SENT = """
UPDATE aspects SET sent = 1 WHERE review_id = ?1 AND slots = ?2
AND EXISTS (SELECT 1 FROM reviews WHERE review_id = ?1 AND event_time = ?3 AND rating IS ?4)
"""

_ITEM = TypeAdapter(Item)
_REVIEW = TypeAdapter(Review)
_PERSONAS = TypeAdapter(tuple[Persona, ...])


@dataclass(frozen=True, slots=True)
class Quiet:
    """How long a change waits for others of its item, in milliseconds."""

    debounce: int
    """After the last one."""
    most: int
    """After the first one."""


@dataclass(frozen=True, slots=True)
class Due:
    """An item that something is to be done about."""

    item_id: str
    withdrawn: bool
    """A persona had to go with a review that is gone."""
    changes: int
    """A random number that each change draws, so that one that comes meanwhile is not lost: neither here, nor where
    another process has done with the item by then, and it is due anew."""


@dataclass(frozen=True, slots=True)
class KnownItem:
    """An item as the state has it."""

    item: Item
    deleted: bool
    summary: str | None
    """None: still to be written."""


@dataclass(frozen=True, slots=True)
class KnownReviews:
    """What the reviews of one item say, in order of their ids."""

    pieces: tuple[Piece, ...]
    vectors: tuple[Vector | None, ...]
    """Of each piece's text; None: still to be embedded."""
    new: NDArray[np.bool_]
    """Those that the item's personas were not written from."""


class WorkerState:
    """Items, reviews, what was made of them, and what is due. Raises WorkerStateError wherever the file fails.

    Write-ahead log, synchronous=FULL: what a method has written survives the loss of power once it returns. What is
    deleted is overwritten with zeros in the file. One object serves one thread.
    """

    def __init__(self, path: Path, space: str) -> None:
        """`space`: of the vectors; those of another one are forgotten, to be made anew."""
        self.path = path
        with self._doing("open"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._prepare(space)

    def close(self) -> None:
        self._connection.close()

    # ---- what comes in -----------------------------------------------------------------------------------------------

    def apply(self, changes: Iterable[tuple[Change, Origin]], quiet: Quiet, now: int) -> list[str]:
        """Merge changes in one transaction, and note what is due; `now`: milliseconds since the epoch.

        Returns the items that lost personas with a review that is gone: they should not be served as they are.
        """
        lost: list[str] = []
        with self._writing():
            for change, origin in changes:
                if isinstance(change, Erasure):
                    lost += self._erase(change, origin, now)
                elif isinstance(change, ItemChange):
                    self._merge_item(change, origin, now)
                else:
                    lost += self._merge_review(change, origin, quiet, now)
        return list(dict.fromkeys(lost))

    def seed(self, item: Item, summary: str | None, personas: Sequence[Persona]) -> None:
        """Take an item over from a dataset, if it is new here. Any event is newer."""
        with self._writing() as connection:
            row = (item.item_id, 0, False, _ITEM.dump_json(item).decode(), summary)
            if connection.execute("INSERT OR IGNORE INTO items VALUES (?, ?, ?, ?, ?)", row).rowcount and personas:
                self._put_personas(item.item_id, personas)

    def seed_reviews(self, found: Iterable[tuple[Review, ReviewAspects]]) -> None:
        """Take reviews over from a dataset with their aspects, where they are new here: personas exist, nobody is told.

        A user who is erased stays so.
        """
        with self._writing() as connection:
            for review, aspects in found:
                at = review.timestamp or 0
                # Where only its aspects are known, it has no words here, and perhaps no user.
                content = _content(review) if review.text else ""
                row = (review.review_id, review.item_id, review.user_id, at, False, review.rating, content)
                if at <= self._fence(review.user_id):
                    continue
                if connection.execute("INSERT OR IGNORE INTO reviews VALUES (?, ?, ?, ?, ?, ?, ?)", row).rowcount:
                    found_in = (review.review_id, _slots(aspects.aspects))
                    connection.execute("INSERT INTO aspects VALUES (?, ?, NULL, 1, 1)", found_in)

    def erased_reviews(self, reviews: Iterable[Review | ReviewAspects]) -> frozenset[str]:
        """Return those of the reviews whose users are erased, by id."""
        with self._doing("read"):
            if self._connection.execute("SELECT 1 FROM fences LIMIT 1").fetchone() is None:
                return frozenset()
            return frozenset(one.review_id for one in reviews if (one.timestamp or 0) <= self._fence(one.user_id or ""))

    def erased_until(self, user_id: str) -> int:
        """Return the time up to which a user is erased, milliseconds since the epoch; -1 for no erasure."""
        with self._doing("read"):
            return self._fence(user_id)

    # ---- aspects -----------------------------------------------------------------------------------------------------

    def without_aspects(self, review_ids: Collection[str]) -> list[Review]:
        """Return those of the reviews, as they are now, whose aspects are still to be extracted."""
        where = "review_id = ? AND NOT deleted AND review_id NOT IN (SELECT review_id FROM aspects)"
        query = f"SELECT content FROM reviews WHERE {where}"  # noqa: S608 - our own words
        with self._doing("read"):
            rows = [self._connection.execute(query, (review_id,)).fetchone() for review_id in sorted(review_ids)]
        return [_REVIEW.validate_json(row[0]) for row in rows if row]

    def keep_aspects(self, review: Review, slots: dict[str, str | None] | None, vector: Vector | None) -> bool:
        """Store what was extracted of a review, None for nothing; return whether it still is the review it was."""
        text = None if slots is None else _slots(slots)
        same, own = "FROM reviews WHERE review_id = ? AND content = ?", (review.review_id, _content(review))
        with self._writing() as connection:
            row = (text, _blob(vector), *own)
            connection.execute(f"INSERT OR IGNORE INTO aspects SELECT review_id, ?, ?, 0, 0 {same}", row)
            return connection.execute(f"SELECT 1 {same}", own).fetchone() is not None

    def unsent(self, item_id: str) -> list[ReviewAspects]:
        """Return the aspects of an item's reviews that nobody was told of; their timestamps are those of the events."""
        with self._doing("read"):
            rows = self._connection.execute(_UNSENT, (item_id,)).fetchall()
        return [
            ReviewAspects(review_id, item_id, json.loads(slots), user_id, rating, at)
            for review_id, item_id, user_id, rating, at, slots in rows
        ]

    def mark_sent(self, told: Iterable[ReviewAspects]) -> None:
        """Note that histories were told of aspects, where these are still what `unsent` gave."""
        rows = [(one.review_id, _slots(one.aspects), one.timestamp, one.rating) for one in told]
        with self._writing() as connection:
            connection.executemany(_MARK_SENT, rows)

    # ---- items -------------------------------------------------------------------------------------------------------

    def due(self, origins: Collection[Origin], now: int, limit: int) -> list[Due]:
        """Return items that are due, of changes that came from these partitions, the longest due first.

        Not those with a review whose aspects are still to be extracted: a crash fell between the two. The review comes
        again, and to write personas without it would be to write them twice.
        """
        with self._doing("read"):
            rows = self._connection.execute(_READY, (now,))
            found = [Due(row[0], bool(row[1]), row[2]) for row in rows if Origin(row[3], row[4]) in origins]
        return found[:limit]

    def count_due(self) -> int:
        with self._doing("read"):
            return int(self._connection.execute("SELECT count(*) FROM due").fetchone()[0])

    def done(self, due: Due) -> None:
        """Forget that an item is due, unless it has changed since."""
        with self._writing() as connection:
            connection.execute("DELETE FROM due WHERE item_id = ? AND changes = ?", (due.item_id, due.changes))

    def postpone(self, due: Due, until: int) -> None:
        with self._writing() as connection:
            connection.execute(
                "UPDATE due SET at = ? WHERE item_id = ? AND changes = ?", (until, due.item_id, due.changes)
            )

    def item(self, item_id: str) -> KnownItem | None:
        query = "SELECT content, deleted, summary FROM items WHERE item_id = ?"
        with self._doing("read"):
            row = self._connection.execute(query, (item_id,)).fetchone()
        return KnownItem(_ITEM.validate_json(row[0]), bool(row[1]), row[2]) if row else None

    def keep_summary(self, item: Item, summary: str) -> None:
        """Store an item's summary, if it still is the item it was."""
        row = (summary, item.item_id, _ITEM.dump_json(item).decode())
        with self._writing() as connection:
            connection.execute("UPDATE items SET summary = ? WHERE item_id = ? AND content = ?", row)

    def reviews(self, item_id: str) -> KnownReviews:
        """Return what an item's reviews say. A rating is critical on the scale of all reviews here."""
        with self._doing("read"):
            scale = self._connection.execute("SELECT min(rating), max(rating) FROM reviews").fetchone()
            rows = self._connection.execute(_ASPECTS, (item_id,)).fetchall()
        low = low_rating(rating for rating in scale if rating is not None)
        pieces = tuple(_piece(row, low) for row in rows)
        vectors = tuple(np.frombuffer(row[5], "<f4") if row[5] else None for row in rows)
        return KnownReviews(pieces, vectors, np.array([not row[6] for row in rows], bool))

    def keep_vectors(self, vectors: dict[str, Vector]) -> None:
        """Store the vectors of what reviews say, by review."""
        rows = [(_blob(vector), review_id) for review_id, vector in vectors.items()]
        with self._writing() as connection:
            connection.executemany("UPDATE aspects SET vector = ? WHERE review_id = ?", rows)

    def personas(self, item_id: str) -> tuple[Persona, ...]:
        with self._doing("read"):
            row = self._connection.execute("SELECT content FROM personas WHERE item_id = ?", (item_id,)).fetchone()
        return _PERSONAS.validate_json(row[0]) if row else ()

    def keep_personas(self, item_id: str, personas: Sequence[Persona], written_from: Sequence[str]) -> list[str]:
        """Store an item's personas; return the reviews that are gone meanwhile. With any, nothing is stored.

        Nor is it if another process, which took the partition over meanwhile, has written from newer reviews.
        """
        with self._writing() as connection:
            considered = {row[0]: bool(row[-1]) for row in connection.execute(_ASPECTS, (item_id,))}
            if gone := [review_id for review_id in written_from if review_id not in considered]:
                return gone
            if any(considered[review_id] for review_id in considered.keys() - set(written_from)):
                return []
            connection.executemany(
                "UPDATE aspects SET considered = 1 WHERE review_id = ?", [(review_id,) for review_id in written_from]
            )
            self._put_personas(item_id, personas)
        return []

    # ---- bounds ------------------------------------------------------------------------------------------------------

    def book(self, at: int, tokens: int) -> int:
        """Book a rewrite that is about to be asked for; `at`: milliseconds since the epoch. Returns the booking."""
        with self._writing() as connection:
            return int(connection.execute("INSERT INTO rewrites VALUES (?, ?)", (at, tokens)).lastrowid or 0)

    def cancel(self, bookings: Iterable[int]) -> None:
        """Take back bookings of rewrites that came to nothing."""
        with self._writing() as connection:
            connection.executemany("DELETE FROM rewrites WHERE rowid = ?", [(booking,) for booking in bookings])

    def rewrites(self, since: int) -> tuple[int, int]:
        """Return how many rewrites were booked since a time, and the tokens of all; older ones are forgotten."""
        with self._writing() as connection:
            connection.execute("DELETE FROM rewrites WHERE at < ?", (since,))
            count, tokens = connection.execute("SELECT count(*), total(tokens) FROM rewrites").fetchone()
        return int(count), int(tokens)

    # ---- within ------------------------------------------------------------------------------------------------------

    def _merge_item(self, change: ItemChange, origin: Origin, now: int) -> None:
        content = _ITEM.dump_json(Item(change.item.item_id) if change.deleted else change.item).decode()
        row = (change.item.item_id, change.event_time, change.deleted, content)
        if self._connection.execute(_MERGE_ITEM, row).rowcount:
            self._make_due(change.item.item_id, origin, now, now)

    def _merge_review(self, change: ReviewChange, origin: Origin, quiet: Quiet, now: int) -> list[str]:
        review = change.review
        if change.event_time <= self._fence(review.user_id):
            return []
        content = "" if change.deleted else _content(review)
        rating = None if change.deleted else review.rating
        row = (review.review_id, review.item_id, review.user_id, change.event_time, change.deleted, rating, content)
        before = self._item_of(review.review_id)
        if not self._connection.execute(_MERGE_REVIEW, row).rowcount:
            return []
        self._connection.execute("DELETE FROM aspects WHERE review_id = ?", (review.review_id,))
        lost = self._withdraw(review.item_id, {review.review_id})
        at = now if lost or change.deleted else now + quiet.debounce
        self._make_due(review.item_id, origin, now, at, quiet.most, withdrawn=lost)
        return [*([review.item_id] if lost else []), *self._moved(review, before, origin, now)]

    def _moved(self, review: Review, before: str | None, origin: Origin, now: int) -> list[str]:
        """Take a review's words from the item that it was of before: variants are merged, a mistake is put right."""
        if before is None or before == review.item_id or not self._withdraw(before, {review.review_id}):
            return []
        self._make_due(before, origin, now, now, withdrawn=True)
        return [before]

    def _item_of(self, review_id: str) -> str | None:
        row = self._connection.execute("SELECT item_id FROM reviews WHERE review_id = ?", (review_id,)).fetchone()
        return str(row[0]) if row else None

    def _erase(self, erasure: Erasure, origin: Origin, now: int) -> list[str]:
        row = (user_hash(erasure.user_id), erasure.until)
        self._connection.execute(
            "INSERT INTO fences VALUES (?, ?) ON CONFLICT (user_hash) DO UPDATE SET "
            "erased_until = max(erased_until, excluded.erased_until)",
            row,
        )
        of_user = "FROM reviews WHERE user_id = ? AND event_time <= ?"
        chosen = (erasure.user_id, erasure.until)
        found = self._connection.execute(f"SELECT item_id, review_id {of_user}", chosen).fetchall()
        self._connection.execute(f"DELETE {of_user}", chosen)
        by_item: dict[str, set[str]] = {}
        for item_id, review_id in found:
            by_item.setdefault(item_id, set()).add(review_id)
        lost = [item_id for item_id, review_ids in by_item.items() if self._withdraw(item_id, review_ids)]
        for item_id in by_item:
            self._make_due(item_id, origin, now, now, withdrawn=item_id in lost)
        return lost

    def _withdraw(self, item_id: str, review_ids: set[str]) -> bool:
        """Take away the personas that rest on reviews that are gone; return whether there were any."""
        row = self._connection.execute("SELECT content FROM personas WHERE item_id = ?", (item_id,)).fetchone()
        personas = _PERSONAS.validate_json(row[0]) if row else ()
        left = [persona for persona in personas if review_ids.isdisjoint(persona.evidence)]
        if len(left) == len(personas):
            return False
        self._put_personas(item_id, left)
        return True

    def _make_due(
        self, item_id: str, origin: Origin, now: int, at: int, most: int = 0, *, withdrawn: bool = False
    ) -> None:
        row = (item_id, origin.topic, origin.partition, now, at, most, withdrawn)
        self._connection.execute(_DUE, row)

    def _put_personas(self, item_id: str, personas: Sequence[Persona]) -> None:
        content = _PERSONAS.dump_json(tuple(personas)).decode()
        self._connection.execute("INSERT OR REPLACE INTO personas VALUES (?, ?)", (item_id, content))

    def _fence(self, user_id: str) -> int:
        query = "SELECT erased_until FROM fences WHERE user_hash = ?"
        row = self._connection.execute(query, (user_hash(user_id),)).fetchone()
        return int(row[0]) if row else -1

    def forget_pages(self) -> None:
        """Cut the write-ahead log, which still holds the pages of what was deleted as they were.

        An export that reads meanwhile keeps it from being cut, and does so itself when it is done.
        """
        with self._doing("write"):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _prepare(self, space: str) -> None:
        turn_log_on(self._connection)
        for setting in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            self._connection.execute(f"PRAGMA {setting}")
        with self._transaction() as connection:
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, FORMAT):
                raise WorkerStateError(
                    f"{self.path} is of format {found}, this version reads format {FORMAT}: use the version that "
                    "wrote it, or another file with a replay from the beginning"
                )
            if not found:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            if connection.execute("SELECT id FROM space").fetchall() != [(space,)]:
                connection.execute("UPDATE aspects SET vector = NULL")
                connection.execute("DELETE FROM space")
                connection.execute("INSERT INTO space VALUES (?)", (space,))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._doing("write"), self._transaction() as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # IMMEDIATE: a transaction that reads first and writes later fails at once if another wrote in between.
        self._connection.execute("BEGIN IMMEDIATE")
        with self._connection:
            yield self._connection

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise WorkerStateError(f"cannot {what} the worker's state in {self.path}: {error}") from error


def _slots(aspects: Mapping[str, str | None]) -> str:
    return json.dumps(aspects, ensure_ascii=False)


def _piece(row: tuple[Any, ...], low: float) -> Piece:
    review_id, user_id, rating, content, slots, *_ = row
    words = ""
    if content:
        review = _REVIEW.validate_json(content)
        words = f"{review.title}. {review.text}" if review.title else review.text
    critical = rating is not None and rating <= low
    return piece(review_id, joined(json.loads(slots)), words, user_id or None, critical=critical)


def _content(review: Review) -> str:
    return _REVIEW.dump_json(review).decode()


def _blob(vector: Vector | None) -> Any:
    return None if vector is None else vector.astype("<f4").tobytes()
