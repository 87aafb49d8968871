"""Spliced answers against the same answers built with message objects."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.index import Index, open_index
from reranker.item_ids import ItemIds
from reranker.profile import build_profile
from reranker.records import IndexRow, Manifest, Persona
from reranker.replies import Ranked, ranked_items, recommendation
from reranker.scoring import rerank
from reranker.segment import IndexedItem, build_segment
from reranker.v1 import reranker_pb2 as pb
from tests.reranker.making import SPACE, event, item_without_personas, vector

VECTORS = [vector(1, 0), vector(0, 1), vector(0.6, 0.8), vector(-1, 0)]
# The length of a message takes one byte up to 127, two up to 16,383, then three.
LENGTHS = [0, 1, 60, 100, 127, 128, 129, 200, 16_300, 16_383, 16_384, 16_500, 70_000]


def lengthy(item_id: str, length: int, count: int) -> IndexedItem:
    owners = [Persona(f"{item_id}:{n}", f"p{n}", "d" * length, "é" * (length // 3), ("r1", "r2")) for n in range(count)]
    rows = tuple(IndexRow(p.persona_id, item_id, VECTORS[n % 4], p) for n, p in enumerate(owners))
    return IndexedItem(Manifest(item_id, 1, tuple(r.row_id for r in rows), "", "", VECTORS[0], ""), rows)


def ranked(index: Index, item_ids: list[str], scores: list[float], user: list[str], weight: float = 0.5) -> Ranked:
    places, first = index.locate(item_ids), np.array(scores, np.float32)
    profile = build_profile([event(item_id) for item_id in user], index, 0.9)
    ranking = rerank(index, profile.vector, places, first, weight)
    return Ranked.of(index, ItemIds.of(item_ids), places, first, profile, ranking)


def built(ranked: Ranked, top_k: int, explain: bool) -> pb.RerankResponse:
    """Build the answer with objects, number by number as the contract words it."""
    response, ranking = pb.RerankResponse(), ranked.ranking
    for rank, number in enumerate(ranking.order.tolist()[: top_k or None], start=1):
        item = response.items.add(item_id=ranked.item_ids[number], rank=rank)
        item.rank_before, item.score = int(ranking.ranks_before[number]), float(ranking.scores[number])
        if not np.isnan(ranking.persona_scores[number]):
            item.persona_score = float(ranking.persona_scores[number])
        if not np.isnan(ranked.first_stage[number]):
            item.first_stage_score = float(ranked.first_stage[number])
        winner = int(ranking.winners[number])
        persona = ranked.index.segments[ranked.places.segments[number]].persona(winner) if winner >= 0 else b""
        if persona and explain:
            item.persona.CopyFrom(pb.Persona.FromString(persona))
        if not ranked.places.held[number]:
            item.reason = pb.ITEM_REASON_NOT_INDEXED
        elif ranked.profile.vector is None:
            item.reason = pb.ITEM_REASON_NO_PROFILE
        elif not persona:
            item.reason = pb.ITEM_REASON_SUMMARY_ONLY
    return response


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("explain", [True, False])
def test_lengths_of_one_byte_and_of_more(length: int, explain: bool) -> None:
    index = open_index("v", [build_segment(SPACE, 2, [lengthy("a", length, 3), lengthy("b", length + 1, 1)])])
    answer = ranked(index, ["b", "a" * 1, "x" * 200], [1.0, 2.0, np.nan], ["a"])
    expected = built(answer, 0, explain)
    assert pb.RerankResponse.FromString(ranked_items(answer, 0, explain)) == expected
    whole = pb.RecommendResponse.FromString(recommendation(ranked_items(answer, 0, explain), "als"))
    assert whole == pb.RecommendResponse(ranking=expected, generator="als")


ANSWERS = st.lists(
    st.tuples(st.integers(0, 11), st.one_of(st.just(float("nan")), st.integers(-3, 3).map(float))),
    unique_by=lambda pair: pair[0],
    max_size=12,
)


@given(ANSWERS, st.sampled_from([[], ["i0"], ["unknown"]]), st.integers(0, 13), st.booleans(), st.sampled_from(LENGTHS))
def test_a_spliced_answer_is_the_one_built_with_objects(
    pairs: list[tuple[int, float]], user: list[str], top_k: int, explain: bool, length: int
) -> None:
    # Ten items in two segments, every third of them with a summary alone; i10 and i11 are not indexed.
    items = [
        lengthy(f"i{n}", length, 1 + n % 3) if n % 3 else item_without_personas(f"i{n}", VECTORS[n % 4])
        for n in range(10)
    ]
    index = open_index("v", [build_segment(SPACE, 2, items[:4]), build_segment(SPACE, 2, items[4:])])
    answer = ranked(index, [f"i{number}" for number, _ in pairs], [score for _, score in pairs], user)
    expected = built(answer, top_k, explain)
    assert pb.RerankResponse.FromString(ranked_items(answer, top_k, explain)) == expected
    everyone = built(answer, 0, explain)
    assert answer.by_summary == sum(item.reason == pb.ITEM_REASON_SUMMARY_ONLY for item in everyone.items)
