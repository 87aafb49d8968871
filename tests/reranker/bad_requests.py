"""Every way to break the contract of a request, under the default limits, and what the refusal must say."""

from collections.abc import Iterable
from typing import Any

import pytest

from reranker.v1 import reranker_pb2 as pb

LONG_ID = "i" * 257
LONG_ID_IN_BYTES = "é" * 129
LONG_LABEL = "v" * 65


def rerank(items: Iterable[str] = ("a", "b"), **fields: Any) -> pb.RerankRequest:
    candidates = fields.pop("candidates", [pb.Candidate(item_id=item) for item in items])
    return pb.RerankRequest(**{"user_id": "u", "candidates": candidates, **fields})


def recommend(**fields: Any) -> pb.RecommendRequest:
    return pb.RecommendRequest(**{"user_id": "u", **fields})


def history(**fields: Any) -> pb.RerankRequest:
    good = pb.HistoryEvent(item_id="a")
    return rerank(history=pb.History(events=[good, pb.HistoryEvent(**{"item_id": "b", **fields})]))


def scored(score: float) -> pb.RerankRequest:
    return rerank(candidates=[pb.Candidate(item_id="a"), pb.Candidate(item_id="b", score=score)])


def _ids(count: int) -> list[str]:
    return [f"i{number}" for number in range(count)]


_RERANK = {
    "no user": (rerank(user_id=""), ["user_id", "empty", "history"]),
    "long user": (rerank(user_id=LONG_ID), ["user_id", "257 bytes", "256"]),
    "long user beside a history": (rerank(user_id=LONG_ID, history=pb.History()), ["user_id", "257 bytes", "256"]),
    "no candidates": (rerank([]), ["candidates", "0 sent", "at least 1"]),
    "too many candidates": (rerank(_ids(1001)), ["candidates", "1001", "1000"]),
    "empty item": (rerank(["a", ""]), ["candidates[1].item_id", "empty"]),
    "long item": (rerank(["a", LONG_ID]), ["candidates[1].item_id", "iii", "257 bytes", "256"]),
    "long item in bytes": (rerank([LONG_ID_IN_BYTES]), ["candidates[0].item_id", "258 bytes", "256"]),
    "duplicate": (rerank(["a", "b", "a"]), ["candidates[2].item_id", "'a'", "candidates[0]", "once"]),
    "score NaN": (scored(float("nan")), ["candidates[1].score", "nan", "finite"]),
    "score infinite": (scored(float("inf")), ["candidates[1].score", "inf", "finite"]),
    "score minus infinite": (scored(float("-inf")), ["candidates[1].score", "-inf", "finite"]),
    "top_k": (rerank(top_k=1001), ["top_k", "1001", "1000"]),
    "too many excluded": (rerank(exclude_item_ids=_ids(1001)), ["exclude_item_ids", "1001", "1000"]),
    "empty excluded": (rerank(exclude_item_ids=["a", ""]), ["exclude_item_ids[1]", "empty"]),
    "long excluded": (rerank(exclude_item_ids=[LONG_ID]), ["exclude_item_ids[0]", "257 bytes", "256"]),
    "weight above": (rerank(fusion_weight=1.5), ["fusion_weight", "1.5", "0 to 1"]),
    "weight below": (rerank(fusion_weight=-0.5), ["fusion_weight", "-0.5", "0 to 1"]),
    "weight NaN": (rerank(fusion_weight=float("nan")), ["fusion_weight", "nan", "0 to 1"]),
    "infinite scores": (
        rerank(
            candidates=[
                pb.Candidate(item_id="a", score=float("inf")),
                pb.Candidate(item_id="b", score=float("-inf")),
            ]
        ),
        ["candidates[0].score", "inf", "finite"],
    ),
    "unknown fusion": (rerank(fusion=77), ["fusion", "77", "reranker.proto"]),
    "diversity 1": (rerank(diversity=1), ["diversity", "1.0", "0 to below 1"]),
    "diversity NaN": (rerank(diversity=float("nan")), ["diversity", "nan", "0 to below 1"]),
    "too many boosts": (rerank(boosts=[pb.Boost(item_id=i) for i in _ids(1001)]), ["boosts", "1001", "1000"]),
    "boost of nothing": (rerank(boosts=[pb.Boost(add=1)]), ["boosts[0].item_id", "empty"]),
    "boost twice": (
        rerank(boosts=[pb.Boost(item_id="a"), pb.Boost(item_id="b"), pb.Boost(item_id="a")]),
        ["boosts[2].item_id", "'a'", "boosts[0]", "one boost"],
    ),
    "boost too great": (rerank(boosts=[pb.Boost(item_id="a", add=10.5)]), ["boosts[0].add", "10.5", "-10 to 10"]),
    "boost NaN": (rerank(boosts=[pb.Boost(item_id="a", add=float("nan"))]), ["boosts[0].add", "nan"]),
    "long variant": (rerank(variant=LONG_LABEL), ["variant", "vvv", "65 bytes", "64"]),
    "too many events": (
        rerank(history=pb.History(events=[pb.HistoryEvent(item_id=item) for item in _ids(201)])),
        ["history.events", "201", "200"],
    ),
    "event without item": (history(item_id=""), ["history.events[1].item_id", "empty"]),
    "event of long item": (history(item_id=LONG_ID), ["history.events[1].item_id", "257 bytes", "256"]),
    "long kind": (history(kind=LONG_LABEL), ["history.events[1].kind", "65 bytes", "64"]),
    "long event id": (history(event_id=LONG_ID), ["history.events[1].event_id", "257 bytes", "256"]),
    "event before time": (history(event_time=-1), ["history.events[1].event_time", "-1", "epoch"]),
    "rating NaN": (history(rating=float("nan")), ["history.events[1].rating", "nan", "finite"]),
}
_RECOMMEND = {
    "no user": (recommend(user_id=""), ["user_id", "empty"]),
    "n": (recommend(n=1001), ["n:", "1001", "1000"]),
    "candidates": (recommend(candidates=1001), ["candidates", "1001", "1000"]),
    "fewer candidates than n": (recommend(n=20, candidates=19), ["candidates", "19", "n = 20"]),
    "fewer candidates than the default n": (recommend(candidates=9), ["candidates", "9", "n = 10"]),
    "empty excluded": (recommend(exclude_item_ids=[""]), ["exclude_item_ids[0]", "empty"]),
    "too many excluded": (recommend(exclude_item_ids=_ids(1001)), ["exclude_item_ids", "1001", "1000"]),
    "weight": (recommend(fusion_weight=1.25), ["fusion_weight", "1.25", "0 to 1"]),
    "long variant": (recommend(variant=LONG_LABEL), ["variant", "65 bytes", "64"]),
}

BAD_RERANKS = [pytest.param(*case, id=name) for name, case in _RERANK.items()]
BAD_RECOMMENDS = [pytest.param(*case, id=name) for name, case in _RECOMMEND.items()]

GOOD_RERANKS = [
    pytest.param(request, id=name)
    for name, request in {
        "longest ids": rerank(["i" * 256, "é" * 128], user_id="u" * 256),
        "most candidates": rerank(_ids(1000), top_k=1000, exclude_item_ids=_ids(1000)),
        "any finite score": rerank(
            candidates=[
                pb.Candidate(item_id="a", score=3.4e38),
                pb.Candidate(item_id="b", score=-3.4e38),
                pb.Candidate(item_id="c"),
            ]
        ),
        "weight 0": rerank(fusion_weight=0),
        "weight 1": rerank(fusion_weight=1),
        "every rule": rerank(
            fusion=pb.FUSION_RECIPROCAL_RANK,
            boosts=[pb.Boost(item_id="a", add=10), pb.Boost(item_id="of no candidate", add=-10)],
            diversity=0.99,
        ),
        "scores that no sum holds": rerank(
            candidates=[pb.Candidate(item_id="a", score=3e38), pb.Candidate(item_id="b", score=-3e38)]
        ),
        "longest variant": rerank(variant="v" * 64),
        "history instead of a user": rerank(user_id="", history=pb.History()),
        "most events": rerank(history=pb.History(events=[pb.HistoryEvent(item_id=item) for item in _ids(200)])),
        "fullest event": history(event_time=0, kind="k" * 64, event_id="e" * 256, rating=-1.5),
    }.items()
]
GOOD_RECOMMENDS = [
    pytest.param(request, id=name)
    for name, request in {
        "nothing but the user": recommend(),
        "all at their limits": recommend(n=1000, candidates=1000, exclude_item_ids=_ids(1000), variant="v" * 64),
        "as many candidates as asked for": recommend(n=20, candidates=20),
        "as many candidates as by default": recommend(candidates=10),
    }.items()
]
