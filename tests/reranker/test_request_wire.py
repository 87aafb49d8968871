"""Requests read from the wire against the same requests read by protobuf's own parser."""

import math
import struct

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from reranker.config import Limits
from reranker.errors import InvalidRequestError
from reranker.reading import read_candidates, read_rerank
from reranker.v1 import reranker_pb2 as pb
from tests.reranker.bad_requests import BAD_RERANKS, rerank

Told = tuple[list[str], list[float]]

SCORES = st.floats(width=32, allow_nan=False, allow_infinity=False)
CANDIDATES = st.builds(
    lambda item_id, score: pb.Candidate(item_id=item_id, score=score),
    st.one_of(st.text("abcd", max_size=3), st.text(max_size=5), st.text("x", min_size=120, max_size=200)),
    st.none() | SCORES,
)
REQUESTS = st.builds(
    lambda candidates, excluded, top_k, weight: pb.RerankRequest(
        user_id="u", candidates=candidates, exclude_item_ids=excluded, top_k=top_k, fusion_weight=weight
    ),
    st.lists(CANDIDATES, max_size=6, unique_by=lambda candidate: candidate.item_id),
    st.lists(st.text("abcd", min_size=1, max_size=2), max_size=3),
    st.integers(0, 2**32 - 1),
    st.none() | SCORES,
)


def by_protobuf(body: bytes) -> Told | str:
    """Return the candidates, or the kind of refusal, as the contract has it."""
    try:
        request = pb.RerankRequest.FromString(body)
    except DecodeError:
        return "no message"
    told = [(c.item_id, c.score if c.HasField("score") else math.nan, c.HasField("score")) for c in request.candidates]
    ids = [item_id for item_id, _, _ in told]
    sound = ids and all(ids) and len(set(ids)) == len(ids) and max(len(i.encode()) for i in ids) <= 256
    if not sound or any(sent and not math.isfinite(score) for _, score, sent in told):
        return "refused"
    kept = [(item_id, score) for item_id, score, _ in told if item_id not in set(request.exclude_item_ids)]
    return [item_id for item_id, _ in kept], [score for _, score in kept]


def by_us(body: bytes) -> Told | str:
    try:
        sent = read_rerank(body, 1000)
        item_ids, scores = read_candidates(sent, Limits())
    except DecodeError:
        return "no message"
    except InvalidRequestError:
        return "refused"
    rest, whole = sent.request, pb.RerankRequest.FromString(body)
    rest.ClearField("candidates")
    whole.ClearField("candidates")
    assert rest == whole
    return list(item_ids), scores.tolist()


def assert_same(body: bytes) -> None:
    ours, theirs = by_us(body), by_protobuf(body)
    if isinstance(ours, str) or isinstance(theirs, str):
        assert ours == theirs
    else:
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(np.array(ours[1], np.float32), np.array(theirs[1], np.float32))


def is_read_here(body: bytes) -> bool:
    return read_rerank(body, 1000).columns is not None


@given(REQUESTS)
def test_a_request_says_what_protobuf_reads_in_it(request: pb.RerankRequest) -> None:
    assert_same(request.SerializeToString())


@given(REQUESTS, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4), st.integers(0, 400))
def test_a_damaged_request_too(request: pb.RerankRequest, blows: list[tuple[int, int]], cut: int) -> None:
    body = bytearray(request.SerializeToString())
    for place, byte in blows:
        if place < len(body):
            body[place] = byte
    assert_same(bytes(body))
    assert_same(bytes(body[:cut]))


@given(st.binary(max_size=60))
@example(b"")
@example(b"\x1a\x00")
@example(b"\x1a\x03\x0a\x01a")
@example(b"\x1a\x05\x0a\x01a\x0a\x00")
@example(b"\x1a\x06\x0a\x01a\x0a\x01b")
@example(b"\x1a\xff\xff\xff\xff\x0f\x0a\x01a")
@example(b"\x1a\x83\x80\x80\x00\x0a\x01a")
@example(b"\x1a\x83\x80\x80\x80\x00\x0a\x01a")
@example(b"\x1a\x04\x0a\x02\xff\xfe")
@example(b"\x1b\x0a\x01a\x1c")
@example(b"\x1a\x03\x0a\x01a\xa0\x06\x01")
def test_any_bytes_too(body: bytes) -> None:
    assert_same(body)


def test_what_clients_send_is_read_without_protobuf() -> None:
    request = rerank(
        candidates=[pb.Candidate(item_id=f"item{n:07d}" * 3, score=n - 50 if n % 3 else None) for n in range(100)],
        history=pb.History(events=[pb.HistoryEvent(item_id="é", rating=4.5, event_time=2**40)]),
        exclude_item_ids=["item0000003" * 3],
        boosts=[pb.Boost(item_id="é", add=1)],
        fusion=pb.FUSION_PERSONA,
        explain=False,
        fusion_weight=0.25,
        diversity=0.5,
        variant="b",
        top_k=20,
    )
    assert is_read_here(request.SerializeToString())
    assert_same(request.SerializeToString())


def test_the_score_s_bits_are_kept() -> None:
    sent = [0.0, -0.0, 1e-45, -1e-45, 3.4028234663852886e38, 1 / 3]
    body = rerank(candidates=[pb.Candidate(item_id=str(n), score=s) for n, s in enumerate(sent)]).SerializeToString()
    assert is_read_here(body)
    told = read_candidates(read_rerank(body, 1000), Limits())[1]
    assert told.tobytes() == struct.pack(f"<{len(sent)}f", *sent)


@pytest.mark.parametrize(
    "candidates",
    [
        [pb.Candidate(item_id="é")],
        [pb.Candidate(item_id="a"), pb.Candidate(item_id="a")],
        [pb.Candidate(item_id="a", score=math.inf)],
        [pb.Candidate(item_id="a", score=math.nan)],
        [pb.Candidate(item_id="a", score=float(np.uint32(0xFFC12345).view(np.float32)))],
        [pb.Candidate(score=1)],
        [],
    ],
    ids=["not ASCII", "twice", "infinite", "no number", "no other number", "no id", "none"],
)
def test_the_rest_is_protobuf_s_and_the_checks(candidates: list[pb.Candidate]) -> None:
    body = rerank(candidates=candidates).SerializeToString()
    assert not is_read_here(body)
    assert_same(body)


def test_more_candidates_than_may_be_are_left_to_be_refused() -> None:
    body = rerank(candidates=[pb.Candidate(item_id=str(n)) for n in range(5)]).SerializeToString()
    assert read_rerank(body, 5).columns is not None
    sent = read_rerank(body, 4)
    assert sent.columns is None
    with pytest.raises(InvalidRequestError, match="candidates: 5 is over"):
        read_candidates(sent, Limits(candidates=4))


@pytest.mark.parametrize(("request_", "_"), BAD_RERANKS)
def test_whatever_the_contract_refuses_is_read_alike(request_: pb.RerankRequest, _: list[str]) -> None:
    columns = read_rerank(request_.SerializeToString(), 1000).columns
    assert columns is None or list(columns.item_ids) == [candidate.item_id for candidate in request_.candidates]
