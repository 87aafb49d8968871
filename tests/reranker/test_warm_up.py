"""What a worker has compiled before it serves."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from persona4rec.bench.catalogue import write_catalogue
from reranker import kernels
from reranker.config import ServerSettings
from reranker.profile import build_profile
from reranker.records import Event
from reranker.scoring import Fusion, Rules, rerank
from reranker.snapshot import open_snapshot, read_snapshot
from reranker.warm_up import warm_up


def compiled() -> set[tuple[str, str]]:
    """Return the kernels that are compiled in this process, each for which types."""
    return {(name, str(types)) for name, found in vars(kernels).items() for types in getattr(found, "signatures", ())}


def compiled_before_and_after_requests(folder: Path) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    snapshot = read_snapshot(folder)
    assert snapshot
    index = open_snapshot(folder, snapshot)
    warm_up(index, ServerSettings(index=folder))
    before = compiled()
    item_ids = [*(index.single.item(row).item_id for row in range(10)), "unheard-of"]
    said = np.frombuffer(np.ones(index.dimension, "<f4").tobytes(), "<f4")
    seen, reviewed = Event("e", item_ids[0], 5), Event("r", item_ids[1], 5, "", None, said, index.space)
    scores = [np.arange(11, dtype=np.float32), np.full(11, np.nan, np.float32)]
    for events in ([seen], [reviewed], []):
        profile = build_profile(events, index, 0.9)
        for first_stage in scores:
            for fusion in Fusion:
                for rules in (Rules(fusion), Rules(fusion, boosts=scores[0]), Rules(fusion, diversity=0.5)):
                    rerank(index, profile.vector, index.locate(item_ids), first_stage, 0.5, rules)
    return before, compiled()


def test_no_request_waits_for_a_compiler(tmp_path: Path) -> None:
    write_catalogue(tmp_path, 50)
    # In a process that has compiled nothing, as a worker is.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        before, after = fresh.submit(compiled_before_and_after_requests, tmp_path).result()
    assert len(before) > 5
    assert after == before
