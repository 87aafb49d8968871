"""What a request must satisfy before anything is done with it. Every error names the field, the value and the limit."""

import math
from collections.abc import Sequence

import numpy as np

from reranker.config import Limits
from reranker.errors import InvalidRequestError
from reranker.item_ids import ItemIds
from reranker.scoring import Scores
from reranker.v1 import reranker_pb2 as pb

# An id or label is quoted in an error up to this many characters: enough to recognise it, too few to fill a log.
QUOTED = 80
# What Recommend returns where the request does not say.
DEFAULT_N = 10
# Standard deviations of the request's scores: four put an item above or below all others, more is only larger.
MOST_BOOST = 10
FUSIONS = frozenset(pb.Fusion.values())
# Of a character, at most: most ids need not be encoded to be known to be short enough.
UTF8_BYTES = 4

Ranking = pb.RerankRequest | pb.RecommendRequest
"""A request for a ranked list."""


def check_rerank(request: pb.RerankRequest, limits: Limits) -> None:
    """Raise InvalidRequestError unless the request keeps the contract of reranker.proto, its candidates apart."""
    if request.HasField("history"):
        check_history(request.history, limits)
    if request.user_id or not request.HasField("history"):
        check_id("user_id", request.user_id, limits, "or send a history")
    check_at_most("top_k", request.top_k, limits.candidates)
    check_ids("exclude_item_ids", request.exclude_item_ids, limits)
    check_rules(request, limits)
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
    check_rules(request, limits)
    check_label("variant", request.variant, limits)


def check_candidates(candidates: Sequence[pb.Candidate], item_ids: list[str], scores: Scores, limits: Limits) -> None:
    """Raise InvalidRequestError for the first candidate that breaks the contract; good ones are passed in bulk.

    item_ids, scores: those of the candidates, which are read only where something is wrong.
    """
    distinct = set(item_ids)
    sound = len(distinct) == len(item_ids) and "" not in distinct
    short = max(map(len, item_ids)) * UTF8_BYTES <= limits.id_bytes
    if sound and short and np.isfinite(scores).all():
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


def check_lengths(field: str, item_ids: ItemIds, limits: Limits) -> None:
    """Raise InvalidRequestError for the first id that is too long."""
    for place in np.flatnonzero(item_ids.ends - item_ids.starts > limits.id_bytes).tolist():
        check_id(f"{field}[{place}].item_id", item_ids[place], limits)


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


def check_rules(request: Ranking, limits: Limits) -> None:
    """Raise InvalidRequestError for a fusion, boost or diversity that the contract does not know."""
    if not 0 <= request.fusion_weight <= 1:
        raise InvalidRequestError(
            f"fusion_weight is {request.fusion_weight}: send a share from 0 to 1, or leave it out"
        )
    if request.fusion not in FUSIONS:
        raise InvalidRequestError(f"fusion is {request.fusion}, which this server does not know: see reranker.proto")
    if not 0 <= request.diversity < 1:
        raise InvalidRequestError(f"diversity is {request.diversity}: send a share from 0 to below 1, or leave it out")
    if request.boosts:
        _check_boosts(request.boosts, limits)


def _check_boosts(boosts: Sequence[pb.Boost], limits: Limits) -> None:
    check_at_most("boosts", len(boosts), limits.candidates)
    first: dict[str, int] = {}
    for place, boost in enumerate(boosts):
        check_id(f"boosts[{place}].item_id", boost.item_id, limits)
        if first.setdefault(boost.item_id, place) != place:
            raise InvalidRequestError(
                f"boosts[{place}].item_id {_quoted(boost.item_id)} repeats boosts[{first[boost.item_id]}]: "
                "send one boost an item"
            )
        if not -MOST_BOOST <= boost.add <= MOST_BOOST:
            raise InvalidRequestError(f"boosts[{place}].add is {boost.add}: send -{MOST_BOOST} to {MOST_BOOST}")


def check_at_most(field: str, value: int, limit: int) -> None:
    if value > limit:
        raise InvalidRequestError(f"{field}: {value} is over this server's limit of {limit}")


def check_count(field: str, count: int, least: int, limit: int) -> None:
    if count < least:
        raise InvalidRequestError(f"{field}: {count} sent, at least {least} needed")
    check_at_most(field, count, limit)


def _quoted(value: str) -> str:
    return repr(value if len(value) <= QUOTED else value[:QUOTED] + "…")
