"""Training pairs a second and peak memory: cached gradients against plain sentence-transformers, at equal batches.

    python -m tests.benchmarks.train_encoder --batches 16,64

Both learn the same low-rank factors of the bundled encoder from the same pairs of texts by InfoNCE with in-batch
negatives: plainly by MultipleNegativesRankingLoss of sentence-transformers, whose graph holds the whole batch, and by
`offline.cached_gradients`. Each runs in a process of its own, so that its peak is its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim

from offline.cached_gradients import backward
from offline.dataset import Dataset
from offline.encoder import load_encoder
from offline.lora import Lora, Shape, adapt
from offline.publish import documents
from offline.train_encoder import EncoderSettings
from persona4rec.demo import CATALOGUE

SETTINGS = EncoderSettings()


def pairs(count: int) -> tuple[list[str], list[str]]:
    """Return items and personas of them, each of its usual length."""
    found = [(document.itself, row) for document in documents(Dataset.open(CATALOGUE)) for row in document.rows]
    return [itself for itself, _ in islice(found, count)], [row for _, row in islice(found, count)]


def plain(lora: Lora, items: list[str], personas: list[str]) -> None:
    model = lora.encoder.model
    loss = MultipleNegativesRankingLoss(model, scale=1 / SETTINGS.temperature)
    loss([model.preprocess(items), model.preprocess(personas)], torch.empty(0)).backward()


def cached(lora: Lora, items: list[str], personas: list[str]) -> None:
    def contrast(vectors: torch.Tensor) -> torch.Tensor:
        similarities = cos_sim(vectors[: len(items)], vectors[len(items) :]) / SETTINGS.temperature
        return torch.nn.functional.cross_entropy(similarities, torch.arange(len(items)))

    backward([*items, *personas], lora.encoder.differentiable, contrast, SETTINGS.chunk_texts, seed=0)


WAYS: dict[str, Callable[[Lora, list[str], list[str]], None]] = {"plain": plain, "cached": cached}


def measure(way: str, batch: int, steps: int) -> dict[str, float]:
    """Return pairs by second and by second of processor time, and what memory rose by, in MB."""
    lora = adapt(load_encoder(), Shape(), seed=0)
    optimiser = torch.optim.AdamW(lora.parameters.values())
    items, personas = pairs(batch)
    lora.encoder.encode(items[:1])
    before, started, cpu = _peak(), time.perf_counter(), time.process_time()
    lora.learn(True)
    for _ in range(steps):
        optimiser.zero_grad()
        WAYS[way](lora, items, personas)
        optimiser.step()
    done = len(items) * steps
    return {
        "pairs": len(items),
        "per_second": done / (time.perf_counter() - started),
        "per_cpu_second": done / (time.process_time() - cpu),
        "megabytes": _peak() - before,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="16,64", help="pairs in a batch, with commas between them")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process, as JSON")
    chosen = parser.parse_args(arguments)
    batches = [int(part) for part in chosen.batches.split(",")]
    if chosen.way:
        print(json.dumps(measure(chosen.way, batches[0], chosen.steps)))  # noqa: T201
        return
    for batch in batches:
        for way in WAYS:
            own = [sys.executable, "-m", __spec__.name, "--way", way, "--batches", str(batch)]
            told = subprocess.run([*own, "--steps", str(chosen.steps)], capture_output=True, text=True, check=True)
            found = json.loads(told.stdout.splitlines()[-1])
            print(  # noqa: T201
                f"{way:7} batch {found['pairs']:4}: {found['per_second']:6.2f} pairs/s, "
                f"{found['per_cpu_second']:6.2f} a second of processor time, {found['megabytes']:6.0f} MB more at peak"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
