"""What the worker asks of an LLM for each new review, beside rebuilding its item.

Run: python -m tests.benchmarks.worker DIR
The reviews of a dataset, one by one in the order of their times, through the worker's state, decisions and stages, with
--llm none; counted is what an LLM would have been asked, in calls and estimated tokens. Neither broker nor Milvus has a
part in that.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from offline.aspects import AspectsStage
from offline.calls import Model, estimated_input_tokens, request_body
from offline.dataset import Dataset
from offline.domains import load_domain
from offline.encoder import load_encoder
from offline.item_publisher import ItemPublisher
from offline.personas import PersonasStage
from offline.publish import Document
from offline.reasoning import Reasoning
from offline.records import Review, ReviewAspects
from offline.refresh import Bounds, Refresh, subject_of
from offline.rewriting import Thresholds, text_changed
from offline.stages import Made, Stage
from offline.summaries import SummariesStage
from offline.vector_cache import CachedEncoder, default_folder
from offline.worker_events import ItemChange, Origin, ReviewChange
from offline.worker_metrics import WorkerMetrics
from offline.worker_state import Quiet, WorkerState

HERE = Origin("reviews", 0)
AT_ONCE = Quiet(0, 0)


class Counted(Reasoning):
    """Does without an LLM, and counts what one would have been asked, by stage."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        super().__init__(None, metrics)
        self.calls: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.last: dict[str, int] = {}

    def made(self, stage: Stage[Any, Any], subjects: Sequence[Any]) -> list[Made]:
        for subject in subjects:
            self.last[stage.name] = asked(stage, subject)
            self.calls[stage.name] += 1
            self.used[stage.name] += self.last[stage.name]
        return super().made(stage, subjects)


class NoIndex(ItemPublisher):
    """Publishes nowhere."""

    def __init__(self) -> None:
        pass

    def publish(self, found: Sequence[Document], gone: Sequence[str]) -> int:
        return 0


@dataclass
class Rebuilt:
    """What rebuilding the item with each review would have taken."""

    aspect_tokens: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    calls: int = 0
    tokens: int = 0


def asked(stage: Stage[Any, Any], subject: Any) -> int:
    """Return about how many tokens a subject's calls take: the prompt, and half of what the answer may."""
    calls = stage.calls(subject)
    return sum(estimated_input_tokens(request_body(call, Model(""))) + call.max_tokens // 2 for call in calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--domain", default="books")
    parser.add_argument("--reviews", type=int, default=573)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        print(json.dumps(replayed(Path(folder), given.dataset, given.domain, given.reviews), indent=1))  # noqa: T201


def replayed(folder: Path, dataset: Path, domain_name: str, count: int) -> dict[str, Any]:
    domain, encoder = load_domain(domain_name), CachedEncoder(load_encoder(), default_folder())
    found, metrics = Dataset.open(dataset), WorkerMetrics()
    reasoning, stage, personas = Counted(metrics), AspectsStage(domain), PersonasStage(domain, encoder)
    reviews = sorted(found.reviews(), key=lambda review: review.timestamp or 0)[:count]
    rebuilt, changed, whys = Rebuilt(), [], Counter[str]()
    with closing(WorkerState(folder / "state.sqlite", encoder.space)) as state:
        refresh = Refresh(
            state, reasoning, SummariesStage(domain), personas, NoIndex(), metrics, Thresholds(), Bounds(10**9, None)
        )
        state.apply([(ItemChange(item, 1, deleted=False), HERE) for item in found.items()], AT_ONCE, 0)
        refresh.refresh(state.due({HERE}, 1, 10**6), lambda _: None)
        for review in reviews:
            before = state.personas(review.item_id)
            take(state, reasoning, stage, refresh, review)
            rebuild(rebuilt, reasoning, refresh, review)
            after = state.personas(review.item_id)
            if before != after and before:
                changed.append(text_changed(before, after))
        for sample in next(iter(metrics.personas.collect())).samples:
            if sample.name.endswith("_total"):
                whys[f"{sample.labels['outcome']}: {sample.labels['why']}"] += int(sample.value)
        return figures(reasoning, rebuilt, changed, whys, len(reviews))


def take(state: WorkerState, reasoning: Counted, stage: AspectsStage, refresh: Refresh, review: Review) -> None:
    state.apply([(ReviewChange(review, review.timestamp or 1, deleted=False), HERE)], AT_ONCE, 2)
    (made,) = reasoning.made(stage, [review])
    slots = made.record.aspects if isinstance(made.record, ReviewAspects) else None
    state.keep_aspects(review, slots, None)
    refresh.refresh(state.due({HERE}, 2, 10), lambda _: None)


def rebuild(rebuilt: Rebuilt, reasoning: Counted, refresh: Refresh, review: Review) -> None:
    """Count what it takes to extract all of the item's reviews again and to write its personas."""
    rebuilt.aspect_tokens[review.item_id].append(reasoning.last["aspects"])
    known, reviews = refresh.state.item(review.item_id), refresh.state.reviews(review.item_id)
    assert known
    if reviews.pieces:
        rebuilt.calls += 1
        rebuilt.tokens += asked(refresh.personas, subject_of(known, reviews, ()))
    rebuilt.calls += len(rebuilt.aspect_tokens[review.item_id])
    rebuilt.tokens += sum(rebuilt.aspect_tokens[review.item_id])


def figures(
    reasoning: Counted, rebuilt: Rebuilt, changed: list[float], whys: Counter[str], reviews: int
) -> dict[str, Any]:
    own = reasoning.calls["aspects"] + reasoning.calls["personas"]
    tokens = reasoning.used["aspects"] + reasoning.used["personas"]
    return {
        "reviews": reviews,
        "items": reasoning.calls["summarize"],
        "worker_calls_per_review": round(own / reviews, 2),
        "worker_tokens_per_review": round(tokens / reviews),
        "rebuild_calls_per_review": round(rebuilt.calls / reviews, 2),
        "rebuild_tokens_per_review": round(rebuilt.tokens / reviews),
        "rewrites": reasoning.calls["personas"],
        "persona_text_changed_by_a_rewrite": round(sum(changed) / max(1, len(changed)), 2),
        "decisions": dict(whys),
    }


if __name__ == "__main__":
    main()
