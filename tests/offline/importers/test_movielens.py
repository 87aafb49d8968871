from pathlib import Path

import pytest

from offline.dataset import Dataset
from offline.errors import DatasetError
from offline.importers import movielens
from offline.importers.selection import Selection
from offline.records import Interaction, Item, Review


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n1,"Kite, The (1999)",Comedy|Children\n2,Sand (2001),Drama\n'
    )
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,2,3.5,964982704\n2,1,1.0,964982705\n"
    )
    return tmp_path


def test_ratings_are_the_interactions_and_reviews_come_beside(source: Path, tmp_path: Path) -> None:
    reviews = tmp_path / "reviews.csv"
    reviews.write_text('movieId,userId,text,timestamp\n1,critic,"Light, and\nhigh.",2001-02-03\n2,critic,Dry.,\n')
    movielens.import_files(source, reviews, tmp_path / "out", Selection(min_per_item=2))
    dataset = Dataset.open(tmp_path / "out")
    assert list(dataset.items()) == [Item("1", "Kite, The (1999)", categories=("Comedy", "Children"))]
    assert list(dataset.interactions()) == [
        Interaction("1", "1", 4.0, 964_982_703_000),
        Interaction("2", "1", 1.0, 964_982_705_000),
    ]
    [review] = dataset.reviews()
    assert review == Review(review.review_id, "critic", "1", "Light, and\nhigh.", timestamp=981_158_400_000)


def test_without_reviews(source: Path, tmp_path: Path) -> None:
    report = movielens.import_files(source, None, tmp_path / "out")
    assert report.written == {"items.jsonl": 2, "interactions.csv": 3}


def test_an_edition_without_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::1::5::964982703\n")
    with pytest.raises(DatasetError, match=r"must hold movies\.csv and ratings\.csv"):
        movielens.import_files(tmp_path, None, tmp_path / "out")
