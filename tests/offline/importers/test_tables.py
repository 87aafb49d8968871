import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from offline.dataset import Dataset
from offline.errors import ConfigurationError, DatasetError
from offline.importers.accounting import WRONG_FILE_LINES
from offline.importers.tables import Mapped, import_files
from offline.records import Interaction, Item, Review

MOMENT = 1_600_000_000_000


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def csv_file(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_of_ones_own(tmp_path: Path, out: Path) -> None:
    tables = {
        "item": csv_file(tmp_path, "items.csv", 'sku,Name,Brand,cats\n7,"A ""big"" one",Acme,x | y\n8,B,,\n'),
        "review": csv_file(
            tmp_path, "reviews.csv", 'who,sku,body,stars,when\nu,7,"one,\n\ntwo",4.5,1600000000\nv,8,ok,,\n'
        ),
    }
    mapped = Mapped(
        {
            "item.item_id": "sku",
            "item.title": "Name",
            "item.categories": "cats",
            "item.attributes.brand": "Brand",
            "review.user_id": "who",
            "review.item_id": "sku",
            "review.text": "body",
            "review.rating": "stars",
            "review.timestamp": "when",
        },
        time_unit="s",
        category_separator="|",
    )
    import_files(tables, out, mapped)  # type: ignore[arg-type]
    dataset = Dataset.open(out)
    assert list(dataset.items()) == [
        Item("7", 'A "big" one', categories=("x", "y"), attributes={"brand": "Acme"}),
        Item("8", "B"),
    ]
    one, two = dataset.reviews()
    assert one == Review(one.review_id, "u", "7", "one,\n\ntwo", rating=4.5, timestamp=MOMENT)
    assert two == Review(two.review_id, "v", "8", "ok")
    assert list(dataset.interactions()) == [Interaction("u", "7", 4.5, MOMENT), Interaction("v", "8")]


def test_parquet_with_types_of_its_own(tmp_path: Path, out: Path) -> None:
    moment = datetime.fromtimestamp(MOMENT / 1000, UTC)
    rows: dict[str, list[Any]] = {
        "review_id": [11, 12],
        "user_id": [1, 2],
        "item_id": ["a", "b"],
        "text": ["good", None],
        "rating": [4, None],
        "timestamp": [moment, None],
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "reviews.parquet")
    items = {"item_id": ["a"], "categories": [["x, y", "z"]], "title": [None]}
    parquet.write_table(pyarrow.table(items), tmp_path / "items.parquet")
    import_files({"review": tmp_path / "reviews.parquet", "item": tmp_path / "items.parquet"}, out)
    dataset = Dataset.open(out)
    assert list(dataset.items()) == [Item("a", categories=("x, y", "z")), Item("b")]
    assert list(dataset.reviews()) == [Review("11", "1", "a", "good", rating=4.0, timestamp=MOMENT)]
    assert list(dataset.interactions()) == [Interaction("1", "a", 4.0, MOMENT), Interaction("2", "b")]


def test_interactions_of_ones_own(tmp_path: Path, out: Path) -> None:
    text = "item_id\tuser_id\ttimestamp\na\tu\t1600000000.5\na\tu\t1600000000.5\nb\tu\t2020-09-13T12:26:40Z\nb\tu\t\n"
    report = import_files({"interaction": csv_file(tmp_path, "clicks.tsv", text)}, out, Mapped(time_unit="s"))
    assert list(Dataset.open(out).interactions()) == [
        Interaction("u", "a", timestamp=MOMENT + 500),
        Interaction("u", "b", timestamp=MOMENT),
        Interaction("u", "b"),
    ]
    assert report.sources[0].duplicates == 1
    assert not (out / "reviews.jsonl").exists()


@pytest.mark.parametrize("time", ["inf", "nan", "1e400", "yesterday", "-1", "99999999999999999999"])
def test_a_time_that_is_none_costs_its_line(tmp_path: Path, out: Path, time: str) -> None:
    text = f"user_id,item_id,timestamp\nu,a,{time}\nv,a,5\n"
    report = import_files({"interaction": csv_file(tmp_path, "clicks.csv", text)}, out, Mapped(time_unit="s"))
    assert [reason.split(":")[0] for reason in report.sources[0].reasons] == ["timestamp"]
    assert list(Dataset.open(out).interactions()) == [Interaction("v", "a", timestamp=5000)]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            {},
            r"no column for review\.user_id, review\.item_id, review\.text\. Its columns are who, sku, body",
        ),
        (
            {"review.user_id": "who", "review.item_id": "SKU", "review.text": "body"},
            r"no column for review\.item_id \(SKU\)\. Its columns are who, sku, body: map one with --map review\.",
        ),
    ],
)
def test_a_column_that_is_missing_is_answered_with_those_there_are(
    tmp_path: Path, out: Path, columns: dict[str, str], told: str
) -> None:
    path = csv_file(tmp_path, "reviews.csv", "who,sku,body\nu,a,good\n")
    with pytest.raises(DatasetError, match=told):
        import_files({"review": path}, out, Mapped(columns))
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("items.csv", "", "no row below its header"),
        ("items.csv", "item_id\n", "no row below its header"),
        ("items.jsonl", "[1]\n", "expected an object"),
        ("items.jsonl", "[[[\n", "EOF while parsing"),
        ("items.parquet", "item_id\na\n", "is not a Parquet file"),
        ("items.csv.gz", "item_id\na\n", "cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, out: Path, name: str, text: str, told: str) -> None:
    with pytest.raises(DatasetError, match=told):
        import_files({"item": csv_file(tmp_path, name, text)}, out)


def test_what_the_first_json_line_leaves_out_is_read_in_the_others(tmp_path: Path, out: Path) -> None:
    rows = [
        {"user_id": "u", "item_id": "a", "text": "undated"},
        *({"user_id": "u", "item_id": f"i{number}", "text": "plain"} for number in range(2 * WRONG_FILE_LINES)),
        {"user_id": "v", "item_id": "b", "text": "x", "title": "t", "rating": 4, "timestamp": MOMENT},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    import_files({"review": csv_file(tmp_path, "reviews.jsonl", text)}, out)
    first, *_, last = Dataset.open(out).reviews()
    assert first == Review(first.review_id, "u", "a", "undated")
    assert last == Review(last.review_id, "v", "b", "x", "t", 4, MOMENT)


def test_a_bad_first_line_is_not_the_file(tmp_path: Path, out: Path) -> None:
    lines = ["{", *(json.dumps({"item_id": f"i{number}"}) for number in range(30))]
    report = import_files({"item": csv_file(tmp_path, "items.jsonl", "\n".join(lines))}, out)
    assert (report.sources[0].written, report.sources[0].rejected) == (30, 1)


@pytest.mark.parametrize("name", ["review.words", "item.attributes.", "shop.text", "text", "review.attributes.x"])
def test_a_field_that_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"no field '{name}'.* review\.text,"):
        Mapped({name: "x"})


def test_a_mapping_needs_its_table(tmp_path: Path, out: Path) -> None:
    path = csv_file(tmp_path, "items.csv", "item_id\na\n")
    with pytest.raises(ConfigurationError, match=r"mapped to review\.text, but no reviews are given"):
        import_files({"item": path}, out, Mapped({"review.text": "body"}))
    with pytest.raises(ConfigurationError, match="nothing to import"):
        import_files({}, out)
