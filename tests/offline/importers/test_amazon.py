import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from offline.dataset import Dataset
from offline.errors import DatasetError, TooManyRejectsError
from offline.importers import amazon
from offline.records import Interaction, Item, Review


def review_line(**changed: Any) -> dict[str, Any]:
    return {
        "rating": 4.0,
        "title": "Warm &amp; dry",
        "text": "Keeps me warm.<br /><br />[[VIDEOID:5d2a]] My [[ASIN:B000000009 old one]] did not.",
        "images": [{"small_image_url": "https://example.org/1.jpg"}],
        "asin": "B000000001",
        "parent_asin": "B000000002",
        "user_id": "AEAAAA",
        "timestamp": 1_600_000_000_123,
        "helpful_vote": 3,
        "verified_purchase": True,
    } | changed


def item_line(**changed: Any) -> dict[str, Any]:
    return {
        "main_category": "Sports",
        "title": "Tent, 2&nbsp;persons",
        "subtitle": None,
        "average_rating": 4.4,
        "rating_number": 812,
        "features": ["Light", "<p>A tent.</p>"],
        "description": ["<p>A tent.</p>", "", "For two<br>or one."],
        "price": 99.5,
        "images": [],
        "videos": [],
        "store": "Outside",
        "author": None,
        "categories": ["Sports &amp; Outdoors", "Tents"],
        "details": {"Color": "Green", "Best Sellers Rank": {"Tents": 4}, "Batteries": None, "Sizes": ["S", "M"]},
        "parent_asin": "B000000002",
        "bought_together": None,
    } | changed


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return path


def raw(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode()


def test_a_category_becomes_a_dataset(tmp_path: Path) -> None:
    reviews = write(tmp_path / "Tents.jsonl.gz", review_line(), review_line(asin="B000000003"), review_line(rating=1))
    metadata = write(tmp_path / "meta_Tents.jsonl.gz", item_line())
    report = amazon.import_files(reviews, metadata, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    [item], [review], [interaction] = dataset.items(), dataset.reviews(), dataset.interactions()
    assert item == Item(
        item_id="B000000002",
        title="Tent, 2 persons",
        description="A tent.\nFor two\nor one.\nLight",
        categories=("Sports & Outdoors", "Tents"),
        attributes={"main_category": "Sports", "store": "Outside", "price": "99.5", "Color": "Green", "Sizes": "S, M"},
    )
    text = "Keeps me warm.\nMy old one did not."
    moment = 1_600_000_000_123
    assert review == Review(review.review_id, "AEAAAA", "B000000002", text, "Warm & dry", 4.0, moment)
    assert interaction == Interaction("AEAAAA", "B000000002", 4.0, moment)
    assert [source.duplicates for source in report.sources] == [0, 2]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("[[VIDEOID:5d2a]]a [[ASINLINK:B01  a name]] b", "a a name b"),
        ("a [[ASIN:B01 name [blue]] b", "a name [blue b"),
        ("[[ASIN:[[ASIN:B01 a]]", "[[ASIN:a"),
        ("a [[ASIN:B01 b", "a [[ASIN:B01 b"),
    ],
)
def test_of_a_mark_the_name_stays(text: str, left: str) -> None:
    assert amazon.review(raw(review_line(text=text))).text == left


@pytest.mark.parametrize("unit", ["[[ASIN:", "[[ASIN:a ", "[[ASIN:[", "a"])
def test_marks_that_are_never_closed_are_read_at_once(unit: str) -> None:
    """Half a megabyte; where the time grows with the cube of the length, 5 kB take 22 s."""
    text = "[[ASIN:" + unit * (500_000 // len(unit))
    assert amazon.review(raw(review_line(text=text))).text == text.strip()


def test_what_sums_up_the_future_is_left_out() -> None:
    found = amazon.item(raw(item_line()))
    assert not {"average_rating", "rating_number", *amazon.HINDSIGHT} & set(found.attributes)


@pytest.mark.parametrize(
    ("changed", "attribute", "text"),
    [
        ({"price": "from 13.99"}, "price", "from 13.99"),
        ({"price": None}, "price", None),
        ({"price": "—"}, "price", None),
        ({"author": {"avatar": "https://example.org", "name": "N. N.", "about": ["Writes."]}}, "author", "N. N."),
        ({"details": '{"Publisher": "A House"}'}, "Publisher", "A House"),
    ],
)
def test_attributes_of_the_editions(changed: dict[str, Any], attribute: str, text: str | None) -> None:
    assert amazon.item(raw(item_line(**changed))).attributes.get(attribute) == text


def test_an_item_of_no_category_has_the_main_one() -> None:
    assert amazon.item(raw(item_line(categories=[]))).categories == ("Sports",)
    assert amazon.item(raw(item_line(categories=None, main_category=None))).categories == ()


@pytest.mark.parametrize("details", ["[" * 100_000, "{", '"text"', "[1]"])
def test_details_that_are_none_cost_their_line(details: str) -> None:
    with pytest.raises(ValueError, match="details"):
        amazon.item(raw(item_line(details=details)))


def test_a_file_of_another_kind_is_told_by_its_fields(tmp_path: Path) -> None:
    metadata = write(tmp_path / "meta_Tents.jsonl.gz", *[item_line()] * 30)
    with pytest.raises(
        TooManyRejectsError, match="user_id: Field required; the line has main_category, title, subtitle"
    ):
        amazon.import_files(metadata, None, tmp_path / "out")


def test_a_torn_file_leaves_the_dataset_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    amazon.import_files(write(tmp_path / "Tents.jsonl.gz", review_line()), None, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    whole = write(tmp_path / "whole.jsonl.gz", *(review_line(user_id=f"A{number}") for number in range(1000)))
    (tmp_path / "torn.jsonl.gz").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"torn\.jsonl\.gz cannot be read: .*Is it complete"):
        amazon.import_files(tmp_path / "torn.jsonl.gz", None, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
