"""The first requests of a worker, asked by itself: nobody should wait for imports, caches and pages on a cold start."""

from itertools import cycle, islice

import numpy as np

from reranker.config import ServerSettings
from reranker.index import Index
from reranker.profile import build_profile
from reranker.reading import read_candidates, read_rerank
from reranker.records import Event
from reranker.replies import Ranked, ranked_items
from reranker.scoring import Fusion, Rules, rerank
from reranker.v1 import reranker_pb2 as pb

# After a few dozen requests the interpreter's and numpy's caches are filled; more change nothing measurable.
REQUESTS = 50
CANDIDATES = 100
EVENTS = 10


def warm_up(index: Index, settings: ServerSettings) -> None:
    """Rerank items of the index for a history of some of them, by all that a request goes through but gRPC."""
    segment = index.segments[-1]
    rows = range(min(CANDIDATES, settings.limits.candidates, len(segment.arrays.deleted)))
    candidates = [pb.Candidate(item_id=segment.message(row).item_id, score=row) for row in rows]
    events = [Event(candidate.item_id, candidate.item_id, 0) for candidate in candidates[:EVENTS]]
    body = pb.RerankRequest(candidates=candidates).SerializeToString()
    boosts = np.ones(len(candidates), np.float32)
    # Every way of ordering has loops of its own, which are compiled or read from disk when they are first run.
    rules = [Rules(fusion, boosts=boosts, diversity=0.5) for fusion in Fusion]
    for wanted in islice(cycle([Rules(), *rules]), REQUESTS if candidates else 0):
        item_ids, first_stage = read_candidates(read_rerank(body, settings.limits.candidates), settings.limits)
        profile = build_profile(events, index, settings.gamma)
        places = index.find(item_ids.hashes)
        ranking = rerank(index, profile.vector, places, first_stage, settings.fusion_weight, wanted)
        ranked_items(Ranked.of(index, item_ids, places, first_stage, profile, ranking), 0, explain=True)
