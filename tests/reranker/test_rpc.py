"""Whatever bytes arrive: an answer, or word that the request is at fault."""

import asyncio
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reranker import rpc
from reranker.config import Limits, ServerSettings
from reranker.errors import (
    HistoryStoreError,
    IndexUnavailableError,
    InvalidRequestError,
    NotServedError,
    Persona4RecError,
    UnknownUserError,
)
from reranker.histories_sqlite import SqliteHistoryStore
from reranker.records import Event
from reranker.service import RerankerService
from reranker.v1 import reranker_pb2 as pb
from tests.reranker.making import index, item, item_without_personas, vector

OK, INVALID = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT


class AbortedErrorError(Exception):
    def __init__(self, code: grpc.StatusCode, why: str) -> None:
        self.code, self.why = code, why


class Context:
    def __init__(self, left: float | None) -> None:
        self._left = left

    def time_remaining(self) -> float | None:
        return self._left

    async def abort(self, code: grpc.StatusCode, why: str) -> None:
        raise AbortedErrorError(code, why)


def call(
    service: object, method: str, body: bytes, metrics: Any = None, left: float | None = None
) -> tuple[grpc.StatusCode, bytes | str]:
    """Return the status of an RPC and what it answered, or why it did not."""
    descriptor = rpc.SERVICE.methods_by_name[method]
    parse = rpc._parser(descriptor.input_type.name, Limits())
    handle = rpc._handler(method, getattr(service, method), parse, metrics or MagicMock())
    try:
        return OK, asyncio.run(handle("r", None, body, Context(left)))  # type: ignore[arg-type]
    except AbortedErrorError as aborted:
        return aborted.code, aborted.why


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RerankerService]:
    held = index(item("a", [vector(1, 0), vector(0, 1)]), item_without_personas("b", vector(0, 1)))
    histories = SqliteHistoryStore(tmp_path_factory.mktemp("histories") / "h.sqlite")
    histories.merge({"u": [Event("e", "a", 5)]})
    live = MagicMock(current=held, stale=False)
    yield RerankerService(ServerSettings(), live, histories, None, MagicMock(), MagicMock(off=False))
    histories.close()


WORDS = st.sampled_from(["", "a", "b", "u", "x", "é", "i" * 300])
NUMBERS = st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0])
COUNTS = st.integers(0, 2**32 - 1) | st.integers(0, 3)
HISTORIES = st.builds(
    lambda events: pb.History(events=events),
    st.lists(
        st.builds(pb.HistoryEvent, item_id=WORDS, event_time=st.integers(-5, 2**63 - 1), kind=WORDS, rating=NUMBERS),
        max_size=4,
    ),
)
RERANKS = st.builds(
    pb.RerankRequest,
    user_id=WORDS,
    candidates=st.lists(st.builds(pb.Candidate, item_id=WORDS, score=st.none() | NUMBERS), max_size=4),
    top_k=COUNTS,
    exclude_item_ids=st.lists(WORDS, max_size=3),
    fusion_weight=st.none() | NUMBERS,
    history=st.none() | HISTORIES,
    explain=st.none() | st.booleans(),
    variant=WORDS,
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Draw bytes at random, sound requests, and sound requests with a few bytes changed, cut or added."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=60))
    body = bytearray(draw(RERANKS).SerializeToString())
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3)):
        body[place : place + 1] = bytes([byte])
    return bytes(body[: draw(st.none() | st.integers(0, 100))])


@settings(deadline=None, max_examples=150)
@given(bodies())
def test_no_bytes_are_the_server_s_fault(service: RerankerService, body: bytes) -> None:
    code, told = call(service, "Rerank", body)
    if code is OK:
        assert isinstance(told, bytes)
        pb.RerankResponse.FromString(told)
    else:
        assert code is INVALID, told
    code, told = call(service, "GetItemPersonas", body)
    assert code in {OK, INVALID}, told
    code, told = call(service, "Info", body)
    assert code in {OK, INVALID}, told


def test_the_words_of_a_refused_body_say_what_it_is_no(service: RerankerService) -> None:
    code, why = call(service, "Rerank", b"\xff\xff")
    assert code is INVALID
    assert "the body of 2 bytes is no RerankRequest" in str(why)


@pytest.mark.parametrize(
    ("error", "code", "why"),
    [
        (InvalidRequestError("w"), INVALID, "w"),
        (UnknownUserError("w"), grpc.StatusCode.NOT_FOUND, "w"),
        (NotServedError("w"), grpc.StatusCode.FAILED_PRECONDITION, "w"),
        (HistoryStoreError("w"), grpc.StatusCode.UNAVAILABLE, "w"),
        (IndexUnavailableError("w"), grpc.StatusCode.UNAVAILABLE, "w"),
        (Persona4RecError("w"), grpc.StatusCode.INTERNAL, "w"),
        (ZeroDivisionError("secret"), grpc.StatusCode.INTERNAL, "the server failed on request r; its log says how"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_has_its_status_and_is_counted(error: Exception, code: grpc.StatusCode, why: str) -> None:
    service, metrics = MagicMock(), MagicMock()
    service.Info.side_effect = error
    assert call(service, "Info", b"", metrics) == (code, why)
    metrics.requests.labels.assert_called_with("Info", code.name)
    assert metrics.seconds.labels().observe.call_count == 1


def test_a_request_whose_caller_has_gone_is_not_begun() -> None:
    service = MagicMock()
    assert call(service, "Rerank", b"", left=0)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.Rerank.call_count == 0


def test_too_little_time_gives_the_first_stage_order(service: RerankerService) -> None:
    request = pb.RerankRequest(user_id="u", candidates=[pb.Candidate(item_id="b"), pb.Candidate(item_id="a", score=-1)])
    for left, degraded in [(10.0, []), (0.0001, [pb.DEGRADATION_DEADLINE_SHORT])]:
        _, told = call(service, "Rerank", request.SerializeToString(), left=left)
        assert isinstance(told, bytes)
        response = pb.RerankResponse.FromString(told)
        assert list(response.degraded) == degraded
        assert response.request_id == "r"
    assert [(item.item_id, item.rank, item.rank_before, item.reason) for item in response.items] == [
        ("a", 1, 1, pb.ITEM_REASON_NOT_SCORED),
        ("b", 2, 2, pb.ITEM_REASON_NOT_SCORED),
    ]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc 1", True), ("~" * 64, True), ("", False), ("~" * 65, False), ("é", False), ("a\nb", False), (b"abc", False)],
)
def test_a_request_id_fit_for_logs_is_kept(sent: str | bytes, kept: bool) -> None:
    assert (rpc.request_id([("other", "x"), ("x-request-id", sent)]) == sent) is kept


def test_made_request_ids_are_distinct_and_fit_for_logs() -> None:
    made = [rpc.request_id([]) for _ in range(100)]
    assert len(set(made)) == 100
    assert [rpc.request_id([("x-request-id", one)]) for one in made] == made
