import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from offline.dataset import (
    Alignment,
    Dataset,
    Interaction,
    Item,
    ItemPersonas,
    ItemSummary,
    Kind,
    Record,
    Review,
    ReviewAspects,
    write_interactions,
    write_jsonl,
)
from offline.errors import ConfigurationError, DatasetError, TooManyRejectsError
from reranker.records import Persona, persona_id

SHARED = Path(__file__).parents[3] / "shared" / "data"


def write(directory: Path, name: str, *lines: str | dict[str, Any]) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (directory / name).write_text(text + "\n", encoding="utf-8")


def rejects(directory: Path) -> list[dict[str, Any]]:
    path = directory / "rejects.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def persona(item_id: str, name: str, *evidence: str) -> Persona:
    return Persona(persona_id(item_id, name, "d", "r"), name, "d", "r", evidence)


def persona_line(name: str, *evidence: str) -> dict[str, Any]:
    return {"name": name, "description": "d", "preference_rationale": "r", "evidence": list(evidence)}


# ---- what is written is read back ------------------------------------------------------------------------------------

ids = st.text(min_size=1, max_size=60).filter(lambda text: not set(text) & {"\n", "\r"})
ratings = st.none() | st.floats(allow_nan=False, allow_infinity=False)
timestamps = st.none() | st.integers(0, 253_402_300_799_999)
slots = st.dictionaries(st.text(), st.none() | st.text(), max_size=3)


@st.composite
def item_personas(draw: st.DrawFn) -> ItemPersonas:
    item_id = draw(ids)
    names = draw(st.lists(st.text(min_size=1), unique=True, max_size=3))
    evidence = draw(st.lists(ids, min_size=1, max_size=3))
    return ItemPersonas(item_id, tuple(persona(item_id, name, *evidence) for name in names), draw(st.booleans()))


RECORDS: dict[Kind, st.SearchStrategy[Any]] = {
    "items": st.builds(Item, ids, st.text(), st.text(), st.lists(st.text()).map(tuple)),
    "reviews": st.builds(Review, ids, ids, ids, st.text(), st.text(), ratings, timestamps),
    "summaries": st.builds(ItemSummary, ids, st.text()),
    "aspects": st.builds(ReviewAspects, ids, ids, slots, st.none() | ids, ratings, timestamps),
    "personas": item_personas(),
    "alignments": st.builds(Alignment, ids, ids, st.text(), st.text(), st.lists(ids).map(tuple)),
}


@pytest.mark.parametrize("kind", RECORDS)
@settings(max_examples=30)
@given(data=st.data())
def test_records_survive_the_round_trip(kind: Kind, data: st.DataObject) -> None:
    strategy = RECORDS[kind]
    records = data.draw(st.lists(strategy, min_size=1, max_size=3, unique_by=lambda record: key_of(kind, record)))
    with tempfile.TemporaryDirectory() as directory:
        assert write_jsonl(Path(directory, f"{kind}.jsonl"), records) == len(records)
        assert list(getattr(Dataset.open(directory), kind)()) == records


def key_of(kind: Kind, record: Any) -> object:
    return record.review_id if kind in ("reviews", "aspects") else record.item_id


@settings(max_examples=30)
@given(st.lists(st.builds(Interaction, ids, ids, ratings, timestamps)))
def test_interactions_survive_the_round_trip_with_their_repetitions(records: list[Interaction]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        write_interactions(Path(directory, "interactions.csv"), records * 2)
        assert list(Dataset.open(directory).interactions()) == records * 2


def test_fields_come_in_their_order_and_defaults_are_left_out(tmp_path: Path) -> None:
    aspects = ReviewAspects("r", "a", {"quality_criteria": "plot", "usage_context": None}, rating=4.0)
    write_jsonl(tmp_path / "aspects.jsonl", [aspects])
    assert (tmp_path / "aspects.jsonl").read_text() == (
        '{"review_id": "r", "item_id": "a", "aspects": {"quality_criteria": "plot", "usage_context": null}, '
        '"rating": 4.0}\n'
    )


# ---- formats ---------------------------------------------------------------------------------------------------------


def plain(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def zipped(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def columns(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize(("ending", "store"), [(".jsonl", plain), (".jsonl.gz", zipped), (".parquet", columns)])
def test_every_format_gives_the_same_records(
    tmp_path: Path, ending: str, store: Callable[[Path, list[dict[str, Any]]], None]
) -> None:
    rows: list[dict[str, Any]] = [
        {"item_id": "a", "title": "A", "categories": ["x", "y"], "attributes": {"year": 2017, "cast": ["B", "C"]}},
        {"item_id": "b", "title": None, "categories": None, "attributes": {"year": None}, "unknown": 1},
    ]
    store(tmp_path / f"items{ending}", rows)
    assert list(Dataset.open(tmp_path).items()) == [
        Item("a", "A", "", ("x", "y"), {"year": "2017", "cast": "B, C"}),
        Item("b"),
    ]


def test_times_of_a_parquet_file(tmp_path: Path) -> None:
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    columns(tmp_path / "interactions.parquet", [{"user_id": 1, "item_id": 2, "timestamp": moment}])
    assert list(Dataset.open(tmp_path).interactions()) == [Interaction("1", "2", None, 1_577_836_800_000)]


def test_zipped_interactions(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfitem_id,user_id,timestamp\na,u,5\n"))
    assert list(Dataset.open(tmp_path).interactions()) == [Interaction("u", "a", None, 5)]


def test_two_variants_of_one_file_are_refused_by_name(tmp_path: Path) -> None:
    plain(tmp_path / "items.jsonl", [{"item_id": "a"}])
    columns(tmp_path / "items.parquet", [{"item_id": "b"}])
    with pytest.raises(DatasetError, match=r"items\.jsonl and items\.parquet"):
        Dataset.open(tmp_path).items()


def test_files_are_read_as_streams(tmp_path: Path) -> None:
    plain(tmp_path / "items.jsonl", [{"item_id": str(number)} for number in range(10)])
    with (tmp_path / "items.jsonl").open("a") as file:
        file.write("broken\n" * 100)
    items = Dataset.open(tmp_path).items()
    assert isinstance(items, Iterator)
    assert next(items) == Item("0")


# ---- what is accepted for a field ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_time", "milliseconds"),
    [
        (1606780947726, 1606780947726),
        ("1606780947726", 1606780947726),
        ("1606780947726.0", 1606780947726),
        ("2020-12-01T00:02:27.726Z", 1606780947726),
        ("2020-12-01 01:02:27.726+01:00", 1606780947726),
        ("2020-12-01 00:02:27.726", 1606780947726),
        ("2020-12-01", 1606780800000),
        ("", None),
        (None, None),
    ],
)
def test_times(tmp_path: Path, given_time: object, milliseconds: int | None) -> None:
    write(tmp_path, "interactions.jsonl", {"user_id": "u", "item_id": "a", "timestamp": given_time})
    assert [event.timestamp for event in Dataset.open(tmp_path).interactions()] == [milliseconds]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("timestamp", "yesterday", "timestamp: expected whole milliseconds since the epoch or ISO 8601 text"),
        ("timestamp", 1606780947.5, "timestamp: expected whole milliseconds since the epoch or ISO 8601 text"),
        ("timestamp", True, "timestamp: expected whole milliseconds since the epoch or ISO 8601 text"),
        ("timestamp", -1, "timestamp: expected milliseconds from 1970 to 9999"),
        ("timestamp", 1606780947726000, "timestamp: expected milliseconds from 1970 to 9999"),
        ("rating", "good", "rating: expected a number"),
        ("rating", True, "rating: expected a number"),
        ("rating", "inf", "rating: Input should be a finite number"),
        ("user_id", "", "user_id: an id has 1 to 256 bytes of UTF-8, not 0"),
        ("user_id", "ä" * 129, "user_id: an id has 1 to 256 bytes of UTF-8, not 258"),
        ("user_id", "a\nb", "user_id: an id has no line break"),
        ("user_id", 1.5, "user_id: Input should be a valid string"),
        ("user_id", None, "user_id: Input should be a valid string"),
    ],
)
def test_refused_values_are_named_by_field_and_not_repeated(
    tmp_path: Path, field: str, value: object, reason: str
) -> None:
    good = {"user_id": "u", "item_id": "a"}
    write(tmp_path, "interactions.jsonl", good, good | {field: value})
    assert len(list(Dataset.open(tmp_path).interactions())) == 1
    assert [(entry["line"], entry["reason"]) for entry in rejects(tmp_path)] == [(2, reason)]


def test_numbers_are_ids(tmp_path: Path) -> None:
    write(tmp_path, "reviews.jsonl", {"review_id": 1, "user_id": 2, "item_id": 3, "text": "t"})
    assert list(Dataset.open(tmp_path).reviews()) == [Review("1", "2", "3", "t")]


# ---- bad lines -------------------------------------------------------------------------------------------------------


def test_bad_lines_are_set_aside_and_lose_nothing_beside_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "reviews.jsonl"
    good = b'{"review_id": "%d", "user_id": "u", "item_id": "a", "text": "secret"}\n'
    broken = b'{"review_id": "9", "user_id": "u", "item_id": "a", "text": "secret\xff"}\n'
    path.write_bytes(good % 1 + broken + b'{"text": "secret"}\n\n' + good % 1 + b"secret\n" + good % 2)
    assert [review.review_id for review in Dataset.open(tmp_path).reviews()] == ["1", "2"]
    assert [(entry["file"], entry["line"]) for entry in rejects(tmp_path)] == [
        ("reviews.jsonl", 2),
        ("reviews.jsonl", 3),
        ("reviews.jsonl", 5),
        ("reviews.jsonl", 6),
    ]
    assert rejects(tmp_path)[2]["reason"] == "repeats the id of line 1"
    assert rejects(tmp_path)[3]["raw"] == "secret"
    assert "4 entries set aside" in caplog.text
    assert "secret" not in caplog.text


def test_too_many_bad_lines_end_the_run_after_the_good_ones(tmp_path: Path) -> None:
    write(tmp_path, "items.jsonl", *({"item_id": number} for number in range(20)), "bad", "bad")
    assert len(list(Dataset.open(tmp_path, max_bad_share=0.1).items())) == 20
    items = Dataset.open(tmp_path).items()
    assert len(list(islice(items, 20))) == 20
    with pytest.raises(TooManyRejectsError, match=r"items\.jsonl: 2 of 22 lines are bad \(max_bad_share = 0\.05\)"):
        next(items)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigurationError, match="max_bad_share"):
        Dataset.open(tmp_path, share)


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere is not a directory"):
        Dataset.open(tmp_path / "nowhere")
    dataset = Dataset.open(tmp_path)
    assert not dataset.has("personas")
    assert list(dataset.personas()) == []
    with pytest.raises(DatasetError, match=r"items\.jsonl"):
        dataset.items()
    write(tmp_path, "items.jsonl", "")
    with pytest.raises(DatasetError, match="empty dataset"):
        list(dataset.items())


# ---- personas and their evidence -------------------------------------------------------------------------------------


def test_a_bad_persona_is_set_aside_and_its_item_keeps_the_others(tmp_path: Path) -> None:
    write(tmp_path, "aspects.jsonl", {"review_id": "r1", "item_id": "a", "aspects": {}})
    personas = [
        persona_line("good", "r1"),
        persona_line("no evidence"),
        persona_line("invented", "r1", "r2"),
        persona_line("renamed", "r1") | {"persona_id": "a:000000000000"},
        persona_line("good", "r1"),
        "no persona",
    ]
    write(tmp_path, "personas.jsonl", {"item_id": "a", "personas": personas})
    assert list(Dataset.open(tmp_path).personas()) == [ItemPersonas("a", (persona("a", "good", "r1"),))]
    found = [entry["reason"] for entry in rejects(tmp_path)]
    assert [reason.split(":")[0] for reason in found] == [f"persona {number}" for number in range(2, 7)]
    assert found[0] == "persona 2: evidence is empty"
    assert found[1] == "persona 3: evidence names 1 reviews that are neither in the reviews nor in the aspects"
    assert json.loads(rejects(tmp_path)[0]["raw"])["name"] == "no evidence"


def test_reviews_and_aspects_together_say_which_reviews_exist(tmp_path: Path) -> None:
    write(tmp_path, "reviews.jsonl", {"review_id": 1, "user_id": "u", "item_id": "a", "text": "t"})
    write(tmp_path, "aspects.jsonl", {"review_id": 2, "item_id": "a", "aspects": {}})
    write(tmp_path, "personas.jsonl", {"item_id": "a", "personas": [persona_line("p", "1", "2")]})
    assert len(list(Dataset.open(tmp_path).personas())) == 1


def test_evidence_may_be_missing_only_where_the_line_says_that_it_is_not_known(tmp_path: Path) -> None:
    known, unknown = persona_line("p"), persona_line("p") | {"evidence": None}
    write(
        tmp_path,
        "personas.jsonl",
        {"item_id": "a", "personas": [known]},
        {"item_id": "b", "personas": [unknown], "evidence_known": False},
    )
    assert list(Dataset.open(tmp_path).personas()) == [ItemPersonas("b", (persona("b", "p"),), evidence_known=False)]


def made_here(item_id: str, *personas: dict[str, Any]) -> dict[str, Any]:
    return {"item_id": item_id, "personas": personas, "fingerprint": f"of {item_id}"}


def test_a_persona_that_was_made_here_and_lost_a_review_is_left_out_and_told_without_its_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "reviews.jsonl", {"review_id": "r1", "user_id": "u", "item_id": "a", "text": "t"})
    some = made_here("a", persona_line("left", "r1"), persona_line("secret", "r1", "gone"))
    stranger = persona_line("secret", "gone") | {"persona_id": "of another text"}
    write(tmp_path, "personas.jsonl", some, made_here("b", stranger, persona_line("secret", "gone")))
    assert list(Dataset.open(tmp_path).personas()) == [
        ItemPersonas("a", (persona("a", "left", "r1"),), fingerprint="of a")
    ]
    told = {(entry["line"], entry["reason"].split(";")[0], entry["raw"]) for entry in rejects(tmp_path)}
    lost = "a review it was written from is gone"
    assert told == {(1, f"persona 2: {lost}", "a"), (2, f"persona 1: {lost}", "b"), (2, f"persona 2: {lost}", "b")}
    assert "persona4rec personas" in caplog.text
    assert "secret" not in (tmp_path / "rejects.jsonl").read_text() + caplog.text


def test_lost_evidence_makes_bad_lines_only_of_personas_that_came_from_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, "reviews.jsonl", {"review_id": "r1", "user_id": "u", "item_id": "a", "text": "t"})
    lines = [made_here(f"i{number}", persona_line("p", "gone")) for number in range(20)]
    write(tmp_path, "personas.jsonl", *lines)
    dataset = Dataset.open(tmp_path)
    assert list(dataset.personas()) == []
    assert [found.fingerprint for found in dataset.recorded_personas()] == [line["fingerprint"] for line in lines]
    write(tmp_path, "personas.jsonl", *lines, *({"item_id": n, "personas": [persona_line("p", "gone")]} for n in "ab"))
    with pytest.raises(TooManyRejectsError, match="2 of 22 lines are bad"):
        list(dataset.personas())


def test_an_item_is_read_from_the_line_that_has_personas_left(tmp_path: Path) -> None:
    write(tmp_path, "reviews.jsonl", {"review_id": "r1", "user_id": "u", "item_id": "a", "text": "t"})
    lost, left = made_here("a", persona_line("p", "gone")), made_here("a", persona_line("left", "r1"))
    write(tmp_path, "personas.jsonl", lost, left)
    assert [found.personas for found in Dataset.open(tmp_path).personas()] == [(persona("a", "left", "r1"),)]


# ---- real data -------------------------------------------------------------------------------------------------------

IMDB: dict[Kind, int] = {
    "items": 1155,
    "interactions": 17_051,
    "summaries": 1155,
    "aspects": 11_435,
    "personas": 1155,
    "alignments": 2100,
}


@pytest.mark.skipif(not (SHARED / "imdb").is_dir(), reason="../shared/data/imdb is absent")
@pytest.mark.parametrize(("kind", "count"), IMDB.items())
def test_imdb_is_read_whole(kind: Kind, count: int, caplog: pytest.LogCaptureFixture) -> None:
    records: list[Record] = list(getattr(Dataset.open(SHARED / "imdb"), kind)())
    assert len(records) == count
    assert "set aside" not in caplog.text
