"""How fast reviews are imported, and that memory does not grow with them.

    python -m tests.benchmarks.import_reviews [--reviews 1000000]

Writes made-up reviews and metadata in the format of Amazon Reviews 2023, imports a tenth of them and then all of them
by the command, each in a process of its own, and prints reviews a second and the peak of resident memory of each: the
two peaks must be about the same. On a machine with other work, reviews a second of processor time is the fairer figure.
Once whole, once with a core, which takes a second reading. The files (about 700 bytes a review, and as much again for
the dataset) go to a temporary directory.
"""

# ruff: noqa: T201 - its output is its product

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SHARE_OF_DUPLICATES = 0.02
SHARE_WITH_HTML = 0.1
REVIEWS_AN_ITEM = 20
"""On average; popularity falls off with rank, as in any shop."""

WORDS = ("the", "plot", "reader", "slow", "warm", "dry", "cover", "gift", "again", "never", "page", "shelf", "light")


@dataclass(frozen=True, slots=True)
class Measured:
    """One import."""

    reviews: int
    options: tuple[str, ...]
    seconds: float
    cpu_seconds: float
    peak_mb: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--reviews", type=int, default=1_000_000)
    reviews: int = arguments.parse_args().reviews
    print(f"{'reviews':>10}  {'options':<36}  {'seconds':>8}  {'/s':>7}  {'CPU s':>7}  {'/CPU s':>7}  {'peak MB':>12}")
    for options in ((), ("--min-per-item", "5", "--min-per-user", "2")):
        for count in (reviews // 10, reviews):
            print(_told(_measure(count, options)), flush=True)


def _told(measured: Measured) -> str:
    options = " ".join(measured.options)
    rates = (measured.reviews / seconds for seconds in (measured.seconds, measured.cpu_seconds))
    rate, cpu_rate = (f"{rate:>7,.0f}" for rate in rates)
    return (
        f"{measured.reviews:>10,}  {options:<36}  {measured.seconds:>8.1f}  {rate}  {measured.cpu_seconds:>7.1f}  "
        f"{cpu_rate}  {measured.peak_mb:>12.1f}"
    )


def _measure(reviews: int, options: tuple[str, ...]) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        write_reviews(source / "reviews.jsonl", reviews)
        write_metadata(source / "meta.jsonl", reviews // REVIEWS_AN_ITEM)
        command = ["import", "amazon", "--reviews", "reviews.jsonl", "--meta", "meta.jsonl", "--out", "out", *options]
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "persona4rec", *command], cwd=source, stdout=subprocess.DEVNULL, env=_environment()
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"the import ended with status {status}")
    return Measured(reviews, options, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def write_reviews(path: Path, count: int, seed: int = 0) -> None:
    """Write `count` lines of reviews, the same for the same seed."""
    chance = random.Random(seed)
    items = max(1, count // REVIEWS_AN_ITEM)
    line = ""
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            if not line or chance.random() >= SHARE_OF_DUPLICATES:
                line = json.dumps(_review(chance, items, users=max(1, count // 4))) + "\n"
            file.write(line)


def write_metadata(path: Path, count: int, seed: int = 0) -> None:
    """Write `count` lines of metadata, the same for the same seed."""
    chance = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps(_item(chance, number)) + "\n")


def _review(chance: random.Random, items: int, users: int) -> dict[str, object]:
    item_id = _item_id(int(items * chance.random() ** 2))
    return {
        "rating": float(chance.randint(1, 5)),
        "title": _text(chance, 4),
        "text": _text(chance, 35) + ("<br /><br />" if chance.random() < SHARE_WITH_HTML else " ") + _text(chance, 35),
        "images": [],
        "asin": item_id,
        "parent_asin": item_id,
        "user_id": f"AE{chance.randrange(users):026d}",
        "timestamp": chance.randint(900_000_000_000, 1_690_000_000_000),
        "helpful_vote": 0,
        "verified_purchase": True,
    }


def _item(chance: random.Random, number: int) -> dict[str, object]:
    return {
        "main_category": "Books",
        "title": _text(chance, 5),
        "average_rating": 4.2,
        "rating_number": 17,
        "features": [_text(chance, 40)],
        "description": [f"<p>{_text(chance, 60)}</p>"],
        "price": 9.99,
        "images": [],
        "store": "A. Writer",
        "categories": ["Books", "Fiction"],
        "details": {"Publisher": "A House", "Pages": "321"},
        "parent_asin": _item_id(number),
    }


def _item_id(number: int) -> str:
    return f"B{number:09d}"


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


if __name__ == "__main__":
    main()
