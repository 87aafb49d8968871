"""What a request must satisfy before anything is done with it. Every error names the field, the value and the limit."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from reranker.config import Limits
from reranker.errors import InvalidRequestError
from reranker.records import Event, event_id
from reranker.scoring import Scores
from reranker.v1 import reranker_pb2 as pb

# An id or label is quoted in an error up to this many characters: enough to recognise it, too few to fill a log.
QUOTED = 80
# What Recommend returns where the request does not say.
DEFAULT_N = 10
# Of a character, at most: most ids need not be encoded to be known to be short enough.
UTF8_BYTES = 4


def check_rerank(request: pb.RerankRequest, limits: Limits) -> None:
    """Raise InvalidRequestError unless the request keeps the contract of reranker.proto."""
    if not request.HasField("history"):
        check_id("user_id", request.user_id, limits, "or send a history")
    check_history(request.history, limits)
    check_count("candidates", len(request.candidates), 1, limits.candidates)
    check_candidates(request.candidates, limits)
    check_at_most("top_k", request.top_k, limits.candidates)
    check_ids("exclude_item_ids", request.exclude_item_ids, limits)
    check_fusion_weight(request)
    check_label("variant", request.variant, limits)


def check_recommend(request: pb.RecommendRequest, limits: Limits) -> None:
    """Raise InvalidRequestError unless the request keeps the contract of reranker.proto."""
    check_id("user_id", request.user_id, limits)
    check_at_most("n", request.n, limits.candidates)
    check_at_most("candidates", request.candidates, limits.candidates)
    n = request.n or DEFAULT_N
    if 0 < request.candidates < n:
        raise InvalidRequestError(f"candidates is {request.candidates}, fewer than n = {n}: ask for n at least")
    check_ids("exclude_item_ids", request.exclude_item_ids, limits)
    check_fusion_weight(request)
    check_label("variant", request.variant, limits)


def check_candidates(candidates: Sequence[pb.Candidate], limits: Limits) -> None:
    """Raise InvalidRequestError for the first candidate that breaks the contract; good ones are passed in bulk."""
    item_ids = [candidate.item_id for candidate in candidates]
    distinct = set(item_ids)
    sound = len(distinct) == len(item_ids) and "" not in distinct
    short = max(map(len, item_ids)) * UTF8_BYTES <= limits.id_bytes
    if sound and short and math.isfinite(math.fsum(candidate.score for candidate in candidates)):
        return
    for place, candidate in enumerate(candidates):
        _check_candidate(place, candidate, item_ids, limits)


def _check_candidate(place: int, candidate: pb.Candidate, item_ids: list[str], limits: Limits) -> None:
    check_id(f"candidates[{place}].item_id", candidate.item_id, limits)
    first = item_ids.index(candidate.item_id)
    if first != place:
        raise InvalidRequestError(
            f"candidates[{place}].item_id {_quoted(candidate.item_id)} repeats candidates[{first}]: send each item once"
        )
    if not math.isfinite(candidate.score):
        raise InvalidRequestError(
            f"candidates[{place}].score is {candidate.score}: send a finite number, or leave it out"
        )


def check_history(history: pb.History, limits: Limits) -> None:
    check_at_most("history.events", len(history.events), limits.history_events)
    for place, event in enumerate(history.events):
        where = f"history.events[{place}]"
        check_id(f"{where}.item_id", event.item_id, limits)
        check_label(f"{where}.kind", event.kind, limits)
        if event.event_id:
            check_id(f"{where}.event_id", event.event_id, limits)
        if event.event_time < 0:
            raise InvalidRequestError(f"{where}.event_time is {event.event_time}: send milliseconds since the epoch")
        if not math.isfinite(event.rating):
            raise InvalidRequestError(f"{where}.rating is {event.rating}: send a finite number, or leave it out")


def check_ids(field: str, values: Sequence[str], limits: Limits) -> None:
    check_at_most(field, len(values), limits.candidates)
    for place, value in enumerate(values):
        check_id(f"{field}[{place}]", value, limits)


def check_id(field: str, value: str, limits: Limits, otherwise: str = "") -> None:
    if not value:
        raise InvalidRequestError(f"{field} is empty: it is required" + (f", {otherwise}" if otherwise else ""))
    if len(value) * UTF8_BYTES > limits.id_bytes and len(value.encode()) > limits.id_bytes:
        raise InvalidRequestError(f"{field} {_quoted(value)} has {len(value.encode())} bytes, over {limits.id_bytes}")


def check_label(field: str, value: str, limits: Limits) -> None:
    if len(value.encode()) > limits.label_bytes:
        raise InvalidRequestError(
            f"{field} {_quoted(value)} has {len(value.encode())} bytes, over {limits.label_bytes}"
        )


def check_fusion_weight(request: pb.RerankRequest | pb.RecommendRequest) -> None:
    if not 0 <= request.fusion_weight <= 1:
        raise InvalidRequestError(
            f"fusion_weight is {request.fusion_weight}: send a share from 0 to 1, or leave it out"
        )


def check_at_most(field: str, value: int, limit: int) -> None:
    if value > limit:
        raise InvalidRequestError(f"{field}: {value} is over this server's limit of {limit}")


def check_count(field: str, count: int, least: int, limit: int) -> None:
    if count < least:
        raise InvalidRequestError(f"{field}: {count} sent, at least {least} needed")
    check_at_most(field, count, limit)


def inline_events(history: pb.History, length: int) -> tuple[Event, ...]:
    """Return the newest `length` events of a checked inline history, newest first; of one event id, the last sent."""
    merged = {event.event_id: event for event in map(_event, history.events)}
    return tuple(sorted(merged.values(), key=lambda event: event.recency, reverse=True)[:length])


def first_stage_scores(candidates: Iterable[pb.Candidate]) -> Scores:
    """Return the scores as sent, NaN where absent, shape (candidates,)."""
    return np.array([c.score if c.HasField("score") else math.nan for c in candidates], np.float32)


def _event(event: pb.HistoryEvent) -> Event:
    return Event(
        event_id=event.event_id or event_id(event.item_id, event.event_time),
        item_id=event.item_id,
        event_time=event.event_time,
        kind=event.kind,
        rating=event.rating if event.HasField("rating") else None,
    )


def _quoted(value: str) -> str:
    return repr(value if len(value) <= QUOTED else value[:QUOTED] + "…")
