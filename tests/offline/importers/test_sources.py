import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from offline.dataset import Dataset
from offline.errors import ConfigurationError, DatasetError, TooManyRejectsError
from offline.importers import accounting
from offline.importers.accounting import ImportReport, SourceReport
from offline.importers.selection import Selection
from offline.importers.sources import SourceFile, Sources, import_sources, review_id_of
from offline.importers.tables import FIELDS, import_files
from offline.records import Interaction, Item, Review


def write(path: Path, *rows: Mapping[str, object] | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def item(item_id: str, *categories: str) -> dict[str, object]:
    return {"item_id": item_id, "title": item_id.upper(), "categories": list(categories)}


def review(user_id: str, item_id: str, timestamp: int | None = None, text: str = "good") -> dict[str, object]:
    return {"user_id": user_id, "item_id": item_id, "text": text, "timestamp": timestamp}


def pairs(out: Path) -> list[tuple[str, str]]:
    return [(event.user_id, event.item_id) for event in Dataset.open(out).interactions()]


def imported(source: Path, out: Path, *reviews: dict[str, object], selection: Selection | None = None) -> ImportReport:
    return import_files({"review": write(source / "reviews.jsonl", *reviews)}, out, selection=selection)


# ---- what is written -------------------------------------------------------------------------------------------------


def test_a_review_is_an_interaction_and_what_it_names_an_item(source: Path, out: Path) -> None:
    tables = {
        "item": write(source / "items.jsonl", item("a", "x"), item("a", "again")),
        "review": write(source / "reviews.jsonl", review("u", "b", 5), review("u", "a"), review("v", "b", 1)),
    }
    report = import_files(tables, out)  # type: ignore[arg-type]
    dataset = Dataset.open(out)
    assert list(dataset.items()) == [Item("a", "A", categories=("x",)), Item("b")]
    assert list(dataset.interactions()) == [
        Interaction("u", "b", timestamp=5),
        Interaction("u", "a"),
        Interaction("v", "b", timestamp=1),
    ]
    assert len(list(dataset.reviews())) == 3
    assert report == ImportReport(
        (SourceReport("items.jsonl", 2, 1, 1, 0, {}), SourceReport("reviews.jsonl", 3, 3, 0, 0, {})),
        {"items.jsonl": 2, "reviews.jsonl": 3, "interactions.csv": 3},
        ("What is dated is from 1970-01-01 to 1970-01-01.", "1 items are only named: nothing but their id is known."),
    )


def test_a_repeated_review_is_one(source: Path, out: Path) -> None:
    report = imported(source, out, review("u", "a", 5), review("u", "a", 5), review("u", "a", 5, "other words"))
    assert (report.sources[0].written, report.sources[0].duplicates) == (2, 1)
    assert len({found.review_id for found in Dataset.open(out).reviews()}) == 2


def test_a_derived_id_is_that_of_the_review_alone() -> None:
    assert review_id_of("u", "a", 5, "title", "text") == "b2fb3d002d43ecef59269202"
    others = [("v", "a", 5, "", ""), ("u", "b", 5, "", ""), ("u", "a", None, "", ""), ("u", "a", 5, "t", "")]
    assert len({review_id_of(*told) for told in [("u", "a", 5, "", ""), ("u", "a", 5, "", "t"), *others]}) == 6


def test_a_review_without_words_is_an_interaction_only(source: Path, out: Path) -> None:
    report = imported(source, out, review("u", "a", text=""), review("v", "a"))
    assert [found.user_id for found in Dataset.open(out).reviews()] == ["v"]
    assert pairs(out) == [("u", "a"), ("v", "a")]
    assert "1 reviews have no text and became interactions only." in report.notes


def test_a_second_import_writes_the_same_bytes(source: Path, out: Path) -> None:
    reviews = [review(f"u{n % 7}", f"i{n % 5}", n) for n in range(100)]
    selection = Selection(min_per_item=2, min_per_user=2)
    imported(source, out, *reviews, selection=selection)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    imported(source, out, *reviews, selection=selection)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_memory_does_not_grow_with_the_file(source: Path, out: Path) -> None:
    def peak(count: int) -> int:
        # Long ones, since the JSON parser keeps some thousands of short strings for another time.
        ids = [(f"user {n:070}", f"item {n // 4:070}") for n in range(count)]
        path = write(source / "reviews.jsonl", *(review(*pair, n) for n, pair in enumerate(ids)))
        del ids
        tracemalloc.start()
        try:
            import_files({"review": path}, out, selection=Selection(min_per_item=2))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # what is loaded once is loaded
    # The interpreter keeps about 200 kB of freed objects for reuse; sets of 5,000 ids would be 2,000 kB.
    assert peak(5000) - peak(500) < 500_000


# ---- what is selected ------------------------------------------------------------------------------------------------


def test_since_is_inside_and_until_outside(source: Path, out: Path) -> None:
    reviews = [review(f"u{time}", "a", time) for time in range(10)]
    imported(source, out, *reviews, review("undated", "a"), selection=Selection(since=3, until=6))
    assert [user_id for user_id, _ in pairs(out)] == ["u3", "u4", "u5"]


def test_a_category_takes_its_items_and_their_reviews(source: Path, out: Path) -> None:
    tables = {
        "item": write(source / "items.jsonl", item("a", "Food", "Bars"), item("b", "Bar Stools"), item("c", "bars")),
        "review": write(source / "reviews.jsonl", review("u", "a"), review("u", "b"), review("u", "unknown")),
    }
    report = import_files(tables, out, selection=Selection(categories=("Bars",)))  # type: ignore[arg-type]
    assert [found.item_id for found in Dataset.open(out).items()] == ["a", "c"]
    assert pairs(out) == [("u", "a")]
    assert [source.left_out for source in report.sources] == [1, 2]


def test_a_category_that_there_is_not_is_answered_with_those_there_are(source: Path, out: Path) -> None:
    path = write(source / "items.jsonl", item("a", "Food", "Bars"), item("b", "Food"))
    with pytest.raises(DatasetError, match="no item has the category 'Fod'; the most frequent are Food, Bars"):
        import_files({"item": path}, out, selection=Selection(categories=("Fod",)))
    with pytest.raises(DatasetError, match="only be chosen by category with a file"):
        imported(source, out, review("u", "a"), selection=Selection(categories=("Food",)))


def test_the_core_counts_a_repeated_review_once_and_only_what_is_in_time(source: Path, out: Path) -> None:
    reviews = [review("u", "a", 5), review("u", "b", 5), review("v", "a", 5), review("v", "a", 5), review("v", "b", 1)]
    imported(source, out, *reviews, selection=Selection(since=2, min_per_user=2))
    assert pairs(out) == [("u", "a"), ("u", "b")]


def test_items_without_interactions_leave_only_if_some_are_asked_for(source: Path, out: Path) -> None:
    tables = {
        "item": write(source / "items.jsonl", item("cold"), item("a")),
        "review": write(source / "reviews.jsonl", review("u", "a", 1), review("u", "a", 2), review("v", "a", 1)),
    }
    import_files(tables, out, selection=Selection(min_per_user=2))  # type: ignore[arg-type]
    assert [found.item_id for found in Dataset.open(out).items()] == ["cold", "a"]
    import_files(tables, out, selection=Selection(min_per_item=1))  # type: ignore[arg-type]
    assert [found.item_id for found in Dataset.open(out).items()] == ["a"]


def test_beside_interactions_the_core_is_theirs_and_anybody_reviews_what_stays(source: Path, out: Path) -> None:
    clicks = [{"user_id": user_id, "item_id": "a"} for user_id in "uv"] + [{"user_id": "u", "item_id": "b"}]
    tables = {
        "review": write(source / "reviews.jsonl", review("critic", "a"), review("critic", "b")),
        "interaction": write(source / "interactions.jsonl", *clicks, clicks[0]),
    }
    report = import_files(tables, out, selection=Selection(min_per_item=2))  # type: ignore[arg-type]
    assert pairs(out) == [("u", "a"), ("v", "a")]
    assert [(found.user_id, found.item_id) for found in Dataset.open(out).reviews()] == [("critic", "a")]
    assert report.sources[0] == SourceReport("interactions.jsonl", 4, 2, 1, 1, {})


def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="exchange them"):
        Selection(since=5, until=5)


@pytest.mark.parametrize("selection", [Selection(since=100), Selection(min_per_user=3)])
def test_if_nothing_fits_the_dataset_stays(source: Path, out: Path, selection: Selection) -> None:
    imported(source, out, review("u", "a", 1))
    with pytest.raises(
        DatasetError, match=r"nothing to write: of 1 entries of reviews\.jsonl|none of the 1 interactions"
    ):
        imported(source, out, review("v", "a", 2), selection=selection)
    assert pairs(out) == [("u", "a")]


# ---- what is bad -----------------------------------------------------------------------------------------------------


def test_bad_lines_are_set_aside_under_their_path(source: Path, out: Path) -> None:
    rows = [review(f"u{n}", "a") for n in range(98)]
    path = write(source / "reviews.jsonl", "{", *rows, '{"item_id": "a", "')
    report = import_files({"review": path}, out, max_bad_share=0.1)
    assert report.sources[0].reasons == {"EOF while parsing an object": 1, "EOF while parsing a string": 1}
    entries = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["line"]) for entry in entries] == [(str(path), 1), (str(path), 100)]
    # The dataset's own reviews.jsonl is good, and reading it forgets nothing of its source's.
    assert len(list(Dataset.open(out).reviews())) == 98
    assert len((out / "rejects.jsonl").read_text().splitlines()) == 2


def test_another_kind_of_file_is_noticed_at_its_start(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "WRONG_FILE_LINES", 10)
    lines = 0

    def parse(raw: bytes) -> Review:
        nonlocal lines
        lines += 1
        raise ValueError("is none")

    path = write(source / "reviews.jsonl", *[{}] * 500)
    with pytest.raises(TooManyRejectsError, match="10 of 10 lines are bad"):
        import_sources(Sources(reviews=SourceFile(path, parse)), out)
    assert lines == 10


def test_another_format_of_a_file_is_not_joined_by_a_second(source: Path, out: Path) -> None:
    out.mkdir()
    (out / "reviews.parquet").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"already holds reviews\.parquet"):
        imported(source, out, review("u", "a"))
    assert [path.name for path in out.iterdir()] == ["reviews.parquet"]


def test_reviews_of_an_earlier_import_do_not_stay_beside_other_items(source: Path, out: Path) -> None:
    imported(source, out, review("u", "a"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    events = write(source / "events.jsonl", {"user_id": "u", "item_id": "b"})
    with pytest.raises(DatasetError, match=r"already holds reviews\.jsonl, and nothing"):
        import_files({"interaction": events}, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_fields_of_tables_are_those_of_records() -> None:
    records: dict[str, type[Item | Review | Interaction]] = {"item": Item, "review": Review, "interaction": Interaction}
    for table, names in FIELDS.items():
        assert {*names, "attributes"} >= {field.name for field in fields(records[table])} >= set(names)
