"""How well a rationale is told from another persona's: `python -m tests.benchmarks.support DIR [LLM]`.

DIR is a dataset with personas, aspects (or reviews) and items with categories. Every rationale is put beside its own
evidence (true), beside the evidence of a persona of another item that shares a category (swapped), and beside that of
another persona of the same item (which is harder, and not what the threshold is chosen for). The threshold is chosen on
the items of one half, all figures are of the other half. With an LLM (local=PATH or URL), a sample is put to it, too.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from offline.dataset import Dataset
from offline.domains import load_domain
from offline.encoder import Encoder, load_encoder
from offline.endpoints import opened
from offline.evidence_by_item import evidence
from offline.llm import LlmClient
from offline.llm_cache import ResponseCache
from offline.llm_settings import LlmSettings, NoLlm, llm_source
from offline.persona_checks import supports
from offline.support_judge import Verdict, question
from offline.vector_cache import CachedEncoder, default_folder
from reranker.records import Persona

STOPPED = 0.95
"""Share of the swapped rationales that the threshold shall stop: as low as that allows, for models that write less to
the letter of the evidence than the one that wrote the dataset's personas."""

DRAWS = 1000

JUDGED = 24
"""Cases of a kind that are put to an LLM: a small one on two cores takes seconds each."""


@dataclass(frozen=True)
class Case:
    persona: Persona
    half: int


def cases(dataset: Dataset, seed: int = 0) -> tuple[dict[str, list[Case]], dict[str, str]]:
    """Return the cases by kind, and what was said, by review id."""
    said = {piece.review_id: piece.words for of_item in evidence(dataset) for piece in of_item.pieces}
    of_item = {found.item_id: found.personas for found in dataset.personas()}
    same_category = defaultdict(list)
    for item in dataset.items():
        for category in item.categories:
            same_category[category].append(item.item_id)
    random = np.random.default_rng(seed)
    found: dict[str, list[Case]] = {"true": [], "swapped": [], "same item": []}
    for number, item in enumerate(dataset.items()):
        for persona in of_item.get(item.item_id, ()):
            others = [
                p
                for category in item.categories
                for o in same_category[category]
                if o != item.item_id
                for p in of_item.get(o, ())
            ]
            siblings = [p for p in of_item[item.item_id] if p is not persona]
            found["true"].append(Case(persona, number % 2))
            for kind, choice in (("swapped", others), ("same item", siblings)):
                if choice:
                    other = choice[random.integers(len(choice))]
                    found[kind].append(Case(replace(persona, evidence=other.evidence), number % 2))
    return found, said


def auc(true: NDArray[np.float64], false: NDArray[np.float64]) -> float:
    return float(roc_auc_score([1] * len(true) + [0] * len(false), np.concatenate([true, false])))


def interval(true: NDArray[np.float64], false: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the AUC."""
    random = np.random.default_rng(0)
    drawn = [auc(random.choice(true, len(true)), random.choice(false, len(false))) for _ in range(DRAWS)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def judged(dataset: Dataset, llm: str) -> Iterator[str]:
    """Put a sample of the cases to an LLM, as `--support-judge llm` does."""
    found, _ = cases(dataset)
    pieces = {piece.review_id: piece for of_item in evidence(dataset) for piece in of_item.pieces}
    settings, domain, source = LlmSettings(), load_domain("generic"), llm_source(llm)
    assert not isinstance(source, NoLlm)
    with (
        TemporaryDirectory() as folder,
        ResponseCache(Path(folder) / "cache.sqlite") as cache,
        opened(source, settings) as endpoint,
    ):
        client = LlmClient(endpoint, cache, settings)
        for kind in ("true", "swapped"):
            drawn = np.random.default_rng(0).choice(len(found[kind]), JUDGED, replace=False)
            personas = [found[kind][place].persona for place in drawn]
            calls = (
                question(f"{n}", p.preference_rationale, [pieces[r] for r in p.evidence], domain)
                for n, p in enumerate(personas)
            )
            verdicts = Counter(
                outcome.result.supported if isinstance(outcome.result, Verdict) else "no answer"
                for outcome in client.run("support", calls)
            )
            yield f"{kind}: {dict(verdicts)} of {JUDGED}"


def report(dataset: Dataset, encoder: Encoder) -> Iterator[str]:
    found, said = cases(dataset)
    scores = {
        kind: [np.array(supports([c.persona for c in of_kind if c.half == half], said, encoder)) for half in (0, 1)]
        for kind, of_kind in found.items()
    }
    threshold = float(np.quantile(scores["swapped"][0], STOPPED))
    yield f"threshold {threshold:.3f}: {STOPPED:.0%} of the swapped ones of the first half are below"
    for kind in ("swapped", "same item"):
        true, false = scores["true"][1], scores[kind][1]
        low, high = interval(true, false)
        yield (
            f"{kind}: AUC {auc(true, false):.4f} ({low:.4f}-{high:.4f}), n = {len(true)} + {len(false)}; kept "
            f"{(true >= threshold).mean():.1%} of the true, {(false >= threshold).mean():.1%} of the {kind}"
        )


if __name__ == "__main__":
    for line in report(Dataset(Path(sys.argv[1])), CachedEncoder(load_encoder(), default_folder())):
        print(line)  # noqa: T201
    for line in judged(Dataset(Path(sys.argv[1])), sys.argv[2]) if sys.argv[2:] else ():
        print(line, flush=True)  # noqa: T201
