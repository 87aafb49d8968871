"""Rankings, profiles and personas as messages of the contract."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reranker.index import Index
from reranker.profile import Profile, VectorSource
from reranker.records import Event, Persona
from reranker.scoring import Ranking, Scores
from reranker.v1 import reranker_pb2 as pb

SOURCES = {
    VectorSource.NONE: pb.VECTOR_SOURCE_UNSPECIFIED,
    VectorSource.ASPECTS: pb.VECTOR_SOURCE_ASPECTS,
    VectorSource.ITEM: pb.VECTOR_SOURCE_ITEM,
}


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranking with what it was made from, ready to be told."""

    index: Index
    item_ids: Sequence[str]
    rows: NDArray[np.int64]
    first_stage: Scores
    profile: Profile
    ranking: Ranking


def ranked_items(ranked: Ranked, top_k: int, explain: bool) -> list[pb.RankedItem]:
    """Return the best `top_k` items (0: all), best first."""
    order = ranked.ranking.order[: top_k or None]
    return [_ranked_item(ranked, place, rank, explain) for rank, place in enumerate(order.tolist(), start=1)]


def _ranked_item(ranked: Ranked, place: int, rank: int, explain: bool) -> pb.RankedItem:
    ranking, winner = ranked.ranking, int(ranked.ranking.winners[place])
    persona = ranked.index.personas[winner] if winner >= 0 else None
    return pb.RankedItem(
        item_id=ranked.item_ids[place],
        rank=rank,
        rank_before=int(ranking.ranks_before[place]),
        score=float(ranking.scores[place]),
        persona_score=_present(ranking.persona_scores[place]),
        first_stage_score=_present(ranked.first_stage[place]),
        persona=persona_message(persona) if persona and explain else None,
        reason=_reason(ranked, place, persona),
    )


def _reason(ranked: Ranked, place: int, persona: Persona | None) -> "pb.ItemReason.ValueType":
    if persona:
        return pb.ITEM_REASON_UNSPECIFIED
    if ranked.rows[place] < 0:
        return pb.ITEM_REASON_NOT_INDEXED
    return pb.ITEM_REASON_NO_PROFILE if ranked.profile.vector is None else pb.ITEM_REASON_SUMMARY_ONLY


def _present(score: np.float32) -> float | None:
    return None if np.isnan(score) else float(score)


def persona_message(persona: Persona) -> pb.Persona:
    return pb.Persona(
        persona_id=persona.persona_id,
        name=persona.name,
        description=persona.description,
        preference_rationale=persona.preference_rationale,
        evidence=persona.evidence,
    )


def item_personas(index: Index, item_id: str) -> pb.ItemPersonas:
    row = index.item_rows.get(item_id)
    if row is None:
        return pb.ItemPersonas(item_id=item_id, found=False)
    manifest = index.manifests[row]
    return pb.ItemPersonas(
        item_id=item_id,
        found=True,
        title=manifest.title,
        summary=manifest.summary,
        generation=manifest.generation,
        personas=map(persona_message, index.personas_of(row)),
    )


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
