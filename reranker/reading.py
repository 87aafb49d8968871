"""What a request says, as the events and arrays that ranking works on.

Candidates are read from the body itself where they are as clients write them (`reranker.request_wire`). Where they are
not, protobuf parses them: then each is a Python object whenever it is reached for, so they are gone through once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reranker import request_wire
from reranker.config import Limits
from reranker.item_ids import ItemIds, hash_ids
from reranker.records import Event, event_id
from reranker.scoring import Fusion, Rules, Scores
from reranker.v1 import reranker_pb2 as pb
from reranker.validation import Ranking, check_at_most, check_candidates, check_count, check_lengths

# FUSION_FIRST_STAGE is not among them: such a request is not scored.
_FUSIONS = {
    pb.FUSION_UNSPECIFIED: Fusion.BLEND,
    pb.FUSION_BLEND: Fusion.BLEND,
    pb.FUSION_RECIPROCAL_RANK: Fusion.RECIPROCAL_RANK,
    pb.FUSION_PERSONA: Fusion.PERSONA,
}


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Candidates read from a body."""

    item_ids: ItemIds
    """Distinct."""
    scores: Scores
    """NaN where absent."""
    longest: int
    """Bytes of the longest id."""


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """A RerankRequest as it came."""

    request: pb.RerankRequest
    """Without its candidates where they could be read apart from it."""
    columns: Columns | None
    """Those candidates; None if they are still in the request."""


def read_rerank(body: bytes, most: int) -> Sent:
    """Return the request that a body says. Raises DecodeError if it says none.

    most: candidates of a request; where there are more, they are left in it to be refused.
    """
    room = len(body) // request_wire.LEAST_BYTES
    edges, hashes, bits = np.empty((2, room), np.int64), np.empty(room, np.uint64), np.empty(room, np.uint32)
    text, rest = np.frombuffer(body, np.uint8), np.empty(len(body), np.uint8)
    count, longest, kept = request_wire.read_candidates(text, edges[0], edges[1], hashes, bits, rest, most)
    if not count:
        return Sent(pb.RerankRequest.FromString(body), None)
    item_ids = ItemIds(text, edges[0, :count], edges[1, :count], hashes[:count])
    columns = Columns(item_ids, bits[:count].view(np.float32), longest)
    return Sent(pb.RerankRequest.FromString(rest[:kept].tobytes()), columns)


def read_candidates(sent: Sent, limits: Limits) -> tuple[ItemIds, Scores]:
    """Return the items that are not excluded and their first-stage scores, NaN where absent.

    Raises InvalidRequestError for a candidate that breaks the contract, excluded or not.
    """
    if sent.columns is None:
        item_ids, scores = _parsed_candidates(sent.request, limits)
    else:
        item_ids, scores = sent.columns.item_ids, sent.columns.scores
        check_at_most("candidates", len(item_ids), limits.candidates)
        if sent.columns.longest > limits.id_bytes:
            check_lengths("candidates", item_ids, limits)
    if not sent.request.exclude_item_ids:
        return item_ids, scores
    excluded = hash_ids(sent.request.exclude_item_ids, len(sent.request.exclude_item_ids))
    kept = ~np.isin(item_ids.hashes, excluded)
    return item_ids[kept], scores[kept]


def _parsed_candidates(request: pb.RerankRequest, limits: Limits) -> tuple[ItemIds, Scores]:
    check_count("candidates", len(request.candidates), 1, limits.candidates)
    candidates = list(request.candidates)
    item_ids = [candidate.item_id for candidate in candidates]
    scores = np.array([candidate.score for candidate in candidates], np.float32)
    check_candidates(candidates, item_ids, scores, limits)
    # An absent score reads as 0.
    for place in np.flatnonzero(scores == 0).tolist():
        if not candidates[place].HasField("score"):
            scores[place] = math.nan
    return ItemIds.of(item_ids), scores


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
