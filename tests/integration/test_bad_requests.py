"""What the server says to requests that break the contract, over the wire."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from reranker.v1 import reranker_pb2 as pb
from reranker.v1 import reranker_pb2_grpc as pb_grpc
from tests.integration.processes import Server
from tests.reranker.bad_requests import BAD_RECOMMENDS, BAD_RERANKS, GOOD_RECOMMENDS, GOOD_RERANKS, LONG_ID, rerank

pytestmark = pytest.mark.integration

TIMEOUT = 30.0

BAD_OTHERS = [
    pytest.param(name, request, says, id=f"{name}-{says[-1]}")
    for name, request, says in [
        ("GetItemPersonas", pb.GetItemPersonasRequest(), ["item_ids", "0 sent", "at least 1"]),
        ("GetItemPersonas", pb.GetItemPersonasRequest(item_ids=["a"] * 1001), ["item_ids", "1001", "1000"]),
        ("GetItemPersonas", pb.GetItemPersonasRequest(item_ids=["a", ""]), ["item_ids[1]", "empty"]),
        ("GetItemPersonas", pb.GetItemPersonasRequest(item_ids=[LONG_ID]), ["item_ids[0]", "257 bytes", "256"]),
        ("GetUserProfile", pb.GetUserProfileRequest(), ["user_id", "empty"]),
        ("GetUserProfile", pb.GetUserProfileRequest(user_id=LONG_ID), ["user_id", "257 bytes", "256"]),
    ]
]


def refused(call: Callable[..., Any], request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=TIMEOUT)
    assert isinstance(error.value, grpc.Call)
    return error.value.code(), error.value.details() or ""


def assert_invalid(call: Callable[..., Any], request: Any, says: list[str]) -> None:
    code, told = refused(call, request)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert [part for part in says if part not in told] == [], told


@pytest.mark.parametrize(("request_", "says"), BAD_RERANKS)
def test_rerank_names_field_value_and_limit(
    stub: pb_grpc.RerankerStub, request_: pb.RerankRequest, says: list[str]
) -> None:
    assert_invalid(stub.Rerank, request_, says)


@pytest.mark.parametrize(("request_", "says"), BAD_RECOMMENDS)
def test_recommend_names_field_value_and_limit(
    stub: pb_grpc.RerankerStub, request_: pb.RecommendRequest, says: list[str]
) -> None:
    assert_invalid(stub.Recommend, request_, says)


@pytest.mark.parametrize(("rpc", "request_", "says"), BAD_OTHERS)
def test_the_other_rpcs_name_field_value_and_limit(
    stub: pb_grpc.RerankerStub, rpc: str, request_: Any, says: list[str]
) -> None:
    assert_invalid(getattr(stub, rpc), request_, says)


@pytest.mark.parametrize("request_", GOOD_RERANKS)
def test_a_rerank_at_the_limits_is_answered(stub: pb_grpc.RerankerStub, request_: pb.RerankRequest) -> None:
    response = stub.Rerank(request_, timeout=TIMEOUT)
    excluded = set(request_.exclude_item_ids)
    wanted = sorted(c.item_id for c in request_.candidates if c.item_id not in excluded)
    assert sorted(item.item_id for item in response.items) == wanted
    assert response.variant == request_.variant


@pytest.mark.parametrize("request_", GOOD_RECOMMENDS)
def test_a_recommend_at_the_limits_is_answered(stub: pb_grpc.RerankerStub, request_: pb.RecommendRequest) -> None:
    assert len(stub.Recommend(request_, timeout=TIMEOUT).ranking.items) >= 10


def test_a_message_over_the_limit_is_refused_and_the_next_one_answered(stub: pb_grpc.RerankerStub) -> None:
    code, told = refused(stub.Rerank, rerank(variant="v" * (1 << 20)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(1 << 20) in told
    assert len(stub.Rerank(rerank(), timeout=TIMEOUT).items) == 2


def test_what_is_no_message_is_refused_and_the_next_one_answered(server: Server, stub: pb_grpc.RerankerStub) -> None:
    with grpc.insecure_channel(server.address) as channel:
        rerank_bytes: Any = channel.unary_unary("/reranker.v1.Reranker/Rerank")
        code, told = refused(rerank_bytes, b"\xff no protobuf message")
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "the body of 21 bytes is no RerankRequest" in told
        rank_bytes: Any = channel.unary_unary("/reranker.v1.Reranker/Rank")
        assert refused(rank_bytes, b"")[0] == grpc.StatusCode.UNIMPLEMENTED
    assert len(stub.Rerank(rerank(), timeout=TIMEOUT).items) == 2


@pytest.mark.parametrize("item_id", ['"; drop', "\\", "a\nb", "😀", "' or 1==1", "\x00"])
def test_any_text_is_an_id(stub: pb_grpc.RerankerStub, item_id: str) -> None:
    response = stub.Rerank(rerank([item_id], user_id=item_id, exclude_item_ids=[item_id * 2]), timeout=TIMEOUT)
    assert [item.item_id for item in response.items] == [item_id]
    code, told = refused(stub.Rerank, rerank([item_id, item_id]))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "candidates[1].item_id" in told
