"""The first requests of a worker, asked by itself: nobody should wait for imports, caches and pages on a cold start."""

from itertools import cycle, islice

import numpy as np

from reranker.config import ServerSettings
from reranker.index import Index
from reranker.profile import build_profile
from reranker.records import Event
from reranker.replies import Ranked, ranked_items
from reranker.scoring import Fusion, Rules, rerank

# After a few dozen requests the interpreter's and numpy's caches are filled; more change nothing measurable.
REQUESTS = 50
CANDIDATES = 100
EVENTS = 10


def warm_up(index: Index, settings: ServerSettings) -> None:
    """Rerank items of the index for a history of some of them, by all that a request goes through but the wire."""
    segment = index.segments[-1]
    item_ids = [segment.item(row).item_id for row in range(min(CANDIDATES, len(segment.arrays.deleted)))]
    events = [Event(item_id, item_id, 0) for item_id in item_ids[:EVENTS]]
    first_stage = np.arange(len(item_ids), dtype=np.float32)
    # Every way of ordering has loops of its own, which are compiled or read from disk when they are first run.
    rules = [Rules(fusion, boosts=first_stage, diversity=0.5) for fusion in Fusion]
    for wanted in islice(cycle([Rules(), *rules]), REQUESTS if item_ids else 0):
        profile = build_profile(events, index, settings.gamma)
        places = index.locate(item_ids)
        ranking = rerank(index, profile.vector, places, first_stage, settings.fusion_weight, wanted)
        ranked_items(Ranked(index, item_ids, places, first_stage, profile, ranking), 0, explain=True)
