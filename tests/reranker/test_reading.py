import math

import numpy as np

from reranker.config import Limits
from reranker.reading import inline_events, read_candidates, read_rerank, read_rules
from reranker.scoring import Fusion, Scores
from reranker.v1 import reranker_pb2 as pb
from tests.reranker.bad_requests import rerank

LIMITS = Limits()


def read(request: pb.RerankRequest) -> tuple[list[str], Scores]:
    item_ids, scores = read_candidates(read_rerank(request.SerializeToString(), LIMITS.candidates), LIMITS)
    return list(item_ids), scores


def test_an_inline_history_is_read_newest_first() -> None:
    sent = pb.History(
        events=[
            pb.HistoryEvent(item_id="old", event_time=1),
            pb.HistoryEvent(item_id="undated"),
            pb.HistoryEvent(item_id="new", event_time=3, kind="view", rating=4, event_id="e"),
            pb.HistoryEvent(item_id="middle", event_time=2),
        ]
    )
    events = inline_events(sent, 10)
    assert [event.item_id for event in events] == ["new", "middle", "old", "undated"]
    assert (events[0].event_id, events[0].kind, events[0].rating) == ("e", "view", 4)
    assert (events[1].event_id, events[1].rating) == ("middle@2", None)
    assert [event.item_id for event in inline_events(sent, 2)] == ["new", "middle"]


def test_of_one_event_id_an_inline_history_holds_the_last_sent() -> None:
    events = [pb.HistoryEvent(item_id=item, event_time=5, event_id="e") for item in ("first", "last")]
    assert [event.item_id for event in inline_events(pb.History(events=events), 10)] == ["last"]
    again = [pb.HistoryEvent(item_id="same", event_time=5)] * 2
    assert len(inline_events(pb.History(events=again), 10)) == 1


def test_an_absent_first_stage_score_is_nan_and_zero_is_zero() -> None:
    sent = [pb.Candidate(item_id="a"), pb.Candidate(item_id="b", score=0), pb.Candidate(item_id="c", score=-1.5)]
    item_ids, scores = read(rerank(candidates=sent))
    assert item_ids == ["a", "b", "c"]
    np.testing.assert_array_equal(scores, np.array([math.nan, 0, -1.5], np.float32))


def test_excluded_candidates_are_left_out_with_their_scores() -> None:
    sent = [pb.Candidate(item_id=item_id, score=score) for score, item_id in enumerate("abcd", start=1)]
    item_ids, scores = read(rerank(candidates=sent, exclude_item_ids=["b", "d", "unheard-of"]))
    assert (item_ids, scores.tolist()) == (["a", "c"], [1, 3])
    nothing, none = read(rerank(candidates=sent, exclude_item_ids=list("abcd")))
    assert (nothing, none.shape) == ([], (0,))


def test_a_request_without_rules_is_blended() -> None:
    rules = read_rules(rerank(), ["a", "b"], 0)
    assert (rules.fusion, rules.boosts, rules.diversity) == (Fusion.BLEND, None, 0)


def test_rules_are_those_of_the_request() -> None:
    boosts = [pb.Boost(item_id="b", add=1.5), pb.Boost(item_id="of no candidate", add=9)]
    request = rerank(fusion=pb.FUSION_RECIPROCAL_RANK, boosts=boosts, diversity=0.5)
    rules = read_rules(request, ["a", "b"], 20)
    assert (rules.fusion, rules.diversity, rules.depth) == (Fusion.RECIPROCAL_RANK, 0.5, 20)
    assert rules.boosts is not None
    assert rules.boosts.tolist() == [0, 1.5]
