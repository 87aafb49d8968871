"""Rankings, profiles and personas as messages of the contract.

A ranked list is spliced, not built: the persona messages lie serialised in the index (`reranker.reply_wire`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from reranker import reply_wire
from reranker.index import Index, Places
from reranker.item_ids import ItemIds
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
    item_ids: ItemIds
    places: Places
    first_stage: Scores
    profile: Profile
    ranking: Ranking
    persona_lengths: reply_wire.Numbers
    """Bytes of each candidate's winning persona, 0 where none was used, shape (candidates,)."""
    held: int
    """How many candidates the index holds."""
    scored: int
    """How many of them were scored."""
    by_summary: int
    """How many of them by their item's summary, for want of personas."""

    @classmethod
    def of(
        cls, index: Index, item_ids: ItemIds, places: Places, first_stage: Scores, profile: Profile, ranking: Ranking
    ) -> Self:
        lengths, held, scored, by_summary = np.zeros(len(item_ids), np.int64), 0, 0, 0
        for number, segment in enumerate(index.segments):
            spans = segment.arrays.persona_spans
            counts = reply_wire.measure_personas(spans, places.segments, ranking.winners, number, lengths)
            held, scored, by_summary = held + counts[0], scored + counts[1], by_summary + counts[2]
        return cls(index, item_ids, places, first_stage, profile, ranking, lengths, held, scored, by_summary)


def ranked_items(ranked: Ranked, top_k: int, explain: bool) -> bytes:
    """Return the `items` of a serialised RerankResponse: the best `top_k` (0: all), best first."""
    ranking, ids, segments, lengths = ranked.ranking, ranked.item_ids, ranked.places.segments, ranked.persona_lengths
    order = ranking.order[: top_k or None]
    out = np.empty(reply_wire.reply_size(order, ids.starts, ids.ends, lengths, explain), np.uint8)
    personas_at = np.empty(len(ids), np.int64)
    start = reply_wire.put_items(
        out,
        order,
        ids.text,
        ids.starts,
        ids.ends,
        ranking.ranks_before,
        ranking.scores,
        ranking.persona_scores,
        ranked.first_stage,
        segments,
        lengths,
        ranked.profile.vector is not None,
        explain,
        personas_at,
    )
    for number, segment in enumerate(ranked.index.segments):
        told = (segment.arrays.personas, segment.arrays.persona_spans)
        reply_wire.put_personas(out, order, *told, segments, ranking.winners, number, personas_at)
    return out[start:].tobytes()


def recommendation(ranking: bytes, generator: str) -> bytes:
    """Return a serialised RecommendResponse around a serialised RerankResponse."""
    return reply_wire.embedded_ranking(ranking) + pb.RecommendResponse(generator=generator).SerializeToString()


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
