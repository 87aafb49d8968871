"""The first stage's order without an index is the one that ranking without a profile gives."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reranker.scoring import rerank
from reranker.unscored import first_stage_items
from reranker.v1 import reranker_pb2 as pb
from tests.reranker.making import index, item, vector

HELD = index(item("a", [vector(1, 0)]))


@given(st.lists(st.floats(-2, 2, width=16) | st.just(float("nan")), min_size=1, max_size=8), st.integers(0, 9))
def test_it_is_the_order_of_a_ranking_without_a_profile(scores: list[float], top_k: int) -> None:
    first_stage = np.array(scores, np.float32)
    ids = [f"i{number}" for number in range(len(scores))]
    reference = rerank(HELD, None, HELD.locate(ids), first_stage, 0.5)
    items = list(first_stage_items(ids, first_stage, top_k))
    assert [item.item_id for item in items] == [ids[place] for place in reference.order[: top_k or None]]
    assert [item.rank_before for item in items] == reference.ranks_before[reference.order[: top_k or None]].tolist()
    assert [item.score for item in items] == reference.scores[reference.order[: top_k or None]].tolist()
    assert {item.reason for item in items} == {pb.ITEM_REASON_NOT_SCORED}
    assert {item.item_id for item in items if item.HasField("first_stage_score")} <= {
        item_id for item_id, score in zip(ids, scores, strict=True) if score == score
    }
