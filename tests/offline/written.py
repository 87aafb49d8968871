"""Items with two reviews each, and an LLM that writes personas of them and judges what it wrote."""

import json
from pathlib import Path
from typing import Any

from offline.dataset import Dataset, write_jsonl
from offline.records import Item, Review
from tests.stub_llm import Answer, completion

PERSONAS = (
    {
        "evidence": [1],
        "name": "Storm Seeker",
        "description": "Wants weather that threatens everybody aboard.",
        "preference_rationale": "This persona appreciates this item because its storms are splendid and salty.",
    },
    {
        "evidence": [2],
        "name": "Impatient Plot Follower",
        "description": "Looks for quick tales without detours.",
        "preference_rationale": "This persona is wary of this item because endless chapters about ropes bore.",
    },
)


def to_be_written(path: Path, count: int) -> Dataset:
    """Write a dataset of items i0, i1, ..., each with a review of its storms and one of its ropes."""
    path.mkdir(parents=True, exist_ok=True)
    write_jsonl(path / "items.jsonl", [Item(f"i{n}", f"Item number {n}") for n in range(count)])
    said = (
        "Item number {n}: its storms are splendid and salty.",
        "Item number {n}: endless chapters about ropes bore.",
    )
    reviews = [
        Review(f"r{n}-{k}", f"u{k}", f"i{n}", text.format(n=n)) for n in range(count) for k, text in enumerate(said)
    ]
    write_jsonl(path / "reviews.jsonl", reviews)
    return Dataset.open(path)


def is_question(body: dict[str, Any]) -> bool:
    """Return whether a request asks the judge."""
    return "<rationale>" in body["messages"][1]["content"]


def written(body: dict[str, Any], seconds: float = 0.0) -> Answer:
    """Write two personas of any item, and as a judge find that every rationale is borne out."""
    answer = {"supported": "yes"} if is_question(body) else {"personas": PERSONAS}
    return Answer(body=completion(json.dumps(answer)).body, seconds=seconds)
