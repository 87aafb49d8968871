"""What the worker begins with: a dataset that may be older than an erasure, and replies of an earlier time."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from offline.calls import user_tag
from offline.dataset import Dataset
from offline.errors import ConfigurationError
from offline.lines import write_jsonl
from offline.llm_cache import CACHE_FILE, ResponseCache
from offline.llm_settings import LlmSettings
from offline.records import Item, ItemPersonas, Review, ReviewAspects
from offline.replies import Reply
from offline.worker_events import Erasure, Origin
from offline.worker_metrics import WorkerMetrics
from offline.worker_process import opened_reasoning, seed
from offline.worker_settings import WorkerSettings
from offline.worker_state import Quiet, WorkerState
from reranker.records import Persona, persona_id


@pytest.fixture
def state(tmp_path: Path) -> Iterator[WorkerState]:
    with closing(WorkerState(tmp_path / "state.sqlite", "space")) as opened:
        yield opened


def persona(name: str, *evidence: str) -> Persona:
    words = name, "Looks for whales.", "Praises whales."
    return Persona(persona_id("moby", *words), *words, evidence)


def test_an_erased_user_does_not_come_back_with_a_dataset(state: WorkerState, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "items.jsonl", [Item("moby", "Moby-Dick")])
    write_jsonl(tmp_path / "reviews.jsonl", [Review("r1", "ann", "moby", "my sister", timestamp=5)])
    write_jsonl(tmp_path / "aspects.jsonl", [ReviewAspects("r2", "moby", {"theme": "whales"}, "bob", timestamp=5)])
    personas = (persona("both", "r1", "r2"), persona("bob", "r2"))
    write_jsonl(tmp_path / "personas.jsonl", [ItemPersonas("moby", personas)])
    state.apply([(Erasure("ann", 5), Origin("erasures", 0))], Quiet(0, 0), 0)
    seed(state, Dataset.open(tmp_path))
    assert [found.name for found in state.personas("moby")] == ["bob"]


@pytest.mark.parametrize("name", ["PERSONA4REC_LLM_BUDGET", "PERSONA4REC_LLM_TOKEN_BUDGET"])
def test_a_budget_that_would_bound_nothing_is_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "5")
    settings = WorkerSettings(state=tmp_path / "worker.sqlite", llm="http://127.0.0.1:1/v1")
    with pytest.raises(ConfigurationError, match=f"{name} is of one run"):
        opened_reasoning(settings, LlmSettings(), WorkerMetrics()).__enter__()


def test_replies_of_a_time_with_an_llm_are_forgotten_without_one(tmp_path: Path) -> None:
    settings = WorkerSettings(state=tmp_path / "worker.sqlite", llm="none")
    with opened_reasoning(settings, LlmSettings(), WorkerMetrics()) as without:
        without.forget(user_tag("ann"))
    assert not (tmp_path / CACHE_FILE).exists()
    with ResponseCache(tmp_path / CACHE_FILE) as cache:
        cache.save(b"key", Reply("words of ann", "stop"), [user_tag("ann")])
    with opened_reasoning(settings, LlmSettings(), WorkerMetrics()) as without:
        without.forget(user_tag("ann"))
    with ResponseCache(tmp_path / CACHE_FILE) as cache:
        assert cache.find_all([(b"key", ())]) == [None]
