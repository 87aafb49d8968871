"""The first stage's order as an answer: for when nothing is to be scored. Reads neither the index nor a history."""

from collections.abc import Iterator, Sequence

import numpy as np

from reranker.scoring import Scores
from reranker.v1 import reranker_pb2 as pb


def first_stage_items(item_ids: Sequence[str], first_stage: Scores, top_k: int) -> Iterator[pb.RankedItem]:
    """Yield the best `top_k` (0: all) by first-stage score; ties and absent scores keep the order of the request."""
    order = np.argsort(-first_stage, kind="stable")[: top_k or None]
    for rank, (place, score) in enumerate(zip(order.tolist(), first_stage[order].tolist(), strict=True), start=1):
        # NaN alone differs from itself: there is no score.
        told = None if score != score else score
        yield pb.RankedItem(
            item_id=item_ids[place],
            rank=rank,
            rank_before=rank,
            score=told or 0.0,
            first_stage_score=told,
            reason=pb.ITEM_REASON_NOT_SCORED,
        )
