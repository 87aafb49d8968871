"""Rankings, profiles and personas as messages of the contract.

A ranked list is spliced, not built: the persona messages lie serialised in the index, and protobuf lets an embedded
message be written as its field's tag, its length and its bytes (protobuf encoding, "Submessages"). Building the same
answer from message objects takes several times as long.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

_LENGTH_DELIMITED = 2


def _tag(message: type, field: str) -> bytes:
    """Return the bytes that open an embedded message (field numbers below 16 take one)."""
    number = message.DESCRIPTOR.fields_by_name[field].number  # type: ignore[attr-defined]  # every message has one
    return bytes([number << 3 | _LENGTH_DELIMITED])


_PERSONA = _tag(pb.RankedItem, "persona")
_ITEMS = _tag(pb.RerankResponse, "items")
_RANKING = _tag(pb.RecommendResponse, "ranking")


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
    return b"".join(_embedded(_ITEMS, item) for item in _ranked_items(ranked, top_k, explain))


def summary_winners(ranked: Ranked) -> int:
    """Return how many candidates were scored by their item's summary, for want of personas."""
    winners, count = ranked.ranking.winners, 0
    for number, segment in enumerate(ranked.index.segments):
        of_segment = winners[(ranked.places.segments == number) & (winners >= 0)]
        spans = segment.arrays.persona_spans
        count += int((spans[of_segment] == spans[of_segment + 1]).sum())
    return count


def recommendation(ranking: bytes, generator: str) -> bytes:
    """Return a serialised RecommendResponse around a serialised RerankResponse."""
    return _embedded(_RANKING, ranking) + pb.RecommendResponse(generator=generator).SerializeToString()


def _ranked_items(ranked: Ranked, top_k: int, explain: bool) -> Iterator[bytes]:
    ranking, order = ranked.ranking, ranked.ranking.order[: top_k or None]
    personas = _personas(ranked.index, ranked.places.segments[order], ranking.winners[order])
    # Plain numbers at once: reading an array's elements one by one costs more than all the rest.
    columns = zip(
        order.tolist(),
        ranking.ranks_before[order].tolist(),
        ranking.scores[order].tolist(),
        ranking.persona_scores[order].tolist(),
        ranked.first_stage[order].tolist(),
        ranked.places.segments[order].tolist(),
        personas,
        strict=True,
    )
    for rank, (number, rank_before, score, persona_score, first_stage, segment, persona) in enumerate(columns, start=1):
        item = pb.RankedItem(
            item_id=ranked.item_ids[number],
            rank=rank,
            rank_before=rank_before,
            score=score,
            persona_score=_present(persona_score),
            first_stage_score=_present(first_stage),
            reason=pb.ITEM_REASON_UNSPECIFIED if persona else _reason(segment, ranked.profile),
        ).SerializeToString()
        yield item + _embedded(_PERSONA, persona) if persona and explain else item


def _personas(index: Index, segments: NDArray[np.int64], winners: NDArray[np.int64]) -> list[bytes]:
    """Return the serialised persona of each winner; empty where there is none."""
    personas = [b""] * len(winners)
    for number, segment in enumerate(index.segments):
        here = np.flatnonzero((segments == number) & (winners >= 0))
        spans, blob = segment.arrays.persona_spans, segment.arrays.personas.data
        starts, ends = spans[winners[here]].tolist(), spans[winners[here] + 1].tolist()
        for place, start, end in zip(here.tolist(), starts, ends, strict=True):
            personas[place] = bytes(blob[start:end])
    return personas


def _reason(segment: int, profile: Profile) -> "pb.ItemReason.ValueType":
    if segment < 0:
        return pb.ITEM_REASON_NOT_INDEXED
    return pb.ITEM_REASON_NO_PROFILE if profile.vector is None else pb.ITEM_REASON_SUMMARY_ONLY


def _present(score: float) -> float | None:
    # NaN alone differs from itself; math.isnan is a call, and this runs for every number of every answer.
    return None if score != score else score


def _embedded(tag: bytes, message: bytes) -> bytes:
    return tag + _varint(len(message)) + message


def _varint(value: int) -> bytes:
    """Encode a length (protobuf encoding, "Base 128 Varints")."""
    if value < 0x80:
        return bytes((value,))
    return bytes((value & 0x7F | 0x80,)) + _varint(value >> 7)


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
