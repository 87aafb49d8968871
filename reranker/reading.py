"""What a request says, as the events and arrays that ranking works on.

A message inside a message is made as a Python object whenever it is reached for, which costs more than to score it:
candidates are gone through once.
"""

import math
from collections.abc import Sequence

import numpy as np

from reranker.config import Limits
from reranker.records import Event, event_id
from reranker.scoring import Fusion, Rules, Scores
from reranker.v1 import reranker_pb2 as pb
from reranker.validation import Ranking, check_candidates

# FUSION_FIRST_STAGE is not among them: such a request is not scored.
_FUSIONS = {
    pb.FUSION_UNSPECIFIED: Fusion.BLEND,
    pb.FUSION_BLEND: Fusion.BLEND,
    pb.FUSION_RECIPROCAL_RANK: Fusion.RECIPROCAL_RANK,
    pb.FUSION_PERSONA: Fusion.PERSONA,
}


def read_candidates(request: pb.RerankRequest, limits: Limits) -> tuple[list[str], Scores]:
    """Return the items that are not excluded and their first-stage scores, NaN where absent.

    Raises InvalidRequestError for a candidate that breaks the contract, excluded or not.
    """
    candidates = list(request.candidates)
    item_ids = [candidate.item_id for candidate in candidates]
    scores = np.array([candidate.score for candidate in candidates], np.float32)
    check_candidates(candidates, item_ids, scores, limits)
    # An absent score reads as 0.
    for place in np.flatnonzero(scores == 0).tolist():
        if not candidates[place].HasField("score"):
            scores[place] = math.nan
    if not request.exclude_item_ids:
        return item_ids, scores
    excluded = frozenset(request.exclude_item_ids)
    kept = [place for place, item_id in enumerate(item_ids) if item_id not in excluded]
    return [item_ids[place] for place in kept], scores[kept]


def read_rules(request: Ranking, item_ids: Sequence[str], depth: int) -> Rules:
    """Return how the request wants these items ordered; depth: how many of them it wants, 0 for all."""
    return Rules(
        fusion=_FUSIONS.get(request.fusion, Fusion.BLEND),
        boosts=_boosts(request, item_ids) if request.boosts else None,
        diversity=request.diversity,
        depth=depth,
    )


def _boosts(request: Ranking, item_ids: Sequence[str]) -> Scores:
    adds = {boost.item_id: boost.add for boost in request.boosts}
    return np.array([adds.get(item_id, 0.0) for item_id in item_ids], np.float32)


def inline_events(history: pb.History, length: int) -> tuple[Event, ...]:
    """Return the newest `length` events of a checked inline history, newest first; of one event id, the last sent."""
    merged = {event.event_id: event for event in map(_event, history.events)}
    return tuple(sorted(merged.values(), key=lambda event: event.recency, reverse=True)[:length])


def _event(event: pb.HistoryEvent) -> Event:
    return Event(
        event_id=event.event_id or event_id(event.item_id, event.event_time),
        item_id=event.item_id,
        event_time=event.event_time,
        kind=event.kind,
        rating=event.rating if event.HasField("rating") else None,
    )
