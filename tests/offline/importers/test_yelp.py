import json
from pathlib import Path
from typing import Any

import pytest

from offline.dataset import Dataset
from offline.errors import DatasetError
from offline.importers import yelp
from offline.importers.selection import Selection
from offline.records import Interaction, Item, Review


def business(**changed: Any) -> dict[str, Any]:
    return {
        "business_id": "b1",
        "name": "Noodle Bar",
        "address": "1 First St",
        "city": "Tampa",
        "state": "FL",
        "postal_code": "00001",
        "latitude": 27.9,
        "longitude": -82.4,
        "stars": 4.5,
        "review_count": 90,
        "is_open": 1,
        "attributes": {
            "WiFi": "u'free'",
            "Alcohol": "'beer_and_wine'",
            "NoiseLevel": "None",
            "HasTV": "True",
            "GoodForKids": "False",
            "RestaurantsPriceRange2": "2",
            "Ambience": "{'casual': True, u'classy': False, 'divey': None, 'late_night': True}",
            "BusinessParking": None,
        },
        "categories": "Ramen, Restaurants",
        "hours": {"Monday": "8:0-22:0"},
    } | changed


def review(**changed: Any) -> dict[str, Any]:
    return {
        "review_id": "r1",
        "user_id": "u1",
        "business_id": "b1",
        "stars": 5.0,
        "useful": 1,
        "funny": 0,
        "cool": 0,
        "text": "Great broth.\n\nWill return.",
        "date": "2018-07-07 22:09:11",
    } | changed


def write(folder: Path, name: str, *lines: dict[str, Any]) -> None:
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def item(**changed: Any) -> Item:
    return yelp.item(json.dumps(business(**changed)).encode())


def test_the_archive_becomes_a_dataset(tmp_path: Path) -> None:
    write(tmp_path, "yelp_academic_dataset_business.json", business(), business(business_id="b2", categories=None))
    write(
        tmp_path,
        "yelp_academic_dataset_review.json",
        review(),
        review(),
        review(review_id="r2", user_id="u2", business_id="b2"),
    )
    report = yelp.import_files(tmp_path, tmp_path / "out", Selection(categories=("restaurants",)))
    dataset = Dataset.open(tmp_path / "out")
    moment = 1_531_001_351_000
    assert [found.item_id for found in dataset.items()] == ["b1"]
    assert list(dataset.reviews()) == [
        Review("r1", "u1", "b1", "Great broth.\n\nWill return.", rating=5.0, timestamp=moment)
    ]
    assert list(dataset.interactions()) == [Interaction("u1", "b1", 5.0, moment)]
    counts = [(source.written, source.duplicates, source.left_out) for source in report.sources]
    assert counts == [(1, 0, 1), (1, 1, 1)]


def test_a_business_is_told_in_words_without_what_sums_up_its_reviews() -> None:
    assert item() == Item(
        item_id="b1",
        title="Noodle Bar",
        categories=("Ramen", "Restaurants"),
        attributes={
            "city": "Tampa",
            "state": "FL",
            "is_open": "yes",
            "hours": "Monday 8:0-22:0",
            "WiFi": "free",
            "Alcohol": "beer and wine",
            "HasTV": "yes",
            "GoodForKids": "no",
            "RestaurantsPriceRange2": "2",
            "Ambience": "casual, late night",
        },
    )


@pytest.mark.parametrize("categories", ["Bars,Pop-Up Restaurants ,", ["Bars", "Pop-Up Restaurants"]])
def test_categories_of_both_editions(categories: object) -> None:
    assert item(categories=categories).categories == ("Bars", "Pop-Up Restaurants")


@pytest.mark.parametrize(
    "value",
    [
        "(" * 900,
        "__import__('os').getpid()",
        "free",
        "'" * 5000,
        "{'a': 1",
        "-" * 990 + "1",
        "{'a', 'b'}",
        "...",
        "b'x'",
        "{(1, 2): 3}",
    ],
)
def test_an_attribute_that_is_no_literal_stays_text(value: str) -> None:
    assert item(attributes={"WiFi": value}).attributes["WiFi"] in {value.replace("_", " "), "1"}


def test_a_business_with_nothing_known_is_an_item() -> None:
    assert yelp.item(b'{"business_id": "b1", "attributes": null, "hours": null}') == Item("b1")


def test_a_folder_without_one_of_each_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "business.json", business())
    with pytest.raises(DatasetError, match=r"must hold one \*review\.json .*found: none"):
        yelp.import_files(tmp_path, tmp_path / "out")
    write(tmp_path, "review.json", review())
    write(tmp_path, "old_review.json", review())
    with pytest.raises(DatasetError, match=r"found: old_review\.json, review\.json"):
        yelp.import_files(tmp_path, tmp_path / "out")
