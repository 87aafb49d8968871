"""The items of an answer written as protobuf, compiled: RankedItem of reranker.proto, byte by byte.

An answer is mostly a copy of persona messages that lie serialised in the index; made from Python objects it costs more
than all that was computed for it. It is written from its end to its beginning, so that each length is known when its
turn comes. Field numbers come from the contract, and a test reads what is written here with protobuf's own parser.
Protobuf encoding: a field is its tag, and then a varint, or four bytes, or a length and so many bytes.
"""

import numpy as np
from numpy.typing import NDArray

from reranker.kernels import compiled
from reranker.v1 import reranker_pb2 as pb

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]

_VARINT, _LENGTH_DELIMITED, _FIXED32 = 0, 2, 5


def _tag(message: type, field: str, wire_type: int) -> int:
    """Return the byte that opens a field (field numbers below 16 take one)."""
    number: int = message.DESCRIPTOR.fields_by_name[field].number  # type: ignore[attr-defined]  # every message has one
    return number << 3 | wire_type


_RANKING = _tag(pb.RecommendResponse, "ranking", _LENGTH_DELIMITED)
_ITEMS = _tag(pb.RerankResponse, "items", _LENGTH_DELIMITED)
_ITEM_ID = _tag(pb.RankedItem, "item_id", _LENGTH_DELIMITED)
_RANK = _tag(pb.RankedItem, "rank", _VARINT)
_RANK_BEFORE = _tag(pb.RankedItem, "rank_before", _VARINT)
_SCORES = (
    _tag(pb.RankedItem, "score", _FIXED32),
    _tag(pb.RankedItem, "persona_score", _FIXED32),
    _tag(pb.RankedItem, "first_stage_score", _FIXED32),
)
_PERSONA = _tag(pb.RankedItem, "persona", _LENGTH_DELIMITED)
_REASON = _tag(pb.RankedItem, "reason", _VARINT)

# Of an item beside the bytes of its id and persona, each number at its longest: three tags and lengths (33), two ranks
# (22), three scores (15), the reason (2).
FIXED_BYTES = 72


@compiled
def put_field(out: Bytes, end: int, tag: int, value: int) -> int:
    """Write a tag and a varint so that they end before `end`; return where they begin."""
    size, rest = 1, value >> 7
    while rest:
        size, rest = size + 1, rest >> 7
    at = end - size
    for place in range(at, end):
        out[place] = value & 0x7F | (0x80 if place < end - 1 else 0)
        value >>= 7
    out[at - 1] = tag
    return at - 1


@compiled
def put_scores(out: Bytes, end: int, scores: NDArray[np.float32], bits: Bytes) -> int:
    """Write those of an item's three scores that are not NaN; bits: the same as bytes, shape (3, 4)."""
    for number in range(2, -1, -1):
        if np.isfinite(scores[number]):
            out[end - 4 : end] = bits[number]
            out[end - 5] = _SCORES[number]
            end -= 5
    return end


@compiled
def put_items(
    out: Bytes,
    ids: Bytes,
    id_ends: Numbers,
    ranks_before: Numbers,
    scores: NDArray[np.float32],
    bits: Bytes,
    reasons: Numbers,
    persona_lengths: Numbers,
    personas_at: Numbers,
) -> int:
    """Write items, best first, so that they end with `out`; return where they begin.

    ids: the item ids end to end; scores: score, persona score and first-stage score, shape (items, 3), and `bits` the
    same as bytes, shape (items, 3, 4). A reason of 0 and a persona of length 0 are left out; a persona's own bytes are
    for `put_personas` to write where `personas_at` then says.
    """
    at = len(out)
    for place in range(len(id_ends) - 1, -1, -1):
        end = at
        if reasons[place]:
            at = put_field(out, at, _REASON, reasons[place])
        if persona_lengths[place]:
            personas_at[place] = at - persona_lengths[place]
            at = put_field(out, personas_at[place], _PERSONA, persona_lengths[place])
        at = put_scores(out, at, scores[place], bits[place])
        at = put_field(out, at, _RANK_BEFORE, ranks_before[place])
        at = put_field(out, at, _RANK, place + 1)
        id_start = id_ends[place - 1] if place else 0
        id_length = id_ends[place] - id_start
        out[at - id_length : at] = ids[id_start : id_ends[place]]
        at = put_field(out, at - id_length, _ITEM_ID, id_length)
        at = put_field(out, at, _ITEMS, end - at)
    return at


@compiled
def persona_lengths(spans: Numbers, segments: Numbers, winners: Numbers, segment: int, lengths: Numbers) -> None:
    """Enter how long the persona of each winner of one segment is; 0 for a summary."""
    for place in range(len(winners)):
        if segments[place] == segment and winners[place] >= 0:
            lengths[place] = spans[winners[place] + 1] - spans[winners[place]]


@compiled
def put_personas(
    out: Bytes,
    personas: Bytes,
    spans: Numbers,
    segments: Numbers,
    winners: Numbers,
    segment: int,
    personas_at: Numbers,
) -> None:
    """Copy the personas of the winners of one segment to where they belong in `out`; nowhere for a place of -1."""
    for place in range(len(winners)):
        if segments[place] == segment and winners[place] >= 0 and personas_at[place] >= 0:
            start, end = spans[winners[place]], spans[winners[place] + 1]
            out[personas_at[place] : personas_at[place] + end - start] = personas[start:end]


def embedded_ranking(ranking: bytes) -> bytes:
    """Return a serialised RerankResponse as the field of a RecommendResponse."""
    opening = np.empty(11, np.uint8)
    return opening[put_field(opening, len(opening), _RANKING, len(ranking)) :].tobytes() + ranking
