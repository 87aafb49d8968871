"""A dataset of reviews that were made up, and the answers of an LLM that read them."""

import json
import re
from pathlib import Path
from typing import Any

from offline.dataset import Dataset, write_jsonl
from offline.records import Item, Review
from tests.stub_llm import Answer, completion

SLOTS = ("category_preference", "purpose", "quality_criteria", "usage_context")


def reviewed(path: Path, count: int) -> Dataset:
    """Write a dataset of one item with so many reviews, r0, r1, ..., each of a user of its own."""
    path.mkdir(parents=True, exist_ok=True)
    write_jsonl(path / "items.jsonl", [Item("i", "Item", "About the sea.")])
    write_jsonl(path / "reviews.jsonl", [Review(f"r{n}", f"u{n}", "i", f"Review number {n}.") for n in range(count)])
    return Dataset.open(path)


def number(body: dict[str, Any]) -> int:
    """Return the number of the review, or item, that a request is about."""
    found = re.search(r"(?:Review|Item) number (\d+)", body["messages"][1]["content"])
    assert found
    return int(found[1])


def answer(body: dict[str, Any]) -> str:
    """Return a good answer, another for each review."""
    return json.dumps(dict.fromkeys(SLOTS) | {"purpose": f"review number {number(body)}"})


def answered(body: dict[str, Any], seconds: float = 0.0) -> Answer:
    return Answer(body=completion(answer(body)).body, seconds=seconds)


def lines(path: Path) -> list[str]:
    """Return the lines of a file, sorted: records stand in the order in which answers came."""
    return sorted(path.read_text().splitlines())
