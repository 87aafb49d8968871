"""Rankings, profiles and personas as messages of the contract.

A ranked list is spliced, not built: the persona messages lie serialised in the index (`reranker.wire`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from reranker import wire
from reranker.index import Index, Places
from reranker.profile import Profile, VectorSource
from reranker.records import Event
from reranker.scoring import Ranking, Scores
from reranker.v1 import reranker_pb2 as pb

SOURCES = {
    VectorSource.NONE: pb.VECTOR_SOURCE_UNSPECIFIED,
    VectorSource.ASPECTS: pb.VECTOR_SOURCE_ASPECTS,
    VectorSource.ITEM: pb.VECTOR_SOURCE_ITEM,
}


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """A ranking with what it was made from, ready to be told."""

    index: Index
    item_ids: Sequence[str]
    places: Places
    first_stage: Scores
    profile: Profile
    ranking: Ranking


def ranked_items(ranked: Ranked, top_k: int, explain: bool) -> bytes:
    """Return the `items` of a serialised RerankResponse: the best `top_k` (0: all), best first."""
    ranking, segments = ranked.ranking, ranked.index.segments
    order = ranking.order[: top_k or None]
    of_segment, winners = ranked.places.segments[order], ranking.winners[order]
    ids = [ranked.item_ids[number].encode() for number in order.tolist()]
    scores = np.stack((ranking.scores[order], ranking.persona_scores[order], ranked.first_stage[order]), axis=1)
    lengths = _persona_lengths(ranked, of_segment, winners)
    reasons = _reasons(of_segment, lengths, ranked.profile)
    told = lengths if explain else np.zeros_like(lengths)
    out = np.empty(wire.FIXED_BYTES * len(order) + sum(map(len, ids)) + int(told.sum()), np.uint8)
    places = np.full(len(order), -1, np.int64)
    start = wire.put_items(
        out,
        np.frombuffer(b"".join(ids), np.uint8),
        np.fromiter(accumulate(map(len, ids)), np.int64, len(ids)),
        ranking.ranks_before[order],
        scores,
        scores.view(np.uint8).reshape(len(order), 3, 4),
        reasons,
        told,
        places,
    )
    for number, segment in enumerate(segments):
        arrays = segment.arrays
        wire.put_personas(out, arrays.personas, arrays.persona_spans, of_segment, winners, number, places)
    return out[start:].tobytes()


def summary_winners(ranked: Ranked) -> int:
    """Return how many candidates were scored by their item's summary, for want of personas."""
    winners = ranked.ranking.winners
    return int(((winners >= 0) & (_persona_lengths(ranked, ranked.places.segments, winners) == 0)).sum())


def recommendation(ranking: bytes, generator: str) -> bytes:
    """Return a serialised RecommendResponse around a serialised RerankResponse."""
    return wire.embedded_ranking(ranking) + pb.RecommendResponse(generator=generator).SerializeToString()


def _persona_lengths(ranked: Ranked, of_segment: wire.Numbers, winners: wire.Numbers) -> wire.Numbers:
    lengths = np.zeros(len(winners), np.int64)
    for number, segment in enumerate(ranked.index.segments):
        wire.persona_lengths(segment.arrays.persona_spans, of_segment, winners, number, lengths)
    return lengths


def _reasons(of_segment: wire.Numbers, persona_lengths: wire.Numbers, profile: Profile) -> wire.Numbers:
    """Return why an item was ranked without a persona; 0 where it was not."""
    otherwise = pb.ITEM_REASON_NO_PROFILE if profile.vector is None else pb.ITEM_REASON_SUMMARY_ONLY
    without = np.where(of_segment < 0, pb.ITEM_REASON_NOT_INDEXED, otherwise)
    return np.where(persona_lengths > 0, pb.ITEM_REASON_UNSPECIFIED, without)


def profile_events(events: Sequence[Event], profile: Profile) -> list[pb.ProfileEvent]:
    shares = zip(events, profile.weights.tolist(), profile.sources, strict=True)
    return [
        pb.ProfileEvent(event=_history_event(event), weight=weight, source=SOURCES[source])
        for event, weight, source in shares
    ]


def _history_event(event: Event) -> pb.HistoryEvent:
    return pb.HistoryEvent(
        item_id=event.item_id,
        event_time=event.event_time,
        kind=event.kind,
        rating=event.rating,
        event_id=event.event_id,
    )
