import pytest
from hypothesis import given
from hypothesis import strategies as st

from reranker.config import Limits
from reranker.errors import InvalidRequestError
from reranker.reading import read_candidates, read_rerank
from reranker.v1 import reranker_pb2 as pb
from reranker.validation import (
    check_count,
    check_id,
    check_ids,
    check_label,
    check_recommend,
    check_rerank,
)
from tests.reranker.bad_requests import BAD_RECOMMENDS, BAD_RERANKS, GOOD_RECOMMENDS, GOOD_RERANKS, recommend, rerank

LIMITS = Limits()
SMALL = Limits(candidates=3, history_events=2, id_bytes=8, label_bytes=4)


def check(request: pb.RerankRequest, limits: Limits) -> None:
    check_rerank(request, limits)
    read_candidates(read_rerank(request.SerializeToString(), limits.candidates), limits)


def assert_says(told: str, parts: list[str]) -> None:
    assert [part for part in parts if part not in told] == [], told
    assert len(told) < 300, "a message quotes no more of a value than it takes to recognise it"


@pytest.mark.parametrize(("request_", "says"), BAD_RERANKS)
def test_a_bad_rerank_is_refused_by_field_value_and_limit(request_: pb.RerankRequest, says: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check(request_, LIMITS)
    assert_says(str(refused.value), says)


@pytest.mark.parametrize(("request_", "says"), BAD_RECOMMENDS)
def test_a_bad_recommend_is_refused_by_field_value_and_limit(request_: pb.RecommendRequest, says: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_recommend(request_, LIMITS)
    assert_says(str(refused.value), says)


@pytest.mark.parametrize("request_", GOOD_RERANKS)
def test_a_rerank_at_the_limits_passes(request_: pb.RerankRequest) -> None:
    check(request_, LIMITS)


@pytest.mark.parametrize("request_", GOOD_RECOMMENDS)
def test_a_recommend_at_the_limits_passes(request_: pb.RecommendRequest) -> None:
    check_recommend(request_, LIMITS)


@pytest.mark.parametrize(
    "request_",
    [
        rerank("abcd"),
        rerank("a", top_k=4),
        rerank("a", user_id="123456789"),
        rerank("a", variant="12345"),
        rerank("a", history=pb.History(events=[pb.HistoryEvent(item_id="x")] * 3)),
    ],
    ids=["candidates", "top_k", "id", "label", "events"],
)
def test_the_limits_are_the_server_s_own(request_: pb.RerankRequest) -> None:
    check(request_, LIMITS)
    with pytest.raises(InvalidRequestError):
        check(request_, SMALL)


def test_recommend_keeps_the_server_s_own_limits() -> None:
    for request in (recommend(n=4), recommend(candidates=4), recommend(exclude_item_ids=list("abcd"))):
        with pytest.raises(InvalidRequestError):
            check_recommend(request, SMALL)


@given(st.text(max_size=12))
def test_an_id_is_measured_in_bytes(value: str) -> None:
    allowed = 1 <= len(value.encode()) <= SMALL.id_bytes
    if allowed:
        check_id("user_id", value, SMALL)
    else:
        with pytest.raises(InvalidRequestError, match=r"^user_id .*(empty|over 8)"):
            check_id("user_id", value, SMALL)


@given(st.text(max_size=6))
def test_a_label_is_measured_in_bytes(value: str) -> None:
    if len(value.encode()) <= SMALL.label_bytes:
        check_label("variant", value, SMALL)
    else:
        with pytest.raises(InvalidRequestError, match=r"^variant .*over 4"):
            check_label("variant", value, SMALL)


def test_counts_have_a_least_and_a_most() -> None:
    check_count("item_ids", 1, 1, 3)
    check_count("item_ids", 3, 1, 3)
    with pytest.raises(InvalidRequestError, match="item_ids: 0 sent, at least 1"):
        check_count("item_ids", 0, 1, 3)
    with pytest.raises(InvalidRequestError, match="item_ids: 4 is over this server's limit of 3"):
        check_count("item_ids", 4, 1, 3)
    with pytest.raises(InvalidRequestError, match=r"item_ids\[1\]"):
        check_ids("item_ids", ["a", ""], SMALL)


def test_a_line_break_in_an_id_does_not_break_the_message() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check(rerank(["a\nb", "a\nb"]), LIMITS)
    assert "\n" not in str(refused.value)
